//! Schedulers, noise, tokenizer and LoRAs against golden values from torch, diffusers, transformers and peft, which need not be
//! installed (`tests/goldens/README.md`). Networks and whole pictures are compared in the package `e2e`.

mod lora;
mod noise;
mod schedulers;
mod shards;
mod swap;
mod tokenizer;
mod weights;

use anyhow::Result;
use candle_core::{DType, Tensor};
use serde_json::Value;
use std::{fs, path::PathBuf};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens")).join(name)
}

fn golden_json(name: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(golden(name))?)?)
}

/// The largest difference, absolute for values up to 1 and relative above.
fn difference(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let apart = |(a, b): (&f64, &f64)| if a == b { 0.0 } else { (a - b).abs() / b.abs().max(1.0) };
    ours.iter().zip(theirs).map(apart).fold(0.0, |worst, apart| if apart.is_nan() { apart } else { apart.max(worst) })
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}
