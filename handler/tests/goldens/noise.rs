//! Noise against torch's generators.

use crate::{difference, golden_json, numbers};
use anyhow::{Context, Result};
use candle_core::{DType, Device};
use handler::pipeline::noise::Noise;
use serde_json::Value;

/// Largest error of an f32 draw; torch's vectorised logarithm and sine differ from ours in the last bits.
const TOLERANCE: f64 = 1e-6;

fn list<'a>(goldens: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    goldens[name].as_array().context(name.to_string())
}

fn values(value: &Value) -> Result<Vec<f64>> {
    Ok(serde_json::from_value(value.clone())?)
}

/// Seeds are written as torch takes them: negative ones wrap.
fn seed(case: &Value) -> Result<u64> {
    let signed = case["seed"].as_i64().map(|seed| seed as u64);
    signed.or_else(|| case["seed"].as_u64()).context("a seed")
}

#[test]
fn noise_of_cuda_starts_as_known() -> Result<()> {
    for case in list(&golden_json("noise.json")?, "cuda")? {
        let (seed, theirs) = (seed(case)?, values(&case["values"])?);
        let ours = numbers(&Noise::new(seed).randn(theirs.len(), DType::F32, &Device::Cpu)?)?;
        assert!(difference(&ours, &theirs) < TOLERANCE, "seed {seed}: {ours:?} is not {theirs:?}");
    }
    Ok(())
}

#[test]
fn noise_of_the_cpu_is_that_of_torch() -> Result<()> {
    let goldens = golden_json("noise.json")?;
    // A last bit of f32 can decide how f16 rounds: its spacing below 1 is 2^-11.
    for (name, dtype, tolerance) in [("cpu", DType::F32, TOLERANCE), ("cpu_f16", DType::F16, 2.0_f64.powi(-11))] {
        let mut worst: f64 = 0.0;
        for case in list(&goldens, name)? {
            let (seed, theirs) = (seed(case)?, values(&case["values"])?);
            let ours = numbers(&Noise::cpu(seed).randn(theirs.len(), dtype, &Device::Cpu)?)?;
            let off = difference(&ours, &theirs);
            assert!(
                off <= tolerance,
                "{name}, seed {seed}, {} values: {off:e}: {ours:?} is not {theirs:?}",
                theirs.len()
            );
            worst = worst.max(off);
        }
        println!("{name}: {worst:.1e}");
    }
    Ok(())
}

#[test]
fn noise_of_the_cpu_goes_on_as_that_of_torch_does() -> Result<()> {
    let goldens = golden_json("noise.json")?;
    let case = &goldens["cpu_one_after_the_other"];
    let mut noise = Noise::cpu(seed(case)?);
    for (index, theirs) in list(case, "draws")?.iter().enumerate() {
        let theirs = values(theirs)?;
        let ours = numbers(&noise.randn(theirs.len(), DType::F32, &Device::Cpu)?)?;
        assert!(difference(&ours, &theirs) <= TOLERANCE, "draw {index}");
    }
    let pair = &goldens["cpu_two_draws_of_64"];
    let mut noise = Noise::cpu(seed(pair)?);
    for theirs in list(pair, "first_of_each")? {
        let ours = numbers(&noise.randn(64, DType::F32, &Device::Cpu)?)?;
        assert!(difference(&ours[..4], &values(theirs)?) <= TOLERANCE);
    }
    let latents = &goldens["cpu_latents"];
    let shape: (usize, usize, usize, usize) = serde_json::from_value(latents["shape"].clone())?;
    let ours = numbers(&Noise::cpu(seed(latents)?).randn(shape, DType::F32, &Device::Cpu)?)?;
    assert!(difference(&ours[..16], &values(&latents["first"])?) <= TOLERANCE);
    assert!(difference(&ours[ours.len() - 16..], &values(&latents["last"])?) <= TOLERANCE);
    Ok(())
}
