//! Networks and whole pictures against golden values from transformers, diffusers and peft (`README.md`).
//!
//! Three models: easel-tiny, and two with random weights that `toy-model` writes here as it did for the golden values, one of
//! them with SD1.5's own block structure at reduced width. Everything is f32 on the CPU, but for what `bf16` has.

mod bf16;
mod checkpoint;
mod images;
mod inversions;
mod long_prompts;
mod lora_blocks;
mod pictures;
mod seeds;
mod semantics;
mod settings;
mod together;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use diffusion::{
    lora::{AppliedLora, Lora},
    noise::{Noise, Source},
    pipeline::{Compute, DecodeMemory, Pipeline, Request},
    prompt::Weighting,
    schedulers::Kind,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{
    collections::HashMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};
use tempfile::TempDir;

/// Largest error of a network's output, relative to the output's largest value.
const NETWORK_TOLERANCE: f64 = 1e-4;
/// The least PSNR of a picture, in dB.
const LEAST_PSNR: f64 = 40.0;

/// One model and what diffusers computes with it.
struct GoldenModel {
    folder: PathBuf,
    /// Removes the folder of a random model.
    _random: Option<TempDir>,
    tensors: HashMap<String, Tensor>,
    inputs: Inputs,
}

/// The file's metadata.
#[derive(Deserialize)]
struct About {
    inputs: Inputs,
}

/// The inputs of the golden values.
#[derive(Deserialize)]
struct Inputs {
    prompts: Vec<String>,
    negative_prompt: String,
    guidance_scale: f64,
    steps: usize,
    lora_scale: f64,
}

impl GoldenModel {
    fn load(name: &str) -> Result<Self> {
        let (tensors, About { inputs }) = goldens(&format!("model-{name}"))?;
        let random = (name != "easel-tiny").then(|| toy_model(name)).transpose()?;
        let easel_tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/easel-tiny");
        let folder = random.as_ref().map_or(easel_tiny, |folder| folder.path().to_path_buf());
        Ok(Self { folder, _random: random, tensors, inputs })
    }

    fn golden(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).with_context(|| format!("no golden value {name}"))
    }

    /// Fails when the output is too far from the golden value.
    fn check(&self, name: &str, ours: &Tensor) -> Result<()> {
        let error = relative_error(ours, self.golden(name)?)?;
        println!("{name}: relative error {error:.1e}");
        anyhow::ensure!(error <= NETWORK_TOLERANCE, "{name}: relative error {error:.1e}");
        Ok(())
    }

    /// Fails when the final latents or the picture are too far from the golden ones.
    fn same_picture(&self, pipeline: &Pipeline, kind: Kind, key: &str, size: (usize, usize)) -> Result<()> {
        let (error, likeness) = self.paint(pipeline, kind, key, size)?;
        anyhow::ensure!(error <= NETWORK_TOLERANCE && likeness >= LEAST_PSNR, "{key}: {error:.1e}, {likeness:.1} dB");
        Ok(())
    }

    /// Paints from the golden noise; gives the relative error of the final latents and the picture's PSNR in dB.
    fn paint(&self, pipeline: &Pipeline, kind: Kind, key: &str, size: (usize, usize)) -> Result<(f64, f64)> {
        let latents = self.latents(pipeline, kind, size)?;
        let error = relative_error(&latents, self.golden(&format!("{key}/latents"))?)?;
        let pictures = pipeline.decode(&latents, DecodeMemory::Whole)?;
        let theirs = self.golden(&format!("{key}/picture"))?.flatten_all()?.to_vec1::<u8>()?;
        let likeness = psnr(pictures[0].as_raw(), &theirs);
        println!("{key}: latents' relative error {error:.1e}, PSNR {likeness:.1} dB");
        Ok((error, likeness))
    }

    /// The final latents of a run from the golden noise.
    fn latents(&self, pipeline: &Pipeline, kind: Kind, size: (usize, usize)) -> Result<Tensor> {
        let request = Request {
            prompt: self.inputs.prompts[1].clone(),
            negative_prompt: self.inputs.negative_prompt.clone(),
            prompt_weighting: Weighting::None,
            long_prompt: false,
            clip_skip: 0,
            width: size.0,
            height: size.1,
            seed: 0,
            steps: self.inputs.steps,
            guidance_scale: self.inputs.guidance_scale,
            scheduler: kind,
            karras_sigmas: None,
            noise_source: Source::Cpu,
            start: None,
        };
        let noise = self.golden(&format!("noise/{}x{}", size.0, size.1))?.clone();
        Ok(pipeline.denoise(&request, noise, &mut Noise::cpu(0), &mut |_| ControlFlow::Continue(()))?)
    }
}

/// The model that the golden values were made with.
fn toy_model(size: &str) -> Result<TempDir> {
    toy_model_with(size, &Map::new())
}

/// The same with other settings, by file and name.
fn toy_model_with(size: &str, settings: &Map<String, Value>) -> Result<TempDir> {
    let model = tempfile::tempdir()?;
    let settings = settings.iter().map(|(name, value)| format!("--setting={name}={value}"));
    let mut program = Command::new(env!("CARGO_BIN_EXE_toy-model"));
    let status = program.args(["--size", size, "--out"]).arg(model.path()).args(settings).status()?;
    anyhow::ensure!(status.success(), "toy-model failed");
    Ok(model)
}

/// The tensors of a file and its metadata.
fn goldens<T: DeserializeOwned>(file: &str) -> Result<(HashMap<String, Tensor>, T)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("goldens/{file}.safetensors"));
    let bytes = fs::read(&path)?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let about = header.metadata().as_ref().and_then(|texts| texts.get("about")).context("no metadata")?;
    Ok((candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?, serde_json::from_str(about)?))
}

/// The largest difference as a share of the largest value.
fn relative_error(ours: &Tensor, theirs: &Tensor) -> Result<f64> {
    assert_eq!(ours.dims(), theirs.dims());
    let most = theirs.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    let off = (ours - theirs)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    Ok(f64::from(off / most))
}

fn psnr(ours: &[u8], theirs: &[u8]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let squares = ours.iter().zip(theirs).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum::<f64>();
    10.0 * (255.0f64.powi(2) * ours.len() as f64 / squares).log10()
}

fn networks_agree(size: &str) -> Result<()> {
    let model = GoldenModel::load(size)?;
    let folder = &model.folder;
    let pipeline = Pipeline::load(folder, &Compute::Cpu, (512, 512))?;
    for (index, prompt) in model.inputs.prompts.iter().enumerate() {
        model.check(&format!("text_encoder/{index}"), &pipeline.embed(&[&pipeline.tokenizer().encode(prompt)?])?)?;
    }
    let (latents, context) = (model.golden("latents")?, model.golden("text_encoder/1")?);
    // Euler's timesteps are fractions.
    for timestep in ["1", "500", "978.6122", "981", "999"] {
        model.check(&format!("unet/{timestep}"), &pipeline.unet_output(latents, timestep.parse()?, context)?)?;
    }
    model.check("vae", &pipeline.vae_output(latents, DecodeMemory::Whole)?)?;
    model.check("vae", &pipeline.vae_output(latents, DecodeMemory::Bands { rows: 24 })?)
}

fn pictures_agree(size: &str) -> Result<()> {
    let model = GoldenModel::load(size)?;
    let mut pipeline = Pipeline::load(&model.folder, &Compute::Cpu, (512, 512))?;
    for (name, kind) in [("dpmsolver++", Kind::DpmSolverPlusPlus), ("euler", Kind::Euler)] {
        for (width, height) in [(64, 64), (64, 128)] {
            let key = format!("{name}/{width}x{height}");
            model.same_picture(&pipeline, kind, &key, (width, height))?;
        }
    }
    let lora = Arc::new(Lora::read(&model.folder.join("lora.safetensors"))?);
    let (_, plain) = model.paint(&pipeline, Kind::DpmSolverPlusPlus, "lora/64x64", (64, 64))?;
    anyhow::ensure!(plain < LEAST_PSNR, "the LoRA changes too little for a comparison: {plain:.1} dB");
    pipeline.set_loras(&[AppliedLora::new(lora, model.inputs.lora_scale)])?;
    model.same_picture(&pipeline, Kind::DpmSolverPlusPlus, "lora/64x64", (64, 64))
}

#[test]
fn networks_compute_what_diffusers_does() -> Result<()> {
    networks_agree("easel-tiny")?;
    networks_agree("tiny")?;
    networks_agree("sd15")
}

#[test]
fn pictures_of_the_small_model_are_those_of_diffusers() -> Result<()> {
    pictures_agree("tiny")
}

#[test]
fn pictures_of_the_structure_of_sd15_are_those_of_diffusers() -> Result<()> {
    pictures_agree("sd15")
}
