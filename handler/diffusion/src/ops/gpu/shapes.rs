//! Times each product and each convolution of Stable Diffusion 1.5's UNet by itself.

use super::{
    UpsampledConv,
    conv::Conv,
    linear::Linear,
    prompt::{mix, shares},
};
use crate::{
    gpu::{Array, Dtype, Gpu, Graph},
    ops::Window,
};
use candle_core::{Device, Result, Tensor};
use std::time::Instant;

/// What was timed.
#[derive(Debug, Clone, PartialEq)]
pub struct ShapeTime {
    /// `product`, with `residual` if there is one, `gated`, `conv`, with `doubled` if its map is resized to twice the size; `softmax` and
    /// `values`, the two products of the attention to two prompts.
    pub kind: &'static str,
    /// Rows of a product, or the height of a convolution's map as it lies in memory; of all images either way.
    pub rows: usize,
    /// Channels that are read.
    pub inner: usize,
    /// Channels that are written.
    pub columns: usize,
    /// A convolution's stride; 1 for a product.
    pub stride: usize,
    /// How many of them a step has.
    pub count: usize,
    /// The median time of one, in microseconds.
    pub microseconds: f64,
}

/// Kind, rows, channels in, channels out, stride, count: of a step with guidance at 512x512, which is two images of 64x64 latents.
type Row = (&'static str, usize, usize, usize, usize, usize);

const ROWS: &[Row] = &[
    ("conv", 64, 8, 320, 1, 1),
    ("conv", 64, 320, 320, 1, 7),
    ("conv", 64, 640, 320, 1, 2),
    ("conv", 64, 960, 320, 1, 1),
    ("conv", 64, 320, 8, 1, 1),
    ("conv", 64, 320, 320, 2, 1),
    ("conv", 32, 320, 640, 1, 1),
    ("conv", 32, 640, 640, 1, 6),
    ("conv", 32, 960, 640, 1, 1),
    ("conv", 32, 1280, 640, 1, 1),
    ("conv", 32, 1920, 640, 1, 1),
    ("conv", 32, 640, 640, 2, 1),
    ("conv doubled", 32, 640, 640, 1, 1),
    ("conv", 16, 640, 1280, 1, 1),
    ("conv", 16, 1280, 1280, 1, 6),
    ("conv", 16, 1920, 1280, 1, 1),
    ("conv", 16, 2560, 1280, 1, 2),
    ("conv", 16, 1280, 1280, 2, 1),
    ("conv doubled", 16, 1280, 1280, 1, 1),
    ("conv", 8, 1280, 1280, 1, 11),
    ("conv", 8, 2560, 1280, 1, 3),
    ("conv doubled", 8, 1280, 1280, 1, 1),
    ("product", 8192, 320, 320, 1, 5),
    ("product residual", 8192, 320, 320, 1, 10),
    ("softmax", 8192, 320, 640, 1, 5),
    ("values", 8192, 640, 320, 1, 5),
    ("product", 8192, 320, 960, 1, 5),
    ("product residual", 8192, 1280, 320, 1, 5),
    ("product", 8192, 640, 320, 1, 2),
    ("product", 8192, 960, 320, 1, 1),
    ("product", 2048, 640, 640, 1, 5),
    ("product residual", 2048, 640, 640, 1, 10),
    ("softmax", 2048, 640, 640, 1, 5),
    ("values", 2048, 640, 640, 1, 5),
    ("product", 2048, 640, 1920, 1, 5),
    ("product residual", 2048, 2560, 640, 1, 5),
    ("product", 2048, 320, 640, 1, 1),
    ("product", 2048, 960, 640, 1, 1),
    ("product", 2048, 1280, 640, 1, 1),
    ("product", 2048, 1920, 640, 1, 1),
    ("product", 512, 1280, 1280, 1, 5),
    ("product residual", 512, 1280, 1280, 1, 10),
    ("softmax", 512, 1280, 640, 1, 5),
    ("values", 512, 640, 1280, 1, 5),
    ("product", 512, 1280, 3840, 1, 5),
    ("product residual", 512, 5120, 1280, 1, 5),
    ("product", 512, 640, 1280, 1, 1),
    ("product", 512, 1920, 1280, 1, 1),
    ("product", 512, 2560, 1280, 1, 2),
    ("product", 128, 1280, 1280, 1, 1),
    ("product residual", 128, 1280, 1280, 1, 2),
    ("softmax", 128, 1280, 640, 1, 1),
    ("values", 128, 640, 1280, 1, 1),
    ("product", 128, 1280, 3840, 1, 1),
    ("product residual", 128, 5120, 1280, 1, 1),
    ("product", 128, 2560, 1280, 1, 3),
    ("gated", 8192, 320, 2560, 1, 5),
    ("gated", 2048, 640, 5120, 1, 5),
    ("gated", 512, 1280, 10240, 1, 5),
    ("gated", 128, 1280, 10240, 1, 1),
];

/// What the table is for: latents of so many places across and down, and two prompts.
const SIDE: usize = 64;
/// Prompts of a step with guidance.
const PROMPTED: usize = 2;
/// The two products of the attention to a prompt. Without tensor cores there are no such kernels, and they are not timed.
const PROMPTS: [&str; 2] = ["softmax", "values"];
/// Tokens of a prompt.
const TOKENS: usize = 77;
/// How often a shape runs in a recording, each time with other weights than the last one.
const LAUNCHES: usize = 24;
/// Numbers, at random, of which all arrays are parts: more than what a multiprocessor's cache and the GPU's hold.
const POOL: usize = 1 << 27;
/// Numbers of a row of the pool; the least of any array.
const POOL_ROW: usize = 8;

/// The pictures of a step.
#[derive(Debug, Clone, Copy)]
pub struct StepSize {
    /// Pixels, a multiple of 64.
    pub width: usize,
    /// Pixels, a multiple of 64.
    pub height: usize,
    /// How many are made at once.
    pub pictures: usize,
}

impl StepSize {
    /// Height and width of a map that has so many places a side at 512x512.
    fn map(&self, side: usize) -> [usize; 2] {
        [self.height, self.width].map(|pixels| pixels * side / (8 * SIDE))
    }

    /// Maps of a step with guidance.
    fn images(&self) -> usize {
        PROMPTED * self.pictures
    }

    /// Rows of a product that has so many with one picture of 512x512.
    fn rows(&self, rows: usize) -> usize {
        self.map(SIDE).iter().product::<usize>() * self.pictures * rows / (SIDE * SIDE)
    }
}

/// Times all of them, each `repeat` times, in recordings of many launches, as the UNet's steps are recordings. Each has a bias;
/// convolutions leave the moments for the norm behind them.
///
/// # Errors
/// The GPU fails or has too little memory, or a map of that size is larger than what weights and maps are taken from.
pub fn time_shapes(gpu: &Gpu, dtype: Dtype, size: StepSize, repeat: usize) -> Result<Vec<ShapeTime>> {
    let largest = |&(kind, rows, inner, columns, ..): &Row| match kind.starts_with("conv") {
        true => size.map(rows).iter().product::<usize>() * size.images() * inner,
        false => size.rows(rows) * if has_residual(kind) { inner.max(columns) } else { inner },
    };
    if ROWS.iter().map(largest).max() > Some(POOL) {
        return Err(candle_core::Error::msg(format!("a map of {size:?} has more than {POOL} numbers")));
    }
    // Uniform, with a variance that keeps sums of some thousands of products small.
    let block = Tensor::rand(-0.1f32, 0.1, (1 << 20, POOL_ROW), &Device::Cpu)?;
    let pool = gpu.resident(&[POOL / POOL_ROW, POOL_ROW], dtype)?;
    let block = Array::from_tensor(gpu, &block, dtype)?.read()?;
    for part in 0..pool.rows() / (1 << 20) {
        pool.part(part << 20, 1 << 20).write(&block)?;
    }
    let there = |row: &&Row| gpu.fuses(dtype) || !PROMPTS.contains(&row.0);
    ROWS.iter()
        .filter(there)
        .map(|&(kind, rows, inner, columns, stride, count)| {
            let shape = ShapeTime { kind, rows, inner, columns, stride, count, microseconds: 0.0 };
            let microseconds = time(gpu, &pool, &shape, size, repeat)?;
            let rows = if kind.starts_with("conv") { size.map(rows)[0] } else { size.rows(rows) };
            Ok(ShapeTime { rows, microseconds, ..shape })
        })
        .collect()
}

/// Whether something of the result's size is added.
fn has_residual(kind: &str) -> bool {
    ["product residual", "values"].contains(&kind)
}

/// Weights for each channel that is read and each that is written.
fn area(kind: &str) -> usize {
    match kind {
        "conv" => 9,
        "conv doubled" => 16,
        _ => 1,
    }
}

fn time(gpu: &Gpu, pool: &Array, shape: &ShapeTime, size: StepSize, repeat: usize) -> Result<f64> {
    let &ShapeTime { kind, rows, inner, columns, stride, .. } = shape;
    // Parts that follow one another, from the start again at the end.
    let mut at = 0;
    let mut take = |dims: &[usize]| {
        let count = dims.iter().product::<usize>() / POOL_ROW;
        at = if at + count > pool.rows() { 0 } else { at };
        at += count;
        pool.part(at - count, count).reshaped(dims)
    };
    let is_conv = kind.starts_with("conv");
    let area = area(kind);
    let ([height, width], images) = (size.map(rows), size.images());
    let rows = size.rows(rows);
    let xs = if is_conv { take(&[images, height, width, inner]) } else { take(&[1, rows, inner]) };
    let is_prompts = PROMPTS.contains(&kind);
    let onto = has_residual(kind).then(|| take(&[1, rows, columns]));
    let weights =
        |_| (take(&[if is_prompts { PROMPTED * columns } else { columns }, area * inner]), take(&[1, columns]));
    let weights: Vec<_> = (0..LAUNCHES).map(weights).collect();
    let launch = |(weight, bias): &(Array, Array)| -> Result<Array> {
        if kind == "conv doubled" {
            return UpsampledConv::of_arrays(weight.clone(), bias.clone()).forward(&xs, 2 * height, 2 * width);
        }
        if is_conv {
            let conv = Conv::of_arrays(weight.clone(), bias.clone(), Window { side: 3, stride, padding: 1, past: 0 });
            return conv.forward(&xs, None, None);
        }
        if is_prompts {
            let each = weight.reshaped(&[PROMPTED, columns, inner]);
            return match &onto {
                Some(onto) => mix(&xs, &each, bias, onto),
                None => shares(&xs, None, &each, None, TOKENS),
            };
        }
        let linear = Linear::of_arrays(weight.clone(), bias.clone());
        if kind == "gated" { linear.forward_geglu(&xs) } else { linear.forward(&xs, onto.as_ref()) }
    };
    // SAFETY: what is read are parts of the pool, which the caller holds, and results are dropped as they are made. Nobody else uses
    // this GPU's stream: the caller waits for each time.
    let (mut graph, ()) = unsafe { Graph::record(gpu, || weights.iter().try_for_each(|one| launch(one).map(drop)))? };
    graph.launch()?;
    gpu.synchronize()?;
    let mut times = Vec::new();
    for _ in 0..repeat {
        let clock = Instant::now();
        graph.launch()?;
        gpu.synchronize()?;
        times.push(clock.elapsed().as_secs_f64() * 1e6 / LAUNCHES as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_what_a_step_of_the_unet_launches() {
        let count =
            |start: &str| -> usize { ROWS.iter().filter(|row| row.0.starts_with(start)).map(|row| row.5).sum() };
        // 22 ResNet blocks of two, both ends, three to each side; 16 transformers of five products, a gated one and an attention to the
        // prompt each, and 14 shortcuts.
        assert_eq!(count("conv"), 2 * 22 + 2 + 3 + 3);
        assert_eq!((count("product"), count("gated")), (16 * 5 + 14, 16));
        assert_eq!((count("softmax"), count("values")), (16, 16));
        assert!(ROWS.iter().all(|row| row.2.is_multiple_of(POOL_ROW) && row.3.is_multiple_of(POOL_ROW)));
        let largest = ROWS.iter().map(|row| row.2 * row.3 * area(row.0)).max();
        assert!(largest.unwrap() < POOL);
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn gpu_all_shapes_are_timed() {
        let times =
            time_shapes(&Gpu::for_tests(), Dtype::F16, StepSize { width: 512, height: 768, pictures: 2 }, 1).unwrap();
        assert_eq!(times.len(), ROWS.len());
        assert!(times.iter().all(|time| time.microseconds > 0.0));
    }
}
