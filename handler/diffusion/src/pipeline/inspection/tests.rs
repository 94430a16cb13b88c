//! Copies of the small model with one file changed. Looking at it and loading it give the same error.

use super::*;
use crate::pipeline::{Compute, Pipeline};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::{collections::HashMap, fs, path::PathBuf};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT: &str = "text_encoder/model.safetensors";

/// A copy of the small model.
fn copy() -> tempfile::TempDir {
    let model = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model/easel-tiny"));
    let folder = tempfile::tempdir().unwrap();
    for part in fs::read_dir(&model).unwrap().map(|entry| entry.unwrap().path()) {
        let to = folder.path().join(part.file_name().unwrap());
        if part.is_file() {
            fs::copy(&part, &to).unwrap();
            continue;
        }
        fs::create_dir(&to).unwrap();
        for file in fs::read_dir(&part).unwrap().map(|entry| entry.unwrap().path()) {
            fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
    }
    folder
}

fn set(folder: &Path, file: &str, field: &str, value: Value) {
    let path = folder.join(file);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json[field] = value;
    fs::write(path, json.to_string()).unwrap();
}

/// Writes a file of weights again with other tensors.
fn change(folder: &Path, file: &str, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let path = folder.join(file);
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// The error of looking at the folder, which is that of loading it.
fn refused(folder: &Path) -> String {
    let looked = inspect(folder).expect_err("it is fine").to_string();
    let loaded = Pipeline::load(folder, &Compute::Cpu, (64, 64)).err().expect("it loads").to_string();
    assert_eq!(looked, loaded);
    looked
}

fn rename(tensors: &mut HashMap<String, Tensor>, rename: impl Fn(&str) -> String) {
    *tensors = tensors.drain().map(|(name, tensor)| (rename(&name), tensor)).collect();
}

#[test]
fn the_small_model_has_what_its_networks_need() {
    let folder = copy();
    let inspection = inspect(folder.path()).unwrap();
    assert!(inspection.tensors > 300, "{inspection:?}");
    assert!(inspection.unread.is_empty() && inspection.unusable.is_empty(), "{inspection:?}");
}

#[test]
fn a_missing_tensor_and_a_wrong_shape_are_named_with_the_number_of_others() {
    let folder = copy();
    change(folder.path(), UNET, |tensors| {
        tensors.remove("conv_in.weight");
        tensors.remove("conv_out.bias");
    });
    let error = refused(folder.path());
    assert_eq!(
        error,
        "unet/: the weights have no `conv_in.weight` [48, 4, 3, 3], and 1 other that unet/config.json asks for"
    );
    let folder = copy();
    change(folder.path(), VAE, |tensors| {
        let bias = Tensor::zeros(7, DType::F32, &Device::Cpu).unwrap();
        tensors.insert("decoder.conv_out.bias".into(), bias);
    });
    let error = refused(folder.path());
    assert_eq!(error, "vae/: `decoder.conv_out.bias` is [7], vae/config.json asks for [3]");
    let folder = copy();
    set(folder.path(), "text_encoder/config.json", "intermediate_size", json!(256));
    let error = refused(folder.path());
    assert!(
        error.starts_with("text_encoder/: `text_model.encoder.layers.0.mlp.fc1.weight` is [512, 128], "),
        "{error}"
    );
    assert!(error.ends_with("asks for [256, 128], and 8 others, differ"), "{error}");
}

#[test]
fn names_of_another_form_are_told_by_kind() {
    for (file, to, said) in [
        (UNET, "model.diffusion_model.x.", "names of the original Stable Diffusion code, as `model.diffusion_model.x."),
        (UNET, "input_blocks.", "names of the original Stable Diffusion code, as `input_blocks."),
        (VAE, "first_stage_model.", "names of the original Stable Diffusion code, as `first_stage_model."),
        (TEXT, "cond_stage_model.transformer.", "names of the original Stable Diffusion code, as `cond_stage_model."),
        (UNET, "lora_unet_", "the weights are a LoRA, as `lora_unet_"),
        (UNET, "other.", "the weights have no `time_embedding.linear_1.weight`"),
    ] {
        let folder = copy();
        change(folder.path(), file, |tensors| rename(tensors, |name| format!("{to}{name}")));
        let error = refused(folder.path());
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn names_that_older_and_newer_libraries_write_are_fine() {
    let folder = copy();
    change(folder.path(), TEXT, |tensors| {
        rename(tensors, |name| name.trim_start_matches("text_model.").to_string());
        let positions = Tensor::zeros((1, 77), DType::I64, &Device::Cpu).unwrap();
        tensors.insert("embeddings.position_ids".into(), positions);
    });
    change(folder.path(), VAE, |tensors| {
        let old = |name: &str| name.replace("to_q.", "query.").replace("to_k.", "key.").replace("to_v.", "value.");
        rename(tensors, |name| old(name).replace("to_out.0.", "proj_attn."));
    });
    let inspection = inspect(folder.path()).unwrap();
    assert!(inspection.unread.is_empty(), "{inspection:?}");
    Pipeline::load(folder.path(), &Compute::Cpu, (64, 64)).unwrap();
}

#[test]
fn tensors_that_nothing_reads_are_counted() {
    let folder = copy();
    change(folder.path(), UNET, |tensors| {
        for name in ["time_embedding.cond_proj.weight", "add_embedding.linear_1.weight"] {
            tensors.insert(name.into(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
        }
    });
    let inspection = inspect(folder.path()).unwrap();
    assert_eq!(inspection.unread, [("unet", 2, "add_embedding.linear_1.weight".to_string())]);
}

#[test]
fn settings_that_do_not_fit_together_are_refused_by_field() {
    for (file, field, value, said) in [
        ("unet/config.json", "in_channels", json!(9), "`in_channels` is 9"),
        ("unet/config.json", "out_channels", json!(8), "`out_channels` is 8"),
        ("unet/config.json", "cross_attention_dim", json!(1024), "`cross_attention_dim` is 1024"),
        ("vae/config.json", "latent_channels", json!(16), "`latent_channels` is 16"),
    ] {
        let folder = copy();
        set(folder.path(), file, field, value);
        let error = refused(folder.path());
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_scheduler_that_the_folders_file_does_not_suit_is_named() {
    let folder = copy();
    // LCM alone knows the field.
    set(folder.path(), "scheduler/scheduler_config.json", "original_inference_steps", json!(0));
    let inspection = inspect(folder.path()).unwrap();
    let [(kind, error)] = inspection.unusable.as_slice() else { panic!("{inspection:?}") };
    assert_eq!((kind.to_string().as_str(), error.to_string().contains("original_inference_steps")), ("lcm", true));
}

#[test]
fn the_default_scheduler_has_to_suit_the_folders_file() {
    let folder = copy();
    set(folder.path(), "scheduler/scheduler_config.json", "thresholding", json!(true));
    let error = inspect(folder.path()).unwrap_err().to_string();
    assert!(error.contains("`thresholding` is true"), "{error}");
    let config = SchedulerConfig::load(folder.path()).unwrap();
    assert_eq!(schedulers::check(Kind::default(), &config).unwrap_err().to_string(), error);
}

/// The real network's 3x3 convolutions would take a gigabyte and half a minute if anything were computed for them.
#[test]
fn a_large_network_is_listed_at_once() {
    let folder = copy();
    for (field, value) in [
        ("block_out_channels", json!([320, 640, 1280, 1280])),
        ("attention_head_dim", json!(8)),
        ("layers_per_block", json!(2)),
        ("norm_num_groups", json!(32)),
    ] {
        set(folder.path(), "unet/config.json", field, value);
    }
    let clock = std::time::Instant::now();
    let error = inspect(folder.path()).unwrap_err().to_string();
    assert!(error.starts_with("unet/: the weights have no "), "{error}");
    assert!(clock.elapsed() < std::time::Duration::from_secs(20), "{:?}", clock.elapsed());
}
