//! The operations of the networks. Each is one function or type here, and calls its form for the CPU ([`cpu`], f32, on candle's
//! tensors) or the GPU ([`gpu`], f16, bf16 or f32).
//!
//! Adding a residual or the timestep's shift is part of an operation, which saves a pass over memory.

mod array;
mod bands;
mod cpu;
mod gpu;
mod maps;
pub(crate) mod params;
mod prompt;
mod spread;
mod upsampled;

pub(crate) use array::{Array, Step};
pub(crate) use bands::{Measured, Statistics, pad_rows};
pub(crate) use cpu::Packed;
pub use cpu::{Instructions, Vectors, limit_vectors};
pub(crate) use gpu::{Folded, LANES, SCORES, prompt_bytes, steps};
pub use gpu::{ShapeTime, StepSize, time_shapes};
pub(crate) use maps::Maps;
pub(crate) use prompt::{PromptAttention, PromptKeys, Prompts};
pub(crate) use upsampled::UpsampledConv;

use crate::ops::params::Params;
use candle_core::{Error, Result, Tensor};

/// An operation's form on the device that it was made for.
enum Form<C, G> {
    Cpu(C),
    Gpu(G),
}

/// A convolution's square kernel, and how it moves over the picture.
#[derive(Debug, Clone, Copy)]
struct Window {
    side: usize,
    stride: usize,
    /// Zeros on each side of the map.
    padding: usize,
    /// Zeros more below and to the right.
    past: usize,
}

/// A convolution with bias over a feature map.
pub(crate) struct Conv(Form<cpu::Conv, gpu::Conv>);

impl Conv {
    /// A 3x3 convolution that keeps height and width.
    pub(crate) fn same3x3(channels_in: usize, channels_out: usize, params: Params) -> Result<Self> {
        Self::new(channels_in, channels_out, Window { side: 3, stride: 1, padding: 1, past: 0 }, params)
    }

    /// A 3x3 convolution that halves height and width.
    pub(crate) fn half3x3(channels_in: usize, channels_out: usize, params: Params) -> Result<Self> {
        Self::new(channels_in, channels_out, Window { side: 3, stride: 2, padding: 1, past: 0 }, params)
    }

    /// A 3x3 convolution that halves height and width, with zeros below and to the right of the map alone: diffusers pads `(0, 1, 0, 1)`.
    pub(crate) fn half3x3_past(channels_in: usize, channels_out: usize, params: Params) -> Result<Self> {
        Self::new(channels_in, channels_out, Window { side: 3, stride: 2, padding: 0, past: 1 }, params)
    }

    /// A 1x1 convolution.
    pub(crate) fn pointwise(channels_in: usize, channels_out: usize, params: Params) -> Result<Self> {
        Self::new(channels_in, channels_out, Window { side: 1, stride: 1, padding: 0, past: 0 }, params)
    }

    fn new(channels_in: usize, channels_out: usize, window: Window, params: Params) -> Result<Self> {
        Ok(Self(match params.placed() {
            None => Form::Cpu(cpu::Conv::new(channels_in, channels_out, window, &params)?),
            Some(placed) => Form::Gpu(gpu::Conv::new(channels_in, channels_out, window, &params, placed)?),
        }))
    }

    /// Says which groups of the output a group norm will ask for, or that none follows. A GPU measures them along; 32 unless this says
    /// otherwise. The output is the same.
    pub(crate) fn measured_in(self, groups: Option<usize>) -> Self {
        Self(match self.0 {
            Form::Cpu(conv) => Form::Cpu(conv),
            Form::Gpu(conv) => Form::Gpu(conv.measured_in(groups)),
        })
    }

    /// Says that a layer [`Linear::behind_norm`] follows, and no group norm. A GPU sums the rows up along for it. The output is the same.
    pub(crate) fn ahead_of_norm(self) -> Self {
        Self(match self.0 {
            Form::Cpu(conv) => Form::Cpu(conv),
            Form::Gpu(conv) => Form::Gpu(conv.ahead_of_norm()),
        })
    }

    pub(crate) fn forward(&self, xs: &Array) -> Result<Array> {
        self.run(xs, None, None)
    }

    /// Adds the row of `shifts` `[steps, channels_out]` for that step at every position.
    pub(crate) fn forward_shifted(&self, xs: &Array, shifts: &Array, step: &Step) -> Result<Array> {
        self.run(xs, Some((shifts, step)), None)
    }

    /// Adds `residual`, which has the output's shape.
    pub(crate) fn forward_adding(&self, xs: &Array, residual: &Array) -> Result<Array> {
        self.run(xs, None, Some(residual))
    }

    fn run(&self, xs: &Array, shift: Option<(&Array, &Step)>, residual: Option<&Array>) -> Result<Array> {
        match (&self.0, xs) {
            (Form::Cpu(conv), Array::Cpu(xs)) => {
                let shift = shift.map(|(shifts, step)| step.row_of(shifts.cpu()?)).transpose()?;
                let residual = residual.map(Array::cpu).transpose()?;
                conv.forward(xs, shift.as_ref(), residual).map(Array::Cpu)
            }
            (Form::Gpu(conv), Array::Gpu(xs)) => {
                let shift = shift.map(|(shifts, step)| Ok::<_, Error>((shifts.gpu()?, step.counter()?)));
                let residual = residual.map(Array::gpu).transpose()?;
                conv.forward(xs, shift.transpose()?, residual).map(Array::Gpu)
            }
            _ => Err(mixed()),
        }
    }
}

/// One or more linear layers over the last dimension, all with the same input, which a layer norm may normalise first.
pub(crate) struct Linear(Form<LinearOnCpu, gpu::Linear>);

struct LinearOnCpu {
    norm: Option<cpu::LayerNorm>,
    layers: Vec<cpu::Linear>,
}

impl LinearOnCpu {
    fn normed(&self, xs: &Tensor) -> Result<Tensor> {
        self.norm.as_ref().map_or_else(|| Ok(xs.clone()), |norm| norm.forward(xs))
    }
}

impl Linear {
    pub(crate) fn new(channels_in: usize, channels_out: usize, params: Params) -> Result<Self> {
        Self::packed(channels_in, channels_out, true, &[params])
    }

    pub(crate) fn no_bias(channels_in: usize, channels_out: usize, params: Params) -> Result<Self> {
        Self::packed(channels_in, channels_out, false, &[params])
    }

    /// A layer per element of `params`, each with `channels_out` output channels.
    pub(crate) fn packed(channels_in: usize, channels_out: usize, bias: bool, params: &[Params]) -> Result<Self> {
        let on_gpu = params.first().and_then(Params::placed);
        Ok(Self(match on_gpu {
            None => {
                let each = params.iter().map(|params| cpu::Linear::new(channels_in, channels_out, bias, params));
                Form::Cpu(LinearOnCpu { norm: None, layers: each.collect::<Result<_>>()? })
            }
            Some(placed) => Form::Gpu(gpu::Linear::new(channels_in, channels_out, bias, params, placed)?),
        }))
    }

    /// The same behind a layer norm with that number added to the variance, whose parameters are in `norm`. On a GPU both are one operation
    /// where that can be.
    pub(crate) fn behind_norm(
        (eps, norm): (f64, &Params),
        channels_in: usize,
        channels_out: usize,
        bias: bool,
        params: &[Params],
    ) -> Result<Self> {
        if let Some(placed) = norm.placed() {
            let layers = gpu::Linear::behind((eps, norm), channels_in, channels_out, bias, params, placed)?;
            return Ok(Self(Form::Gpu(layers)));
        }
        let norm = Some(cpu::LayerNorm::new(channels_in, eps, norm)?);
        Ok(Self(match Self::packed(channels_in, channels_out, bias, params)?.0 {
            Form::Cpu(layers) => Form::Cpu(LinearOnCpu { norm, ..layers }),
            Form::Gpu(_) => return Err(mixed()),
        }))
    }

    /// Says that a layer [`Linear::behind_norm`] follows. A GPU sums the rows up along for it. The output is the same.
    pub(crate) fn ahead_of_norm(self) -> Self {
        Self(match self.0 {
            Form::Cpu(layers) => Form::Cpu(layers),
            Form::Gpu(layers) => Form::Gpu(layers.ahead_of_norm()),
        })
    }

    /// A convolution without bias whose windows of `side` x `side` places touch and do not overlap. Its rows are the windows: channel by
    /// channel, line by line, as [`Params::rows_on_device`] takes them.
    pub(crate) fn of_windows(channels_in: usize, side: usize, channels_out: usize, params: Params) -> Result<Self> {
        let dims = [channels_out, channels_in, side, side];
        Ok(Self(match params.placed() {
            None => Form::Cpu(LinearOnCpu { norm: None, layers: vec![cpu::Linear::of_windows(dims, &params)?] }),
            Some(placed) => Form::Gpu(gpu::Linear::of_windows(dims, &params, placed)?),
        }))
    }

    /// The output of the first layer, which is the only one in most cases.
    pub(crate) fn forward(&self, xs: &Array) -> Result<Array> {
        self.run(xs, None)
    }

    /// The same plus `residual`, which has the output's shape.
    pub(crate) fn forward_adding(&self, xs: &Array, residual: &Array) -> Result<Array> {
        self.run(xs, Some(residual))
    }

    /// The same with the gated GELU after it (Shazeer, "GLU variants improve transformer", 2020): the first half of the last dimension
    /// times the GELU of the second. The exact GELU, as in diffusers.
    pub(crate) fn forward_geglu(&self, xs: &Array) -> Result<Array> {
        match (&self.0, xs) {
            (Form::Cpu(ours), Array::Cpu(xs)) => ours.layers[0].forward_geglu(&ours.normed(xs)?).map(Array::Cpu),
            (Form::Gpu(layer), Array::Gpu(xs)) => layer.forward_geglu(xs).map(Array::Gpu),
            _ => Err(mixed()),
        }
    }

    /// The output of each layer, as an operand of attention: on the CPU in bf16 if products are in it.
    pub(crate) fn forward_each(&self, xs: &Array) -> Result<Vec<Array>> {
        match (&self.0, xs) {
            (Form::Cpu(ours), Array::Cpu(xs)) => {
                let each = cpu::Linear::forward_to_attention(&ours.layers, &ours.normed(xs)?)?;
                Ok(each.into_iter().map(Array::Cpu).collect())
            }
            (Form::Gpu(layers), Array::Gpu(xs)) => Ok(layers.forward_each(xs)?.into_iter().map(Array::Gpu).collect()),
            _ => Err(mixed()),
        }
    }

    fn run(&self, xs: &Array, residual: Option<&Array>) -> Result<Array> {
        match (&self.0, xs) {
            (Form::Cpu(ours), Array::Cpu(xs)) => {
                let residual = residual.map(Array::cpu).transpose()?;
                ours.layers[0].forward(&ours.normed(xs)?, residual).map(Array::Cpu)
            }
            (Form::Gpu(layer), Array::Gpu(xs)) => {
                layer.forward(xs, residual.map(Array::gpu).transpose()?).map(Array::Gpu)
            }
            _ => Err(mixed()),
        }
    }
}

/// Layer normalisation (Ba et al., 2016) over the last dimension.
pub(crate) struct LayerNorm(Form<cpu::LayerNorm, gpu::LayerNorm>);

impl LayerNorm {
    pub(crate) fn new(channels: usize, eps: f64, params: Params) -> Result<Self> {
        Ok(Self(match params.placed() {
            None => Form::Cpu(cpu::LayerNorm::new(channels, eps, &params)?),
            Some(placed) => Form::Gpu(gpu::LayerNorm::new(channels, eps, &params, placed)?),
        }))
    }

    pub(crate) fn forward(&self, xs: &Array) -> Result<Array> {
        match (&self.0, xs) {
            (Form::Cpu(norm), Array::Cpu(xs)) => norm.forward(xs).map(Array::Cpu),
            (Form::Gpu(norm), Array::Gpu(xs)) => norm.forward(xs).map(Array::Gpu),
            _ => Err(mixed()),
        }
    }
}

/// Group normalisation (Wu & He, "Group normalization", 2018) over a feature map.
pub(crate) struct GroupNorm(Form<cpu::GroupNorm, gpu::GroupNorm>);

impl GroupNorm {
    pub(crate) fn new(groups: usize, channels: usize, eps: f64, params: Params) -> Result<Self> {
        Ok(Self(match params.placed() {
            None => Form::Cpu(cpu::GroupNorm::new(groups, channels, eps, &params)?),
            Some(placed) => Form::Gpu(gpu::GroupNorm::new(groups, channels, eps, &params, placed)?),
        }))
    }

    pub(crate) fn forward(&self, xs: &Array) -> Result<Array> {
        match (&self.0, xs) {
            (Form::Cpu(norm), Array::Cpu(xs)) => norm.forward(xs, false).map(Array::Cpu),
            (Form::Gpu(norm), Array::Gpu(xs)) => norm.forward(&xs.clone().into(), false).map(Array::Gpu),
            _ => Err(mixed()),
        }
    }
}

/// Scaled dot-product attention with `heads` heads. `q` is `[batch, tokens, channels]`, `k` and `v` are `[batch, others, channels]`.
/// Scores and softmax are f32.
pub(crate) fn attention(q: &Array, k: &Array, v: &Array, heads: usize) -> Result<Array> {
    match (q, k, v) {
        (Array::Cpu(q), Array::Cpu(k), Array::Cpu(v)) => cpu::attention(q, k, v, heads).map(Array::Cpu),
        (Array::Gpu(q), Array::Gpu(k), Array::Gpu(v)) => gpu::attention(q, k, v, heads).map(Array::Gpu),
        _ => Err(mixed()),
    }
}

/// Attention of each token of `xs`, `[batch, tokens, channels]`, to all of them, with `heads` heads. The three layers of `to_qkv` make
/// queries, keys and values.
pub(crate) fn self_attention(to_qkv: &Linear, xs: &Array, heads: usize) -> Result<Array> {
    if let (Form::Gpu(to_qkv), Array::Gpu(xs)) = (&to_qkv.0, xs) {
        return gpu::self_attention(to_qkv, xs, heads).map(Array::Gpu);
    }
    match to_qkv.forward_each(xs)?.as_slice() {
        [q, k, v] => attention(q, k, v, heads),
        parts => Err(Error::Msg(format!("self-attention of {} parts", parts.len())).bt()),
    }
}

/// The same with a causal mask: a token sees itself and those before it.
pub(crate) fn causal_attention(q: &Array, k: &Array, v: &Array, heads: usize) -> Result<Array> {
    match (q, k, v) {
        (Array::Cpu(q), Array::Cpu(k), Array::Cpu(v)) => cpu::causal_attention(q, k, v, heads).map(Array::Cpu),
        (Array::Gpu(q), Array::Gpu(k), Array::Gpu(v)) => gpu::causal_attention(q, k, v, heads).map(Array::Gpu),
        _ => Err(mixed()),
    }
}

/// SiLU, or swish: `x * sigmoid(x)`.
pub(crate) fn silu(xs: &Array) -> Result<Array> {
    match xs {
        Array::Cpu(xs) => xs.silu().map(Array::Cpu),
        Array::Gpu(xs) => gpu::silu(xs).map(Array::Gpu),
    }
}

/// CLIP's GELU: `x * sigmoid(1.702 x)`.
pub(crate) fn quick_gelu(xs: &Array) -> Result<Array> {
    match xs {
        Array::Cpu(xs) => (xs * ((xs * -1.702)?.exp()? + 1.0)?.recip()?).map(Array::Cpu),
        Array::Gpu(xs) => gpu::quick_gelu(xs).map(Array::Gpu),
    }
}

/// The sum of two arrays of one shape.
pub(crate) fn add(a: &Array, b: &Array) -> Result<Array> {
    match (a, b) {
        (Array::Cpu(a), Array::Cpu(b)) => (a + b).map(Array::Cpu),
        (Array::Gpu(a), Array::Gpu(b)) => gpu::add(a, b).map(Array::Gpu),
        _ => Err(mixed()),
    }
}

/// The batch that often, one after another.
pub(crate) fn repeated(xs: &Array, times: usize) -> Result<Array> {
    match xs {
        xs if times == 1 => Ok(xs.clone()),
        Array::Cpu(xs) => Tensor::cat(&vec![xs; times], 0).map(Array::Cpu),
        Array::Gpu(xs) => gpu::repeated(xs, times).map(Array::Gpu),
    }
}

/// A feature map resized to that height and width, by the nearest neighbour.
pub(crate) fn upsample(xs: &Array, height: usize, width: usize) -> Result<Array> {
    match xs {
        Array::Cpu(xs) => cpu::upsample(xs, height, width).map(Array::Cpu),
        Array::Gpu(xs) => gpu::upsample(xs, height, width).map(Array::Gpu),
    }
}

/// A feature map as tokens `[batch, height x width, channels]`.
pub(crate) fn to_tokens(xs: &Array) -> Result<Array> {
    Ok(match xs {
        Array::Cpu(xs) => Array::Cpu(cpu::to_tokens(xs)?),
        Array::Gpu(xs) => Array::Gpu(gpu::to_tokens(xs)),
    })
}

/// Tokens `[batch, height x width, channels]` as a feature map.
pub(crate) fn to_map(xs: &Array, height: usize, width: usize) -> Result<Array> {
    Ok(match xs {
        Array::Cpu(xs) => Array::Cpu(cpu::to_map(xs, height, width)?),
        Array::Gpu(xs) => Array::Gpu(gpu::to_map(xs, height, width)),
    })
}

/// Runs operations of the CPU on one of the threads that they are spread over. From another thread, each operation would have to wake
/// one, and to wait until it runs.
pub(crate) fn on_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

fn mixed() -> Error {
    Error::Msg("an operation on one device met an array of another".into()).bt()
}
