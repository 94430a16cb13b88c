//! `handler generate`: one picture from the shell, with a progress bar. No queue, no S3, no webhooks.

use crate::{
    config::GenerateConfig,
    lora::{AppliedLora, Lora},
    pipeline::Request,
    signature::Signature,
    studio::{Commission, Studio},
    task::{self, Format},
};
use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use std::{fs, ops::ControlFlow, path::Path, sync::Arc};

/// Paints and writes the picture.
///
/// # Errors
/// The first file, option or model fault, in words for the person at the shell.
pub fn run(config: &GenerateConfig) -> anyhow::Result<()> {
    let commission = commission(config)?;
    let mut studio = Studio::open(&config.model)?;
    let style = ProgressStyle::with_template("{bar:40} step {pos}/{len}  {elapsed} elapsed, {eta} to go")?;
    let bar = ProgressBar::new(u64::from(config.steps)).with_style(style);
    let delivery = studio.paint(&commission, &mut |finished| {
        bar.set_position(finished as u64);
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    let delivery = delivery?;
    for file in &delivery.files {
        fs::write(&config.out, file).with_context(|| format!("--out {}", config.out.display()))?;
    }
    let stages = delivery.stages.iter().map(|(name, time)| format!("{name} {} ms", time.as_millis()));
    eprintln!("{}", stages.collect::<Vec<_>>().join(", "));
    println!("{}", config.out.display());
    Ok(())
}

fn commission(config: &GenerateConfig) -> anyhow::Result<Commission> {
    let seed = config.seed;
    ensure!((i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&seed), "--seed must be from -2^63 to 2^64 - 1");
    ensure!(config.guidance_scale.is_finite(), "--guidance-scale must be a finite number");
    let (width, height) = task::size(Some(&config.aspect_ratio));
    let loras = config.loras.iter().map(|file| {
        let lora = Lora::read(&file.path).with_context(|| format!("--lora {}", file.path.display()))?;
        Ok(AppliedLora { lora: Arc::new(lora), scale: file.scale })
    });
    Ok(Commission {
        request: Request {
            prompt: config.prompt.clone(),
            negative_prompt: config.negative_prompt.clone(),
            width,
            height,
            seed: seed as u64,
            steps: usize::from(config.steps),
            guidance_scale: config.guidance_scale,
            scheduler: config.scheduler,
        },
        images: 1,
        loras: loras.collect::<anyhow::Result<_>>()?,
        signature: config.signature.clone().map(|name| (name, Signature::default())),
        format: format(&config.out)?,
    })
}

fn format(out: &Path) -> anyhow::Result<Format> {
    match out.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("jpg" | "jpeg") => Ok(Format::Jpeg),
        Some("png") => Ok(Format::Png),
        _ => bail!("--out {}: the name must end in .jpg, .jpeg or .png", out.display()),
    }
}
