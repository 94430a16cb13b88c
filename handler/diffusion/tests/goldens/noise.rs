//! Noise against torch's generators.

use crate::{difference, golden_json, numbers};
use anyhow::{Context, Result};
use candle_core::{DType, Device};
use diffusion::noise::Noise;
use serde_json::Value;

/// The largest error of an f32 draw. torch's vectorised logarithm and sine differ from ours in the last bits.
const TOLERANCE: f64 = 1e-6;
/// The same on CUDA. curand's Box-Muller transform calls `__sincosf`, whose absolute error is 2^-21.2 in -π..π (more outside) according
/// to CUDA's manual, times a radius of at most 6.8.
const CUDA_TOLERANCE: f64 = 4e-6;

fn list<'a>(goldens: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    goldens[name].as_array().context(name.to_string())
}

fn values(value: &Value) -> Result<Vec<f64>> {
    Ok(serde_json::from_value(value.clone())?)
}

/// A seed as torch takes it: negative ones wrap.
fn seed(case: &Value) -> Result<u64> {
    let signed = case["seed"].as_i64().map(|seed| seed as u64);
    signed.or_else(|| case["seed"].as_u64()).context("a seed")
}

/// Compares the first values, the last ones, some in between and the sum, for two draws of each seed, shape and dtype.
#[test]
fn noise_of_cuda_is_that_of_torch_on_a_gpu() -> Result<()> {
    let goldens = golden_json("noise-cuda.json")?;
    let number = |name: &str| goldens[name].as_u64().context(name.to_string());
    let threads = u32::try_from(number("multiprocessors")? * number("threads_per_multiprocessor")?)?;
    let cases = list(&goldens, "cases")?;
    let mut worst = [0.0_f64; 2];
    for case in cases {
        let shape: (usize, usize, usize, usize) = serde_json::from_value(case["shape"].clone())?;
        // The last bit of f32 can change how f16 rounds. Its spacing is 2^-9 between 2 and 4, and the difference is relative above 1.
        let (dtype, tolerance, half) =
            if case["dtype"] == "f16" { (DType::F16, 2.0_f64.powi(-10), 1) } else { (DType::F32, CUDA_TOLERANCE, 0) };
        let (seed, mut noise) = (seed(case)?, Noise::cuda(seed(case)?, threads));
        for (index, theirs) in list(case, "draws")?.iter().enumerate() {
            let ours = numbers(&noise.randn(shape, dtype, &Device::Cpu)?)?;
            let places: Vec<usize> = serde_json::from_value(theirs["places"].clone())?;
            let between: Vec<f64> = places.iter().map(|&place| ours[place]).collect();
            let parts = [(&ours[..8], "first"), (&ours[ours.len() - 8..], "last"), (&between[..], "between")];
            for (ours, part) in parts {
                let off = difference(ours, &values(&theirs[part])?);
                assert!(off <= tolerance, "seed {seed}, {shape:?}, {dtype:?}, draw {index}, {part}: {off:e}");
                worst[half] = worst[half].max(off);
            }
            let (sum, theirs) = (ours.iter().sum::<f64>(), theirs["sum"].as_f64().context("sum")?);
            assert!(
                (sum - theirs).abs() < 0.1,
                "seed {seed}, {shape:?}, {dtype:?}, draw {index}: sum {sum}, not {theirs}"
            );
        }
    }
    println!("{} cases: f32 {:.1e}, f16 {:.1e}", cases.len(), worst[0], worst[1]);
    Ok(())
}

#[test]
fn noise_of_the_cpu_is_that_of_torch() -> Result<()> {
    let goldens = golden_json("noise.json")?;
    // The last bit of f32 can change how f16 rounds. Its spacing below 1 is 2^-11.
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
fn noise_of_the_cpu_continues_as_that_of_torch() -> Result<()> {
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
