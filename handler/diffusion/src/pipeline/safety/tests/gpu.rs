//! The safety checker on a GPU against the same one on the CPU: cosines, little memory, leaving and coming back. Needs a GPU.

use super::*;
use crate::gpu::{Gpu, Shortage};
use std::fs;

/// The largest error of a cosine: of f32, and of half precision, whose last digit near 1 is 2^-11 or 2^-8.
const LIMITS: [(Dtype, f32); 3] = [(Dtype::F32, 1e-4), (Dtype::F16, 4e-3), (Dtype::BF16, 3e-2)];

/// A folder with a checker that has weights of the formula, all thresholds 0.
fn folder(random: &Random) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let settings = serde_json::json!({ "projection_dim": random.projection_dim, "vision_config": random.vision });
    fs::write(folder.path().join("config.json"), settings.to_string()).unwrap();
    candle_core::safetensors::save(&drawn(&random.config()), folder.path().join("model.safetensors")).unwrap();
    folder
}

fn load(folder: &Path, compute: &Compute, place: CheckerPlace) -> SafetyNetwork {
    let index = ModelIndex::load(Path::new(MODEL)).unwrap();
    let source = SafetySource::Folder(folder.into());
    let mut network = SafetyNetwork::open((Path::new(MODEL), &index), &source, compute).unwrap().unwrap();
    network.load(place).unwrap();
    network
}

fn cosines(network: &mut SafetyNetwork, picture: &RgbImage) -> Cosines {
    network.enter().unwrap();
    let pixels = pixels(picture, &network.opened.preprocessing).unwrap();
    network.network.as_ref().unwrap().cosines(&pixels).unwrap()
}

#[test]
fn gpu_cosines_are_the_cpus() {
    let (goldens, gpu) = (goldens(), Gpu::for_tests());
    for (name, random) in [("narrow", &goldens.narrow), ("published", &goldens.published)] {
        let folder = folder(random);
        let mut cpu = load(folder.path(), &Compute::Cpu, CheckerPlace::Stays);
        for (dtype, limit) in LIMITS {
            let mut ours = load(folder.path(), &Compute::Gpu(gpu.clone(), dtype), CheckerPlace::Stays);
            for checked in &random.pictures {
                let picture = picture(&checked.kind, checked.size.0, checked.size.1);
                let error = far(&cosines(&mut ours, &picture), &cosines(&mut cpu, &picture));
                println!("{name} {} {:?} {}: {error:.1e} of {limit:.1e}", checked.kind, checked.size, dtype.name());
                assert!(error < limit, "{name} {} {}: {error:e}", checked.kind, dtype.name());
            }
        }
    }
}

#[test]
fn gpu_checker_that_left_says_the_same_when_it_is_back() {
    let (goldens, gpu) = (goldens(), Gpu::for_tests());
    let (folder, picture) = (folder(&goldens.narrow), picture("noise", 512, 512));
    let compute = Compute::Gpu(gpu.clone(), Dtype::F16);
    let mut network = load(folder.path(), &compute, CheckerPlace::Stays);
    let (whole, held) = (network.check(&picture).unwrap(), gpu.bytes());
    assert_eq!(network.check(&picture).unwrap(), whole);
    network.shrink().unwrap();
    let left = gpu.bytes();
    assert!(left < held, "{left} of {held}");
    assert_eq!(network.check(&picture).unwrap(), whole);
    assert_eq!(gpu.bytes(), left, "it stays away between checks");
    // Where there is no room to spare it comes for its checks alone, too.
    let mut other = load(folder.path(), &compute, CheckerPlace::Comes);
    assert_eq!(gpu.bytes(), left);
    assert_eq!(other.check(&picture).unwrap(), whole);
}

#[test]
fn gpu_without_room_for_the_checker_leaves_the_pictures_to_the_cpu() {
    let (goldens, gpu) = (goldens(), Gpu::for_tests());
    let (folder, picture) = (folder(&goldens.published), picture("noise", 512, 512));
    let mut pipeline = Pipeline::load(Path::new(MODEL), &Compute::Gpu(gpu.clone(), Dtype::F16), (256, 256)).unwrap();
    let shortage = Shortage::leaving(&gpu, 64 << 20).unwrap();
    pipeline.load_safety_checker(&SafetySource::Folder(folder.path().into())).unwrap();
    let short = pipeline.check_safety(std::slice::from_ref(&picture)).unwrap();
    drop(shortage);
    let safety = pipeline.safety.as_mut().unwrap();
    assert!(safety.is_on_cpu(), "the next pictures do not try the GPU in vain");
    safety.crowded_out = None;
    let ample = pipeline.check_safety(std::slice::from_ref(&picture)).unwrap();
    let error = apart(&short[0].concepts, &ample[0].concepts);
    assert!(error < LIMITS[1].1, "{error:e}");
}
