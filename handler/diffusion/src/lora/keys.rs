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
    /// `diffusion_model.…`, `text_encoders.clip_l.transformer.…`: ComfyUI. `clip_l.…`: OneTrainer.
    Comfyui,
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
    /// ai-toolkit's magnitude vector.
    Magnitude,
    /// The numbers beside a product that LyCORIS' extraction writes: where they are, what they are, and the matrix's shape.
    SparseIndices,
    SparseValues,
    SparseSize,
    /// GLoRA: 0 for `a`, 1 for `b`; each is a product of its `1` and `2`.
    Glora(usize, Factor),
    /// LyCORIS' OFT and BOFT.
    OftBlocks,
    Rescale,
    /// peft's OFT.
    OftVector,
    /// peft's BOFT.
    BoftBlocks,
    BoftScale,
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

/// How a key begins.
struct Prefix {
    text: &'static str,
    /// None: the path decides.
    component: Option<Component>,
    layout: Option<KeyLayout>,
    /// Whether paths have `_` for `.`, as in LyCORIS. Only there is `.weight` an IA3 vector.
    flat: bool,
}

const fn prefix(text: &'static str, component: Option<Component>, layout: Option<KeyLayout>, flat: bool) -> Prefix {
    Prefix { text, component, layout, flat }
}

/// The longer first if one starts with another.
const PREFIXES: [Prefix; 18] = {
    use {Component::*, KeyLayout::*};
    [
        prefix("lora_unet_", Some(Unet), Some(Kohya), true),
        prefix("lora_te_", Some(TextEncoder), Some(Kohya), true),
        // SDXL's first encoder is SD1's, and diffusers' converter writes this for both.
        prefix("lora_te1_", Some(TextEncoder), Some(Kohya), true),
        // A wrapper around one network, whichever it is.
        prefix("lycoris_", None, Some(Kohya), true),
        prefix("lora_unet.", Some(Unet), Some(Kohya), false),
        prefix("lora_te.", Some(TextEncoder), Some(Kohya), false),
        prefix("unet.base_model.model.", Some(Unet), None, false),
        prefix("text_encoder.base_model.model.", Some(TextEncoder), None, false),
        prefix("unet.", Some(Unet), None, false),
        prefix("text_encoder.", Some(TextEncoder), None, false),
        prefix("diffusion_model.", Some(Unet), Some(Comfyui), false),
        prefix("text_encoders.clip_l.transformer.", Some(TextEncoder), Some(Comfyui), false),
        prefix("text_encoders.clip_l.", Some(TextEncoder), Some(Comfyui), false),
        prefix("clip_l.transformer.", Some(TextEncoder), Some(Comfyui), false),
        prefix("clip_l.", Some(TextEncoder), Some(Comfyui), false),
        prefix("base_model.model.", None, None, false),
        prefix("base_model.", None, None, false),
        prefix("", None, None, false),
    ]
};

/// How paths begin in a text encoder whose keys name no component, with dots or `_`. The second is transformers 5's.
const TEXT_PATHS: [&str; 4] = ["text_model.", "encoder.layers.", "final_layer_norm", "embeddings."];

/// The endings of keys, as peft, diffusers (three generations), kohya and LyCORIS write them.
const ENDINGS: [(&str, Part); 52] = [
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
    (".magnitude", Part::Magnitude),
    (".bias_indices", Part::SparseIndices),
    (".bias_values", Part::SparseValues),
    (".bias_size", Part::SparseSize),
    (".a1.weight", Part::Glora(0, Factor::A)),
    (".a2.weight", Part::Glora(0, Factor::B)),
    (".b1.weight", Part::Glora(1, Factor::A)),
    (".b2.weight", Part::Glora(1, Factor::B)),
    (".bm.weight", Part::Glora(1, Factor::Core)),
    (".oft_blocks", Part::OftBlocks),
    (".rescale", Part::Rescale),
    (".oft_R", Part::OftVector),
    (".oft_R.weight", Part::OftVector),
    (".boft_R", Part::BoftBlocks),
    (".boft_s", Part::BoftScale),
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
const UNSUPPORTED: [(&str, &str); 22] = [
    ("bundle_emb.", "an embedding bundled with the LoRA is not supported"),
    ("emb_params", "an embedding bundled with the LoRA is not supported"),
    ("model.diffusion_model.", "a whole checkpoint is no LoRA"),
    ("first_stage_model.", "a whole checkpoint is no LoRA"),
    ("cond_stage_model.", "a whole checkpoint is no LoRA"),
    ("custom_diffusion", "Custom Diffusion is not supported"),
    (".lambda_layer", "T-LoRA of LyCORIS is not supported: its change depends on the timestep"),
    (".q_layer.", "T-LoRA of LyCORIS is not supported: its change depends on the timestep"),
    (".p_layer.", "T-LoRA of LyCORIS is not supported: its change depends on the timestep"),
    (".oft_diag", "OFT of LyCORIS before version 2 is not supported"),
    (".oft_r", "OFT of peft before version 0.15 is not supported"),
    (".oft_embedding_R", "OFT of an embedding is not supported"),
    ("lokr_t1", "LoKr with a core in its first factor is not supported"),
    ("lora_embedding_", "LoRA of an embedding is not supported"),
    ("modules_to_save", "a whole layer saved beside the LoRA is not supported"),
    ("vera_lambda", "VeRA of peft is not supported"),
    ("vblora_", "VB-LoRA of peft is not supported"),
    (".lora_diag", "KaSA of peft is not supported"),
    (".hra_u", "HRA of peft is not supported"),
    (".fourierft_", "FourierFT of peft is not supported"),
    (".set_weight", "a whole weight of ComfyUI is not supported"),
    (".reshape_weight", "a LoRA that gives a layer another shape is not supported"),
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
    let prefix = PREFIXES.iter().find_map(|prefix| Some((path.strip_prefix(prefix.text)?, prefix)));
    let (path, prefix) = prefix.ok_or("it names no component")?;
    if part == Part::Ia3Weight && !prefix.flat {
        return Err(unknown.into());
    }
    let text = || {
        let begins =
            |start: &&str| path.starts_with(*start) || (prefix.flat && path.starts_with(&start.replace('.', "_")));
        TEXT_PATHS.iter().any(begins)
    };
    let component = prefix.component.unwrap_or_else(|| if text() { Component::TextEncoder } else { Component::Unet });
    let layout = prefix.layout.unwrap_or(match ending {
        _ if ending.starts_with("_lora.") || path.contains(".processor.") => KeyLayout::Processors,
        ".lora.down.weight" | ".lora.up.weight" => KeyLayout::Diffusers,
        _ if ending.starts_with(".lora_linear_layer.") => KeyLayout::Diffusers,
        _ => KeyLayout::Peft,
    });
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
