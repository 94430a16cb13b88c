//! The names LoRA trainers give their tensors, read into component, module and part. Nothing is guessed: an unknown name is an error.

use serde_json::Value;
use std::collections::HashMap;

/// The part of the model a module belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Component {
    Unet,
    TextEncoder,
}

/// Which tensor of a module a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Down,
    Up,
    Alpha,
}

/// A key taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub component: Component,
    /// The module's path with `_` for `.`: kohya writes it so, and it is unambiguous in this model.
    pub module: String,
    pub part: Part,
}

/// Prefixes of the two components, longest first where one begins another.
const COMPONENTS: [(&str, Component); 6] = [
    ("lora_unet_", Component::Unet),
    ("lora_te_", Component::TextEncoder),
    ("unet.", Component::Unet),
    ("text_encoder.", Component::TextEncoder),
    ("base_model.model.", Component::Unet),
    ("", Component::Unet),
];

/// Endings of the three parts, as peft, diffusers (three generations) and kohya write them.
const PARTS: [(&str, Part); 13] = [
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_A.default.weight", Part::Down),
    (".lora_B.default.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".alpha", Part::Alpha),
];

/// Marks of formats that are known by name and not supported.
const OTHER_FORMATS: [(&str, &str); 6] = [
    ("hada_", "LyCORIS LoHa"),
    ("lokr_", "LyCORIS LoKr"),
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("lora_mid", "LoCon with a middle tensor"),
    ("lora_te2_", "SDXL's second text encoder"),
];

/// Takes a key apart.
///
/// # Errors
/// What is unknown about it.
pub(super) fn parse(key: &str) -> Result<Key, String> {
    if let Some((_, format)) = OTHER_FORMATS.iter().find(|(mark, _)| key.contains(mark)) {
        return Err(format!("{format} is not supported, only linear and convolutional LoRA is"));
    }
    let found = PARTS.iter().find_map(|(ending, part)| key.strip_suffix(ending).map(|rest| (rest, *part)));
    let (path, part) = found.ok_or("it is no tensor of a peft, diffusers or kohya LoRA")?;
    let prefix = COMPONENTS.iter().find_map(|(prefix, component)| Some((path.strip_prefix(prefix)?, *component)));
    let (path, component) = prefix.ok_or("it names no component")?;
    let module = path.replace(".processor.", ".").replace('.', "_");
    let module = match (component, module.strip_suffix("_to_out")) {
        (Component::Unet, Some(attention)) => format!("{attention}_to_out_0"),
        _ => module,
    };
    Ok(Key { component, module, part })
}

/// `lora_alpha` per component, from the adapter settings that newer diffusers keeps in the file's header.
pub(super) fn metadata_alphas(metadata: &Option<HashMap<String, String>>) -> HashMap<Component, f64> {
    let settings = metadata.as_ref().and_then(|map| map.get("lora_adapter_metadata"));
    let settings: Value = settings.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let alpha = |name: &str| {
        let nested = settings.get(name).and_then(|component| component.get("lora_alpha"));
        settings.get(format!("{name}.lora_alpha")).or(nested).and_then(Value::as_f64)
    };
    let found = [("unet", Component::Unet), ("text_encoder", Component::TextEncoder)];
    found.into_iter().filter_map(|(name, component)| Some((component, alpha(name)?))).collect()
}
