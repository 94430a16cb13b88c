//! The small files of the model folder that a checkpoint stands for: Stable Diffusion 1.5's, with the checkpoint's widths.

use super::structure::Structure;
use crate::loading::clip;
use serde_json::{Value, json};

/// The names of the files, as diffusers writes them.
pub(in crate::loading) const FILES: [&str; 9] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
];
/// The version of diffusers that wrote Stable Diffusion 1.5's files.
const VERSION: &str = "0.6.0";
/// Heads of each attention of the UNet. diffusers has their number under the name of their width.
const HEADS: usize = 8;
/// Width of each head of the text encoder.
const TEXT_HEAD: usize = 64;
/// Groups of each GroupNorm.
const GROUPS: usize = 32;

/// The content of a file. `v_prediction` and `zero_snr` are what marks in the checkpoint say about its training.
pub(super) fn file(name: &str, structure: &Structure, v_prediction: bool, zero_snr: bool) -> Option<String> {
    let value = match name {
        "model_index.json" => index(),
        "scheduler/scheduler_config.json" => scheduler(v_prediction, zero_snr),
        "text_encoder/config.json" => text_encoder(structure),
        "tokenizer/merges.txt" => return Some(clip::MERGES.to_string()),
        "tokenizer/special_tokens_map.json" => special_tokens(),
        "tokenizer/tokenizer_config.json" => tokenizer(),
        "tokenizer/vocab.json" => json!(clip::vocabulary()),
        "unet/config.json" => unet(structure),
        "vae/config.json" => vae(structure),
        _ => return None,
    };
    Some(format!("{value:#}\n"))
}

fn index() -> Value {
    json!({
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": VERSION,
        "feature_extractor": [null, null], "requires_safety_checker": false, "safety_checker": [null, null],
        "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

fn scheduler(v_prediction: bool, zero_snr: bool) -> Value {
    let mut value = json!({
        "_class_name": "PNDMScheduler", "_diffusers_version": VERSION, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "clip_sample": false, "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
        "steps_offset": 1, "trained_betas": null,
    });
    if v_prediction {
        value["prediction_type"] = json!("v_prediction");
    }
    if zero_snr {
        value["rescale_betas_zero_snr"] = json!(true);
    }
    value
}

fn text_encoder(structure: &Structure) -> Value {
    json!({
        "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
        "hidden_act": "quick_gelu", "hidden_size": structure.text_width, "initializer_factor": 1.0, "initializer_range": 0.02,
        "intermediate_size": structure.text_inner, "layer_norm_eps": 1e-5, "max_position_embeddings": structure.positions,
        "model_type": "clip_text_model", "num_attention_heads": (structure.text_width / TEXT_HEAD).max(1),
        "num_hidden_layers": structure.text_layers, "pad_token_id": 1, "projection_dim": structure.text_width,
        "torch_dtype": "float32", "vocab_size": structure.vocabulary,
    })
}

fn token(content: &str) -> Value {
    json!({ "content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false })
}

fn special_tokens() -> Value {
    json!({
        "bos_token": token(clip::START), "eos_token": token(clip::END), "pad_token": clip::END, "unk_token": token(clip::END),
    })
}

fn tokenizer() -> Value {
    json!({
        "add_prefix_space": false, "bos_token": token(clip::START), "do_lower_case": true, "eos_token": token(clip::END),
        "errors": "replace", "model_max_length": 77, "pad_token": clip::END, "tokenizer_class": "CLIPTokenizer",
        "unk_token": token(clip::END),
    })
}

fn unet(structure: &Structure) -> Value {
    let kinds = |attention: &mut dyn Iterator<Item = &bool>, with: &str, without: &str| -> Vec<String> {
        attention.map(|&has| if has { with.to_string() } else { without.to_string() }).collect()
    };
    let attention = &structure.unet_attention;
    json!({
        "_class_name": "UNet2DConditionModel", "_diffusers_version": VERSION, "act_fn": "silu", "attention_head_dim": HEADS,
        "block_out_channels": structure.unet_channels, "center_input_sample": false, "cross_attention_dim": structure.context,
        "down_block_types": kinds(&mut attention.iter(), "CrossAttnDownBlock2D", "DownBlock2D"),
        "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": structure.latent_channels,
        "layers_per_block": structure.per_block, "mid_block_scale_factor": 1, "norm_eps": 1e-5, "norm_num_groups": GROUPS,
        "out_channels": structure.unet_out, "sample_size": 64,
        "up_block_types": kinds(&mut attention.iter().rev(), "CrossAttnUpBlock2D", "UpBlock2D"),
    })
}

fn vae(structure: &Structure) -> Value {
    let levels = structure.vae_channels.len();
    json!({
        "_class_name": "AutoencoderKL", "_diffusers_version": VERSION, "act_fn": "silu",
        "block_out_channels": structure.vae_channels, "down_block_types": vec!["DownEncoderBlock2D"; levels], "in_channels": 3,
        "latent_channels": structure.latent_channels, "layers_per_block": structure.vae_layers, "norm_num_groups": GROUPS,
        "out_channels": 3, "sample_size": 512, "scaling_factor": 0.18215, "up_block_types": vec!["UpDecoderBlock2D"; levels],
    })
}
