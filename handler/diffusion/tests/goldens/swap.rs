//! Swapping LoRAs over the base of the small model: only the tensors of the LoRA change, and unloading restores every bit.

use super::numbers;
use anyhow::{Context, Result};
use diffusion::{
    loading::weights::Weights,
    lora::{AppliedLora, Dora, Lora, Target, merge},
    noise::{DEFAULT_THREADS, Source},
    pipeline::{Compute, Pipeline, Request},
    prompt::Weighting,
    schedulers::Kind,
};
use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/model")
}

fn style(name: &str, scale: f64) -> Result<AppliedLora> {
    let lora = Lora::read(&model().join(format!("styles/{name}.safetensors")))?;
    Ok(AppliedLora::new(Arc::new(lora), scale))
}

/// The latents after one step with the current LoRAs.
fn latents(pipeline: &Pipeline) -> Result<Vec<f64>> {
    let request = Request {
        prompt: "lighthouse".into(),
        negative_prompt: String::new(),
        width: 64,
        height: 64,
        seed: 1,
        steps: 1,
        guidance_scale: 1.0,
        scheduler: Kind::Euler,
        prompt_weighting: Weighting::None,
        long_prompt: false,
        clip_skip: 0,
        karras_sigmas: None,
        noise_source: Source::Cuda,
        start: None,
    };
    let mut stream = pipeline.noise(&request, DEFAULT_THREADS);
    let noise = pipeline.first_noise(&request, 1, &mut stream)?;
    numbers(&pipeline.denoise(&request, noise, &mut stream, &mut |_| ControlFlow::Continue(()))?)
}

#[test]
fn only_the_tensors_of_the_lora_are_new() -> Result<()> {
    let load = |part: &str, file: &str| anyhow::Ok(Weights::load(&model().join("easel-tiny").join(part), &[file])?);
    let unet = load("unet", "diffusion_pytorch_model.safetensors")?;
    let text_encoder = load("text_encoder", "model.safetensors")?;
    let target = Target::of_weights(&unet, &text_encoder);
    let loras = [style("halftone", 1.0)?];
    let overlay = merge(&loras, &target, &unet, &text_encoder, Dora::Apply)?;
    assert_eq!(overlay.unet.len(), loras[0].lora.modules());
    assert!(overlay.text_encoder.is_empty());
    let concerned: BTreeSet<String> = overlay.unet.keys().cloned().collect();
    let swapped = unet.with_overlay(overlay.unet);
    let unloaded = unet.with_overlay(Default::default());
    let names: BTreeSet<String> = unet.names().into_iter().map(str::to_string).collect();
    assert!(concerned.len() < names.len() / 2 && concerned.is_subset(&names));
    for name in names {
        let base = unet.base(&name)?;
        // A clone of a tensor has the same id.
        assert_eq!(swapped.tensor(&name)?.id() != base.id(), concerned.contains(&name), "{name}");
        assert_eq!(unloaded.tensor(&name)?.id(), base.id(), "{name}");
    }
    Ok(())
}

#[test]
fn unloading_restores_every_bit() -> Result<()> {
    let mut pipeline = Pipeline::load(&model().join("easel-tiny"), &Compute::Cpu, (512, 512))?;
    let base = latents(&pipeline)?;
    let glass = style("stained-glass", 0.8)?;
    pipeline.set_loras(std::slice::from_ref(&glass))?;
    let painted = latents(&pipeline)?;
    assert_ne!(painted, base);
    pipeline.set_loras(&[style("halftone", -0.5)?, glass.clone()])?;
    assert_ne!(latents(&pipeline)?, painted);
    pipeline.set_loras(std::slice::from_ref(&glass))?;
    assert_eq!(latents(&pipeline)?, painted, "nothing is left of the other style");
    pipeline.set_loras(&[])?;
    assert_eq!(latents(&pipeline)?, base);
    pipeline.set_loras(&[AppliedLora { scale: 0.0, ..glass.clone() }])?;
    assert_eq!(latents(&pipeline)?, base, "scale zero is the base");
    pipeline.set_loras(&[glass])?;
    let unfit = Lora::read(&super::golden("lora/lycoris-locon.safetensors"))?;
    let refused = pipeline.set_loras(&[AppliedLora::new(Arc::new(unfit), 0.0)]);
    let error = refused.err().context("a LoRA for another model is refused, at scale 0 too")?;
    assert!(error.is_permanent(), "{error}");
    assert_eq!(latents(&pipeline)?, base, "after an error the base is in force");
    Ok(())
}
