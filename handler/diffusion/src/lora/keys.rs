//! Parses the names that LoRA trainers give their tensors into component, module and part. An unknown name is an error.

use serde::Serialize;

/// The part of the model a module belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Component {
    Unet,
    TextEncoder,
}

/// The program whose naming scheme a key follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyLayout {
    /// `unet.….lora_A.weight`: peft, and diffusers since it has used peft.
    Peft,
    /// `unet.….lora.down.weight`, `….lora_linear_layer.…`: diffusers.
    Diffusers,
    /// `unet.….processor.to_q_lora.down.weight`: diffusers' attention processors, before it used peft.
    Processors,
    /// `lora_unet_…`, `lora_te_…`: kohya's scripts, LyCORIS and most of what artists share.
    Kohya,
}

/// Which tensor of a module a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Down,
    Up,
    Mid,
    UpBias,
    Alpha,
    Scalar,
    DoraScale,
    MagnitudeVector,
    /// LoHa: 0 for `hada_w1`, 1 for `hada_w2`.
    Hada(usize, Factor),
    /// LoKr: 0 for `lokr_w1`, 1 for `lokr_w2`.
    Lokr(usize, Factor),
    Diff,
    DiffBias,
    NormWeight,
    NormBias,
    /// LyCORIS' IA3 vector: the factors minus 1.
    Ia3Weight,
    Ia3OnInput,
    /// peft's IA3 vector: the factors.
    Ia3Factor,
}

/// A matrix of one factor of a LoHa or LoKr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Factor {
    Whole,
    A,
    B,
    Core,
}

/// A parsed key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub component: Component,
    pub layout: KeyLayout,
    /// The module's path as in the key, without the prefix.
    pub path: String,
    pub part: Part,
}

impl Key {
    /// The module's path with `_` for `.`, as kohya writes it. It is unambiguous in SD1.5.
    pub(super) fn module(&self) -> String {
        self.path.replace('.', "_")
    }
}

/// Prefixes and their components, the longer first if one starts with another. None: the path decides.
const PREFIXES: [(&str, Option<Component>); 9] = [
    ("lora_unet_", Some(Component::Unet)),
    ("lora_te_", Some(Component::TextEncoder)),
    // SDXL's first encoder is SD1's, and diffusers' converter writes this for both.
    ("lora_te1_", Some(Component::TextEncoder)),
    ("lycoris_", Some(Component::Unet)),
    ("unet.", Some(Component::Unet)),
    ("text_encoder.", Some(Component::TextEncoder)),
    ("diffusion_model.", Some(Component::Unet)),
    ("base_model.model.", None),
    ("", None),
];

/// The endings of keys, as peft, diffusers (three generations), kohya and LyCORIS write them.
const ENDINGS: [(&str, Part); 37] = [
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_B.bias", Part::UpBias),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_mid.weight", Part::Mid),
    (".lora_up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".alpha", Part::Alpha),
    (".scalar", Part::Scalar),
    (".dora_scale", Part::DoraScale),
    (".lora_magnitude_vector", Part::MagnitudeVector),
    (".lora_magnitude_vector.weight", Part::MagnitudeVector),
    (".hada_w1_a", Part::Hada(0, Factor::A)),
    (".hada_w1_b", Part::Hada(0, Factor::B)),
    (".hada_t1", Part::Hada(0, Factor::Core)),
    (".hada_w2_a", Part::Hada(1, Factor::A)),
    (".hada_w2_b", Part::Hada(1, Factor::B)),
    (".hada_t2", Part::Hada(1, Factor::Core)),
    (".lokr_w1", Part::Lokr(0, Factor::Whole)),
    (".lokr_w1_a", Part::Lokr(0, Factor::A)),
    (".lokr_w1_b", Part::Lokr(0, Factor::B)),
    (".lokr_w2", Part::Lokr(1, Factor::Whole)),
    (".lokr_w2_a", Part::Lokr(1, Factor::A)),
    (".lokr_w2_b", Part::Lokr(1, Factor::B)),
    (".lokr_t2", Part::Lokr(1, Factor::Core)),
    (".diff", Part::Diff),
    (".diff_b", Part::DiffBias),
    (".w_norm", Part::NormWeight),
    (".b_norm", Part::NormBias),
    (".on_input", Part::Ia3OnInput),
    (".ia3_l", Part::Ia3Factor),
    // Only in kohya's layout. In another it would be a layer of a whole model.
    (".weight", Part::Ia3Weight),
];

/// Parts of keys that are known but not supported, with the reason.
const UNSUPPORTED: [(&str, &str); 15] = [
    ("bundle_emb.", "an embedding bundled with the LoRA is not supported"),
    ("model.diffusion_model.", "a whole checkpoint is no LoRA"),
    ("first_stage_model.", "a whole checkpoint is no LoRA"),
    ("cond_stage_model.", "a whole checkpoint is no LoRA"),
    ("custom_diffusion", "Custom Diffusion is not supported"),
    (".oft_", "OFT is not supported"),
    (".boft_", "BOFT is not supported"),
    (".a1.weight", "GLoRA is not supported"),
    (".a2.weight", "GLoRA is not supported"),
    (".b1.weight", "GLoRA is not supported"),
    (".b2.weight", "GLoRA is not supported"),
    ("lokr_t1", "LoKr with a core in its first factor is not supported"),
    ("lora_embedding_", "LoRA of an embedding is not supported"),
    ("modules_to_save", "a whole layer saved beside the LoRA is not supported"),
    ("vera_lambda", "VeRA is not supported"),
];

/// Parses a key.
///
/// # Errors
/// Why it cannot be used.
pub(super) fn parse(key: &str) -> Result<Key, String> {
    if let Some((_, reason)) = UNSUPPORTED.iter().find(|(mark, _)| key.contains(mark)) {
        return Err((*reason).to_string());
    }
    // peft puts the adapter's name between its own words.
    let plain = key.replace(".default.", ".");
    let plain = plain.strip_suffix(".default").unwrap_or(&plain);
    let endings = ENDINGS.iter().filter_map(|(ending, part)| Some((plain.strip_suffix(ending)?, *ending, *part)));
    let unknown = "it is no tensor of a peft, diffusers, kohya or LyCORIS LoRA";
    let (path, ending, part) = endings.max_by_key(|(_, ending, _)| ending.len()).ok_or(unknown)?;
    let prefix =
        PREFIXES.iter().find_map(|(prefix, component)| Some((path.strip_prefix(prefix)?, *prefix, *component)));
    let (path, prefix, component) = prefix.ok_or("it names no component")?;
    let kohya = matches!(prefix, "lora_unet_" | "lora_te_" | "lora_te1_" | "lycoris_");
    if part == Part::Ia3Weight && !kohya {
        return Err(unknown.into());
    }
    let text = path.starts_with("text_model.") || path.starts_with("encoder.layers.");
    let component = component.unwrap_or(if text { Component::TextEncoder } else { Component::Unet });
    let layout = match ending {
        _ if kohya => KeyLayout::Kohya,
        _ if ending.starts_with("_lora.") || path.contains(".processor.") => KeyLayout::Processors,
        ".lora.down.weight" | ".lora.up.weight" => KeyLayout::Diffusers,
        _ if ending.starts_with(".lora_linear_layer.") => KeyLayout::Diffusers,
        _ => KeyLayout::Peft,
    };
    Ok(Key { component, layout, path: projection(path, component, layout), part })
}

/// The module's path in the model. Attention processors have their own names for the projections.
fn projection(path: &str, component: Component, layout: KeyLayout) -> String {
    let path = path.replace(".processor.", ".");
    if component == Component::Unet {
        return if path.ends_with(".to_out") { format!("{path}.0") } else { path };
    }
    let names = [(".to_q", ".q_proj"), (".to_k", ".k_proj"), (".to_v", ".v_proj"), (".to_out", ".out_proj")];
    let renamed = names.iter().find_map(|(old, new)| Some(format!("{}{new}", path.strip_suffix(old)?)));
    renamed.filter(|_| layout == KeyLayout::Processors).unwrap_or(path)
}
