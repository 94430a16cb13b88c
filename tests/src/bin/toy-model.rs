//! Writes a tiny Stable Diffusion model with random weights in the diffusers layout, and a LoRA for it.
//!
//! For tests and for the demo before a trained model exists: it has every class and file of SD1.5 and paints noise. The
//! weights are drawn from a seeded stream per tensor name, so the same command always writes the same bytes. It can write the same
//! tensors as a checkpoint as well, under the names of the original code.

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use diffusion::{
    loading::{clip, unet_to_ldm, vae_to_ldm},
    noise::Noise,
    pipeline::{parameters, safety_checker_parameters},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

#[derive(Parser)]
struct Options {
    /// Folder to write.
    #[arg(long)]
    out: PathBuf,
    /// A small layout that paints 50 steps in seconds on a CPU, or SD1.5's block structure.
    #[arg(long, value_enum, default_value = "tiny")]
    size: Size,
    /// A setting of a file as JSON, such as unet/config.json/time_cond_proj_dim=32. May be given several times.
    #[arg(long, value_name = "FILE/SETTING=VALUE")]
    setting: Vec<String>,
    /// A safety checker of the published shapes in f16, 608 MB, whose thresholds no picture reaches.
    #[arg(long)]
    safety_checker: bool,
    /// A file to write the same model to as a checkpoint. Only for the size narrow.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Size {
    /// Three levels, attention at the lowest; for end-to-end tests.
    Tiny,
    /// Four levels with two layers each, as SD1.5; for comparison with diffusers.
    Sd15,
    /// SD1.5's own settings and vocabulary, at reduced width, with the VAE's encoder; for checkpoints, which have no settings.
    Narrow,
    /// SD1.5's own UNet in f16, 1.7 GB, behind a small text encoder and VAE; for measurements.
    Sd15Full,
}

/// What sizes differ in.
struct Widths {
    /// Channels of the UNet's levels, outermost first.
    channels: [usize; 4],
    levels: usize,
    layers: usize,
    /// Whether each level has attention to the prompt.
    cross: [bool; 4],
    /// Width of the prompt's embedding.
    context: usize,
    heads: usize,
    groups: usize,
    dtype: DType,
    lora_rank: usize,
    vae_channels: [usize; 4],
    vae_layers: usize,
    text_heads: usize,
    vocabulary: usize,
}

impl Size {
    fn widths(self) -> Widths {
        let small = Widths {
            channels: [4, 8, 16, 0],
            levels: 3,
            layers: 1,
            cross: [false, false, true, false],
            context: 32,
            heads: 4,
            groups: 4,
            dtype: DType::F32,
            lora_rank: 4,
            vae_channels: [4, 4, 8, 8],
            vae_layers: 1,
            text_heads: 4,
            vocabulary: 514,
        };
        let structure = Widths { levels: 4, layers: 2, cross: [true, true, true, false], ..small };
        match self {
            Self::Tiny => small,
            Self::Sd15 => Widths { channels: [32, 64, 128, 128], ..structure },
            Self::Narrow => Widths {
                channels: [32, 64, 64, 64],
                context: 128,
                heads: 8,
                groups: 32,
                dtype: DType::F16,
                vae_channels: [32, 32, 64, 64],
                vae_layers: 2,
                text_heads: 2,
                vocabulary: 49408,
                ..structure
            },
            Self::Sd15Full => Widths {
                channels: [320, 640, 1280, 1280],
                context: 768,
                heads: 8,
                groups: 32,
                dtype: DType::F16,
                vae_channels: [32, 32, 64, 64],
                lora_rank: 16,
                ..structure
            },
        }
    }
}

fn main() -> anyhow::Result<()> {
    let Options { out, size, setting, safety_checker, checkpoint } = Options::parse();
    let widths = size.widths();
    let mut files = configs(&widths);
    if safety_checker {
        files.extend(checker_configs());
        let index = files.entry("model_index.json").or_default();
        index["safety_checker"] = json!(["stable_diffusion", "StableDiffusionSafetyChecker"]);
        index["feature_extractor"] = json!(["transformers", "CLIPImageProcessor"]);
    }
    for text in &setting {
        let (path, value) = text.split_once('=').context("a setting has a `=`")?;
        let (file, name) = path.rsplit_once('/').unwrap_or(("model_index.json", path));
        let file = files.get_mut(file).with_context(|| format!("there is no {file}"))?;
        file[name] = serde_json::from_str(value).with_context(|| format!("{text} is not JSON"))?;
    }
    for (name, value) in &files {
        write(&out.join(name), serde_json::to_vec_pretty(value)?)?;
    }
    let (vocabulary, merges) = match size {
        Size::Narrow => (json!(clip::vocabulary()), clip::MERGES),
        _ => (json!(vocabulary()), "#version: 0.2\n"),
    };
    write(&out.join("tokenizer/vocab.json"), serde_json::to_vec(&vocabulary)?)?;
    write(&out.join("tokenizer/merges.txt"), merges.into())?;

    let [text_encoder, unet, mut vae] = parameters(&out)?;
    if size == Size::Narrow {
        vae.extend(encoder(&widths));
    }
    let [text_encoder, unet, vae] = [text_encoder, unet, vae].map(|asked| drawn(&asked, widths.dtype));
    let (text_encoder, unet, vae) = (text_encoder?, unet?, vae?);
    save(&text_encoder, &out.join("text_encoder/model.safetensors"))?;
    if safety_checker {
        let config = files["safety_checker/config.json"].as_object().context("an object")?;
        let mut checker = drawn(&safety_checker_parameters(config)?, DType::F16)?;
        for (name, tensor) in &mut checker {
            if name.ends_with("_weights") {
                // No cosine is so large.
                *tensor = tensor.ones_like()?.affine(2.0, 0.0)?;
            }
        }
        save(&checker, &out.join("safety_checker/model.safetensors"))?;
    }
    save(&unet, &out.join("unet/diffusion_pytorch_model.safetensors"))?;
    save(&vae, &out.join("vae/diffusion_pytorch_model.safetensors"))?;
    if let Some(path) = checkpoint {
        anyhow::ensure!(
            size == Size::Narrow,
            "--checkpoint goes with --size narrow: others have settings that a checkpoint cannot tell"
        );
        save(&as_checkpoint(&text_encoder, &unet, &vae, &widths)?, &path)?;
    }
    save(&lora(&unet, &widths)?, &out.join("lora.safetensors"))
}

/// The JSON files of the folder, by name.
fn configs(widths: &Widths) -> BTreeMap<&'static str, Value> {
    let Widths { levels, layers, context, heads, groups, .. } = *widths;
    let (channels, cross) = (&widths.channels[..levels], &widths.cross[..levels]);
    let down: Vec<_> = cross.iter().map(|&c| if c { "CrossAttnDownBlock2D" } else { "DownBlock2D" }).collect();
    let up: Vec<_> = cross.iter().rev().map(|&c| if c { "CrossAttnUpBlock2D" } else { "UpBlock2D" }).collect();
    BTreeMap::from([
        (
            "model_index.json",
            json!({
                "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "_easel_random_weights": true,
                "feature_extractor": [null, null], "requires_safety_checker": false, "safety_checker": [null, null],
                "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            }),
        ),
        (
            "tokenizer/tokenizer_config.json",
            json!({
                "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": "<|startoftext|>",
                "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
            }),
        ),
        (
            "text_encoder/config.json",
            json!({
                "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": widths.vocabulary, "hidden_size": context,
                "intermediate_size": 2 * context, "projection_dim": context, "num_hidden_layers": 2, "num_attention_heads": widths.text_heads,
                "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
                "bos_token_id": widths.vocabulary - 2, "eos_token_id": widths.vocabulary - 1, "pad_token_id": widths.vocabulary - 1,
                "torch_dtype": "float32",
            }),
        ),
        (
            "unet/config.json",
            json!({
                "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": heads,
                "block_out_channels": channels, "center_input_sample": false, "cross_attention_dim": context,
                "down_block_types": down, "up_block_types": up, "downsample_padding": 1, "flip_sin_to_cos": true,
                "freq_shift": 0, "in_channels": 4, "out_channels": 4, "layers_per_block": layers,
                "mid_block_scale_factor": 1, "norm_eps": 1e-5, "norm_num_groups": groups, "sample_size": 64,
            }),
        ),
        (
            "vae/config.json",
            json!({
                "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": widths.vae_channels,
                "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
                "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
                "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": widths.vae_layers, "norm_num_groups": groups,
                "sample_size": 512, "scaling_factor": 0.18215,
            }),
        ),
        (
            "scheduler/scheduler_config.json",
            json!({
                "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                "clip_sample": false, "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
                "steps_offset": 1, "trained_betas": null,
            }),
        ),
    ])
}

/// The JSON files of a safety checker of the published shapes.
fn checker_configs() -> [(&'static str, Value); 2] {
    let vision = json!({
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 224,
        "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    });
    [
        ("safety_checker/config.json", json!({ "model_type": "clip", "projection_dim": 768, "vision_config": vision })),
        ("feature_extractor/preprocessor_config.json", json!({ "image_processor_type": "CLIPImageProcessor" })),
    ]
}

/// CLIP's vocabulary without a single merge: the 256 bytes, the same at the end of a word, and two special tokens.
fn vocabulary() -> BTreeMap<String, usize> {
    let plain = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let shown = (0..=255u8).filter(plain).map(char::from);
    // Bytes that cannot be shown stand as the characters from U+0100 on, in order.
    let hidden = (0..=255u8).filter(|byte| !plain(byte)).count() as u32;
    let letters: Vec<String> =
        shown.chain((0x100..0x100 + hidden).filter_map(char::from_u32)).map(String::from).collect();
    let ends = letters.iter().map(|letter| format!("{letter}</w>"));
    let special = ["<|startoftext|>", "<|endoftext|>"].map(String::from);
    letters.iter().cloned().chain(ends).chain(special).enumerate().map(|(id, token)| (token, id)).collect()
}

type Tensors = HashMap<String, Tensor>;

/// Names and shapes of the VAE's encoder, which paints nothing and stands in every checkpoint.
fn encoder(widths: &Widths) -> Vec<(String, Vec<usize>)> {
    let Widths { vae_channels: channels, vae_layers: layers, .. } = *widths;
    let mut shapes = Vec::new();
    let mut add = |name: String, weight: &[usize]| {
        shapes.push((format!("encoder.{name}.weight"), weight.to_vec()));
        shapes.push((format!("encoder.{name}.bias"), vec![weight[0]]));
    };
    let resnet = |add: &mut dyn FnMut(String, &[usize]), name: &str, before: usize, out: usize| {
        add(format!("{name}.norm1"), &[before]);
        add(format!("{name}.conv1"), &[out, before, 3, 3]);
        add(format!("{name}.norm2"), &[out]);
        add(format!("{name}.conv2"), &[out, out, 3, 3]);
        if before != out {
            add(format!("{name}.conv_shortcut"), &[out, before, 1, 1]);
        }
    };
    add("conv_in".into(), &[channels[0], 3, 3, 3]);
    let mut before = channels[0];
    for (level, &out) in channels.iter().enumerate() {
        for layer in 0..layers {
            resnet(&mut add, &format!("down_blocks.{level}.resnets.{layer}"), before, out);
            before = out;
        }
        if level + 1 < channels.len() {
            add(format!("down_blocks.{level}.downsamplers.0.conv"), &[out, out, 3, 3]);
        }
    }
    for index in 0..2 {
        resnet(&mut add, &format!("mid_block.resnets.{index}"), before, before);
    }
    add("mid_block.attentions.0.group_norm".into(), &[before]);
    for part in ["to_q", "to_k", "to_v", "to_out.0"] {
        add(format!("mid_block.attentions.0.{part}"), &[before, before]);
    }
    add("conv_norm_out".into(), &[before]);
    add("conv_out".into(), &[8, before, 3, 3]);
    shapes.push(("quant_conv.weight".into(), vec![8, 8, 1, 1]));
    shapes.push(("quant_conv.bias".into(), vec![8]));
    shapes
}

/// The same tensors under the names of the original code, with what else stands in its files: averages of training, which are not
/// painted with, constants, and the numbers of the positions.
fn as_checkpoint(text_encoder: &Tensors, unet: &Tensors, vae: &Tensors, widths: &Widths) -> anyhow::Result<Tensors> {
    let mut all = Tensors::new();
    for (name, tensor) in text_encoder {
        all.insert(format!("cond_stage_model.transformer.{name}"), tensor.clone());
    }
    for (name, tensor) in unet {
        let (module, part) = name.rsplit_once('.').context("a module and a part")?;
        let ldm = format!("{}.{part}", unet_to_ldm(module, widths.layers).context("a module of the UNet")?);
        all.insert(format!("model_ema.diffusion_model{}", ldm.replace('.', "")), (tensor * 0.5)?);
        all.insert(format!("model.diffusion_model.{ldm}"), tensor.clone());
    }
    for (name, tensor) in vae {
        let (module, part) = name.rsplit_once('.').context("a module and a part")?;
        let ldm = vae_to_ldm(module, widths.vae_channels.len()).context("a module of the VAE")?;
        // The original's attention is made of convolutions.
        let is_linear = module.contains(".attentions.0.to_") && part == "weight";
        let tensor = if is_linear { tensor.unsqueeze(2)?.unsqueeze(3)? } else { tensor.clone() };
        all.insert(format!("first_stage_model.{ldm}.{part}"), tensor);
    }
    let positions = Tensor::arange(0i64, 77, &Device::Cpu)?.unsqueeze(0)?;
    all.insert("cond_stage_model.transformer.text_model.embeddings.position_ids".into(), positions);
    all.insert("betas".into(), Tensor::zeros(1000, DType::F32, &Device::Cpu)?);
    all.insert("model_ema.decay".into(), Tensor::new(0.9999f32, &Device::Cpu)?);
    Ok(all)
}

/// Random tensors of these names and shapes.
fn drawn(asked: &[(String, Vec<usize>)], dtype: DType) -> anyhow::Result<Tensors> {
    let draw = |(name, dims): &(String, Vec<usize>)| {
        let fan_in = dims.iter().skip(1).product::<usize>().max(1) as f64;
        let draw = noise(name).randn(dims.as_slice(), dtype, &Device::Cpu)?;
        let tensor = match (name.ends_with("bias"), name.contains("norm") && dims.len() == 1) {
            (true, _) => (draw * 0.02)?,
            (false, true) => ((draw * 0.05)? + 1.0)?,
            (false, false) => (draw * fan_in.powf(-0.5))?,
        };
        Ok((name.clone(), tensor))
    };
    asked.iter().map(draw).collect()
}

fn save(tensors: &Tensors, path: &Path) -> anyhow::Result<()> {
    write(path, Vec::new())?;
    candle_core::safetensors::save(tensors, path).with_context(|| path.display().to_string())
}

/// A LoRA in peft's layout over every attention projection.
fn lora(unet: &Tensors, widths: &Widths) -> anyhow::Result<Tensors> {
    let (mut lora, rank) = (Tensors::new(), widths.lora_rank);
    let projections = ["to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"];
    for (name, tensor) in unet {
        if !projections.iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        let (out, channels_in) = tensor.dims2()?;
        for (part, shape) in [("lora_A", (rank, channels_in)), ("lora_B", (out, rank))] {
            let key = format!("unet.{}.{part}.weight", name.trim_end_matches(".weight"));
            let draw = noise(&key).randn(shape, widths.dtype, &Device::Cpu)?;
            lora.insert(key, (draw * 0.3)?);
        }
    }
    Ok(lora)
}

/// A stream of its own for each tensor, one number of the generator per element however large the tensor is.
fn noise(name: &str) -> Noise {
    Noise::cuda(seed(name), u32::MAX)
}

/// FNV-1a of the name.
fn seed(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn write(path: &Path, bytes: Vec<u8>) -> anyhow::Result<()> {
    let folder = path.parent().context("a file in a folder")?;
    fs::create_dir_all(folder).and_then(|()| fs::write(path, bytes)).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn the_settings_of_every_size_are_supported() {
        for size in Size::value_variants() {
            let folder = tempfile::tempdir().unwrap();
            for (name, value) in configs(&size.widths()) {
                write(&folder.path().join(name), value.to_string().into_bytes()).unwrap();
            }
            let name = size.to_possible_value().unwrap();
            let [text_encoder, unet, vae] =
                parameters(folder.path()).unwrap_or_else(|error| panic!("{name:?}: {error}"));
            assert!(!text_encoder.is_empty() && !unet.is_empty() && !vae.is_empty(), "{name:?}");
        }
    }
}
