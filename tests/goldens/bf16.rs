//! Networks and pictures whose products are in bf16 on the CPU, against diffusers in f32.

use super::{GoldenModel, pictures};
use anyhow::{Result, ensure};
use diffusion::{
    Instructions, Vectors,
    lora::{AppliedLora, Lora},
    pipeline::{Compute, DecodeMemory, Pipeline},
};
use std::{fs, sync::Arc};

/// The most that a network's output may be off, relative to its largest value. bf16 rounds to a part in 512, in each layer anew.
const LARGEST_ERROR: f64 = 5e-2;
/// The least PSNR of a picture in dB.
const LEAST_PSNR: f64 = 30.0;

/// What of this CPU multiplies in bf16. On one that has nothing, what it says.
fn all() -> Result<Vec<Instructions>> {
    let flags = fs::read_to_string("/proc/cpuinfo")?;
    let mut all = Vec::new();
    for most in [Vectors::Widest, Vectors::Avx512] {
        match Instructions::detect(most) {
            Ok(instructions) => all.push(instructions),
            Err(lack) => ensure!(lack.contains("AVX512-BF16") && !flags.contains("avx512_bf16"), "{lack}"),
        }
    }
    all.dedup();
    Ok(all)
}

#[test]
fn networks_in_bf16_compute_what_diffusers_does() -> Result<()> {
    for instructions in all()? {
        for size in ["easel-tiny", "tiny", "sd15"] {
            let model = GoldenModel::load(size)?;
            let pipeline = Pipeline::load(&model.folder, &Compute::CpuBf16(instructions), (64, 64))?;
            let check = |key: &str, output: &candle_core::Tensor| -> Result<()> {
                let error = super::relative_error(output, model.golden(key)?)?;
                println!("{} {size}/{key}: {error:.1e}", instructions.name());
                ensure!(error < LARGEST_ERROR && error > 1e-6, "{} {size}/{key}: {error:e}", instructions.name());
                Ok(())
            };
            let prompt = pipeline.tokenizer().encode(&model.inputs.prompts[1])?;
            check("text_encoder/1", &pipeline.embed(&[&prompt])?)?;
            let (latents, context) = (model.golden("latents")?, model.golden("text_encoder/1")?);
            check("unet/500", &pipeline.unet_output(latents, 500.0, context)?)?;
            check("vae", &pipeline.vae_output(latents, DecodeMemory::Whole)?)?;
            check("vae", &pipeline.vae_output(latents, DecodeMemory::Bands { rows: 24 })?)?;
        }
    }
    Ok(())
}

#[test]
fn pictures_in_bf16_are_those_of_diffusers() -> Result<()> {
    // 50 steps with the first alone: the vectors take the longest, and 10 steps show as well what they would do wrong.
    for (instructions, names) in
        all()?.into_iter().zip([&["square", "euler", "half-scale"][..], &["euler", "half-scale"]])
    {
        for (name, likeness) in pictures::likenesses(&Compute::CpuBf16(instructions), names)? {
            println!("{} {name}: PSNR {likeness:.1} dB", instructions.name());
            ensure!(likeness >= LEAST_PSNR, "{} {name}: less than {LEAST_PSNR} dB: {likeness:.1}", instructions.name());
        }
    }
    Ok(())
}

#[test]
fn a_lora_in_bf16_leaves_no_trace() -> Result<()> {
    for instructions in all()? {
        let model = GoldenModel::load("tiny")?;
        let mut pipeline = Pipeline::load(&model.folder, &Compute::CpuBf16(instructions), (64, 64))?;
        let (latents, context) = (model.golden("latents")?, model.golden("text_encoder/1")?);
        let numbers = |pipeline: &Pipeline| -> Result<Vec<f32>> {
            Ok(pipeline.unet_output(latents, 500.0, context)?.flatten_all()?.to_vec1::<f32>()?)
        };
        let plain = numbers(&pipeline)?;
        let lora = Arc::new(Lora::read(&model.folder.join("lora.safetensors"))?);
        pipeline.set_loras(&[AppliedLora::new(lora, 1.0)])?;
        ensure!(numbers(&pipeline)? != plain, "the LoRA changes nothing");
        pipeline.set_loras(&[])?;
        ensure!(numbers(&pipeline)? == plain, "a LoRA left something behind");
    }
    Ok(())
}
