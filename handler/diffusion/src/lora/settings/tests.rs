//! Settings of peft: the forms they come in, what is refused, and that every field of peft is known.

use super::*;
use serde_json::json;
use std::{fs, path::Path};

const MODULE: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0";

fn read(settings: &Value) -> Result<Settings, String> {
    let metadata = HashMap::from([(METADATA.to_string(), settings.to_string())]);
    Settings::read(&metadata, None).map_err(|misfit| misfit.reason)
}

#[test]
fn all_three_forms_reach_their_component() {
    let of = |settings: Value| {
        let settings = read(&settings).unwrap();
        [Component::Unet, Component::TextEncoder].map(|component| settings.of(component)?.alpha(MODULE))
    };
    assert_eq!(of(json!({ "unet.lora_alpha": 8, "text_encoder.lora_alpha": 4 })), [Some(8.0), Some(4.0)]);
    assert_eq!(of(json!({ "unet": { "lora_alpha": 8 } })), [Some(8.0), None]);
    assert_eq!(of(json!({ "lora_alpha": 8, "alpha_pattern": { "to_out.0": 2 } })), [Some(2.0), Some(2.0)]);
    assert_eq!(of(json!({ "alpha": 8, "peft_type": "LOHA" })), [Some(8.0), Some(8.0)]);
}

#[test]
fn what_would_change_the_picture_is_refused_by_name() {
    for (settings, expected) in [
        (json!([]), "no JSON object"),
        (json!({ "lora_alpha": "8" }), "`lora_alpha` must be a number, not \"8\""),
        (json!({ "use_rslora": 1 }), "`use_rslora` must be true or false"),
        (json!({ "alpha_pattern": { "to_q": null } }), "`to_q` has no number"),
        (json!({ "rank_pattern": [] }), "`rank_pattern` must be an object"),
        (json!({ "fan_in_fan_out": true }), "`fan_in_fan_out` is true"),
        (json!({ "unet.bias": "lora_only" }), "`bias` is \"lora_only\""),
        (json!({ "use_qalora": true }), "`use_qalora`"),
        (json!({ "layer_replication": [[0, 4]] }), "`layer_replication`"),
        (json!({ "kasa_config": { "beta": 1 } }), "`kasa_config`"),
        (json!({ "sparkle": 3 }), "`sparkle` is 3, which is not supported"),
        (json!({ "peft_type": "VERA" }), "`peft_type` VERA is not supported"),
        (json!({ "transformer.lora_alpha": 8 }), "SD1 has no `transformer`"),
        (json!({ "lora_alpha": 8, "unet.r": 4 }), "`lora_alpha` names no component, and others do"),
        (json!({ "init_lora_weights": "pissa" }), "path_initial_model_for_weight_conversion"),
        (json!({ "init_lora_weights": "pissa_niter_16" }), "path_initial_model_for_weight_conversion"),
        (json!({ "init_lora_weights": "corda" }), "path_initial_model_for_weight_conversion"),
        (json!({ "init_lora_weights": "loftq" }), "path_initial_model_for_weight_conversion"),
        (json!({ "init_lora_weights": "lora_ga" }), "path_initial_model_for_weight_conversion"),
        (json!({ "init_lora_weights": "sparkle" }), "`init_lora_weights` \"sparkle\" is not supported"),
        (json!({ "init_lora_weights": "olora", "use_dora": true }), "together with OLoRA"),
        (json!({ "peft_type": "OFT", "peft_version": "0.17.1" }), "before version 0.18"),
        (json!({ "peft_type": "OFT", "peft_version": "0.21.2", "num_cayley_neumann_terms": 1e9 }), "terms"),
    ] {
        let reason = read(&settings).map(|_| ()).unwrap_err();
        assert!(reason.contains(expected), "{settings}: `{reason}` does not say `{expected}`");
    }
    for settings in [
        json!({ "sparkle": null, "shine": false, "glow": [], "bias": "none", "modules_to_save": null }),
        json!({ "init_lora_weights": true, "lora_alpha": null, "target_modules": ["to_q"], "lora_dropout": 0.1 }),
    ] {
        read(&settings).unwrap();
    }
}

#[test]
fn every_field_that_peft_writes_is_known() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/lora-layouts");
    let mut configs = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let Ok(text) = fs::read_to_string(entry.unwrap().path().join(CONFIG)) else { continue };
        let config: Map<String, Value> = serde_json::from_str(&text).unwrap();
        for name in config.keys() {
            assert!(fields::FIELDS.iter().any(|(known, _)| known == name), "`{name}` is in no list");
        }
        configs += 1;
    }
    assert!(configs > 15);
}

#[test]
fn patterns_that_would_take_much_memory_are_refused() {
    let read = |patterns: Value| read(&json!({ "unet": { "lora_alpha": 1, "alpha_pattern": patterns } }));
    let settings = read(json!({ MODULE: 8 })).unwrap();
    assert_eq!(settings.of(Component::Unet).unwrap().alpha(MODULE), Some(8.0));
    assert!(read(json!({ "(?:a{100}){100}": 8 })).is_err_and(|reason| reason.contains("65536")));
    let many: HashMap<_, _> = (0..=MAX_PATTERNS).map(|index| (format!("m{index}"), 8)).collect();
    assert!(read(json!(many)).is_err_and(|reason| reason.contains("1001 patterns, the limit is 1000")));
}
