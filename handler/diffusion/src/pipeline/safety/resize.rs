//! Resizes a picture as Pillow does: bicubic (Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -0.5),
//! widened to the size of an output pixel when the picture becomes smaller. First the rows, then the columns, each in fixed point and
//! rounded to 8 bits, so that the result is Pillow's to the bit.

use image::RgbImage;
use rayon::prelude::*;

/// Bits after the point of a weight.
const PRECISION: u32 = 22;
/// How far the filter reaches, in pixels of the smaller picture.
const REACH: f64 = 2.0;
const CHANNELS: usize = 3;

/// The input pixels that make one output pixel, and their weights.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// The picture in that width and height.
pub(super) fn bicubic(picture: &RgbImage, width: usize, height: usize) -> RgbImage {
    let (from_width, from_height) = (picture.width() as usize, picture.height() as usize);
    let mut pixels = picture.as_raw().clone();
    if width != from_width {
        let windows = windows(from_width, width);
        let mut out = vec![0; width * from_height * CHANNELS];
        let rows = pixels.par_chunks_exact(from_width * CHANNELS).zip(out.par_chunks_exact_mut(width * CHANNELS));
        rows.for_each(|(row, out)| {
            for (window, out) in windows.iter().zip(out.as_chunks_mut::<CHANNELS>().0) {
                let mut sums = [1i32 << (PRECISION - 1); CHANNELS];
                for (pixel, weight) in row.as_chunks::<CHANNELS>().0[window.first..].iter().zip(&window.weights) {
                    for (sum, level) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(*level) * weight;
                    }
                }
                *out = sums.map(level);
            }
        });
        pixels = out;
    }
    if height != from_height {
        let row = width * CHANNELS;
        let mut out = vec![0; height * row];
        let windows = windows(from_height, height);
        windows.par_iter().zip(out.par_chunks_exact_mut(row)).for_each(|(window, out)| {
            let mut sums = vec![1i32 << (PRECISION - 1); row];
            for (levels, weight) in pixels[window.first * row..].chunks_exact(row).zip(&window.weights) {
                for (sum, level) in sums.iter_mut().zip(levels) {
                    *sum += i32::from(*level) * weight;
                }
            }
            for (out, sum) in out.iter_mut().zip(&sums) {
                *out = level(*sum);
            }
        });
        pixels = out;
    }
    // As many pixels as both passes have made.
    RgbImage::from_raw(width as u32, height as u32, pixels).unwrap_or_default()
}

fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The window of each of `to` pixels among `from` pixels.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let widened = scale.max(1.0);
    let reach = REACH * widened;
    let window = |index: usize| {
        let center = (index as f64 + 0.5) * scale;
        // A cast to an integer cuts off, as in C.
        let first = (center - reach + 0.5).max(0.0) as usize;
        let end = ((center + reach + 0.5) as usize).min(from);
        let weights = (first..end).map(|pixel| filter((pixel as f64 - center + 0.5) / widened));
        let weights: Vec<f64> = weights.collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| {
            let scaled = weight / sum * f64::from(1 << PRECISION);
            (scaled + 0.5f64.copysign(scaled)) as i32
        };
        Window { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}

/// The weight of a pixel at that distance.
fn filter(distance: f64) -> f64 {
    const A: f64 = -0.5;
    let x = distance.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < REACH {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
