//! Prepares a picture for the safety checker as transformers' `CLIPImageProcessor` does with its PIL back end.

use crate::{
    error::Result,
    loading::config::PreprocessorConfig,
    pipeline::resize::{Filter, resized},
};
use candle_core::{Device, Tensor};
use image::{RgbImage, imageops};

/// The picture as the network takes it, `[3, height, width]` in f32 on the CPU: resized, its middle cut out, levels scaled and shifted.
///
/// # Errors
/// The picture has no pixels.
pub(super) fn pixels(picture: &RgbImage, config: &PreprocessorConfig) -> Result<Tensor> {
    let middle = middle(picture, config)?;
    let (width, height) = middle.dimensions();
    let mut numbers = vec![0f32; 3 * (width * height) as usize];
    for (colour, plane) in numbers.chunks_exact_mut((width * height) as usize).enumerate() {
        let (mean, deviation) = (config.image_mean[colour], config.image_std[colour]);
        // In f64, then in f32, as numpy does it.
        let scaled = |level: u8| ((f64::from(level) * config.rescale_factor) as f32 - mean) / deviation;
        let table: Vec<f32> = (0..=255).map(scaled).collect();
        for (number, pixel) in plane.iter_mut().zip(middle.pixels()) {
            *number = table[usize::from(pixel.0[colour])];
        }
    }
    Ok(Tensor::from_vec(numbers, (3, height as usize, width as usize), &Device::Cpu)?)
}

/// The middle of the resized picture, before its levels are scaled.
pub(super) fn middle(picture: &RgbImage, config: &PreprocessorConfig) -> Result<RgbImage> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    if width == 0 || height == 0 {
        return Err(candle_core::Error::msg(format!("a picture of {width}x{height} pixels")).into());
    }
    let (width, height) = config.size.of((width, height));
    let resized = resized(picture, Filter::Bicubic, width, height);
    // Not larger than the resized picture: the config was checked.
    let (crop_width, crop_height) = config.crop_size.edges();
    let (left, top) = ((width.saturating_sub(crop_width)) / 2, (height.saturating_sub(crop_height)) / 2);
    Ok(imageops::crop_imm(&resized, left as u32, top as u32, crop_width as u32, crop_height as u32).to_image())
}
