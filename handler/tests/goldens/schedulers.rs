//! Every scheduler against diffusers, step by step.

use crate::{difference, golden, numbers};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use handler::pipeline::scheduler::{self, Kind, SchedulerConfig};
use serde_json::json;
use std::collections::HashMap;

/// Largest error of a scheduler, relative to values above 1.
const SCHEDULER_TOLERANCE: f64 = 1e-5;

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
