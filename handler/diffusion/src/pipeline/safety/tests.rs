//! The safety checker against diffusers' and transformers' (`tests/goldens/parts/safety.py`), and forms of its files.

mod files;
pub(crate) mod formula;
#[cfg(feature = "cuda")]
mod gpu;

use super::*;
use crate::{
    loading::{
        config::{PreprocessorConfig, SafetyCheckerConfig, VisionConfig, read_json},
        weights::{Tensors, Weights},
    },
    models::safety_checker::{Cosines, Scores, round3, scores},
};
use candle_core::{DType, Device};
use formula::{picture, weights};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model/easel-tiny");
/// The largest error of a cosine in f32.
const LIMIT: f32 = 1e-4;

#[derive(Deserialize)]
struct Goldens {
    preprocessing: Vec<Prepared>,
    round3: Vec<(f32, f32)>,
    published: Random,
    narrow: Random,
    #[serde(rename = "easel-tiny")]
    trained: Trained,
}

#[derive(Deserialize)]
struct Prepared {
    kind: String,
    size: (u32, u32),
    levels_sha256: String,
    pixels_sha256: String,
}

/// A checker with weights of the formula.
#[derive(Deserialize)]
struct Random {
    projection_dim: usize,
    vision: Value,
    pictures: Vec<Checked>,
}

#[derive(Deserialize)]
struct Trained {
    pictures: Vec<Told>,
}

#[derive(Deserialize)]
struct Checked {
    kind: String,
    size: (u32, u32),
    cases: Vec<Case>,
}

/// What is said of one picture with certain thresholds.
#[derive(Deserialize)]
struct Case {
    name: String,
    concepts_thresholds: Vec<f32>,
    special_care_thresholds: Vec<f32>,
    concepts: Vec<f32>,
    special_care: Vec<f32>,
    nsfw: bool,
}

#[derive(Deserialize)]
struct Told {
    kind: String,
    size: (u32, u32),
    concepts: Vec<f32>,
    special_care: Vec<f32>,
    nsfw: bool,
}

fn goldens() -> Goldens {
    read_json(&Path::new(GOLDENS).join("safety.json")).unwrap()
}

fn tensors() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(Path::new(GOLDENS).join("safety.safetensors"), &Device::Cpu).unwrap()
}

/// Cosines of the reference.
fn theirs(tensors: &HashMap<String, Tensor>, name: &str, kind: &str, (width, height): (u32, u32)) -> Cosines {
    let of = |part: &str| tensors[&format!("{name}/{kind}/{width}x{height}/{part}")].to_vec1::<f32>().unwrap();
    Cosines { concepts: of("concepts"), special_care: of("special_care") }
}

fn apart(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let apart = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    apart.fold(0.0, |worst, apart| if apart.is_nan() { apart } else { apart.max(worst) })
}

fn far(ours: &Cosines, theirs: &Cosines) -> f32 {
    apart(&ours.concepts, &theirs.concepts).max(apart(&ours.special_care, &theirs.special_care))
}

impl Random {
    fn config(&self) -> SafetyCheckerConfig {
        let settings = serde_json::json!({ "projection_dim": self.projection_dim, "vision_config": self.vision });
        SafetyCheckerConfig::from_object(settings.as_object().unwrap()).unwrap()
    }
}

/// Tensors of the formula under the names of the network. Thresholds are 0 until a case sets them.
pub(crate) fn drawn(config: &SafetyCheckerConfig) -> Tensors {
    let draw = |(name, dims): (String, Vec<usize>)| {
        let tensor = if name.ends_with("_weights") {
            Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap()
        } else {
            weights(&name, &dims)
        };
        (name, tensor)
    };
    shapes(config).unwrap().into_iter().map(draw).collect()
}

/// Compares cosines, and then what follows from each case's thresholds. Returns the largest error of a cosine.
fn compare(name: &str, random: &Random) -> f32 {
    let (config, reference) = (random.config(), tensors());
    let preprocessing = PreprocessorConfig::from_object(&Map::new()).unwrap();
    let network = SafetyChecker::new(&config, Params::on_cpu(&Weights::new(drawn(&config)))).unwrap();
    let ours = random.pictures.iter().map(|checked| {
        let (width, height) = checked.size;
        network.cosines(&pixels(&picture(&checked.kind, width, height), &preprocessing).unwrap()).unwrap()
    });
    let ours: Vec<Cosines> = ours.collect();
    let mut worst = 0f32;
    for (checked, ours) in random.pictures.iter().zip(&ours) {
        let theirs = theirs(&reference, name, &checked.kind, checked.size);
        worst = worst.max(far(ours, &theirs));
        assert!(checked.cases.len() > 4);
        for case in &checked.cases {
            let scores = scores(&theirs, &case.concepts_thresholds, &case.special_care_thresholds);
            let expected = Scores { concepts: case.concepts.clone(), special_care: case.special_care.clone() };
            assert_eq!(scores, expected, "{name} {} {:?}: {}", checked.kind, checked.size, case.name);
            assert_eq!(scores.concepts.iter().any(|&score| score > 0.0), case.nsfw, "{}", case.name);
            assert_eq!(case.nsfw, case.name.starts_with("flagged"), "{}", case.name);
        }
    }
    println!("{name}: cosines are off by {worst:e}");
    worst
}

#[test]
fn pictures_are_prepared_as_by_transformers_to_the_bit() {
    let (goldens, reference) = (goldens(), tensors());
    assert_eq!(goldens.preprocessing.len(), 9);
    let config = PreprocessorConfig::from_object(&Map::new()).unwrap();
    for row in &goldens.preprocessing {
        let (width, height) = row.size;
        let picture = picture(&row.kind, width, height);
        let (middle, name) =
            (preprocessing::middle(&picture, &config).unwrap(), format!("{} {width}x{height}", row.kind));
        let lines = reference[&format!("preprocessing/{}/{width}x{height}", row.kind)].to_vec3::<u8>().unwrap();
        for (colour, lines) in lines.iter().enumerate() {
            for (line, &y) in lines.iter().zip(&[0, 111, 223]) {
                let ours: Vec<u8> = (0..224).map(|x| middle.get_pixel(x, y).0[colour]).collect();
                assert_eq!(&ours, line, "{name}, colour {colour}, line {y}");
            }
        }
        let planes: Vec<u8> = (0..3).flat_map(|colour| middle.pixels().map(move |pixel| pixel.0[colour])).collect();
        assert_eq!(hex::encode(Sha256::digest(&planes)), row.levels_sha256, "{name}");
        let pixels = pixels(&picture, &config).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bytes: Vec<u8> = pixels.into_iter().flat_map(f32::to_le_bytes).collect();
        assert_eq!(hex::encode(Sha256::digest(&bytes)), row.pixels_sha256, "{name}");
    }
}

#[test]
fn scores_are_rounded_as_numpy_rounds() {
    let goldens = goldens();
    assert!(goldens.round3.len() > 80);
    for (number, rounded) in goldens.round3 {
        assert_eq!(round3(number), rounded, "{number:e}");
    }
}

#[test]
fn cosines_and_verdicts_of_the_published_shapes_are_those_of_diffusers() {
    let published = goldens().published;
    let VisionConfig { hidden_size, num_hidden_layers, .. } = published.config().vision;
    assert_eq!((hidden_size, num_hidden_layers, published.projection_dim), (1024, 24, 768));
    assert!(compare("published", &published) <= LIMIT);
}

#[test]
fn cosines_and_verdicts_at_all_sizes_are_those_of_diffusers() {
    let narrow = goldens().narrow;
    assert_eq!(narrow.pictures.len(), 9);
    assert!(compare("narrow", &narrow) <= LIMIT);
}

#[test]
fn the_trained_checker_says_what_diffusers_says() {
    let (told, reference) = (goldens().trained.pictures, tensors());
    let source = SafetySource::OfModel;
    let index = ModelIndex::load(Path::new(MODEL)).unwrap();
    let loaded = SafetyNetwork::load((Path::new(MODEL), &index), &source, &Compute::Cpu, 0).unwrap();
    let mut ours = loaded.expect("the small model has a checker");
    for told in &told {
        let picture = picture(&told.kind, told.size.0, told.size.1);
        let verdict = ours.check(&picture).unwrap();
        let pixels = pixels(&picture, &ours.opened.preprocessing).unwrap();
        let cosines = ours.network.as_ref().unwrap().cosines(&pixels).unwrap();
        let theirs = theirs(&reference, "easel-tiny", &told.kind, told.size);
        let name = format!("{} {:?}", told.kind, told.size);
        assert!(far(&cosines, &theirs) <= LIMIT, "{name}: {:e}", far(&cosines, &theirs));
        // A last digit may be rounded otherwise.
        assert!(apart(&verdict.concepts, &told.concepts) < 1.5e-3, "{name}: {verdict:?}");
        assert!(apart(&verdict.special_care, &told.special_care) < 1.5e-3, "{name}: {verdict:?}");
        assert_eq!(verdict.nsfw, told.nsfw, "{name}");
        assert_eq!(told.nsfw, told.kind == "pink", "{name}");
    }
}
