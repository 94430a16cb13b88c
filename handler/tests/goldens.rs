//! Schedulers, noise and tokenizer against golden values from torch, diffusers and transformers (`tests/goldens/README.md`).
//!
//! Needs none of them. The networks and whole pictures are compared in the package `e2e`, which has the model for it.

#[path = "goldens/inspect.rs"]
mod inspect;
#[path = "goldens/lora.rs"]
mod lora;
#[path = "goldens/swap.rs"]
mod swap;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use handler::pipeline::{
    noise::Noise,
    scheduler::{self, Kind, SchedulerConfig},
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};
use std::{collections::HashMap, fs, path::PathBuf};

/// Largest error of a scheduler, relative to values above 1.
const SCHEDULER_TOLERANCE: f64 = 1e-5;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens")).join(name)
}

fn golden_json(name: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(golden(name))?)?)
}

/// The `scheduler_config.json` of SD1.5, which names no spacing, with a prediction type and perhaps a spacing.
fn config(prediction: &str, spacing: &str) -> Result<SchedulerConfig> {
    let mut config = json!({
        "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "clip_sample": false, "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
        "steps_offset": 1, "trained_betas": null, "prediction_type": prediction,
    });
    if spacing != "default" {
        config["timestep_spacing"] = json!(spacing);
    }
    Ok(serde_json::from_value(config)?)
}

/// Stands in for the UNet, as in `tests/goldens/parts/schedulers.py`.
fn model(scaled: &Tensor, step: usize) -> Result<Tensor> {
    let wave = (0..scaled.elem_count()).map(|index| (0.37 * index as f64 + step as f64).sin() as f32);
    let wave = Tensor::from_iter(wave, &Device::Cpu)?.reshape(scaled.shape())?;
    Ok((((scaled * 0.1)?) + wave)?)
}

/// The largest difference, relative to values above 1.
fn difference(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f64::max)
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

/// Runs every step and gives the largest difference to the golden trajectory.
fn trajectory_difference(goldens: &HashMap<String, Tensor>, kind: Kind, key: &str, spacing: &str) -> Result<f64> {
    let theirs = |part: &str| goldens.get(&format!("{key}/{part}")).with_context(|| format!("{key}/{part}"));
    let (prediction, steps) = (key.split('/').nth(1).context("a prediction")?, theirs("trajectory")?.dim(0)?);
    let mut scheduler = scheduler::build(kind, &config(prediction, spacing)?, steps)?;
    let mut worst = difference(scheduler.timesteps(), &numbers(theirs("timesteps")?)?);
    worst = worst.max(difference(&[scheduler.init_noise_sigma()], &numbers(theirs("init_noise_sigma")?)?));
    let mut sample = (&goldens["noise"] * scheduler.init_noise_sigma())?;
    for step in 0..steps {
        let output = model(&scheduler.scale_model_input(&sample, step)?, step)?;
        sample = scheduler.step(&output, step, &sample)?;
        worst = worst.max(difference(&numbers(&sample)?, &numbers(&theirs("trajectory")?.get(step)?)?));
    }
    Ok(worst)
}

#[test]
fn schedulers_follow_diffusers_step_by_step() -> Result<()> {
    let goldens = candle_core::safetensors::load(golden("schedulers.safetensors"), &Device::Cpu)?;
    let mut faults = Vec::new();
    for (name, kind) in Kind::NAMES {
        for prediction in ["epsilon", "v_prediction"] {
            for (spacing, like) in
                [("default", "default"), ("linspace", "default"), ("leading", "leading"), ("trailing", "trailing")]
            {
                for steps in [1, 2, 7, 20, 50] {
                    let key = format!("{name}/{prediction}/{like}/{steps}");
                    let worst = trajectory_difference(&goldens, kind, &key, spacing)?;
                    println!("{name} {prediction} {spacing} {steps}: {worst:.1e}");
                    if worst > SCHEDULER_TOLERANCE || worst.is_nan() {
                        faults.push(format!("{name} {prediction} {spacing} {steps} steps: {worst:.1e}"));
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "beyond {SCHEDULER_TOLERANCE:e}:\n{}", faults.join("\n"));
    Ok(())
}

#[test]
fn noise_is_that_of_torch_on_cuda() -> Result<()> {
    let goldens = golden_json("noise.json")?;
    for case in goldens["cuda"].as_array().context("cases")? {
        let theirs: Vec<f64> = serde_json::from_value(case["values"].clone())?;
        let seed = case["seed"].as_u64().context("a seed")?;
        let ours = numbers(&Noise::new(seed).randn(theirs.len(), DType::F32, &Device::Cpu)?)?;
        assert!(difference(&ours, &theirs) < 1e-6, "seed {seed}: {ours:?} is not {theirs:?}");
    }
    Ok(())
}

#[test]
fn tokens_are_those_of_transformers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tokenizer = clip_tokenizer(folder.path().to_path_buf())?;
    let goldens = golden_json("tokenizer.json")?;
    let (mut seen, mut faults) = (0, Vec::new());
    for case in goldens["cases"].as_array().context("cases")? {
        let text = case["text"].as_str().context("a text")?;
        let mut theirs: Vec<u32> = serde_json::from_value(case["ids"].clone())?;
        theirs.resize(77, 49_407);
        let ours = tokenizer.encode(text)?;
        if ours.ids != theirs || json!(ours.truncated) != case["truncated"] {
            faults.push(format!(
                "{text:?}: {:?} cut {}, not {theirs:?} cut {}",
                ours.ids, ours.truncated, case["truncated"]
            ));
        }
        seen += 1;
    }
    assert!(faults.is_empty() && seen == 200, "{} of {seen} differ:\n{}", faults.len(), faults.join("\n"));
    Ok(())
}

/// A model folder with CLIP's tokenizer. The vocabulary follows from the merges.
fn clip_tokenizer(model: PathBuf) -> Result<Tokenizer> {
    let merges = fs::read_to_string(golden("clip/merges.txt"))?;
    let plain = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let shown: Vec<char> = (0..=255u8).filter(plain).map(char::from).collect();
    let hidden = (0..256 - shown.len() as u32).filter_map(|index| char::from_u32(256 + index));
    let letters: Vec<String> = shown.iter().copied().chain(hidden).map(String::from).collect();
    let ends = letters.iter().map(|letter| format!("{letter}</w>"));
    let merged = merges.lines().skip(1).map(|line| line.replace(' ', ""));
    let special = ["<|startoftext|>", "<|endoftext|>"].map(String::from);
    let tokens = letters.iter().cloned().chain(ends).chain(merged).chain(special);
    let vocabulary: HashMap<String, usize> = tokens.enumerate().map(|(id, token)| (token, id)).collect();
    assert_eq!(vocabulary.len(), 49_408);
    let folder = model.join("tokenizer");
    fs::create_dir(&folder)?;
    fs::write(folder.join("vocab.json"), serde_json::to_vec(&vocabulary)?)?;
    fs::write(folder.join("merges.txt"), merges)?;
    fs::write(folder.join("tokenizer_config.json"), "{}")?;
    Ok(Tokenizer::load(&model, 77)?)
}
