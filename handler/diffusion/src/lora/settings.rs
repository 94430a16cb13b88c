//! peft's adapter settings, which diffusers stores in the file's metadata under `lora_adapter_metadata`.

use super::keys::Component;
use regex::{Regex, RegexBuilder};
use serde_json::Value;
use std::collections::HashMap;

/// The longest pattern for module names, in bytes.
const MAX_PATTERN_LENGTH: usize = 1000;
/// The most patterns of one component. SD1.5's UNet has fewer modules.
const MAX_PATTERNS: usize = 1000;
/// The most memory for one compiled pattern, and for matching it, in bytes. A few characters can ask for megabytes.
const MAX_COMPILED: usize = 64 << 10;

/// The settings of both components. Empty if the file has none.
#[derive(Default)]
pub(super) struct Settings(HashMap<Component, Adapter>);

/// The settings of one component that change the scale.
#[derive(Default)]
struct Adapter {
    alpha: Option<f64>,
    /// `alpha_pattern`: the alphas of some modules, by a pattern for the end of their name.
    patterns: Vec<(Regex, f64)>,
    /// Rank-stabilised LoRA (Kalajdzievski, 2023): alpha is divided by the square root of the rank.
    rank_stabilised: bool,
}

impl Settings {
    /// Reads them from a file's metadata.
    ///
    /// # Errors
    /// The JSON does not parse, or a pattern is no regular expression or exceeds a limit.
    pub(super) fn read(metadata: &HashMap<String, String>) -> Result<Self, String> {
        let Some(text) = metadata.get("lora_adapter_metadata") else { return Ok(Self::default()) };
        let fault = |reason: String| format!("its metadata `lora_adapter_metadata`: {reason}");
        let settings: Value = serde_json::from_str(text).map_err(|error| fault(error.to_string()))?;
        let mut found = HashMap::new();
        for (name, component) in [("unet", Component::Unet), ("text_encoder", Component::TextEncoder)] {
            let field = |field: &str| {
                let nested = settings.get(name).and_then(|adapter| adapter.get(field));
                settings.get(format!("{name}.{field}")).or(nested)
            };
            let mut patterns = Vec::new();
            let wanted = field("alpha_pattern").and_then(Value::as_object);
            if let Some(count) = wanted.map(|map| map.len()).filter(|&count| count > MAX_PATTERNS) {
                return Err(fault(format!("`alpha_pattern` has {count} patterns, the limit is {MAX_PATTERNS}")));
            }
            for (pattern, alpha) in wanted.into_iter().flatten() {
                if pattern.len() > MAX_PATTERN_LENGTH {
                    return Err(fault(format!(
                        "a pattern of {} bytes, the limit is {MAX_PATTERN_LENGTH}",
                        pattern.len()
                    )));
                }
                // As in peft, the pattern must match to the end, from the start of the name or after a dot.
                let regex = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
                    .size_limit(MAX_COMPILED)
                    .dfa_size_limit(MAX_COMPILED)
                    .build()
                    .map_err(|error| fault(error.to_string()))?;
                patterns.push((regex, alpha.as_f64().ok_or_else(|| fault(format!("`{pattern}` has no number")))?));
            }
            let rank_stabilised = field("use_rslora").and_then(Value::as_bool).unwrap_or(false);
            let alpha = field("lora_alpha").and_then(Value::as_f64);
            found.insert(component, Adapter { alpha, patterns, rank_stabilised });
        }
        Ok(Self(found))
    }

    /// The scale of a module's `up @ down`: alpha / rank, or alpha / sqrt(rank). None without an alpha.
    pub(super) fn scale(&self, component: Component, path: &str, rank: usize) -> Option<f64> {
        let adapter = self.0.get(&component)?;
        let own = adapter.patterns.iter().find(|(pattern, _)| pattern.is_match(path)).map(|(_, alpha)| *alpha);
        let alpha = own.or(adapter.alpha)?;
        let rank = rank as f64;
        Some(if adapter.rank_stabilised { alpha / rank.sqrt() } else { alpha / rank })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(patterns: &Value) -> Result<Settings, String> {
        let settings = json!({ "unet": { "lora_alpha": 1, "alpha_pattern": patterns } });
        Settings::read(&HashMap::from([("lora_adapter_metadata".to_string(), settings.to_string())]))
    }

    #[test]
    fn patterns_that_would_take_much_memory_are_refused() {
        let module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0";
        let settings = read(&json!({ module: 8 })).unwrap();
        assert_eq!(settings.scale(Component::Unet, module, 2), Some(4.0));
        assert!(read(&json!({ "(?:a{100}){100}": 8 })).is_err_and(|reason| reason.contains("65536")));
        let many: HashMap<_, _> = (0..=MAX_PATTERNS).map(|index| (format!("m{index}"), 8)).collect();
        assert!(read(&json!(many)).is_err_and(|reason| reason.contains("1001 patterns, the limit is 1000")));
    }
}
