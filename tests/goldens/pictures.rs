//! Whole pictures of easel-tiny from a seed, at the sizes of tasks, against diffusers in f32.

use super::psnr;
use anyhow::{Context, Result, ensure};
use diffusion::{
    lora::{AppliedLora, Lora},
    noise::{DEFAULT_THREADS, Source},
    pipeline::{Compute, DecodeMemory, Pipeline, Request, StartImage},
    prompt::Weighting,
    schedulers::Kind,
};
use handler::task;
use image::RgbImage;
use serde::Deserialize;
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The least PSNR in dB. They have about 80; a VAE whose scaling factor is off by 2 % has less than 50.
const LEAST_PSNR: f64 = 60.0;

/// `pictures/pictures.json`.
#[derive(Deserialize)]
struct About {
    cases: Vec<GoldenPicture>,
}

#[derive(Deserialize)]
struct GoldenPicture {
    name: String,
    prompt: String,
    negative_prompt: String,
    aspect_ratio: String,
    /// With the height, instead of the aspect ratio.
    width: Option<usize>,
    height: Option<usize>,
    scheduler: Kind,
    steps: usize,
    guidance_scale: f64,
    seed: u64,
    lora: Option<String>,
    lora_scale: f64,
    num_images: usize,
    noise_source: Source,
    /// A picture to begin from, and how far from it.
    image: Option<String>,
    strength: Option<f64>,
    /// One for each image.
    files: Vec<String>,
}

impl GoldenPicture {
    fn request(&self, here: &Path) -> Result<Request> {
        let (width, height) = self.width.zip(self.height).unwrap_or_else(|| task::size(Some(&self.aspect_ratio)));
        let start = |(file, strength): (&String, f64)| {
            let picture = image::open(here.join("goldens/pictures").join(file)).with_context(|| file.clone())?;
            Ok::<_, anyhow::Error>(StartImage { picture: Arc::new(picture.into_rgb8()), strength })
        };
        Ok(Request {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            prompt_weighting: Weighting::None,
            long_prompt: false,
            clip_skip: 0,
            width,
            height,
            seed: self.seed,
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            scheduler: self.scheduler,
            karras_sigmas: None,
            noise_source: self.noise_source,
            start: self.image.as_ref().zip(self.strength).map(start).transpose()?,
        })
    }

    /// The least PSNR of its pictures, in dB.
    fn likeness(&self, pipeline: &mut Pipeline, here: &Path) -> Result<f64> {
        let lora = self.lora.as_ref().map(|file| (here.join("model/styles").join(file), self.lora_scale));
        let pictures = paint(pipeline, &self.request(here)?, self.num_images, lora)?;
        ensure!(pictures.len() == self.files.len(), "{}: {} pictures", self.name, pictures.len());
        let mut least = f64::INFINITY;
        for (picture, file) in pictures.iter().zip(&self.files) {
            let theirs = image::open(here.join("goldens/pictures").join(file)).with_context(|| file.clone())?;
            least = least.min(psnr(picture.as_raw(), theirs.into_rgb8().as_raw()));
        }
        Ok(least)
    }
}

/// Paints a request from its seed, with a LoRA file at a scale.
pub(super) fn paint(
    pipeline: &mut Pipeline,
    request: &Request,
    num_images: usize,
    lora: Option<(PathBuf, f64)>,
) -> Result<Vec<RgbImage>> {
    let loras = lora.map(|(file, scale)| Ok(AppliedLora::new(Arc::new(Lora::read(&file)?), scale)));
    pipeline.set_loras(&loras.into_iter().collect::<Result<Vec<_>>>()?)?;
    let mut stream = pipeline.noise(request, DEFAULT_THREADS);
    let noise = pipeline.begin(request, num_images, &mut stream)?;
    let latents = pipeline.denoise(request, noise, &mut stream, &mut |_| ControlFlow::Continue(()))?;
    Ok(pipeline.decode(&latents, DecodeMemory::Whole)?)
}

/// Makes a test of each golden picture, so that as many are painted at once as there are cores. A name has `_` for `-`.
macro_rules! pictures {
    ($($name:ident,)+) => {
        const TESTED: &[&str] = &[$(stringify!($name)),+];

        $(
            #[test]
            fn $name() -> Result<()> {
                painted_as_by_diffusers(stringify!($name))
            }
        )+
    };
}

pictures! {
    square, large, tall_halftone, euler, euler_ancestral, ddim, unipc, lcm, pndm, lcm_stained_glass, half_scale, pair,
    odd_264x328, odd_280x296, odd_256x360, odd_1000x264, odd_344x376, from_sketch, from_sketch_glass,
}

fn cases(here: &Path) -> Result<Vec<GoldenPicture>> {
    let About { cases } = serde_json::from_slice(&fs::read(here.join("goldens/pictures/pictures.json"))?)?;
    Ok(cases)
}

fn painted_as_by_diffusers(test: &str) -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let case = cases(here)?.into_iter().find(|case| case.name.replace('-', "_") == test).context("no such picture")?;
    let mut pipeline = Pipeline::load(&here.join("model/easel-tiny"), &Compute::Cpu, (512, 512))?;
    let likeness = case.likeness(&mut pipeline, here)?;
    println!("{}: PSNR {likeness:.1} dB", case.name);
    ensure!(likeness >= LEAST_PSNR, "less than {LEAST_PSNR} dB: {likeness:.1}");
    Ok(())
}

/// The least PSNR of the pictures of these names, painted otherwise than in f32.
pub(super) fn likenesses(compute: &Compute, names: &[&str]) -> Result<Vec<(String, f64)>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pipeline = Pipeline::load(&here.join("model/easel-tiny"), compute, (512, 512))?;
    let cases = cases(here)?.into_iter().filter(|case| names.contains(&case.name.as_str()));
    let likenesses: Vec<_> =
        cases.map(|case| Ok((case.name.clone(), case.likeness(&mut pipeline, here)?))).collect::<Result<_>>()?;
    ensure!(likenesses.len() == names.len(), "not all of {names:?} are golden pictures");
    Ok(likenesses)
}

#[test]
fn every_golden_picture_has_a_test_and_every_scheduler_a_picture() -> Result<()> {
    let cases = cases(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    let mut names: Vec<_> = cases.iter().map(|case| case.name.replace('-', "_")).collect();
    let mut tested = TESTED.to_vec();
    names.sort();
    tested.sort();
    ensure!(names == tested, "pictures.json has {names:?}, the tests {tested:?}");
    for (name, kind) in Kind::NAMES {
        ensure!(cases.iter().any(|case| case.scheduler == *kind), "the scheduler {name} has no picture");
    }
    Ok(())
}
