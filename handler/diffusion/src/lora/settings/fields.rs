//! The fields of peft's settings: which are used, which change nothing, and which must be as they are by default.

use super::{Component, MAX_PATTERNS, compiled};
use crate::error::{MAX_NAME, cut};
use regex::Regex;
use serde_json::{Map, Value};

/// What a field means for the merged weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lora) enum Meaning {
    Used,
    /// It cannot change them, for that reason.
    Harmless(&'static str),
    /// It would change them, and only its default (none, false or empty) is supported.
    Default,
}

const ORIGIN: Meaning = Meaning::Harmless("says where the adapter comes from");
const TRAINING: Meaning = Meaning::Harmless("counts in training alone");
const IN_KEYS: Meaning = Meaning::Harmless("the keys and their shapes tell");
const REPLACED: Meaning = Meaning::Harmless("the values before training, which the file's replace");
const BY_START: Meaning = Meaning::Harmless("counts with one value of `init_lora_weights`, which is checked");
const COMPUTING: Meaning = Meaning::Harmless("says how peft computes, not what");

/// Every field of peft's LoRA, LoHa, LoKr, IA3, OFT and BOFT.
pub(super) const FIELDS: [(&str, Meaning); 63] = [
    ("alpha", Meaning::Used),
    ("alpha_pattern", Meaning::Used),
    ("coft", Meaning::Used),
    ("eps", Meaning::Used),
    ("feedforward_modules", Meaning::Used),
    ("init_lora_weights", Meaning::Used),
    ("lora_alpha", Meaning::Used),
    ("num_cayley_neumann_terms", Meaning::Used),
    ("peft_type", Meaning::Used),
    ("peft_version", Meaning::Used),
    ("r", Meaning::Used),
    ("rank_pattern", Meaning::Used),
    ("use_cayley_neumann", Meaning::Used),
    ("use_dora", Meaning::Used),
    ("use_rslora", Meaning::Used),
    ("auto_mapping", ORIGIN),
    ("base_model_name_or_path", ORIGIN),
    ("inference_mode", ORIGIN),
    ("revision", ORIGIN),
    ("task_type", ORIGIN),
    ("boft_dropout", TRAINING),
    ("lora_dropout", TRAINING),
    ("module_dropout", TRAINING),
    ("rank_dropout", TRAINING),
    ("rank_dropout_scale", TRAINING),
    ("velora_config", TRAINING),
    ("block_share", IN_KEYS),
    ("boft_block_num", IN_KEYS),
    ("boft_block_size", IN_KEYS),
    ("boft_n_butterfly_factor", IN_KEYS),
    ("decompose_both", IN_KEYS),
    ("decompose_factor", IN_KEYS),
    ("exclude_modules", IN_KEYS),
    ("layers_pattern", IN_KEYS),
    ("layers_to_transform", IN_KEYS),
    ("lora_bias", IN_KEYS),
    ("oft_block_size", IN_KEYS),
    ("target_modules", IN_KEYS),
    ("use_effective_conv2d", IN_KEYS),
    ("init_ia3_weights", REPLACED),
    ("init_weights", REPLACED),
    ("corda_config", BY_START),
    ("eva_config", BY_START),
    ("loftq_config", BY_START),
    ("lora_ga_config", BY_START),
    ("ephemeral_gpu_offload", COMPUTING),
    ("megatron_config", COMPUTING),
    ("megatron_core", COMPUTING),
    ("runtime_config", COMPUTING),
    ("qalora_group_size", Meaning::Harmless("counts with `use_qalora`, which is checked")),
    ("alora_invocation_tokens", Meaning::Default),
    ("arrow_config", Meaning::Default),
    ("bias", Meaning::Default),
    ("ensure_weight_tying", Meaning::Default),
    ("fan_in_fan_out", Meaning::Default),
    ("kasa_config", Meaning::Default),
    ("layer_replication", Meaning::Default),
    ("modules_to_save", Meaning::Default),
    ("monteclora_config", Meaning::Default),
    ("target_parameters", Meaning::Default),
    ("trainable_token_indices", Meaning::Default),
    ("use_bdlora", Meaning::Default),
    ("use_qalora", Meaning::Default),
];

/// What peft makes a changed base for, and what to do with such a file.
const CHANGED_BASES: [&str; 4] = ["pissa", "corda", "loftq", "lora_ga"];
/// Values of `init_lora_weights` that leave the base as it is.
const SAME_BASE: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// What a field means. One that is not known might change everything.
pub(in crate::lora) fn meaning(name: &str) -> Meaning {
    FIELDS.iter().find(|(known, _)| *known == name).map_or(Meaning::Default, |(_, meaning)| *meaning)
}

/// Checks a field that need not be understood any further.
///
/// # Errors
/// A value that would change the weights, and is not supported.
pub(super) fn check(name: &str, value: &Value) -> Result<(), String> {
    let shown = || cut(&value.to_string(), MAX_NAME).into_owned();
    if name == "init_lora_weights" {
        return match value.as_str() {
            None if value.is_boolean() || value.is_null() => Ok(()),
            Some(start) if start == "olora" || SAME_BASE.contains(&start) => Ok(()),
            Some(start) if CHANGED_BASES.iter().any(|known| start.starts_with(known)) => Err(format!(
                "`init_lora_weights` is {}: the LoRA is relative to a base without a part of its own, which the file does not \
                 hold. Save it with peft's `save_pretrained(…, path_initial_model_for_weight_conversion=…)`, which makes a \
                 plain LoRA of it",
                shown()
            )),
            _ => Err(format!("`init_lora_weights` {} is not supported", shown())),
        };
    }
    let unset = match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty() || text == "none",
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    match meaning(name) {
        Meaning::Default if !unset => Err(format!("`{}` is {}, which is not supported", cut(name, MAX_NAME), shown())),
        _ => Ok(()),
    }
}

/// Whether peft writes OFT's series as it does today.
pub(super) fn is_since_0_18(version: Option<&str>) -> bool {
    let mut parts = version.unwrap_or_default().split('.').map(|part| part.parse::<u32>().ok());
    let (major, minor) = (parts.next().flatten(), parts.next().flatten());
    matches!((major, minor), (Some(major), Some(minor)) if (major, minor) >= (0, 18))
}

/// Fields with their values.
type Fields = Map<String, Value>;

/// The settings of each component, as one JSON object has them.
pub(super) struct Document;

impl Document {
    /// Three forms are read: `"unet.r"` as diffusers' pipelines write it, `{"unet": {"r": …}}`, and `"r"` for a model that was saved
    /// alone, by `save_lora_adapter` of diffusers or by peft.
    ///
    /// # Errors
    /// It is no object, or has fields of another component, or fields with and without one.
    pub(super) fn split(document: Value) -> Result<Vec<(Component, Fields)>, String> {
        let Value::Object(all) = document else { return Err("it is no JSON object".into()) };
        let components = [("unet", Component::Unet), ("text_encoder", Component::TextEncoder)];
        let (mut alone, mut found) = (Map::new(), [Map::new(), Map::new()]);
        for (name, value) in all {
            let of = |name: &str| components.iter().position(|(component, _)| *component == name);
            match (name.split_once('.'), of(&name), value) {
                (None, Some(index), Value::Object(fields)) => found[index].extend(fields),
                (Some((component, field)), _, value) => {
                    let index = of(component).ok_or_else(|| {
                        format!("`{}`: SD1 has no `{}`", cut(&name, MAX_NAME), cut(component, MAX_NAME))
                    })?;
                    found[index].insert(field.to_string(), value);
                }
                (None, _, value) => {
                    alone.insert(name, value);
                }
            }
        }
        let named = found.iter().any(|fields| !fields.is_empty());
        if let Some(name) = alone.keys().next().filter(|_| named) {
            return Err(format!("`{}` names no component, and others do", cut(name, MAX_NAME)));
        }
        let [unet, text_encoder] = found;
        let sides = if named { [unet, text_encoder] } else { [alone.clone(), alone] };
        let sides = components.into_iter().map(|(_, component)| component).zip(sides);
        Ok(sides.filter(|(_, fields)| !fields.is_empty()).collect())
    }
}

/// A field of the settings. None: it is missing or null.
pub(super) struct Field<'a> {
    pub name: &'static str,
    pub value: Option<&'a Value>,
}

impl<'a> Field<'a> {
    fn of_type<T>(&self, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, String> {
        let Some(value) = self.value else { return Ok(None) };
        let shown = || cut(&value.to_string(), MAX_NAME).into_owned();
        read(value).map(Some).ok_or_else(|| format!("`{}` must be {kind}, not {}", self.name, shown()))
    }

    pub(super) fn number(&self) -> Result<Option<f64>, String> {
        self.of_type("a number", Value::as_f64)
    }

    pub(super) fn truth(&self) -> Result<Option<bool>, String> {
        self.of_type("true or false", Value::as_bool)
    }

    /// A text. `init_lora_weights` may be true or false as well.
    pub(super) fn text(&self) -> Result<Option<&'a str>, String> {
        if self.value.is_some_and(Value::is_boolean) && self.name == "init_lora_weights" {
            return Ok(None);
        }
        self.of_type("a text", Value::as_str)
    }

    /// Numbers by patterns for the ends of module names, which begin at a dot.
    pub(super) fn patterns(&self) -> Result<Vec<(Regex, f64)>, String> {
        let Some(wanted) = self.of_type("an object", Value::as_object)? else { return Ok(Vec::new()) };
        if wanted.len() > MAX_PATTERNS {
            return Err(format!("`{}` has {} patterns, the limit is {MAX_PATTERNS}", self.name, wanted.len()));
        }
        let entry = |(pattern, number): (&String, &Value)| {
            let number = number.as_f64();
            let number = number.ok_or_else(|| format!("`{}` has no number", cut(pattern, MAX_NAME)))?;
            Ok((compiled(r"(?:.*\.)?", pattern)?, number))
        };
        wanted.iter().map(entry).collect()
    }

    /// Modules: a list of ends of names, or one pattern for the whole name.
    pub(super) fn names(&self) -> Result<Option<Vec<Regex>>, String> {
        let Some(value) = self.value else { return Ok(None) };
        if let Some(pattern) = value.as_str() {
            return Ok(Some(vec![compiled("", pattern)?]));
        }
        let ends = self.of_type("a list of texts", |value| {
            value.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<_>>>()
        })?;
        let ends = ends.unwrap_or_default();
        if ends.len() > MAX_PATTERNS {
            return Err(format!("`{}` has {} names, the limit is {MAX_PATTERNS}", self.name, ends.len()));
        }
        ends.into_iter().map(|end| compiled(".*", &regex::escape(end))).collect::<Result<_, _>>().map(Some)
    }
}
