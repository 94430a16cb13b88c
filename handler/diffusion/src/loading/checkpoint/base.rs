//! What a file is that is no checkpoint of Stable Diffusion 1.x: another base model, a LoRA, a VAE. Names show it, then shapes.

use super::{TEXT, TensorFiles, UNET, VAE};
use crate::error::{MAX_NAME, cut};

/// What a part of a name shows the file to be, and what to do. The first that fits counts.
const MARKS: [(&str, &str, &str); 33] = [
    (".lora_down.", "a LoRA", LORA),
    (".lora_up.", "a LoRA", LORA),
    (".lora_A.", "a LoRA", LORA),
    (".lora_B.", "a LoRA", LORA),
    (".lora.down.", "a LoRA", LORA),
    ("lora_unet_", "a LoRA", LORA),
    ("lora_te_", "a LoRA", LORA),
    ("lycoris_", "a LoRA", LORA),
    (".hada_w1", "a LoRA", LORA),
    (".lokr_w1", "a LoRA", LORA),
    ("control_model.", "a ControlNet", OTHER_TOOL),
    ("controlnet_cond_embedding.", "a ControlNet", OTHER_TOOL),
    ("input_hint_block.", "a ControlNet", OTHER_TOOL),
    ("lllite_", "a ControlNet-LLLite", OTHER_TOOL),
    ("ip_adapter.", "an IP-Adapter", OTHER_TOOL),
    ("image_proj.", "an IP-Adapter", OTHER_TOOL),
    ("adapter.body.", "a T2I-Adapter", OTHER_TOOL),
    ("motion_modules.", "a motion module of AnimateDiff", OTHER_TOOL),
    ("conditioner.embedders.", "a checkpoint of SDXL", OTHER_BASE),
    ("joint_blocks.", "a checkpoint of SD3", OTHER_BASE),
    ("double_blocks.", "a checkpoint of Flux", OTHER_BASE),
    ("double_stream_blocks.", "a diffusion transformer", OTHER_BASE),
    ("text_encoders.", "a checkpoint of SD3 or a later model", OTHER_BASE),
    ("model.diffusion_model.transformer_blocks.", "a diffusion transformer", OTHER_BASE),
    ("model.diffusion_model.blocks.", "a diffusion transformer", OTHER_BASE),
    ("model.diffusion_model.layers.", "a diffusion transformer", OTHER_BASE),
    ("cond_stage_model.model.", "a checkpoint of SD2", OTHER_BASE),
    ("model.diffusion_model.label_emb.", "a checkpoint of SDXL or of a model with classes", OTHER_BASE),
    ("scale_shift_table", "a diffusion transformer", OTHER_BASE),
    ("scaled_fp8", "quantised", QUANTISED),
    (".scale_weight", "quantised", QUANTISED),
    (".weight_scale", "quantised", QUANTISED),
    (".absmax", "quantised", QUANTISED),
];
const LORA: &str = "name it by --lora, or in a task, beside a model";
const QUANTISED: &str = "take the checkpoint in f16, bf16 or f32";
const OTHER_TOOL: &str = "it goes beside a model, and is not read here";
const OTHER_BASE: &str = "only Stable Diffusion 1.x is painted: take a checkpoint that was made for SD 1.5";

/// Parts of a model and what goes beside one, by a tensor that each has.
const COMPONENTS: [(&str, &str); 5] = [
    ("down_blocks.0.resnets.0.norm1.weight", "the UNet of a model folder"),
    ("decoder.conv_in.weight", "a VAE"),
    ("text_model.embeddings.token_embedding.weight", "a text encoder"),
    ("emb_params", "a textual inversion"),
    ("string_to_param.*", "a textual inversion"),
];

/// Checks that the tensors are those of a whole Stable Diffusion 1.x model.
///
/// # Errors
/// What the file is or lacks, and what to do, as the rest of a sentence about it.
pub(super) fn check(files: &TensorFiles) -> Result<(), String> {
    let mut names: Vec<&str> = files.names().collect();
    names.sort_unstable();
    let first = |part: &str| names.iter().find(|name| name.contains(part));
    for (mark, what, advice) in MARKS {
        if let Some(name) = first(mark) {
            return Err(format!("it is {what} (`{}`); {advice}", cut(name, MAX_NAME)));
        }
    }
    let has = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
    if !has(UNET) {
        if has("model_ema.") {
            return Err("it has averages of training alone (`model_ema.`): take the whole checkpoint".into());
        }
        let component = COMPONENTS.iter().find(|(tensor, _)| files.get(tensor).is_some());
        return Err(match component {
            Some((_, what)) => format!(
                "it is {what} alone, not a whole model: give a checkpoint, or a model folder that has this file"
            ),
            None => {
                let example = names.first().map_or_else(String::new, |name| format!(" (`{}`)", cut(name, MAX_NAME)));
                format!("it is no checkpoint of Stable Diffusion: it has no tensor `{UNET}…`{example}")
            }
        });
    }
    let lacks = |what: &str, prefix: &str| {
        format!(
            "it has no {what} (`{prefix}…`): take the whole checkpoint, or make a model folder of its parts by diffusers"
        )
    };
    if !has(TEXT) {
        return Err(lacks("text encoder", TEXT));
    }
    if !VAE.iter().any(|prefix| has(prefix)) {
        return Err(lacks("VAE", VAE[0]));
    }
    shapes(files)
}

/// What shapes show.
fn shapes(files: &TensorFiles) -> Result<(), String> {
    let dims = |name: &str| files.get(&format!("{UNET}{name}")).map(|entry| entry.dims.as_slice());
    let shown = |what: &str, name: &str, dims: &[usize]| {
        Err(format!("it is {what} (`{UNET}{name}` is {dims:?}); {OTHER_BASE}"))
    };
    let input = "input_blocks.0.0.weight";
    match dims(input) {
        Some([_, 4, ..]) | None => {}
        Some(dims @ [_, 9, ..]) => return shown("an inpainting model", input, dims),
        Some(dims @ [_, 8, ..]) => return shown("an InstructPix2Pix model", input, dims),
        Some(dims @ [_, 7, ..]) => return shown("an upscaling model", input, dims),
        Some(dims @ [_, 5, ..]) => return shown("a depth-to-image model", input, dims),
        Some(dims) => return shown("another model", input, dims),
    }
    let mut names: Vec<&str> = files.names().filter_map(|name| name.strip_prefix(UNET)).collect();
    names.sort_unstable();
    for name in names {
        let Some(dims) = dims(name) else { continue };
        if name.ends_with(".attn2.to_k.weight") {
            match dims {
                [_, 1024] => return shown("a checkpoint of SD2", name, dims),
                [_, 2048] | [_, 1280] => return shown("a checkpoint of SDXL", name, dims),
                _ => {}
            }
        }
        if name.ends_with(".1.proj_in.weight") && dims.len() == 2 {
            return shown("a checkpoint of SD2 or SDXL", name, dims);
        }
        if name.contains(".transformer_blocks.1.") {
            return shown("a checkpoint of SDXL", name, dims);
        }
    }
    Ok(())
}
