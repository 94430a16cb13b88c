//! Every scheduler against diffusers, step by step.

use crate::{difference, golden, numbers};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use diffusion::{
    noise::Noise,
    schedulers::{self, Kind, SchedulerConfig},
};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};

/// The largest difference to a scheduler of diffusers.
const TOLERANCE: f64 = 1e-5;
/// The same for a step from sigma 4096. It subtracts two nearly equal squares, which amplifies the last bit of torch's square root, and
/// that is not rounded correctly on every CPU.
const ANCESTRAL_ZERO_SNR_TOLERANCE: f64 = 5e-4;
/// As in `tests/goldens/parts/schedulers.py`.
const SEED: u64 = 0;

/// The `scheduler_config.json` of SD1.5, which has no `timestep_spacing`, with a prediction type and the fields of a variant.
fn config(prediction: &str, variant: &str) -> Result<SchedulerConfig> {
    let mut config = json!({
        "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "clip_sample": false, "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
        "steps_offset": 1, "trained_betas": null, "prediction_type": prediction,
    });
    let added = match variant {
        "default" => json!({}),
        "leading" => json!({"timestep_spacing": "leading"}),
        "trailing" => json!({"timestep_spacing": "trailing"}),
        "zero_snr" => json!({"timestep_spacing": "trailing", "rescale_betas_zero_snr": true}),
        "karras" => json!({"use_karras_sigmas": true}),
        "clipped" => json!({"clip_sample": true, "clip_sample_range": 1.5, "set_alpha_to_one": true}),
        other => anyhow::bail!("a variant that this test does not know: {other}"),
    };
    for (field, value) in added.as_object().context("fields")? {
        config[field] = value.clone();
    }
    Ok(SchedulerConfig::from_json(config)?)
}

/// Replaces the UNet, as in `tests/goldens/parts/schedulers.py`.
fn model(scaled: &Tensor, step: usize) -> Result<Tensor> {
    let wave = (0..scaled.elem_count()).map(|index| (0.37 * index as f64 + step as f64).sin() as f32);
    let wave = Tensor::from_iter(wave, &Device::Cpu)?.reshape(scaled.shape())?;
    Ok((((scaled * 0.1)?) + wave)?)
}

/// Runs every step. Returns the largest difference to the golden trajectory `scheduler/prediction/variant/steps`.
fn trajectory_difference(goldens: &HashMap<String, Tensor>, key: &str) -> Result<f64> {
    let theirs = |part: &str| goldens.get(&format!("{key}/{part}")).with_context(|| format!("{key}/{part}"));
    let [name, prediction, variant, steps] =
        key.split('/').collect::<Vec<_>>().try_into().ok().context(key.to_string())?;
    let kind: Kind = name.parse().map_err(anyhow::Error::msg)?;
    let steps = steps.parse()?;
    let mut scheduler = schedulers::build(kind, None, &config(prediction, variant)?, steps)?;
    let mut worst = difference(scheduler.timesteps(), &numbers(theirs("timesteps")?)?);
    worst = worst.max(difference(&[scheduler.init_noise_sigma()], &numbers(theirs("init_noise_sigma")?)?));
    let mut noise = Noise::cpu(SEED);
    // Starts from torch's first draw: ours differs in the last bits, which a large sigma would amplify.
    let (first, ours) = (&goldens["noise"], noise.randn(goldens["noise"].shape(), DType::F32, &Device::Cpu)?);
    worst = worst.max(difference(&numbers(&ours)?, &numbers(first)?));
    let mut sample = (first * scheduler.init_noise_sigma())?;
    for step in 0..steps {
        let output = model(&scheduler.scale_model_input(&sample, step)?, step)?;
        sample = scheduler.step(&output, step, &sample, &mut noise)?;
        let off = difference(&numbers(&sample)?, &numbers(&theirs("trajectory")?.get(step)?)?);
        worst = if off.is_nan() { off } else { worst.max(off) };
    }
    Ok(worst)
}

#[test]
fn schedulers_follow_diffusers_step_by_step() -> Result<()> {
    let goldens = candle_core::safetensors::load(golden("schedulers.safetensors"), &Device::Cpu)?;
    let runs: Vec<&str> = goldens.keys().filter_map(|key| key.strip_suffix("/trajectory")).collect();
    let (mut worst, mut faults) = (BTreeMap::<(&str, &str), f64>::new(), Vec::new());
    for key in &runs {
        let off = trajectory_difference(&goldens, key)?;
        let delicate = key.starts_with("euler_ancestral/v_prediction/zero_snr/");
        let tolerance = if delicate { ANCESTRAL_ZERO_SNR_TOLERANCE } else { TOLERANCE };
        if off > tolerance || off.is_nan() {
            faults.push(format!("{key}: {off:.1e}"));
        }
        let mut parts = key.split('/');
        let group = worst.entry((parts.next().context("a name")?, parts.nth(1).context("a variant")?)).or_default();
        *group = group.max(off);
    }
    for ((name, variant), off) in worst {
        println!("{name} {variant}: {off:.1e}");
    }
    faults.sort();
    assert!(faults.is_empty(), "too far from diffusers:\n{}", faults.join("\n"));
    for (name, kind) in Kind::NAMES {
        let has = |variant: &str| runs.iter().any(|key| key.starts_with(&format!("{name}/v_prediction/{variant}/")));
        assert!(["default", "leading", "trailing"].into_iter().all(has), "{name} has no golden trajectory");
        assert_eq!(has("karras"), kind.has_karras_sigmas(), "{name}");
    }
    Ok(())
}
