//! Tables of the settings that diffusers and transformers know. Each setting is used, or may have certain values only, or does not
//! matter here, for a reason that the table names.

use crate::error::{PipelineError, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What is done with a setting.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule {
    /// It is a field of the network's config. The text says of which kind, for an error.
    Used(&'static str),
    /// It may have these values, separated by commas, then perhaps a remark in parentheses. Others need arithmetic that is not here.
    Only(&'static str),
    /// It may have any value, because of this.
    Unneeded(&'static str),
}

/// A setting of a network.
#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) name: &'static str,
    /// Its value if the file does not have it, as in the constructor of the reference.
    pub(super) default: Value,
    pub(super) rule: Rule,
}

pub(super) fn used(name: &'static str, default: Value, kind: &'static str) -> Field {
    Field { name, default, rule: Rule::Used(kind) }
}

pub(super) fn only(name: &'static str, default: Value, supported: &'static str) -> Field {
    Field { name, default, rule: Rule::Only(supported) }
}

pub(super) fn unneeded(name: &'static str, default: Value, reason: &'static str) -> Field {
    Field { name, default, rule: Rule::Unneeded(reason) }
}

/// Makes a config of a file's content. Absent settings have their defaults. Settings that are in no table are named in one line of the
/// log; those with a leading underscore are notes of the library that wrote the file.
///
/// # Errors
/// A setting with a value that is not supported, by its name.
pub(super) fn read<T: DeserializeOwned>(
    file: &'static str,
    content: &Map<String, Value>,
    table: &[Field],
) -> Result<T> {
    let unknown = content.keys().filter(|key| !key.starts_with('_') && table.iter().all(|field| field.name != *key));
    let unknown: Vec<_> = unknown.map(String::as_str).collect();
    if !unknown.is_empty() {
        tracing::warn!(file, settings = unknown.join(", "), "unknown settings of the model are ignored");
    }
    let unsupported = |field: &Field, supported| {
        let value = content.get(field.name).unwrap_or(&field.default);
        PipelineError::Unsupported { file, field: field.name, value: shown(value), supported }
    };
    for field in table {
        match (field.rule, content.get(field.name)) {
            (Rule::Only(supported), Some(value)) if !is_one_of(value, supported) => {
                return Err(unsupported(field, supported));
            }
            (Rule::Unneeded(reason), Some(value)) if *value != field.default => {
                tracing::debug!(file, setting = field.name, reason, "a setting of the model has no effect here");
            }
            _ => {}
        }
    }
    let config = |given: &dyn Fn(&Field) -> Option<Value>| {
        let used = table.iter().filter(|field| matches!(field.rule, Rule::Used(_)));
        let pairs = used.map(|field| (field.name.to_string(), given(field).unwrap_or_else(|| field.default.clone())));
        serde_json::from_value::<T>(Value::Object(pairs.collect()))
    };
    config(&|field| content.get(field.name).cloned()).map_err(|source| {
        // serde's error does not name the field. It is the one that fails among defaults.
        let fails = |wrong: &Field| {
            config(&|field| content.get(field.name).filter(|_| field.name == wrong.name).cloned()).is_err()
        };
        let wrong = table.iter().find_map(|field| match field.rule {
            Rule::Used(kind) if fails(field) => Some(unsupported(field, kind)),
            _ => None,
        });
        wrong.unwrap_or(PipelineError::Json { path: file.into(), source })
    })
}

/// A value as an error shows it: texts without quotation marks.
pub(super) fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// Whether a value, or each value of a list, is one of those supported.
fn is_one_of(value: &Value, supported: &str) -> bool {
    if let Value::Array(values) = value {
        return !values.is_empty() && values.iter().all(|value| is_one_of(value, supported));
    }
    let (values, _remark) = supported.split_once(" (").unwrap_or((supported, ""));
    values.split(", ").any(|known| match (value.as_f64(), known.parse::<f64>()) {
        // 1 and 1.0 are the same.
        (Some(value), Ok(known)) => value == known,
        _ => shown(value) == known,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        width: usize,
        eps: f64,
    }

    fn config(content: Value) -> Result<Config> {
        let table = [
            used("width", json!(8), "a whole number"),
            used("eps", json!(1e-5), "a number"),
            only("act", json!("silu"), "silu, swish (others are not here)"),
            only("scale", json!(1), "1"),
            unneeded("dropout", json!(0.0), "nothing is dropped"),
        ];
        read("a/config.json", content.as_object().unwrap(), &table)
    }

    #[test]
    fn absent_settings_have_the_table_s_defaults() {
        assert_eq!(config(json!({})).unwrap(), Config { width: 8, eps: 1e-5 });
        let given = json!({ "width": 16, "act": "swish", "scale": 1.0, "dropout": 0.5, "_class_name": "A", "new": 1 });
        assert_eq!(config(given).unwrap(), Config { width: 16, eps: 1e-5 });
        assert!(config(json!({ "scale": [1, 1.0] })).is_ok());
    }

    #[test]
    fn an_error_names_the_setting_its_value_and_what_it_may_be() {
        for (content, message) in [
            (json!({ "act": "gelu" }), "a/config.json: `act` is gelu, supported: silu, swish (others are not here)"),
            (json!({ "act": "others are not here" }), "`act` is others are not here, supported"),
            (json!({ "act": null }), "`act` is null, supported: silu"),
            (json!({ "scale": [1, 2] }), "`scale` is [1,2], supported: 1"),
            (json!({ "scale": [] }), "`scale` is [], supported: 1"),
            (json!({ "width": "16" }), "`width` is 16, supported: a whole number"),
            (json!({ "width": -1, "eps": "x" }), "`width` is -1, supported: a whole number"),
            (json!({ "eps": null }), "`eps` is null, supported: a number"),
        ] {
            let error = config(content.clone()).unwrap_err().to_string();
            assert!(error.contains(message), "{content}: {error}");
        }
    }
}
