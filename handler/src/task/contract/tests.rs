//! The schema against the parser: what the schema accepts, the parser accepts; what it refuses is refused with the field's name. What
//! the schema cannot express is in `tests/docs/test_schemas.py`.

use super::*;
use crate::task::{MAX_PROMPT, Task, buckets::MAX_KEY};
use proptest::{
    collection::vec, option, prelude::*, sample::select, strategy::Union, string::string_regex, test_runner::TestRunner,
};
use regex::Regex;
use std::fs;

/// An address whose host the URL standard accepts.
const WEBHOOK: &str = r"[hH]ttps?://([a-z][a-z0-9]{0,8}\.){0,3}[a-z]{2,9}(:[1-9][0-9]{0,3})?(/[^?#\\\pZ\pC]{0,9}){0,3}";
/// A date that exists.
const TIME: &str = concat!(
    r"20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T(0[0-9]|1[0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]",
    r"(\.[0-9]{1,9})?(Z|[+-]0[0-9]:[0-5][0-9])"
);

/// A field's path, as a JSON pointer and as in errors, and its schema.
struct FieldPath {
    pointer: String,
    name: String,
    schema: Value,
}

/// Every field of the schema, nested ones included.
fn field_paths(object: &Value, pointer: &str, name: &str) -> Vec<FieldPath> {
    let mut found = Vec::new();
    for (field, schema) in object["properties"].as_object().unwrap() {
        let (pointer, name) = (format!("{pointer}/{field}"), format!("{name}{field}"));
        if schema["properties"].is_object() {
            found.extend(field_paths(schema, &pointer, &format!("{name}.")));
        } else if schema["items"]["properties"].is_object() {
            found.extend(field_paths(&schema["items"], &format!("{pointer}/0"), &format!("{name}[0].")));
        }
        found.push(FieldPath { pointer, name, schema: schema.clone() });
    }
    found
}

/// A task with every object of the schema.
fn task() -> Value {
    json!({
        "generation_id": 500, "style_id": 10, "lora_model_url": "s3://bucket/k", "prompt_tags": ["cat"], "artist_name": "Ada",
        "webhook_url": "http://backend", "signature": {}, "lora_weights": {},
        "loras": [{ "lora_model_url": "s3://bucket/k", "weights": {} }],
        "textual_inversions": [{ "url": "s3://bucket/k" }], "image_url": "s3://bucket/k",
    })
}

/// The task with another value of one field.
fn with(pointer: &str, value: Value) -> Value {
    let mut task = task();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    task.pointer_mut(parent).unwrap()[field] = value;
    task
}

fn types(schema: &Value) -> Vec<&str> {
    if let Value::Array(forms) = &schema["anyOf"] {
        return forms.iter().flat_map(types).collect();
    }
    match &schema["type"] {
        Value::Array(types) => types.iter().map(|kind| kind.as_str().unwrap()).collect(),
        one => vec![one.as_str().unwrap()],
    }
}

/// Values that a schema refuses: other types, and one step beyond each limit.
fn refused(schema: &Value) -> Vec<Value> {
    let types = types(schema);
    let number = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let others = [
        ("boolean", json!(true)),
        ("number", json!(1.5)),
        ("string", json!("")),
        ("array", json!([])),
        ("object", json!({})),
    ];
    let other = |(kind, _): &(&str, Value)| !types.contains(kind);
    let mut values: Vec<Value> = others.into_iter().filter(other).map(|(_, value)| value).collect();
    for (limit, step) in [("minimum", -1_i32), ("maximum", 1)] {
        match schema[limit].as_number() {
            Some(limit) if limit.is_f64() => values.push(json!(limit.as_f64().unwrap() + f64::from(step) / 1024.0)),
            Some(limit) => values.push(number((limit.as_i128().unwrap() + i128::from(step)).to_string())),
            None => {}
        }
    }
    if let Some(step) = schema["multipleOf"].as_i64() {
        values.push(json!(schema["minimum"].as_i64().unwrap() + step / 2));
    }
    if let Some(most) = schema["maxLength"].as_u64() {
        let prefix =
            if schema["pattern"].as_str().is_some_and(|pattern| pattern.contains("s3:")) { "s3://bucket/" } else { "" };
        values.push(json!(format!("{prefix}{}", "a".repeat(most as usize + 1))));
    }
    if schema["pattern"].is_string() || schema["enum"].is_array() {
        values.extend([json!(""), json!(" \u{3000}\t")]);
    }
    if let Some(most) = schema["maxItems"].as_u64() {
        let least = schema["minItems"].as_u64().unwrap_or(0);
        let item = if schema["items"]["properties"].is_object() {
            json!({ "lora_model_url": "s3://bucket/k" })
        } else {
            json!("a")
        };
        values.push(json!(vec![item; most as usize + 1]));
        values.extend((least > 0).then(|| json!([])));
    }
    if let Some(item) = schema.get("items") {
        values.extend(refused(item).into_iter().map(|value| json!([value])));
    }
    for form in schema["anyOf"].as_array().into_iter().flatten() {
        let own = self::types(form);
        values.extend(refused(form).into_iter().filter(|value| own.contains(&kind(value))));
    }
    if schema["additionalProperties"] == json!(false) {
        values.push(json!({ "block_10": 1 }));
    }
    values
}

/// The type of a value, in the words of a schema.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Random values of the field `name` that its schema accepts. Where it accepts more than the parser, values that both accept.
fn valid(schema: &Value, name: &str) -> BoxedStrategy<Value> {
    if let Some(names) = schema["enum"].as_array() {
        return select(names.clone()).boxed();
    }
    if let Value::Array(forms) = &schema["anyOf"] {
        return Union::new(forms.iter().map(|form| valid(form, name))).boxed();
    }
    if let Value::Array(types) = &schema["type"] {
        let mut one = schema.clone();
        one["type"] = types[0].clone();
        return prop_oneof![9 => valid(&one, name), 1 => Just(Value::Null)].boxed();
    }
    match schema["type"].as_str().unwrap() {
        "integer" => integer(schema),
        "number" => number(schema),
        "null" => Just(Value::Null).boxed(),
        "boolean" => any::<bool>().prop_map(Value::from).boxed(),
        "string" => text(schema, name),
        "array" => {
            let (least, most) = (schema["minItems"].as_u64().unwrap_or(0), schema["maxItems"].as_u64().unwrap());
            vec(valid(&schema["items"], name), least as usize..=most as usize).prop_map(Value::from).boxed()
        }
        _ => object(schema),
    }
}

fn integer(schema: &Value) -> BoxedStrategy<Value> {
    let limit = |name: &str| schema[name].as_number().unwrap().as_i128().unwrap();
    let (least, most) = (limit("minimum"), limit("maximum"));
    let step = schema["multipleOf"].as_i64().map_or(1, i128::from);
    let whole = move |number: i128| json!(number / step * step);
    prop_oneof![least..=most, Just(least), Just(most)].prop_map(whole).boxed()
}

fn number(schema: &Value) -> BoxedStrategy<Value> {
    let limit = |name: &str| schema[name].as_f64().unwrap();
    let (least, most) = (limit("minimum"), limit("maximum"));
    prop_oneof![least..=most, Just(least), Just(most)].prop_map(|number| json!(number)).boxed()
}

fn text(schema: &Value, name: &str) -> BoxedStrategy<Value> {
    let drawn = |pattern: &str| string_regex(pattern).unwrap();
    let text = match (name, schema["pattern"].as_str()) {
        ("webhook_url", _) => drawn(WEBHOOK).boxed(),
        ("created_at", _) => drawn(TIME).boxed(),
        (_, Some(anchored)) if anchored.starts_with('^') => {
            let unwanted: Vec<_> = schema["not"]["anyOf"].as_array().unwrap().iter().map(pattern).collect();
            let fits = move |text: &String| !unwanted.iter().any(|pattern| pattern.is_match(text));
            drawn(anchored.trim_matches(['^', '$'])).prop_filter("the schema says `not`", fits).boxed()
        }
        (_, Some(inside)) => (drawn(".{0,20}"), drawn(inside), drawn("[\\s\\S]{0,20}"))
            .prop_map(|(before, visible, after)| format!("{before}{visible}{after}"))
            .boxed(),
        (_, None) => {
            let most = schema["maxLength"].as_u64().unwrap() as usize;
            prop_oneof![9 => drawn("[\\s\\S]{0,30}"), 1 => Just("\u{1f980}".repeat(most))].boxed()
        }
    };
    text.prop_map(Value::from).boxed()
}

fn pattern(schema: &Value) -> regex::Regex {
    regex::Regex::new(schema["pattern"].as_str().unwrap()).unwrap()
}

/// All required fields, some of the others, and an unknown one.
fn object(schema: &Value) -> BoxedStrategy<Value> {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let mut object = Just(Map::new()).boxed();
    let numbered = schema["patternProperties"]["^block_[0-9]$"].clone();
    let numbered = ["block_0", "block_1", "block_9"].map(|name| (name.to_string(), numbered.clone()));
    let numbered = numbered.into_iter().filter(|(_, schema)| schema.is_object());
    for (name, schema) in schema["properties"].as_object().cloned().into_iter().flatten().chain(numbered) {
        let value = valid(&schema, &name);
        let must = required.contains(&json!(name));
        let value = if must { value.prop_map(Some).boxed() } else { option::of(value).boxed() };
        object = (object, value)
            .prop_map(move |(mut object, value)| {
                object.extend(value.map(|value| (name.clone(), value)));
                object
            })
            .boxed();
    }
    let with_karras = schema["then"]["properties"]["scheduler"]["enum"].as_array().cloned().unwrap_or_default();
    let takes_others = schema["additionalProperties"] != json!(false);
    let whole = move |mut object: Map<String, Value>| {
        // The rules about two fields: a scheduler that does not fit is left out, and so is a side without the other.
        let fits = object.get("scheduler").is_none_or(|chosen| with_karras.contains(chosen));
        if object.get("karras_sigmas") == Some(&json!(true)) && !fits {
            object.remove("scheduler");
        }
        let sides = ["width", "height"];
        if sides.iter().any(|side| object.get(*side).is_none_or(Value::is_null)) {
            sides.iter().for_each(|side| drop(object.remove(*side)));
        }
        let steps = object.get("num_inference_steps").and_then(Value::as_f64).unwrap_or(50.0);
        let strength = object.get("strength").and_then(Value::as_f64);
        // A step must be left, and a strength is that of a picture.
        if !object.get("image_url").is_some_and(Value::is_string) || steps * strength.unwrap_or(0.8) < 1.0 {
            ["image_url", "strength"].iter().for_each(|name| drop(object.remove(*name)));
        }
        if takes_others {
            object.insert("a field of tomorrow".into(), json!([1]));
        }
        Value::Object(object)
    };
    object.prop_map(whole).boxed()
}

#[test]
fn what_the_schema_refuses_the_parser_refuses_by_name() {
    let fields = field_paths(&schema(), "", "");
    assert!(fields.len() > 25, "{}", fields.len());
    let mut count = 0;
    for FieldPath { pointer, name, schema } in &fields {
        for value in refused(schema) {
            count += 1;
            let Err(invalid) = Task::parse(&with(pointer, value.clone()).to_string()) else {
                panic!("{name} was taken with {value}");
            };
            assert!(invalid.reason.starts_with(&format!("`{name}")), "{name} with {value}: {}", invalid.reason);
        }
    }
    assert!(count > 120, "{count}");
}

#[test]
fn a_required_field_that_is_missing_or_null_is_named() {
    let schema = schema();
    let items = |name: &str| &schema["properties"][name]["items"];
    let inside = [
        ("", "", &schema),
        ("/loras/0", "loras[0].", items("loras")),
        ("/textual_inversions/0", "textual_inversions[0].", items("textual_inversions")),
    ];
    for (parent, place, schema) in inside {
        for field in schema["required"].as_array().unwrap() {
            let (name, mut without) = (field.as_str().unwrap(), task());
            without.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
            for task in [without, with(&format!("{parent}/{name}"), Value::Null)] {
                let invalid = Task::parse(&task.to_string()).unwrap_err();
                assert!(
                    invalid.reason.starts_with(&format!("`{place}{name}` is missing, must be")),
                    "{}",
                    invalid.reason
                );
            }
        }
    }
}

#[test]
fn what_the_schema_accepts_the_parser_accepts() {
    let schema = schema();
    TestRunner::default()
        .run(&valid(&schema, ""), |task| {
            let text = task.to_string();
            prop_assert!(Task::parse(&text).is_ok(), "{:?}", Task::parse(&text));
            Ok(())
        })
        .unwrap();
}

/// With random addresses near the limits, where both could differ.
#[test]
fn schema_and_parser_agree_about_addresses_of_loras() {
    let schema = &schema()["properties"]["lora_model_url"];
    let regex = |schema: &Value| Regex::new(schema["pattern"].as_str().unwrap()).unwrap();
    let (wanted, unwanted) =
        (regex(schema), schema["not"]["anyOf"].as_array().unwrap().iter().map(regex).collect::<Vec<_>>());
    let drawn = prop_oneof![
        "s3://[a1.-]{1,5}/[a./\u{80}\u{fc}]{0,6}",
        "s3://[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}/k",
        "s3://a{58,64}/k",
        "[sS]3:/{1,3}bucket/?k?",
    ];
    TestRunner::default()
        .run(&drawn, |address| {
            let accepted = wanted.is_match(&address) && !unwanted.iter().any(|pattern| pattern.is_match(&address));
            let taken = Task::parse(&with("/lora_model_url", json!(address)).to_string()).is_ok();
            prop_assert_eq!(accepted, taken, "{:?}", address);
            Ok(())
        })
        .unwrap();
}

#[test]
fn limits_in_descriptions_are_those_of_the_parser() {
    let schema = schema();
    for (field, limit) in [("lora_model_url", MAX_KEY), ("prompt_tags", MAX_PROMPT)] {
        let text = schema["properties"][field]["description"].as_str().unwrap();
        assert!(text.contains(&limit.to_string()), "{field} does not say {limit}: {text}");
    }
}

#[test]
fn the_published_schema_is_the_current_one() {
    let file = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/contract/task.schema.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    assert!(file == schema(), "to update it: target/debug/handler schema task > docs/contract/task.schema.json");
    let file = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/contract/cancel.schema.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    assert!(
        file == crate::task::cancel_schema(),
        "to update it: target/debug/handler schema cancel > docs/contract/cancel.schema.json"
    );
}
