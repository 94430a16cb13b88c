//! The webhooks as OpenAPI 3.1, written from the types that are sent.

use super::WEBHOOK_TIMEOUT;
use super::{
    FOLDER, ID_HEADER, RETRIES, SIGNATURE_HEADER, SOURCE, SOURCE_HEADER, TIMESTAMP_HEADER,
    body::{Complete, Failed, InProgress, Kind},
};
use crate::webhook::progress::MILESTONES;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

const ABOUT: &str = "What Easel tells the backend of a generation task. Each is sent to the task's `webhook_url`, at the path under \
    `x-path`. What was told may be told again, with the same `webhook-id`: act on an id once.";
const UNWANTED: &str = "The picture is not wanted. Progress: painting stops. Complete and failed: the last word.";
const AGAIN: &str = "The same whenever the same is told again.";

/// What `handler schema webhooks` prints.
///
/// ```
/// let openapi = handler::webhook::openapi();
/// assert!(openapi["webhooks"]["progress"]["patch"].is_object());
/// ```
pub fn openapi() -> Value {
    let mut settings = SchemaSettings::draft2020_12().for_serialize();
    settings.definitions_path = "/components/schemas".into();
    let mut generator = settings.into_generator();
    let webhooks: Map<String, Value> = Kind::ALL
        .into_iter()
        .map(|kind| {
            let body = body(kind, &mut generator);
            (kind.path().to_string(), json!({ kind.method().as_str().to_lowercase(): operation(kind, &body) }))
        })
        .collect();
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Webhooks of Easel", "version": env!("CARGO_PKG_VERSION"), "description": ABOUT },
        "webhooks": webhooks,
        "components": {
            "schemas": generator.take_definitions(true),
            "parameters": parameters(),
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "description": "INTERNAL_API_TOKEN of both sides." },
            },
        },
        "security": [{ "token": [] }],
    })
}

fn body(kind: Kind, generator: &mut SchemaGenerator) -> Value {
    fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
        generator.subschema_for::<T>().to_value()
    }
    match kind {
        Kind::Progress => of::<InProgress>(generator),
        Kind::Complete => of::<Complete>(generator),
        Kind::Failed => of::<Failed>(generator),
    }
}

fn operation(kind: Kind, body: &Value) -> Value {
    let milestones = MILESTONES.map(|percent| percent.to_string()).join(", ");
    let (summary, when) = match kind {
        Kind::Progress => {
            ("How far a painting is", format!("At {milestones} percent, each once, at the first step that reaches it."))
        }
        Kind::Complete => ("The pictures stand", "When the last picture is stored.".to_string()),
        Kind::Failed => ("There will be no picture", "When nobody will try again.".to_string()),
    };
    let retried = match kind {
        Kind::Progress => "Not taken; it is not told again.".to_string(),
        Kind::Complete => {
            format!("Not taken. It is told {RETRIES} times more, and when the queue brings the task again.")
        }
        Kind::Failed => format!("Not taken. It is told {RETRIES} times more."),
    };
    let patience = WEBHOOK_TIMEOUT.as_secs();
    let reference = |name: &String| json!({ "$ref": format!("#/components/parameters/{name}") });
    let described = |text: &str| json!({ "description": text });
    json!({
        "operationId": kind.path(),
        "summary": summary,
        "description": format!("{when} An answer may take {patience} seconds; its body is not read."),
        "x-path": format!("{{webhook_url}}{FOLDER}/{}", kind.path()),
        "parameters": parameters().keys().map(reference).collect::<Value>(),
        "requestBody": { "required": true, "content": { "application/json": { "schema": body } } },
        "responses": {
            "2XX": described("Taken."),
            "409": described(UNWANTED),
            "410": described(UNWANTED),
            "default": described(&retried),
        },
    })
}

/// The headers beside the token.
fn parameters() -> Map<String, Value> {
    let header = |name: &str, required: bool, about: &str, schema: Value| {
        let header =
            json!({ "name": name, "in": "header", "required": required, "description": about, "schema": schema });
        (name.to_string(), header)
    };
    let text = || json!({ "type": "string" });
    Map::from_iter([
        header(SOURCE_HEADER, true, "Who calls.", json!({ "const": SOURCE })),
        header(ID_HEADER, true, AGAIN, json!({ "type": "string", "pattern": "^msg_[0-9a-f]{64}$" })),
        header(
            TIMESTAMP_HEADER,
            false,
            "Seconds since 1970, if webhooks are signed.",
            json!({ "type": "string", "pattern": "^[0-9]+$" }),
        ),
        header(
            SIGNATURE_HEADER,
            false,
            "As standardwebhooks.com says, if webhooks are signed; several with spaces.",
            text(),
        ),
        header("traceparent", false, "The span that calls, as W3C's Trace Context says, if traces are on.", text()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_what_the_types_say() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/contract/webhooks.openapi.json");
        let file: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        assert!(
            file == openapi(),
            "to mend it: target/debug/handler schema webhooks > docs/contract/webhooks.openapi.json"
        );
    }
}
