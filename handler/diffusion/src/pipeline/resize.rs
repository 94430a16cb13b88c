//! Resizes a picture as Pillow does, with a filter that is widened to the size of an output pixel when the picture becomes smaller. First
//! the rows, then the columns, each in fixed point and rounded to 8 bits, so that the result is Pillow's to the bit.

use image::RgbImage;
use rayon::prelude::*;
use std::{f64::consts::PI, ops::Range};

/// Bits after the point of a weight.
const PRECISION: u32 = 22;
const CHANNELS: usize = 3;

/// What the pixels around an output pixel weigh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -0.5.
    Bicubic,
    /// Lanczos, "Applied analysis", 1956, of three lobes.
    Lanczos,
}

/// The input pixels that make one output pixel, and their weights.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// The picture in that width and height.
pub(super) fn resized(picture: &RgbImage, filter: Filter, width: usize, height: usize) -> RgbImage {
    part(picture, filter, (width, 0..width), (height, 0..height))
}

/// Some columns and rows of the picture in a width and height. The rest is not computed.
pub(super) fn part(
    picture: &RgbImage,
    filter: Filter,
    (width, columns): (usize, Range<usize>),
    (height, rows): (usize, Range<usize>),
) -> RgbImage {
    let (from_width, from_height) = (picture.width() as usize, picture.height() as usize);
    let mut pixels = picture.as_raw().clone();
    let across = columns.len();
    if width != from_width || across != from_width {
        let windows = filter.windows(from_width, width, columns);
        let mut out = vec![0; across * from_height * CHANNELS];
        let lines = pixels.par_chunks_exact(from_width * CHANNELS).zip(out.par_chunks_exact_mut(across * CHANNELS));
        lines.for_each(|(line, out)| {
            for (window, out) in windows.iter().zip(out.as_chunks_mut::<CHANNELS>().0) {
                let mut sums = [1i32 << (PRECISION - 1); CHANNELS];
                for (pixel, weight) in line.as_chunks::<CHANNELS>().0[window.first..].iter().zip(&window.weights) {
                    for (sum, level) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(*level) * weight;
                    }
                }
                *out = sums.map(level);
            }
        });
        pixels = out;
    }
    let down = rows.len();
    if height != from_height || down != from_height {
        let line = across * CHANNELS;
        let mut out = vec![0; down * line];
        let windows = filter.windows(from_height, height, rows);
        windows.par_iter().zip(out.par_chunks_exact_mut(line)).for_each(|(window, out)| {
            let mut sums = vec![1i32 << (PRECISION - 1); line];
            for (levels, weight) in pixels[window.first * line..].chunks_exact(line).zip(&window.weights) {
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
    RgbImage::from_raw(across as u32, down as u32, pixels).unwrap_or_default()
}

fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

impl Filter {
    /// The windows of some of `to` pixels among `from` pixels. Where both are as many, each is its own pixel: Pillow leaves them alone.
    fn windows(self, from: usize, to: usize, wanted: Range<usize>) -> Vec<Window> {
        if from == to {
            return wanted.map(|first| Window { first, weights: vec![1 << PRECISION] }).collect();
        }
        let scale = from as f64 / to as f64;
        let widened = scale.max(1.0);
        let reach = self.reach() * widened;
        let window = |index: usize| {
            let center = (index as f64 + 0.5) * scale;
            // A cast to an integer cuts off, as in C.
            let first = (center - reach + 0.5).max(0.0) as usize;
            let end = ((center + reach + 0.5) as usize).min(from);
            let weights = (first..end).map(|pixel| self.weight((pixel as f64 - center + 0.5) / widened));
            let weights: Vec<f64> = weights.collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: &f64| {
                let scaled = weight / sum * f64::from(1 << PRECISION);
                (scaled + 0.5f64.copysign(scaled)) as i32
            };
            Window { first, weights: weights.iter().map(fixed).collect() }
        };
        wanted.map(window).collect()
    }

    /// How far it reaches, in pixels of the smaller picture.
    fn reach(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The weight of a pixel at that distance.
    fn weight(self, distance: f64) -> f64 {
        let x = distance.abs();
        match self {
            _ if x >= self.reach() => 0.0,
            Self::Bicubic => {
                const A: f64 = -0.5;
                if x < 1.0 { ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0 } else { (((x - 5.0) * x + 8.0) * x - 4.0) * A }
            }
            Self::Lanczos => sinc(x) * sinc(x / self.reach()),
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
}
