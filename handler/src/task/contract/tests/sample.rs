//! Random values that a schema accepts. Where it accepts more than the parser, values that both accept.

use proptest::{collection::vec, option, prelude::*, sample::select, string::string_regex};
use serde_json::{Map, Value, json};

/// An address whose host the URL standard accepts.
const WEBHOOK: &str = r"[hH]ttps?://([a-z][a-z0-9]{0,8}\.){0,3}[a-z]{2,9}(:[1-9][0-9]{0,3})?(/[^?#\\\pZ\pC]{0,9}){0,3}";
/// A date that exists.
const TIME: &str = concat!(
    r"20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T(0[0-9]|1[0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]",
    r"(\.[0-9]{1,9})?(Z|[+-]0[0-9]:[0-5][0-9])"
);

/// Values of the field `name` that its schema accepts.
pub(super) fn valid(schema: &Value, name: &str) -> BoxedStrategy<Value> {
    if let Some(names) = schema["enum"].as_array() {
        return select(names.clone()).boxed();
    }
    if let Value::Array(types) = &schema["type"] {
        let mut one = schema.clone();
        one["type"] = types[0].clone();
        return prop_oneof![9 => valid(&one, name), 1 => Just(Value::Null)].boxed();
    }
    match schema["type"].as_str().unwrap() {
        "integer" => integer(schema),
        "number" => number(schema),
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
    prop_oneof![least..=most, Just(least), Just(most)].prop_map(|number| json!(number)).boxed()
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
    for (name, schema) in schema["properties"].as_object().unwrap().clone() {
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
    let whole = move |mut object: Map<String, Value>| {
        // The only rule about two fields: a scheduler that does not fit is left out.
        let fits = object.get("scheduler").is_none_or(|chosen| with_karras.contains(chosen));
        if object.get("karras_sigmas") == Some(&json!(true)) && !fits {
            object.remove("scheduler");
        }
        object.insert("a field of tomorrow".into(), json!([1]));
        Value::Object(object)
    };
    object.prop_map(whole).boxed()
}
