//! Sharded weights: easel-tiny's own tensors in the shards that diffusers and transformers make of them.

use crate::golden_json;
use anyhow::{Context, Result};
use diffusion::loading::{DIFFUSION_FILES, ENCODER_FILES, weights::Weights};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

#[test]
fn shards_of_both_libraries_hold_what_the_single_file_does() -> Result<()> {
    let goldens = golden_json("shards.json")?;
    let mut seen = 0;
    for case in goldens["cases"].as_array().context("cases")? {
        let part = case["part"].as_str().context("a part")?;
        let names = if part == "text_encoder" { ENCODER_FILES } else { DIFFUSION_FILES };
        let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model/easel-tiny")).join(part);
        let whole = Weights::open(&model, &names)?;
        let map: BTreeMap<String, String> = serde_json::from_value(case["content"]["weight_map"].clone())?;
        let mut shards: BTreeMap<&str, HashMap<String, _>> = BTreeMap::new();
        for (name, file) in &map {
            shards.entry(file).or_default().insert(name.clone(), whole.base(name)?);
        }
        assert_eq!(serde_json::to_value(shards.keys().collect::<Vec<_>>())?, case["files"]);
        let folder = tempfile::tempdir()?;
        for (file, tensors) in &shards {
            candle_core::safetensors::save(tensors, folder.path().join(file))?;
        }
        let index = case["index"].as_str().context("an index")?;
        fs::write(folder.path().join(index), case["content"].to_string())?;
        let open = Weights::open(folder.path(), &names)?;
        let loaded = Weights::load(folder.path(), &names)?;
        let sorted = |weights: &Weights| {
            let mut names: Vec<String> = weights.names().into_iter().map(str::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(sorted(&open), sorted(&whole), "{index}");
        assert_eq!(sorted(&loaded), sorted(&whole), "{index}");
        for name in map.keys() {
            let bits = |weights: &Weights| -> Result<Vec<f32>> {
                Ok(weights.base(name)?.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1()?)
            };
            assert_eq!(bits(&open)?, bits(&whole)?, "{name}");
            assert_eq!(bits(&loaded)?, bits(&whole)?, "{name}");
        }
        seen += 1;
    }
    assert_eq!(seen, 4);
    Ok(())
}
