//! LoRA files written by peft, diffusers and LyCORIS, against the weights that each library merges from them.

use super::{golden, numbers};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use diffusion::{
    loading::weights::{Tensors, Weights},
    lora::{AppliedLora, Dora, Lora, Overlays, Target, merge},
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

/// The largest error of a merged tensor, relative to its largest change.
const TOLERANCE: f64 = 1e-5;

/// The metadata of `lora.safetensors`: for each file, the library that merged it and the scale.
#[derive(Deserialize)]
struct About {
    libraries: BTreeMap<String, String>,
    scales: HashMap<String, f64>,
}

/// The layers that all files were made for.
struct Base {
    unet: Weights,
    text_encoder: Weights,
    target: Target,
}

impl Base {
    /// The tensors of `goldens` whose names start with `base/`.
    fn new(goldens: &HashMap<String, Tensor>) -> Self {
        let part = |component: &str| {
            let named = goldens.iter().filter_map(|(key, tensor)| {
                Some((key.strip_prefix(&format!("base/{component}/"))?.to_string(), tensor.clone()))
            });
            Weights::new(named.collect())
        };
        let (unet, text_encoder) = (part("unet"), part("text_encoder"));
        Self { target: Target::of_weights(&unet, &text_encoder), unet, text_encoder }
    }

    fn merged(&self, lora: Lora, scale: f64, dora: Dora) -> Result<Overlays> {
        let loras = [AppliedLora { lora: Arc::new(lora), scale }];
        Ok(merge(&loras, &self.target, &self.unet, &self.text_encoder, dora)?)
    }
}

fn goldens() -> Result<(HashMap<String, Tensor>, About)> {
    let bytes = fs::read(golden("lora.safetensors"))?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let about = header.metadata().as_ref().and_then(|texts| texts.get("about")).context("no metadata")?;
    Ok((candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?, serde_json::from_str(about)?))
}

fn lora(case: &str) -> Result<Lora> {
    Lora::read(&golden(&format!("lora/{case}.safetensors"))).with_context(|| case.to_string())
}

/// The worst error of one component. Both sides must change the same tensors.
fn worst(
    case: &str,
    component: &str,
    ours: &Tensors,
    base: &Weights,
    goldens: &HashMap<String, Tensor>,
) -> Result<f64> {
    let prefix = format!("{case}/{component}/");
    let theirs: BTreeMap<_, _> =
        goldens.iter().filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?, tensor))).collect();
    let mut names: Vec<_> = ours.keys().map(String::as_str).collect();
    names.sort_unstable();
    anyhow::ensure!(names == theirs.keys().copied().collect::<Vec<_>>(), "{case}: {names:?} are changed");
    let mut worst = 0f64;
    for (name, theirs) in theirs {
        let (ours, theirs) = (numbers(&ours[name])?, numbers(theirs)?);
        let base = numbers(&base.base(name)?)?;
        let most =
            |pairs: &[f64], others: &[f64]| pairs.iter().zip(others).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        worst = worst.max(most(&ours, &theirs) / most(&theirs, &base));
    }
    Ok(worst)
}

#[test]
fn merged_loras_are_those_of_their_libraries() -> Result<()> {
    let (goldens, About { libraries, scales }) = goldens()?;
    let base = Base::new(&goldens);
    let mut faults = Vec::new();
    println!("{:<32}  {:<18}  worst error, relative to the largest change", "file", "merged by");
    for (case, library) in &libraries {
        let ours = base.merged(lora(case)?, scales[case], Dora::Apply)?;
        let unet = worst(case, "unet", &ours.unet, &base.unet, &goldens)?;
        let error = unet.max(worst(case, "text_encoder", &ours.text_encoder, &base.text_encoder, &goldens)?);
        println!("{case:<32}  {library:<18}  {error:.1e}");
        if error > TOLERANCE || error.is_nan() {
            faults.push(format!("{case}: {error:.1e}"));
        }
    }
    assert!(faults.is_empty() && libraries.len() >= 38, "beyond {TOLERANCE:e}:\n{}", faults.join("\n"));
    Ok(())
}

#[test]
fn dora_is_dropped_as_diffusers_drops_it() -> Result<()> {
    let (goldens, _) = goldens()?;
    let base = Base::new(&goldens);
    // `Dora::Ignore` drops LyCORIS' `dora_scale`, but not peft's magnitudes.
    let changes = |case: &str, dora| anyhow::Ok(base.merged(lora(case)?, 1.0, dora)?.unet);
    let name = "down_blocks.0.resnets.0.conv1.weight";
    let difference =
        |a: &Tensors, b: &Tensors| anyhow::Ok((&a[name] - &b[name])?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?);
    let (applied, dropped) =
        (changes("lycoris-dora-by-output", Dora::Apply)?, changes("lycoris-dora-by-output", Dora::Ignore)?);
    assert!(difference(&applied, &dropped)? > 0.1);
    let (applied, kept) = (changes("peft-dora", Dora::Apply)?, changes("peft-dora", Dora::Ignore)?);
    assert_eq!(difference(&applied, &kept)?, 0.0);
    Ok(())
}

#[test]
fn styles_are_the_same_in_both_layouts() -> Result<()> {
    let tests = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model"));
    let load = |part: &str, file: &str| anyhow::Ok(Weights::open(&tests.join("easel-tiny").join(part), &[file])?);
    let unet = load("unet", "diffusion_pytorch_model.safetensors")?;
    let text_encoder = load("text_encoder", "model.safetensors")?;
    let base = Base { target: Target::of_weights(&unet, &text_encoder), unet, text_encoder };
    for style in ["halftone", "stained-glass"] {
        let merged = |file: String| {
            let lora = Lora::read(&tests.join("styles").join(file))?;
            base.merged(lora, 0.8, Dora::Apply)
        };
        let (peft, kohya) = (merged(format!("{style}.safetensors"))?, merged(format!("{style}-kohya.safetensors"))?);
        assert!(peft.unet.len() > 50 && peft.unet.len() == kohya.unet.len(), "{style}");
        for (name, tensor) in &peft.unet {
            assert_eq!(numbers(tensor)?, numbers(&kohya.unet[name])?, "{style} {name}");
        }
    }
    Ok(())
}
