//! A LoRA's weights by block against the scale at which diffusers applies it to each module.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use diffusion::{
    loading::weights::Weights,
    lora::{AppliedLora, Dora, Lora, LoraError, Target, merge},
};
use safetensors::{Dtype, tensor::TensorView};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    sync::Arc,
};

/// Between a product of two numbers in f32 and in f64.
const TOLERANCE: f64 = 1e-6;
/// The scale of the whole LoRA: another factor.
const SCALE: f64 = 0.5;

#[derive(Deserialize)]
struct Goldens {
    cases: Vec<Case>,
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    weights: Value,
    /// By component and module.
    scales: BTreeMap<String, BTreeMap<String, f64>>,
}

#[derive(Deserialize)]
struct Refused {
    name: String,
    weights: Value,
}

/// A model of 1x1 zeros with these modules, and a LoRA that makes a one of each.
struct Model {
    unet: Weights,
    text_encoder: Weights,
    target: Target,
    lora: Arc<Lora>,
}

impl Model {
    fn new(modules: &BTreeMap<String, BTreeMap<String, f64>>) -> Result<Self> {
        let zeros = |component: &str| {
            let named = modules[component]
                .keys()
                .map(|path| Ok((format!("{path}.weight"), Tensor::zeros((1, 1), DType::F32, &Device::Cpu)?)));
            anyhow::Ok(Weights::new(named.collect::<Result<_>>()?))
        };
        let (unet, text_encoder) = (zeros("unet")?, zeros("text_encoder")?);
        let one = 1f32.to_le_bytes();
        let mut file = BTreeMap::new();
        for (component, paths) in modules {
            for path in paths.keys() {
                file.insert(
                    format!("{component}.{path}.lora_A.weight"),
                    TensorView::new(Dtype::F32, vec![1, 1], &one)?,
                );
                file.insert(
                    format!("{component}.{path}.lora_B.weight"),
                    TensorView::new(Dtype::F32, vec![1, 1], &one)?,
                );
            }
        }
        let lora = Arc::new(Lora::from_bytes(&safetensors::serialize(file, None)?)?);
        Ok(Self { target: Target::of_weights(&unet, &text_encoder), unet, text_encoder, lora })
    }

    /// The scale of each module that is changed, by component.
    fn scales(&self, weights: &Value) -> Result<[BTreeMap<String, f64>; 2], LoraError> {
        let weights = handler::task::block_weights(&weights.to_string()).expect("the contract takes it");
        let applied = [AppliedLora { lora: self.lora.clone(), scale: SCALE, weights }];
        let merged = merge(&applied, &self.target, &self.unet, &self.text_encoder, Dora::Apply)?;
        let number = |(name, tensor): (String, Tensor)| {
            let path = name.trim_end_matches(".weight").to_string();
            Ok((path, f64::from(tensor.flatten_all()?.to_vec1::<f32>()?[0])))
        };
        let scales =
            |tensors: HashMap<String, Tensor>| tensors.into_iter().map(number).collect::<Result<_, LoraError>>();
        Ok([scales(merged.unet)?, scales(merged.text_encoder)?])
    }
}

fn goldens() -> Result<Goldens> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/goldens/lora-blocks.json");
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[test]
fn modules_have_the_scales_that_diffusers_gives_them() -> Result<()> {
    let Goldens { cases, refused } = goldens()?;
    let model = Model::new(&cases[0].scales)?;
    for Case { name, weights, scales } in &cases {
        let [unet, text_encoder] = model.scales(weights).with_context(|| name.clone())?;
        for (component, ours) in [("unet", unet), ("text_encoder", text_encoder)] {
            for (path, theirs) in &scales[component] {
                // A module that keeps its weight is not among those that change.
                let ours = ours.get(path).copied().unwrap_or(0.0) / SCALE;
                ensure!((ours - theirs).abs() <= TOLERANCE, "{name}: {component}.{path} has {ours}, not {theirs}");
            }
            ensure!(ours.keys().all(|path| scales[component].contains_key(path)), "{name}: more is changed");
        }
    }
    for Refused { name, weights } in &refused {
        let error = model.scales(weights).map(|_| ()).unwrap_err();
        ensure!(error.is_permanent() && error.to_string().contains("layers with attention"), "{name}: {error}");
    }
    ensure!(cases.len() >= 7 && refused.len() >= 2);
    Ok(())
}

/// diffusers leaves these out without a word.
#[test]
fn blocks_that_a_model_does_not_have_are_refused_by_name() -> Result<()> {
    let model = Model::new(&goldens()?.cases[0].scales)?;
    for (weights, said) in [
        (
            serde_json::json!({ "unet": { "down": { "block_3": 1 } } }),
            "the weights of LoRA 1: unet.down.block_3 is no block with attention of this model, which has unet.down.block_0, \
             unet.down.block_1, unet.down.block_2, unet.mid, unet.up.block_1, unet.up.block_2, unet.up.block_3",
        ),
        (
            serde_json::json!({ "unet": { "up": { "block_2": [1, 1] } } }),
            "the weights of LoRA 1: unet.up.block_2 is given 2 numbers and has 3 layers with attention: give 3, or one for all",
        ),
    ] {
        assert_eq!(model.scales(&weights).map(|_| ()).unwrap_err().to_string(), said);
    }
    Ok(())
}
