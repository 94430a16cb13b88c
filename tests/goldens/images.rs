//! Runs that begin from a picture, of every scheduler at several strengths, against diffusers' `StableDiffusionImg2ImgPipeline`.

use super::{NETWORK_TOLERANCE, goldens, relative_error};
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use diffusion::{
    noise::{DEFAULT_THREADS, Source},
    pipeline::{Compute, Pipeline, Request, StartImage},
    schedulers::Kind,
};
use image::RgbImage;
use serde::Deserialize;
use std::{collections::HashMap, ops::ControlFlow, path::Path, sync::Arc};

/// Largest error of final latents, relative to their largest value. Eight steps with guidance make several hundred times as much of a
/// network's: diffusers' own latents are up to 6e-4 off where each output of its UNet is changed at random by 2e-6 of the largest.
const LATENTS_TOLERANCE: f64 = 2e-3;

type Tensors = HashMap<String, Tensor>;

#[derive(Deserialize)]
struct About {
    inputs: Inputs,
}

#[derive(Deserialize)]
struct Inputs {
    prompt: String,
    negative_prompt: String,
    seed: u64,
    guidance_scale: f64,
    steps: usize,
    strengths: Vec<f64>,
    side: usize,
    images: usize,
}

fn golden<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    tensors.get(name).with_context(|| format!("no golden value {name}"))
}

fn easel_tiny() -> Result<Pipeline> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/easel-tiny");
    Ok(Pipeline::load(&model, &Compute::Cpu, (512, 512))?)
}

/// The picture `[height, width, 3]` of a golden value.
fn picture(tensor: &Tensor) -> Result<RgbImage> {
    let (height, width, _) = tensor.dims3()?;
    let bytes = tensor.flatten_all()?.to_vec1::<u8>()?;
    RgbImage::from_raw(width as u32, height as u32, bytes).context("three bytes for each pixel")
}

fn request(inputs: &Inputs, picture: &Arc<RgbImage>, strength: f64) -> Request {
    Request {
        negative_prompt: inputs.negative_prompt.clone(),
        width: inputs.side,
        height: inputs.side,
        seed: inputs.seed,
        steps: inputs.steps,
        guidance_scale: inputs.guidance_scale,
        noise_source: Source::Cpu,
        start: Some(StartImage { picture: picture.clone(), strength }),
        ..Request::new(inputs.prompt.clone())
    }
}

#[test]
fn a_picture_of_another_size_is_filled_in_as_pillow_does_it() -> Result<()> {
    let (tensors, _): (_, About) = goldens("images-tiny")?;
    let drawn = picture(golden(&tensors, "picture")?)?;
    let mut sizes = 0;
    for (name, theirs) in &tensors {
        let Some(size) = name.strip_prefix("filled/") else { continue };
        let (width, height) = size.split_once('x').context("a size")?;
        let ours = diffusion::pipeline::filling(&drawn, width.parse()?, height.parse()?)?;
        ensure!(ours == picture(theirs)?, "{size}: not to the bit");
        sizes += 1;
    }
    ensure!(sizes == 6, "{sizes} sizes");
    Ok(())
}

#[test]
fn the_encoder_is_diffusers() -> Result<()> {
    let (tensors, About { inputs }) = goldens("images-tiny")?;
    let drawn = Arc::new(picture(golden(&tensors, "picture")?)?);
    let mut pipeline = easel_tiny()?;
    for (name, width, height, every) in [("moments", inputs.side, inputs.side, 1), ("moments/264x328", 264, 328, 8)] {
        let request = Request { width, height, ..request(&inputs, &drawn, 0.5) };
        let moments = pipeline.encode(&request, request.start.as_ref().context("a picture")?)?;
        ensure!(moments.dims() == [1, 8, height / 8, width / 8], "{name}: {:?}", moments.dims());
        let picked = |side: usize, axis: usize, tensor: &Tensor| {
            let places: Vec<u32> = (0..side as u32 / 8).step_by(every).collect();
            tensor.index_select(&Tensor::new(places, tensor.device())?, axis)
        };
        let picked = picked(width, 3, &picked(height, 2, &moments)?)?;
        let error = relative_error(&picked, golden(&tensors, name)?)?;
        println!("{name}: relative error {error:.1e}");
        ensure!(error <= NETWORK_TOLERANCE, "{name}: relative error {error:.1e}");
    }
    Ok(())
}

#[test]
fn every_scheduler_paints_from_a_picture_what_it_paints_in_diffusers() -> Result<()> {
    let (tensors, About { inputs }) = goldens("images-tiny")?;
    let drawn = Arc::new(picture(golden(&tensors, "picture")?)?);
    let mut pipeline = easel_tiny()?;
    let karras = |kind: &Kind| if kind.has_karras_sigmas() { vec![None, Some(true)] } else { vec![None] };
    for (name, kind) in Kind::NAMES {
        for karras_sigmas in karras(kind) {
            for &strength in &inputs.strengths {
                let key = format!("{name}{}/{strength:?}", karras_sigmas.map_or("", |_| "/karras"));
                let request = Request { scheduler: *kind, karras_sigmas, ..request(&inputs, &drawn, strength) };
                let mut stream = pipeline.noise(&request, DEFAULT_THREADS);
                let begun = pipeline.begin(&request, inputs.images, &mut stream)?;
                let mut finished = Vec::new();
                let latents = pipeline.denoise(&request, begun, &mut stream, &mut |step| {
                    finished.push(step);
                    ControlFlow::Continue(())
                })?;
                let error = relative_error(&latents, golden(&tensors, &key)?)?;
                println!("{key}: relative error {error:.1e}");
                ensure!(error <= LATENTS_TOLERANCE, "{key}: relative error {error:.1e}");
                // As without a picture, PNDM's first call finishes no step.
                let first = if *kind == Kind::Pndm { vec![0, 0] } else { vec![0] };
                let painted = (inputs.steps as f64 * strength) as usize;
                let all: Vec<usize> = first.into_iter().chain(1..=painted).collect();
                ensure!(finished == all && request.painted_steps() == painted, "{key}: {finished:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn what_leaves_no_step_or_is_no_strength_is_refused_by_name() -> Result<()> {
    let (tensors, About { inputs }) = goldens("images-tiny")?;
    let drawn = Arc::new(picture(golden(&tensors, "picture")?)?);
    let mut pipeline = easel_tiny()?;
    for strength in [0.0, 0.1, -0.5, 1.01, f64::NAN, f64::INFINITY] {
        let request = request(&inputs, &drawn, strength);
        let mut stream = pipeline.noise(&request, DEFAULT_THREADS);
        let error = pipeline.begin(&request, 1, &mut stream).err().context("refused")?.to_string();
        ensure!(error.starts_with(&format!("`strength` is {strength}, it must leave one of the 8 steps")), "{error}");
    }
    Ok(())
}
