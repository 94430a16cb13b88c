//! The names LoRA trainers give their tensors, read into component, module and part. Nothing is guessed: an unknown name is an
//! error.

use serde::Serialize;

/// The part of the model a module belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Component {
    Unet,
    TextEncoder,
}

/// Who names tensors like that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `unet.….lora_A.weight`: peft, and diffusers since it uses peft.
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
    /// LoHa: `[half][a, b, t]`, the half from 0.
    Hada(usize, Factor),
    /// LoKr: the half from 0.
    Lokr(usize, Factor),
    Diff,
    DiffBias,
    NormWeight,
    NormBias,
    /// LyCORIS' vector of IA3, a difference from one.
    Ia3Weight,
    Ia3OnInput,
    /// peft's vector of IA3, a factor.
    Ia3Factor,
}

/// A matrix of one half of a LoHa or LoKr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Factor {
    Whole,
    A,
    B,
    Core,
}

/// A key taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub component: Component,
    pub layout: Layout,
    /// The module's path as it stands in the key, without prefix.
    pub path: String,
    pub part: Part,
}

impl Key {
    /// The module's path with `_` for `.`: kohya writes it so, and it is unambiguous in this model.
    pub(super) fn module(&self) -> String {
        self.path.replace('.', "_")
    }
}

/// Prefixes and their components, longest first where one begins another; none: the path tells.
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

/// Endings of the parts, as peft, diffusers (three generations), kohya and LyCORIS write them.
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
    // Only kohya's layout: elsewhere it would be a layer of a whole model.
    (".weight", Part::Ia3Weight),
];

/// Marks of what is known by name and not supported.
const FOREIGN: [(&str, &str); 15] = [
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

/// Takes a key apart.
///
/// # Errors
/// What is unknown about it.
pub(super) fn parse(key: &str) -> Result<Key, String> {
    if let Some((_, reason)) = FOREIGN.iter().find(|(mark, _)| key.contains(mark)) {
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
        _ if kohya => Layout::Kohya,
        _ if ending.starts_with("_lora.") || path.contains(".processor.") => Layout::Processors,
        ".lora.down.weight" | ".lora.up.weight" => Layout::Diffusers,
        _ if ending.starts_with(".lora_linear_layer.") => Layout::Diffusers,
        _ => Layout::Peft,
    };
    Ok(Key { component, layout, path: projection(path, component, layout), part })
}

/// Attention processors name the projections after themselves.
fn projection(path: &str, component: Component, layout: Layout) -> String {
    let path = path.replace(".processor.", ".");
    if component == Component::Unet {
        return if path.ends_with(".to_out") { format!("{path}.0") } else { path };
    }
    let names = [(".to_q", ".q_proj"), (".to_k", ".k_proj"), (".to_v", ".v_proj"), (".to_out", ".out_proj")];
    let renamed = names.iter().find_map(|(old, new)| Some(format!("{}{new}", path.strip_suffix(old)?)));
    renamed.filter(|_| layout == Layout::Processors).unwrap_or(path)
}
