//! `handler generate`: one picture from the shell, with a progress bar. No queue, no S3, no webhooks.

use crate::{
    cli::options::GenerateConfig,
    engine::{Engine, GenerationRequest},
    picture::{Credential, PictureOrigin},
    task::{self, Format},
};
use anyhow::{Context, ensure};
use diffusion::{
    lora::{AppliedLora, Lora},
    pipeline::Request,
};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};
use tracing::Span;

/// Paints and writes the picture.
///
/// # Errors
/// The first file, option or model fault, in words for the person at the shell.
pub fn run(config: &GenerateConfig) -> anyhow::Result<()> {
    let wanted = wanted(config)?;
    let folder = config.out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let is_there = folder.is_none_or(Path::is_dir);
    ensure!(is_there, "--out {}: there is no such folder; make it first", config.out.display());
    let mut engine = Engine::open(&config.model, (wanted.request.width, wanted.request.height))?;
    let style = ProgressStyle::with_template("{bar:40} step {pos}/{len}  {elapsed} elapsed, {eta} to go")?;
    let bar = ProgressBar::new(u64::from(config.steps)).with_style(style);
    let output = engine.paint(&wanted, &mut |step| {
        bar.set_length(u64::from(config.steps) * step.parts as u64);
        bar.set_position(u64::from(config.steps) * step.part as u64 + step.finished as u64);
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    let output = output?;
    let names: Vec<PathBuf> = (1..).map(|number| numbered(&config.out, number)).take(output.files.len()).collect();
    for (name, file) in names.iter().zip(&output.files) {
        fs::write(name, file).with_context(|| format!("--out {}", name.display()))?;
    }
    let stages = output.stages.iter().map(|(name, time)| format!("{name} {} ms", time.as_millis()));
    eprintln!("{}", stages.collect::<Vec<_>>().join(", "));
    for name in &names {
        println!("{}", name.display());
    }
    Ok(())
}

/// `picture.png`, `picture-2.png` and so on.
fn numbered(out: &Path, number: usize) -> PathBuf {
    let (stem, ending) = (out.file_stem().unwrap_or_default(), out.extension().unwrap_or_default());
    match number {
        1 => out.into(),
        _ => out.with_file_name(format!("{}-{number}.{}", stem.to_string_lossy(), ending.to_string_lossy())),
    }
}

fn wanted(config: &GenerateConfig) -> anyhow::Result<GenerationRequest> {
    let seed = config.seed;
    let (width, height) = task::size(Some(&config.aspect_ratio));
    let loras = config.loras.iter().map(|file| {
        let lora = Lora::read(&file.path).with_context(|| format!("--lora {}", file.path.display()))?;
        Ok(AppliedLora { lora: Arc::new(lora), scale: file.scale })
    });
    Ok(GenerationRequest {
        request: Request {
            prompt: config.prompt.clone(),
            negative_prompt: config.negative_prompt.clone(),
            prompt_weighting: config.prompt_weighting,
            width,
            height,
            seed: seed as u64,
            steps: usize::from(config.steps),
            guidance_scale: config.guidance_scale,
            scheduler: config.scheduler,
            karras_sigmas: config.karras_sigmas,
            noise_source: config.noise_source,
        },
        images: usize::from(config.num_images),
        loras: loras.collect::<anyhow::Result<_>>()?,
        signature: config.signature.name.clone().map(|name| (name, config.signature.options())),
        format: Format::of_path(&config.out).map_err(anyhow::Error::msg)?,
        file: config.picture,
        origin: PictureOrigin { seed, ..PictureOrigin::default() },
        credential: Credential::of_files(&config.credential)?.map(Arc::new),
        span: Span::none(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_pictures_are_numbered_before_the_ending() {
        let name = |out: &str, number| numbered(Path::new(out), number).display().to_string();
        assert_eq!(
            [1, 2, 3].map(|number| name("a/b.c/cat.png", number)),
            ["a/b.c/cat.png", "a/b.c/cat-2.png", "a/b.c/cat-3.png"]
        );
        assert_eq!(name("cat.v2.JPG", 4), "cat.v2-4.JPG");
    }
}
