//! What is computed once for all prompts, and in which groups maps are measured before they are joined.

use super::*;
use crate::{loading::weights::Weights, noise::Noise, ops::params::ShapeRecorder};
use candle_core::{DType, Device, Tensor};
use std::path::Path;

/// The small model's UNet with random weights.
fn unet() -> (UnetConfig, Unet) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/model/easel-tiny");
    let (config, shapes) = (UnetConfig::load(&folder).unwrap(), ShapeRecorder::default());
    Unet::new(&config, Params::recording(&shapes)).unwrap();
    let shapes = std::mem::take(&mut *shapes.lock().unwrap());
    let tensors = shapes.into_iter().enumerate().map(|(index, (name, dims))| {
        let numbers = draw(index as u64, &dims);
        // Norms about 1, and products that neither vanish nor grow.
        let inner = (dims[1..].iter().product::<usize>() as f64).max(1.0).powf(-0.5);
        let is_scale = name.contains("norm") && name.ends_with("weight");
        let (scale, least) = if is_scale { (0.1, 1.0) } else { (inner, 0.0) };
        (name, numbers.affine(scale, least).unwrap())
    });
    let weights = Weights::new(tensors.collect());
    let unet = Unet::new(&config, Params::on_cpu(&weights)).unwrap();
    (config, unet)
}

fn draw(seed: u64, dims: &[usize]) -> Tensor {
    Noise::cpu(seed).randn(dims, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn copies_of_latents_for_two_prompts_are_computed_once_until_a_prompt_is_looked_at() {
    let (config, unet) = unet();
    let latents = draw(1, &[3, config.in_channels, 8, 8]);
    let context = draw(2, &[6, 77, config.cross_attention_dim.at(0)]);
    let output = |latents: Tensor, copies| {
        let prepared = unet.prepare(&[500.0], None, &Array::Cpu(context.clone()), copies, 1, &[]).unwrap();
        let output = unet.forward(&Array::Cpu(latents), &Step::Index(0), &prepared).unwrap().to_tensor().unwrap();
        (output.dims().to_vec(), output.flatten_all().unwrap().to_vec1::<f32>().unwrap())
    };
    let doubled = Tensor::cat(&[&latents, &latents], 0).unwrap();
    let (dims, numbers) = output(latents, 2);
    assert_eq!((dims.as_slice(), &numbers), (&[6, config.out_channels, 8, 8][..], &output(doubled, 1).1));
    // The prompts matter.
    assert_ne!(numbers[..numbers.len() / 2], numbers[numbers.len() / 2..]);
}

#[test]
fn a_joined_maps_groups_are_made_of_those_in_which_both_maps_are_measured() {
    // Of Stable Diffusion 1.5, and what its up blocks join.
    let joined = [([1280, 1280], 32), ([1280, 640], 64), ([640, 640], 32), ([640, 320], 64), ([320, 320], 32)];
    for (maps, groups) in joined {
        assert_eq!(groups_before_join(32, maps), groups, "{maps:?}");
        let [first, second] = maps;
        // Channels of a group of both, and of what each is measured in.
        let (all, parts) = ((first + second) / 32, [first / groups, second / 32]);
        for part in parts {
            assert!(all % part == 0 && first % part == 0, "{maps:?} in {parts:?}");
        }
    }
    // Of the small model in the repository, and groups that do not fit.
    assert_eq!(groups_before_join(8, [144, 96]), 24);
    assert_eq!(groups_before_join(32, [48, 48]), 32);
}
