//! Pictures from a seed by every scheduler, and prompts with weights, against diffusers and transformers.

use super::{LEAST_PSNR, NETWORK_TOLERANCE, goldens, psnr, relative_error, toy_model};
use anyhow::{Context, Result};
use candle_core::Tensor;
use diffusion::{
    noise::{DEFAULT_THREADS, Source},
    pipeline::{Compute, DecodeMemory, Pipeline, Request},
    prompt::Weighting,
    schedulers::Kind,
};
use serde::Deserialize;
use std::{collections::HashMap, ops::ControlFlow};

type Tensors = HashMap<String, Tensor>;

#[derive(Deserialize)]
struct Seeds {
    inputs: Inputs,
}

#[derive(Deserialize)]
struct Inputs {
    prompt: String,
    negative_prompt: String,
    seed: u64,
    guidance_scale: f64,
    steps: usize,
    side: usize,
    images: usize,
}

#[derive(Deserialize)]
struct Prompts {
    prompts: Vec<String>,
}

fn golden<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    tensors.get(name).with_context(|| format!("no golden value {name}"))
}

/// Paints all images of the seed; compares the final latents and the first picture.
fn same_from_seed(pipeline: &Pipeline, tensors: &Tensors, inputs: &Inputs, key: &str) -> Result<()> {
    let (name, karras) = key.split_once('/').map_or((key, false), |(name, _)| (name, true));
    let request = Request {
        prompt: inputs.prompt.clone(),
        negative_prompt: inputs.negative_prompt.clone(),
        prompt_weighting: Weighting::None,
        long_prompt: false,
        clip_skip: 0,
        width: inputs.side,
        height: inputs.side,
        seed: inputs.seed,
        steps: inputs.steps,
        guidance_scale: inputs.guidance_scale,
        scheduler: name.parse().map_err(anyhow::Error::msg)?,
        karras_sigmas: karras.then_some(true),
        noise_source: Source::Cpu,
        start: None,
    };
    let mut stream = pipeline.noise(&request, DEFAULT_THREADS);
    let noise = pipeline.first_noise(&request, inputs.images, &mut stream)?;
    let mut finished = Vec::new();
    let latents = pipeline.denoise(&request, noise, &mut stream, &mut |step| {
        finished.push(step);
        ControlFlow::Continue(())
    })?;
    // PNDM calls the UNet once more than it makes steps. As in diffusers' progress bar, its first call finishes none.
    let first = if request.scheduler == Kind::Pndm { vec![0, 0] } else { vec![0] };
    let all: Vec<usize> = first.into_iter().chain(1..=inputs.steps).collect();
    anyhow::ensure!(finished == all, "{key}: {finished:?}");
    let error = relative_error(&latents, golden(tensors, &format!("{key}/latents"))?)?;
    let pictures = pipeline.decode(&latents, DecodeMemory::Whole)?;
    let theirs = golden(tensors, &format!("{key}/picture"))?.flatten_all()?.to_vec1::<u8>()?;
    let likeness = psnr(pictures[0].as_raw(), &theirs);
    println!("{key}: latents' relative error {error:.1e}, PSNR {likeness:.1} dB");
    anyhow::ensure!(error <= NETWORK_TOLERANCE && likeness >= LEAST_PSNR, "{key}: {error:.1e}, {likeness:.1} dB");
    anyhow::ensure!(
        pictures.len() == inputs.images && pictures[0] != pictures[1],
        "{key}: {} pictures",
        pictures.len()
    );
    Ok(())
}

#[test]
fn a_seed_paints_what_it_paints_in_diffusers() -> Result<()> {
    let (tensors, Seeds { inputs }) = goldens("seeds-tiny")?;
    let pipeline = Pipeline::load(toy_model("tiny")?.path(), &Compute::Cpu, (512, 512))?;
    for (name, kind) in Kind::NAMES {
        same_from_seed(&pipeline, &tensors, &inputs, name)?;
        if kind.has_karras_sigmas() {
            same_from_seed(&pipeline, &tensors, &inputs, &format!("{name}/karras"))?;
        }
    }
    Ok(())
}

#[test]
fn weights_in_a_prompt_do_what_they_do_in_the_web_ui() -> Result<()> {
    let (tensors, Prompts { prompts }) = goldens("prompts-tiny")?;
    let model = toy_model("tiny")?;
    let pipeline = Pipeline::load(model.path(), &Compute::Cpu, (512, 512))?;
    let check = |name: &str, ours: &Tensor| {
        let error = relative_error(ours, golden(&tensors, name)?)?;
        println!("prompt {name}: relative error {error:.1e}");
        anyhow::ensure!(error <= NETWORK_TOLERANCE, "prompt {name}: relative error {error:.1e}");
        Ok(())
    };
    let mut all = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let tokens = Weighting::A1111.tokens(pipeline.tokenizer(), "prompt", prompt)?;
        check(&index.to_string(), &pipeline.embed(&[&tokens])?)?;
        all.push(tokens);
    }
    anyhow::ensure!(all.last().context("a prompt")?.truncated == 21, "75 of its 96 letters fit");
    // Each prompt of a batch has its own mean.
    let pair = pipeline.embed(&[&all[2], &all[1]])?;
    check("2", &pair.narrow(0, 0, 1)?)?;
    check("1", &pair.narrow(0, 1, 1)?)?;
    // Without weighting, brackets are text.
    anyhow::ensure!(Weighting::None.tokens(pipeline.tokenizer(), "prompt", &prompts[1])?.ids != all[1].ids);
    Ok(())
}
