//! Weights and pictures of `tests/goldens/parts/safety.py`, by the same formula.

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};
use rayon::prelude::*;

/// The finaliser of MurmurHash3 over numbered items.
fn mixed(index: u64, seed: u32) -> u32 {
    let mut h = (index as u32).wrapping_mul(0x9E37_79B1).wrapping_add(seed);
    for (shift, factor) in [(16, 0x85EB_CA6B), (13, 0xC2B2_AE35)] {
        h = (h ^ (h >> shift)).wrapping_mul(factor);
    }
    h ^ (h >> 16)
}

/// FNV-1a.
fn seed_of(name: &str) -> u32 {
    name.bytes().fold(0x811C_9DC5, |h, byte| (h ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Uniform numbers whose size depends on the tensor's name and shape.
pub(crate) fn weights(name: &str, dims: &[usize]) -> Tensor {
    let (seed, count) = (seed_of(name), dims.iter().product::<usize>());
    let fan_in: usize = dims[1..].iter().product();
    let (scale, shift) = if name.contains("norm") && name.ends_with("weight") {
        (0.1, 1.0)
    } else if name.ends_with("bias") {
        (0.05, 0.0)
    } else if name.ends_with("class_embedding") || name.ends_with("position_embedding.weight") {
        (0.5, 0.0)
    } else if name.ends_with("_embeds") {
        (1.0, 0.0)
    } else {
        ((3.0 / fan_in as f64).sqrt() as f32, 0.0)
    };
    let number = |index: usize| {
        let unit = (mixed(index as u64, seed) >> 8) as f32 * 2f32.powi(-23) - 1.0;
        unit * scale + shift
    };
    let numbers: Vec<f32> = (0..count).into_par_iter().map(number).collect();
    Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap()
}

/// A picture of a kind: `noise`, `cross`, `disc`, or `pink`, a disc of that colour.
pub(crate) fn picture(kind: &str, width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let (u, v) = ((2 * x).abs_diff(width), (2 * y).abs_diff(height));
        let inside = match kind {
            "noise" => {
                let level = |c: u32| {
                    let blocks = mixed(u64::from((y / 37 * 64 + x / 29) * 3 + c), 7) & 63;
                    let pixels = mixed(u64::from((y * width + x) * 3 + c), 11) & 63;
                    (x * 90 / width + y * 38 / height + c + blocks + pixels) as u8
                };
                return Rgb([level(0), level(1), level(2)]);
            }
            "cross" => u.min(v) * 100 < 16 * width && u.max(v) * 100 < 48 * width,
            _ => u64::from(u * u + v * v) * 10_000 < 2304 * u64::from(width) * u64::from(width),
        };
        let ink = if kind == "pink" { [244, 130, 182] } else { [240, 230, 60] };
        Rgb(if inside { ink } else { [40, 90, 200] })
    })
}
