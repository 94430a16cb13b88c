//! A tiny safety checker whose verdict is known beforehand: a cosine is never above 1 or below -1, so thresholds of 2 flag nothing and
//! thresholds of -2 flag every picture. It has each file and tensor of the checker of Stable Diffusion 1.5.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, safetensors};
use diffusion::noise::Noise;
use serde_json::json;
use std::{collections::HashMap, fs, path::Path};

/// What it says of every picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// Not safe for work.
    Nsfw,
    /// Safe.
    Safe,
}

const WIDTH: usize = 32;
const MLP: usize = 64;
const HEADS: usize = 2;
const PATCH: usize = 32;
const SIZE: usize = 224;
const PROJECTION: usize = 16;
/// As many as in the checker of Stable Diffusion 1.5.
const CONCEPTS: usize = 17;
const SPECIAL_CARE: usize = 3;

/// Writes it into a folder, which is made: settings, weights, and how pictures are prepared for it.
///
/// # Errors
/// The disk.
pub fn write(folder: &Path, says: Says) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let vision = json!({
        "hidden_act": "quick_gelu", "hidden_size": WIDTH, "image_size": SIZE, "intermediate_size": MLP, "layer_norm_eps": 1e-5,
        "model_type": "clip_vision_model", "num_attention_heads": HEADS, "num_channels": 3, "num_hidden_layers": 1,
        "patch_size": PATCH, "projection_dim": PROJECTION,
    });
    let config = json!({
        "architectures": ["StableDiffusionSafetyChecker"], "model_type": "clip", "projection_dim": PROJECTION,
        "vision_config": vision,
    });
    let preparation = json!({
        "crop_size": { "height": SIZE, "width": SIZE }, "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true,
        "do_rescale": true, "do_resize": true, "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "CLIPImageProcessor", "resample": 3, "rescale_factor": 1.0 / 255.0,
        "size": { "shortest_edge": SIZE },
    });
    for (name, content) in [("config.json", config), ("preprocessor_config.json", preparation)] {
        fs::write(folder.join(name), content.to_string()).with_context(|| name.to_string())?;
    }
    safetensors::save(&tensors(says)?, folder.join("model.safetensors"))?;
    Ok(())
}

fn tensors(says: Says) -> Result<HashMap<String, Tensor>> {
    let patches = (SIZE / PATCH) * (SIZE / PATCH);
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("embeddings.class_embedding".into(), vec![WIDTH]),
        ("embeddings.patch_embedding.weight".into(), vec![WIDTH, 3, PATCH, PATCH]),
        ("embeddings.position_embedding.weight".into(), vec![patches + 1, WIDTH]),
    ];
    let mut layer = |name: &str, weight: &[usize]| {
        shapes.push((format!("{name}.weight"), weight.to_vec()));
        shapes.push((format!("{name}.bias"), vec![weight[0]]));
    };
    let block = "encoder.layers.0";
    for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
        layer(&format!("{block}.self_attn.{name}"), &[WIDTH, WIDTH]);
    }
    layer(&format!("{block}.mlp.fc1"), &[MLP, WIDTH]);
    layer(&format!("{block}.mlp.fc2"), &[WIDTH, MLP]);
    for name in [&format!("{block}.layer_norm1"), &format!("{block}.layer_norm2"), "pre_layrnorm", "post_layernorm"] {
        layer(name, &[WIDTH]);
    }
    let threshold = if says == Says::Nsfw { -2.0 } else { 2.0 };
    let mut tensors = HashMap::new();
    for (seed, (name, shape)) in (1..).zip(shapes) {
        let drawn = match (name.contains("norm"), name.ends_with("bias")) {
            (_, true) => Tensor::zeros(shape, DType::F32, &Device::Cpu)?,
            (true, false) => Tensor::ones(shape, DType::F32, &Device::Cpu)?,
            _ => (draw(seed, &shape)? * 0.2)?,
        };
        tensors.insert(format!("vision_model.vision_model.{name}"), drawn);
    }
    tensors.insert("visual_projection.weight".into(), draw(100, &[PROJECTION, WIDTH])?);
    for (name, number, seed) in [("concept_embeds", CONCEPTS, 101), ("special_care_embeds", SPECIAL_CARE, 102)] {
        tensors.insert(name.into(), draw(seed, &[number, PROJECTION])?);
        tensors.insert(format!("{name}_weights"), Tensor::full(threshold, number, &Device::Cpu)?.to_dtype(DType::F32)?);
    }
    Ok(tensors)
}

fn draw(seed: u64, shape: &[usize]) -> Result<Tensor> {
    Ok(Noise::cpu(seed).randn(shape, DType::F32, &Device::Cpu)?)
}
