//! The webhooks as OpenAPI 3.1, generated from the types that are sent.

use super::{
    BASE_PATH, ID_HEADER, RETRIES, SIGNATURE_HEADER, SOURCE, SOURCE_HEADER, TIMESTAMP_HEADER, WEBHOOK_TIMEOUT,
    event::{Cancelled, Complete, EventKind, Failed, InProgress},
};
use crate::webhook::progress::MILESTONES;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

const ABOUT: &str = "What Easel reports to the backend about a generation task. Each webhook is sent to the task's `webhook_url`, at the path in \
    `x-path`. A webhook may be sent more than once, with the same `webhook-id`: act on each id once.";
const UNWANTED: &str =
    "The picture is not wanted. After progress, painting stops. Complete and failed are not sent again.";
const SAME_ID: &str = "The same whenever the same webhook is sent again.";

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
    let webhooks: Map<String, Value> = EventKind::ALL
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
                "token": { "type": "http", "scheme": "bearer", "description": "INTERNAL_API_TOKEN, the same on both sides." },
            },
        },
        "security": [{ "token": [] }],
    })
}

fn body(kind: EventKind, generator: &mut SchemaGenerator) -> Value {
    fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
        generator.subschema_for::<T>().to_value()
    }
    match kind {
        EventKind::Progress => of::<InProgress>(generator),
        EventKind::Complete => of::<Complete>(generator),
        EventKind::Failed => of::<Failed>(generator),
        EventKind::Cancelled => of::<Cancelled>(generator),
    }
}

fn operation(kind: EventKind, body: &Value) -> Value {
    let milestones = MILESTONES.map(|percent| percent.to_string()).join(", ");
    let (summary, when) = match kind {
        EventKind::Progress => (
            "How far the painting is",
            format!("Sent at {milestones} percent, or where the operator wants it, each once, at the first step that reaches it."),
        ),
        EventKind::Complete => ("The pictures are stored", "Sent when the last picture is stored.".to_string()),
        EventKind::Failed => ("The task failed", "Sent when there will be no more tries.".to_string()),
        EventKind::Cancelled => (
            "The task was cancelled",
            "Sent when a task was cancelled by its id before its pictures were stored, if the operator turned this webhook on.".to_string(),
        ),
    };
    let retried = match kind {
        EventKind::Progress => "Not accepted. It is not sent again.".to_string(),
        EventKind::Complete => {
            format!(
                "Not accepted. It is sent up to {RETRIES} more times, and again when the queue delivers the task again."
            )
        }
        EventKind::Failed => format!("Not accepted. It is sent up to {RETRIES} more times."),
        EventKind::Cancelled => {
            format!(
                "Not accepted. It is sent up to {RETRIES} more times, and again when the queue delivers the task again."
            )
        }
    };
    let timeout = WEBHOOK_TIMEOUT.as_secs();
    let reference = |name: &String| json!({ "$ref": format!("#/components/parameters/{name}") });
    let described = |text: &str| json!({ "description": text });
    json!({
        "operationId": kind.path(),
        "summary": summary,
        "description": format!("{when} The answer must come within {timeout} seconds; its body is not read."),
        "x-path": format!("{{webhook_url}}{BASE_PATH}/{}", kind.path()),
        "parameters": parameters().keys().map(reference).collect::<Value>(),
        "requestBody": { "required": true, "content": { "application/json": { "schema": body } } },
        "responses": {
            "2XX": described("Accepted."),
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
        header(SOURCE_HEADER, true, "The sender.", json!({ "const": SOURCE })),
        header(ID_HEADER, true, SAME_ID, json!({ "type": "string", "pattern": "^msg_[0-9a-f]{64}$" })),
        header(
            TIMESTAMP_HEADER,
            false,
            "Unix time in seconds, if webhooks are signed.",
            json!({ "type": "string", "pattern": "^[0-9]+$" }),
        ),
        header(
            SIGNATURE_HEADER,
            false,
            "The signatures by standardwebhooks.com, separated by spaces, if webhooks are signed.",
            text(),
        ),
        header("traceparent", false, "The calling span (W3C Trace Context), if tracing is on.", text()),
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
            "to update it: target/debug/handler schema webhooks > docs/contract/webhooks.openapi.json"
        );
    }
}
