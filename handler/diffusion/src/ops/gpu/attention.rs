//! Attention: our own fused kernels for the head sizes of Stable Diffusion, matrix products and a softmax for others.

use super::{SCORES, refused};
use crate::gpu::{
    Arg, Array, Dtype, Launch,
    matmul::{self, Operands},
};
use candle_core::Result;

/// A fused kernel: the ending of its name, head size, threads, queries of a block, and dynamic shared memory.
#[derive(Clone, Copy)]
struct Fused {
    ending: &'static str,
    width: usize,
    threads: usize,
    queries: usize,
    shared: usize,
}

const fn fused(ending: &'static str, width: usize, threads: usize, queries: usize, shared: usize) -> Fused {
    Fused { ending, width, threads, queries, shared }
}

/// As `kernels/attention.cu` has them; for each head size the one for many tokens first.
const FUSED: [Fused; 10] = [
    fused("40", 40, 128, 128, 0),
    fused("40_small", 40, 128, 64, 0),
    fused("64", 64, 128, 128, 0),
    fused("64_small", 64, 128, 64, 0),
    fused("80", 80, 256, 128, 0),
    fused("80_small", 80, 128, 64, 0),
    fused("128", 128, 128, 64, 69_632),
    fused("128_small", 128, 128, 32, 69_632),
    fused("160", 160, 128, 64, 86_016),
    fused("160_small", 160, 128, 32, 86_016),
];

/// The shared memory that a block may have where it is least: compute capability 8.6, 8.9 and 12.0.
const LEAST_SHARED: usize = 99 << 10;
const _: () = {
    let mut index = 0;
    while index < FUSED.len() {
        assert!(FUSED[index].shared <= LEAST_SHARED);
        index += 1;
    }
};

/// As `kernels/attention_hopper.cu` has them.
const HOPPER: [Fused; 5] = [
    fused("40", 40, 640, 256, 164_992),
    fused("40_small", 40, 640, 128, 148_608),
    fused("64", 64, 640, 256, 164_992),
    fused("80", 80, 640, 256, 214_112),
    fused("80_small", 80, 640, 128, 230_528),
];
/// With fewer keys, Hopper's own kernels take longer to fill than the others to end (measured on an H100).
const MANY_KEYS: usize = 256;

pub(crate) fn attention(q: &Array, k: &Array, v: &Array, heads: usize) -> Result<Array> {
    let (shape, gpu) = (Shape::of(q, k, v, heads)?, q.gpu());
    if !gpu.fuses(q.dtype()) {
        return shape.whole(q, k, v, false);
    }
    let blocks = |kernel: &Fused| shape.tokens.div_ceil(kernel.queries) * heads * shape.batch;
    if gpu.is_hopper() && shape.others >= MANY_KEYS {
        // The one with which the busiest processor has the least to do.
        let work = |kernel: &&Fused| blocks(kernel).div_ceil(gpu.multiprocessors()) * kernel.queries;
        if let Some(kernel) = HOPPER.iter().filter(|kernel| kernel.width == shape.width).min_by_key(work) {
            return shape.fused("attention_hopper", kernel, q, k, v);
        }
    }
    // The first that gives three processors of four work, else the one with the most blocks.
    let mut kernels = FUSED.iter().filter(|kernel| kernel.width == shape.width);
    let busy = kernels.clone().find(|kernel| 4 * blocks(kernel) >= 3 * gpu.multiprocessors());
    match busy.or(kernels.next_back()) {
        Some(kernel) => shape.fused("attention", kernel, q, k, v),
        None => shape.whole(q, k, v, false),
    }
}

pub(crate) fn causal_attention(q: &Array, k: &Array, v: &Array, heads: usize) -> Result<Array> {
    Shape::of(q, k, v, heads)?.whole(q, k, v, true)
}

#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    tokens: usize,
    others: usize,
    heads: usize,
    /// Channels of a head.
    width: usize,
}

impl Shape {
    fn of(q: &Array, k: &Array, v: &Array, heads: usize) -> Result<Self> {
        match (q.dims(), k.dims(), v.dims()) {
            (&[batch, tokens, channels], &[same, others, _], third)
                if same == batch && third == k.dims() && k.columns() == channels && channels.is_multiple_of(heads) =>
            {
                Ok(Self { batch, tokens, others, heads, width: channels / heads })
            }
            dims => refused(format!("attention of {dims:?} in {heads} heads")),
        }
    }

    fn scale(&self) -> f32 {
        (self.width as f32).powf(-0.5)
    }

    fn out(&self, q: &Array) -> Result<Array> {
        Ok(q.gpu().scratch(&[self.batch, self.tokens, self.heads * self.width], q.dtype())?)
    }

    fn fused(&self, name: &str, kernel: &Fused, q: &Array, k: &Array, v: &Array) -> Result<Array> {
        if k.row() != v.row() {
            return refused("keys and values with rows of two lengths".into());
        }
        let out = self.out(q)?;
        let arrays = [q, k, v, &out].map(|array| Arg::At(array.address()));
        let sizes = [self.tokens, self.others, self.heads, q.row(), k.row(), out.row()].map(Arg::Int);
        let strides = [self.tokens * q.row(), self.others * k.row(), self.tokens * out.row()].map(Arg::Long);
        let args = [&arrays[..], &sizes, &strides, &[Arg::Float(self.scale())]].concat();
        let launch = Launch {
            name: format!("{name}_{}_{}", q.dtype().name(), kernel.ending),
            grid: [self.tokens.div_ceil(kernel.queries), self.heads, self.batch],
            block: kernel.threads,
            shared: if q.gpu().copies_ahead() { kernel.shared } else { 0 },
        };
        q.gpu().launch(launch, &args)?;
        Ok(out)
    }

    /// With the scores in memory, some queries at a time.
    fn whole(&self, q: &Array, k: &Array, v: &Array, causal: bool) -> Result<Array> {
        let (gpu, dtype, out) = (q.gpu(), q.dtype(), self.out(q)?);
        let at_once = (SCORES / 4 / (self.heads * self.others)).clamp(1, self.tokens);
        let at_once = if causal { self.tokens } else { at_once };
        for image in 0..self.batch {
            let [q, k, v, out] = [q, k, v, &out].map(|array| array.part(image, 1));
            for from in (0..self.tokens).step_by(at_once) {
                let tokens = at_once.min(self.tokens - from);
                let scores = gpu.scratch(&[self.heads, tokens, self.others], Dtype::F32)?;
                let shares = gpu.scratch(scores.dims(), dtype)?;
                let size = dtype.bytes();
                let products = matmul::Case {
                    out: Dtype::F32,
                    batch: self.heads,
                    a_row: q.row(),
                    w_row: k.row(),
                    a_stride: self.width,
                    w_stride: self.width,
                    out_stride: tokens * self.others,
                    alpha_bits: self.scale().to_bits(),
                    ..matmul::Case::linear(dtype, tokens, self.others, self.width)
                };
                let mixed = matmul::Case {
                    batch: self.heads,
                    w_row: v.row(),
                    out_row: out.row(),
                    a_stride: tokens * self.others,
                    w_stride: self.width,
                    out_stride: self.width,
                    w_transposed: true,
                    ..matmul::Case::linear(dtype, tokens, self.width, self.others)
                };
                let q_at = q.address() + (from * q.row() * size) as u64;
                let out_at = out.address() + (from * out.row() * size) as u64;
                // SAFETY: arrays of the sizes and strides that the case says.
                #[allow(unsafe_code)]
                unsafe {
                    gpu.matmuls()?.run(&products, &Operands::product(q_at, k.address(), scores.address()))?;
                }
                let arrays = [&scores, &shares].map(|array| Arg::At(array.address()));
                let sizes = [self.others, usize::from(causal), tokens].map(Arg::Int);
                let (name, grid) = (format!("softmax_{}", dtype.name()), [self.heads * tokens, 1, 1]);
                gpu.launch(Launch { name, grid, block: 256, shared: 0 }, &[&arrays[..], &sizes].concat())?;
                // SAFETY: as above.
                #[allow(unsafe_code)]
                unsafe {
                    gpu.matmuls()?.run(&mixed, &Operands::product(shares.address(), v.address(), out_at))?;
                }
            }
        }
        Ok(out)
    }
}
