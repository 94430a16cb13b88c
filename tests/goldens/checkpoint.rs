//! Checkpoints in one file against diffusers' `from_single_file`, and the folder that is made of one.

use crate::{GoldenModel, LEAST_PSNR, goldens};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use diffusion::{
    loading::{convert, text_encoder_name},
    lora::{AppliedLora, Lora},
    pipeline::{Compute, Pipeline, inspect},
    schedulers::Kind,
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};
use tempfile::TempDir;

/// The checkpoint of a model at reduced width, its golden values, and its folder with the LoRA.
fn narrow() -> Result<(GoldenModel, PathBuf)> {
    let (tensors, crate::About { inputs }) = goldens("model-checkpoint")?;
    let scratch = tempfile::tempdir()?;
    let (folder, file) = (scratch.path().join("model"), scratch.path().join("narrow.safetensors"));
    let mut program = Command::new(env!("CARGO_BIN_EXE_toy-model"));
    let status = program.args(["--size", "narrow", "--out"]).arg(&folder).arg("--checkpoint").arg(&file).status()?;
    anyhow::ensure!(status.success(), "toy-model failed");
    Ok((GoldenModel { folder, _random: Some(scratch), tensors, inputs }, file))
}

fn load(model: &Path) -> Result<Pipeline> {
    inspect(model)?;
    Ok(Pipeline::load(model, &Compute::Cpu, (64, 64))?)
}

/// The final latents of a run from the golden noise.
fn latents(golden: &GoldenModel, pipeline: &Pipeline) -> Result<Vec<f32>> {
    Ok(golden.latents(pipeline, Kind::DpmSolverPlusPlus, (64, 64))?.flatten_all()?.to_vec1()?)
}

#[test]
fn a_checkpoint_paints_what_diffusers_does_also_with_a_lora() -> Result<()> {
    let (golden, file) = narrow()?;
    let mut pipeline = load(&file)?;
    golden.same_picture(&pipeline, Kind::DpmSolverPlusPlus, "dpmsolver++/64x64", (64, 64))?;
    let (_, plain) = golden.paint(&pipeline, Kind::DpmSolverPlusPlus, "lora/64x64", (64, 64))?;
    anyhow::ensure!(plain < LEAST_PSNR, "the LoRA changes too little for a comparison: {plain:.1} dB");
    let lora = Arc::new(Lora::read(&golden.folder.join("lora.safetensors"))?);
    pipeline.set_loras(&[AppliedLora::new(lora, golden.inputs.lora_scale)])?;
    golden.same_picture(&pipeline, Kind::DpmSolverPlusPlus, "lora/64x64", (64, 64))
}

#[test]
fn the_folder_of_a_checkpoint_is_what_diffusers_saves_and_paints_the_same() -> Result<()> {
    let (golden, file) = narrow()?;
    let target = TempDir::new()?;
    let folder = target.path().join("converted");
    let mut written = Vec::new();
    let unread = convert(&file, &folder, &mut |file| written.push(file.clone()))?;
    assert!(unread.is_empty(), "{unread:?}");
    for file in &written {
        assert_eq!(fs::metadata(folder.join(file.name))?.len(), file.bytes, "{}", file.name);
    }
    assert_eq!(fs::read_dir(target.path())?.count(), 1, "a partial folder is left behind");

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/checkpoint.json");
    let theirs: HashMap<String, Value> = serde_json::from_slice(&fs::read(path)?)?;
    for (name, theirs) in theirs.iter().filter(|(name, _)| name.ends_with(".safetensors")) {
        let bytes = fs::read(folder.join(name))?;
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
        let described = |info: &safetensors::tensor::TensorInfo| {
            let sides = info.shape.iter().map(|side| json!(side));
            std::iter::once(json!(info.dtype)).chain(sides).collect::<Value>()
        };
        let ours: Value = header.tensors().iter().map(|(name, info)| (name.clone(), described(info))).collect();
        // transformers 5 has left out the level `text_model.`, and reads the names of all versions.
        let theirs: Value = theirs
            .as_object()
            .context("names")?
            .iter()
            .map(|(tensor, shape)| {
                (if name.starts_with("text") { text_encoder_name(tensor) } else { tensor.clone() }, shape.clone())
            })
            .collect();
        assert_eq!(ours, theirs, "{name}");
        let format = header.metadata().as_ref().and_then(|metadata| metadata.get("format"));
        assert_eq!(format.context("transformers wants a format")?, "pt");
        assert_eq!(bytes.len() % 2, 0);
    }
    assert_eq!(latents(&golden, &load(&folder)?)?, latents(&golden, &load(&file)?)?);

    let error = convert(&file, &folder, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("converted") && error.contains("name a new folder"), "{error}");
    Ok(())
}

/// Tensors that say nothing about the picture may have any dtype and shape.
#[test]
fn a_file_with_other_tensors_beside_the_model_paints_the_same_and_says_what_is_not_read() -> Result<()> {
    let (golden, file) = narrow()?;
    let plain = latents(&golden, &load(&file)?)?;
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu)?;
    tensors.insert("embedding_manager.x".into(), Tensor::zeros(3, candle_core::DType::U8, &Device::Cpu)?);
    candle_core::safetensors::save(&tensors, &file)?;
    assert_eq!(latents(&golden, &load(&file)?)?, plain);
    let target = TempDir::new()?;
    let unread = convert(&file, &target.path().join("converted"), &mut |_| {})?;
    assert_eq!(unread, ["embedding_manager.x"]);
    Ok(())
}
