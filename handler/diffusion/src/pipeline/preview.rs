//! Small pictures of latents while they are painted: each place becomes one pixel by a linear map of its channels.
//!
//! The map is not a table of another program's. It is fitted to the model's own decoder by least squares: patches of one colour each are
//! decoded, and their mean colours give the map's coefficients. So it also holds for models with another VAE.

use super::Pipeline;
use crate::{
    error::{PipelineError, Result},
    models::vae::DecodeMemory,
    noise::Noise,
};
use candle_core::{DType, Device, Error, Tensor};
use image::{Rgb, RgbImage};

/// Latents that are decoded for the fit: so many patches each way, of so many places each way.
const PATCHES: usize = 6;
const SIDE: usize = 4;
/// Places at the edges of a patch that are left out, because the decoder mixes them with its neighbours.
const EDGE: usize = 1;
/// The seed of the patches' latents.
const SEED: u64 = 1;
/// What is added to the diagonal, so that a channel without effect cannot make the fit singular.
const RIDGE: f64 = 1e-6;

/// From latents to red, green and blue.
#[derive(Debug, Clone, PartialEq)]
pub struct PreviewMap {
    /// For each colour the coefficient of each channel, and a constant at the end. In levels of 255.
    colors: [Vec<f64>; 3],
}

impl Pipeline {
    /// Fits the map to the decoder, which decodes one picture of 192x192 for it.
    ///
    /// # Errors
    /// The device fails or has too little memory.
    pub fn preview_map(&self) -> Result<PreviewMap> {
        let channels = self.networks.model().unet_config.in_channels;
        let patches = Noise::cpu(SEED).randn(&[1, channels, PATCHES, PATCHES], DType::F32, &Device::Cpu)?;
        let latents = patches.upsample_nearest2d(PATCHES * SIDE, PATCHES * SIDE)?;
        let pictures = self.decode(&latents, DecodeMemory::Whole)?;
        let picture = pictures.first().ok_or_else(|| Error::msg("no picture to fit the preview to"))?;
        PreviewMap::fit(&patches, picture)
    }
}

impl PreviewMap {
    /// `patches` are `[1, channels, rows, columns]`, each of which is `SIDE` places high and wide in the picture's latents.
    fn fit(patches: &Tensor, picture: &RgbImage) -> Result<Self> {
        let (_, channels, rows, columns) = patches.dims4()?;
        let latents = patches.squeeze(0)?.to_vec3::<f32>()?;
        let factor = picture.height() / (rows * SIDE) as u32;
        let unknowns = channels + 1;
        let mut products = vec![vec![0.0; unknowns]; unknowns];
        let mut targets = [(); 3].map(|()| vec![0.0; unknowns]);
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            let mut inputs: Vec<f64> = latents.iter().map(|channel| channel[row][column].into()).collect();
            inputs.push(1.0);
            let middle = |index: usize| {
                let from = (index * SIDE + EDGE) as u32 * factor;
                from..from + (SIDE - 2 * EDGE) as u32 * factor
            };
            let pixels = middle(row).flat_map(|y| middle(column).map(move |x| picture.get_pixel(x, y)));
            let (mut sums, mut count) = ([0.0; 3], 0.0);
            for Rgb(levels) in pixels {
                sums.iter_mut().zip(levels).for_each(|(sum, level)| *sum += f64::from(*level));
                count += 1.0;
            }
            for (first, input) in inputs.iter().enumerate() {
                inputs.iter().enumerate().for_each(|(second, other)| products[first][second] += input * other);
                targets.iter_mut().zip(sums).for_each(|(target, sum)| target[first] += input * sum / count);
            }
        }
        (0..unknowns).for_each(|index| products[index][index] += RIDGE);
        let solved = targets.map(|target| solve(products.clone(), target));
        let [Some(red), Some(green), Some(blue)] = solved else {
            return Err(PipelineError::from(Error::msg("the decoder's colours do not depend on its latents")));
        };
        Ok(Self { colors: [red, green, blue] })
    }

    /// One picture's latents `[1, channels, height, width]` as a picture of as many pixels. Noise that is still in them, or that a
    /// scheduler scales up, is scaled to a mean square of 1 at most, that of clean latents.
    ///
    /// # Errors
    /// There are other channels.
    pub fn picture(&self, latents: &Tensor) -> Result<RgbImage> {
        let (_, channels, height, width) = latents.dims4()?;
        if self.colors[0].len() != channels + 1 {
            return Err(Error::msg(format!("a preview of {channels} channels")).into());
        }
        let numbers = latents.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let places = height * width;
        let square = numbers.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>() / numbers.len().max(1) as f64;
        let scale = square.sqrt().max(1.0).recip();
        let level = |color: &Vec<f64>, place: usize| {
            let (constant, coefficients) = color.split_last().map_or((0.0, &[][..]), |(last, rest)| (*last, rest));
            let inputs = coefficients.iter().enumerate();
            let sum: f64 =
                inputs.map(|(channel, each)| each * scale * f64::from(numbers[channel * places + place])).sum();
            (constant + sum).round().clamp(0.0, 255.0) as u8
        };
        Ok(RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let place = y as usize * width + x as usize;
            Rgb(self.colors.each_ref().map(|color| level(color, place)))
        }))
    }
}

/// Solves a linear system by elimination with pivots. `None` if it has no single solution.
fn solve(mut rows: Vec<Vec<f64>>, mut right: Vec<f64>) -> Option<Vec<f64>> {
    let count = right.len();
    for step in 0..count {
        let pivot = (step..count).max_by(|a, b| rows[*a][step].abs().total_cmp(&rows[*b][step].abs()))?;
        rows.swap(step, pivot);
        right.swap(step, pivot);
        if !rows[step][step].is_normal() {
            return None;
        }
        let pivot = rows[step].clone();
        for below in step + 1..count {
            let factor = rows[below][step] / pivot[step];
            rows[below].iter_mut().zip(&pivot).for_each(|(number, above)| *number -= factor * above);
            right[below] -= factor * right[step];
        }
    }
    for step in (0..count).rev() {
        let known: f64 = (step + 1..count).map(|column| rows[step][column] * right[column]).sum();
        right[step] = (right[step] - known) / rows[step][step];
    }
    Some(right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{Compute, Request};
    use image::imageops::{FilterType, resize};
    use std::ops::ControlFlow;

    #[test]
    fn a_system_is_solved_or_has_no_solution() {
        let rows = vec![vec![0.0, 2.0, 1.0], vec![1.0, 1.0, 0.0], vec![3.0, 0.0, -1.0]];
        let solved = solve(rows.clone(), vec![7.0, 3.0, 0.0]).unwrap();
        for (found, wanted) in solved.iter().zip([1.0, 2.0, 3.0]) {
            assert!((found - wanted).abs() < 1e-12, "{solved:?}");
        }
        assert_eq!(solve(vec![rows[0].clone(), rows[0].clone(), rows[1].clone()], vec![0.0; 3]), None);
    }

    #[test]
    fn a_linear_decoder_is_found_again() {
        let patches = Noise::cpu(3).randn(&[1, 4, PATCHES, PATCHES], DType::F32, &Device::Cpu).unwrap();
        let map = PreviewMap {
            colors: [
                vec![20.0, 10.0, 0.0, -5.0, 120.0],
                vec![-10.0, 0.0, 15.0, 5.0, 130.0],
                vec![0.0, 12.0, -6.0, 3.0, 140.0],
            ],
        };
        let latents = patches.upsample_nearest2d(PATCHES * SIDE, PATCHES * SIDE).unwrap();
        let picture = map.picture(&latents).unwrap();
        let fitted = PreviewMap::fit(&patches, &picture).unwrap();
        for (color, wanted) in fitted.colors.iter().zip(&map.colors) {
            // Levels are rounded.
            color.iter().zip(wanted).for_each(|(a, b)| assert!((a - b).abs() < 0.5, "{fitted:?}"));
        }
        assert!(map.picture(&Tensor::zeros((1, 3, 8, 8), DType::F32, &Device::Cpu).unwrap()).is_err());
    }

    /// The last preview is like the picture, made small: far more than one of another model's colours or of grey.
    #[test]
    fn a_preview_looks_like_the_picture() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model/easel-tiny");
        let pipeline = Pipeline::load(model.as_ref(), &Compute::Cpu, (256, 256)).unwrap();
        let map = pipeline.preview_map().unwrap();
        let request = Request { width: 256, height: 256, steps: 8, seed: 42, ..Request::new("lighthouse sunset sea") };
        let mut stream = pipeline.noise(&request, crate::noise::DEFAULT_THREADS);
        let noise = pipeline.first_noise(&request, 1, &mut stream).unwrap();
        let mut previews = Vec::new();
        let latents = pipeline.denoise_watched(&[&request], noise, &mut stream, &mut |_, latents| {
            previews.push(map.picture(&latents().unwrap()).unwrap());
            ControlFlow::Continue(())
        });
        let picture = pipeline.decode(&latents.unwrap(), DecodeMemory::Whole).unwrap().remove(0);
        let small = resize(&picture, 32, 32, FilterType::Triangle);
        let mean = |preview: &RgbImage| {
            let off = preview.as_raw().iter().zip(small.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)));
            off.sum::<f64>() / small.as_raw().len() as f64
        };
        let errors: Vec<f64> = previews.iter().map(mean).collect();
        let grey = mean(&RgbImage::from_pixel(32, 32, Rgb([128; 3])));
        println!("mean levels off after each step: {errors:.0?}; grey: {grey:.0}");
        assert_eq!((previews.len(), previews[0].dimensions()), (9, (32, 32)));
        assert!(errors[8] < grey / 2.0 && errors[8] < errors[0] / 2.0, "{errors:?}, grey {grey}");
    }
}
