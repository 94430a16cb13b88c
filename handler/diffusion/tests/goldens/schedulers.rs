//! Every scheduler against diffusers, step by step, from files as SD1.5's and as other schedulers' classes write them.

use crate::{difference, golden, golden_json, numbers};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use diffusion::{
    noise::Noise,
    schedulers::{self, Kind, SchedulerConfig},
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
};

/// The largest difference to a scheduler of diffusers.
const TOLERANCE: f64 = 1e-5;
/// The same for a step from sigma 4096. It subtracts two nearly equal squares, which amplifies the last bit of torch's square root, and
/// that is not rounded correctly on every CPU.
const ANCESTRAL_ZERO_SNR_TOLERANCE: f64 = 5e-4;
/// As in `tests/goldens/parts/schedulers.py`.
const SEED: u64 = 0;

/// `schedulers.json`.
#[derive(Deserialize)]
struct About {
    /// The content of each scheduler file.
    files: BTreeMap<String, String>,
    /// For each file: the schedulers that do not paint with it here, and the field that is refused.
    refused: BTreeMap<String, BTreeMap<String, String>>,
}

impl About {
    fn load() -> Result<Self> {
        Ok(serde_json::from_value(golden_json("schedulers.json")?)?)
    }

    /// Reads a scheduler file from a model folder.
    fn config(&self, file: &str) -> Result<SchedulerConfig> {
        let model = tempfile::tempdir()?;
        fs::create_dir(model.path().join("scheduler"))?;
        let text = self.files.get(file).with_context(|| format!("no file {file}"))?;
        fs::write(model.path().join("scheduler/scheduler_config.json"), text)?;
        Ok(SchedulerConfig::load(model.path())?)
    }
}

/// Replaces the UNet, as in `tests/goldens/parts/schedulers.py`.
fn model(scaled: &Tensor, step: usize) -> Result<Tensor> {
    let wave = (0..scaled.elem_count()).map(|index| (0.37 * index as f64 + step as f64).sin() as f32);
    let wave = Tensor::from_iter(wave, &Device::Cpu)?.reshape(scaled.shape())?;
    Ok((((scaled * 0.1)?) + wave)?)
}

/// Runs every step. Returns the largest difference to the golden trajectory `scheduler/prediction/file/steps`.
fn trajectory_difference(about: &About, goldens: &HashMap<String, Tensor>, key: &str) -> Result<f64> {
    let theirs = |part: &str| goldens.get(&format!("{key}/{part}")).with_context(|| format!("{key}/{part}"));
    let (name, rest) = key.split_once('/').context("a name")?;
    let (file, steps) = rest.rsplit_once('/').context("steps")?;
    let kind: Kind = name.parse().map_err(anyhow::Error::msg)?;
    let mut scheduler = schedulers::build(kind, None, &about.config(file)?, steps.parse()?)?;
    let expected = numbers(theirs("timesteps")?)?;
    ensure!(scheduler.timesteps().len() == expected.len(), "{} timesteps", scheduler.timesteps().len());
    let mut worst = difference(scheduler.timesteps(), &expected);
    worst = worst.max(difference(&[scheduler.init_noise_sigma()], &numbers(theirs("init_noise_sigma")?)?));
    let mut noise = Noise::cpu(SEED);
    // Starts from torch's first draw: ours differs in the last bits, which a large sigma would amplify.
    let (first, ours) = (&goldens["noise"], noise.randn(goldens["noise"].shape(), DType::F32, &Device::Cpu)?);
    worst = worst.max(difference(&numbers(&ours)?, &numbers(first)?));
    let mut sample = (first * scheduler.init_noise_sigma())?;
    for step in 0..expected.len() {
        let output = model(&scheduler.scale_model_input(&sample, step)?, step)?;
        sample = scheduler.step(&output, step, &sample, &mut noise)?;
        let off = difference(&numbers(&sample)?, &numbers(&theirs("trajectory")?.get(step)?)?);
        worst = if off.is_nan() { off } else { worst.max(off) };
    }
    Ok(worst)
}

#[test]
fn schedulers_follow_diffusers_step_by_step() -> Result<()> {
    let about = About::load()?;
    let goldens = candle_core::safetensors::load(golden("schedulers.safetensors"), &Device::Cpu)?;
    let runs: Vec<&str> = goldens.keys().filter_map(|key| key.strip_suffix("/trajectory")).collect();
    let (mut worst, mut faults) = (BTreeMap::<(&str, &str), f64>::new(), Vec::new());
    for key in &runs {
        let delicate = key.starts_with("euler_ancestral/v_prediction/zero_snr/");
        let tolerance = if delicate { ANCESTRAL_ZERO_SNR_TOLERANCE } else { TOLERANCE };
        match trajectory_difference(&about, &goldens, key) {
            Ok(off) => {
                if off > tolerance || off.is_nan() {
                    faults.push(format!("{key}: {off:.1e}"));
                }
                let mut parts = key.split('/');
                let group = (parts.next().context("a name")?, parts.nth(1).context("a file")?);
                let group = worst.entry(group).or_default();
                *group = group.max(off);
            }
            Err(error) => faults.push(format!("{key}: {error:#}")),
        }
    }
    for ((name, file), off) in worst {
        println!("{name} {file}: {off:.1e}");
    }
    faults.sort();
    assert!(faults.is_empty(), "too far from diffusers:\n{}", faults.join("\n"));
    for (name, kind) in Kind::NAMES {
        let has = |file: &str| runs.iter().any(|key| key.starts_with(&format!("{name}/v_prediction/{file}/")));
        assert!(["default", "leading", "trailing"].into_iter().all(has), "{name} has no golden trajectory");
        assert_eq!(has("karras"), kind.has_karras_sigmas(), "{name}");
    }
    Ok(())
}

/// A scheduler paints with a file as diffusers does, or refuses it and names the field.
#[test]
fn a_file_is_painted_with_or_refused_by_its_field() -> Result<()> {
    let about = About::load()?;
    for file in about.files.keys() {
        let config = about.config(file)?;
        for (name, kind) in Kind::NAMES {
            let refused = about.refused.get(file).and_then(|fields| fields.get(*name));
            match (schedulers::build(*kind, None, &config, 5), refused) {
                (Ok(_), None) => {}
                (Ok(_), Some(field)) => anyhow::bail!("{name} takes {file}, whose `{field}` it does not have"),
                (Err(error), None) => anyhow::bail!("{name} refuses {file}: {error}"),
                (Err(error), Some(field)) => ensure!(error.to_string().contains(&format!("`{field}` is ")), "{error}"),
            }
        }
    }
    Ok(())
}
