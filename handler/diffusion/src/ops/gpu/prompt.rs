//! Attention to a prompt as two products. A prompt's keys and values are the same at all steps of a picture, so that the weights of
//! queries and of the output are multiplied into them once, for each head `h` of `D` channels and each token `t`:
//!
//! ```text
//! K'[h * 80 + t][c] = log2(e) / sqrt(D) * sum over d of K[t][h * D + d] * Wq[h * D + d][c]
//! V'[c][h * 80 + t] = sum over d of V[t][h * D + d] * Wo[c][h * D + d]
//! ```
//!
//! A step then computes `softmax(x K'^T) V'^T + bias + residual`, the softmax of each head with base 2, at the end of the first product.
//! The layer norm before it becomes part of the keys, too: see `kernels/row_norm.cuh`.
//!
//! There are 80 columns for each head, so that a long prompt goes the plain way: queries, attention and output one after the other.

use super::{
    LANES,
    attention::attention,
    check_alike, check_vector,
    linear::{Linear, multiply, normalising, normed},
    norm::LayerNorm,
    product::{After, product},
    refused, vector, with_columns,
};
use crate::{
    gpu::{
        Arg, Array, Dtype, Gpu, Launch,
        constants::{FOLD_ROWS, SOFTMAX_SLOTS},
        matmul::{MatmulShape, Operands},
        product::{Ending, Problem},
    },
    ops::params::Params,
};
use candle_core::Result;
use std::f32::consts::LOG2_E;

/// The most tokens of a prompt that is folded.
pub(in crate::ops) const SLOTS: usize = SOFTMAX_SLOTS;
/// The kernels that end with a softmax take channels in these steps.
const DEPTH: usize = 64;
/// On Hopper, as many columns of scores pay even with half as many channels.
const FEW_COLUMNS: usize = 640;

/// Queries, keys, values and output of one attention to a prompt.
pub(crate) struct PromptAttention {
    norm: LayerNorm,
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    bias: Array,
    heads: usize,
    channels: usize,
}

/// What a prompt and the weights make together.
#[derive(Clone)]
pub(crate) struct Folded {
    /// `[prompts, heads * 80, channels]`.
    pub(in crate::ops) keys: Array,
    /// `[prompts, heads * 80]`: what is added to the scores.
    pub(in crate::ops) bias: Array,
    /// `[prompts, channels, heads * 80]`.
    pub(in crate::ops) values: Array,
    /// Tokens of the prompts.
    pub(in crate::ops) tokens: usize,
}

impl Folded {
    /// Prompts and tokens of each.
    pub(in crate::ops) fn size(&self) -> [usize; 2] {
        [self.keys.dims()[0], self.tokens]
    }

    /// Whether it is the same memory, for as many tokens.
    pub(in crate::ops) fn is(&self, other: &Self) -> bool {
        let places = |folded: &Self| [&folded.keys, &folded.bias, &folded.values].map(Array::address);
        self.size() == other.size() && places(self) == places(other)
    }

    /// That of the first prompts.
    ///
    /// # Panics
    /// There are fewer.
    pub(crate) fn first(&self, prompts: usize) -> Self {
        let [keys, bias, values] = [&self.keys, &self.bias, &self.values].map(|all| all.part(0, prompts));
        Self { keys, bias, values, tokens: self.tokens }
    }
}

impl PromptAttention {
    /// `None` where queries, attention and output one after the other are the better way: see [`pays`].
    pub(in crate::ops) fn new(
        (eps, norm): (f64, &Params),
        channels: usize,
        width: usize,
        heads: usize,
        params: &Params,
    ) -> Result<Option<Self>> {
        let fits = params.prompt_tokens().is_some_and(|tokens| tokens <= SLOTS);
        let Some(placed) = params.placed().filter(|placed| fits && pays(placed.gpu(), placed.dtype(), channels, heads))
        else {
            return Ok(None);
        };
        // No step uses the weights, nor those of the norm.
        let norm = norm.clone().ahead();
        let linear = |inner: usize, parts: &[&str]| {
            let params: Vec<_> = parts.iter().map(|part| params.pp(part).ahead()).collect();
            Linear::new(inner, channels, false, &params, params[0].placed().unwrap_or(placed))
        };
        Ok(Some(Self {
            norm: LayerNorm::new(channels, eps, &norm, norm.placed().unwrap_or(placed))?,
            to_q: linear(channels, &["to_q"])?,
            to_kv: linear(width, &["to_k", "to_v"])?,
            to_out: linear(channels, &["to_out.0"])?,
            bias: params.pp("to_out.0").place(placed, &[channels], "bias", vector(channels))?,
            heads,
            channels,
        }))
    }

    /// Room for so many prompts.
    pub(in crate::ops) fn room(&self, gpu: &Gpu, prompts: usize) -> Result<Folded> {
        let (columns, dtype) = (self.heads * SLOTS, self.bias.dtype());
        let keys = gpu.resident(&[prompts, columns, self.channels], dtype)?;
        let bias = gpu.resident(&[prompts, columns], dtype)?;
        Ok(Folded { keys, bias, values: gpu.resident(&[prompts, self.channels, columns], dtype)?, tokens: SLOTS })
    }

    /// Folds the prompts, of which [`with_slots`] was made, and which have so many tokens. The result is in `room`, or in scratch memory.
    pub(in crate::ops) fn fold(&self, prompts: &Array, tokens: usize, room: Option<&Folded>) -> Result<Folded> {
        let &[count, SLOTS, _] = prompts.dims() else {
            return refused(format!("prompts of {:?} in slots", prompts.dims()));
        };
        let (gpu, dtype, channels, columns) = (prompts.gpu(), prompts.dtype(), self.channels, self.heads * SLOTS);
        let (heads, width) = (self.heads, channels / self.heads);
        let dims = [[count, columns, channels], [count, channels, columns]];
        let Folded { keys, bias, values, .. } = match room {
            Some(room) => room.clone(),
            None => {
                let [keys, values] = [gpu.scratch(&dims[0], dtype)?, gpu.scratch(&dims[1], dtype)?];
                Folded { keys, bias: gpu.scratch(&[count, columns], dtype)?, values, tokens }
            }
        };
        check_alike("folded prompts", &[prompts, &keys, &bias, &values, self.to_q.weight(), self.to_out.weight()])?;
        if keys.dims() != dims[0] || bias.dims() != [count, columns] || values.dims() != dims[1] || tokens > SLOTS {
            return refused(format!(
                "{count} prompts of {tokens} tokens into {:?} and {:?}",
                keys.dims(),
                values.dims()
            ));
        }
        let both = self.to_kv.forward(prompts, None)?;
        Array::reach(&[self.to_q.weight(), self.to_out.weight()])?;
        let of_keys = MatmulShape {
            batch: heads,
            a_row: 2 * channels,
            a_stride: width,
            w_stride: width * channels,
            w_transposed: true,
            alpha_bits: (LOG2_E * (width as f32).powf(-0.5)).to_bits(),
            ..MatmulShape::linear(dtype, SLOTS, channels, width)
        };
        let of_values = MatmulShape {
            batch: heads,
            a_row: channels,
            a_stride: width,
            w_row: 2 * channels,
            w_stride: width,
            out_row: columns,
            out_stride: SLOTS,
            ..MatmulShape::linear(dtype, channels, SLOTS, width)
        };
        let of_keys = MatmulShape { w_row: channels, ..of_keys };
        let [k, v] = [0, channels].map(|from| both.columns_from(from, channels));
        let at = |array: &Array, prompt: usize| array.part(prompt, 1).address();
        for prompt in 0..count {
            let operands = Operands::product(at(&k, prompt), self.to_q.weight().address(), at(&keys, prompt));
            // SAFETY: 80 rows of k in heads of `width` columns next to each other, `width` rows of the square weight for each head, and 80
            // rows of the keys, which have that many for each. All were compared above.
            unsafe { gpu.multiply(&of_keys, &operands)? };
        }
        // Ahead of the values, so that all of it has ended when a kernel reads keys that starts before the kernel ahead of it has.
        self.put_norm_into(&keys, &bias)?;
        for prompt in 0..count {
            let operands = Operands::product(self.to_out.weight().address(), at(&v, prompt), at(&values, prompt));
            // SAFETY: the same across.
            unsafe { gpu.multiply(&of_values, &operands)? };
        }
        Ok(Folded { keys, bias, values, tokens })
    }

    /// Makes the norm a part of the keys, and the bias of their scores.
    fn put_norm_into(&self, keys: &Array, bias: &Array) -> Result<()> {
        let Some([weight, shift]) = self.norm.weight_and_bias() else {
            return refused("a norm without weight and bias before a prompt".into());
        };
        check_alike("the norm before a prompt", &[keys, weight, shift])?;
        [weight, shift].iter().try_for_each(|each| check_vector("the norm before a prompt", each, keys.columns()))?;
        Array::reach(&[weight, shift])?;
        let addresses = [keys.address(), weight.address(), shift.address(), 0, bias.address()].map(Arg::At);
        let args = [&addresses[..], &[keys.rows(), keys.columns()].map(Arg::Int)].concat();
        let name = format!("fold_layer_norm_{}", keys.dtype().name());
        let launch = Launch { name, grid: [keys.rows().div_ceil(FOLD_ROWS), 1, 1], block: 32 * FOLD_ROWS, shared: 0 };
        // SAFETY: weight and bias of the norm have as many numbers as a key; there is a number of `bias` for each key.
        unsafe { keys.gpu().launch(launch, &args)? };
        Ok(())
    }

    /// Keys and values of prompts `[batch, tokens, width]`, `[batch, tokens, channels]` each, for any number of tokens.
    pub(in crate::ops) fn keys_and_values(&self, prompts: &Array) -> Result<[Array; 2]> {
        let both = self.to_kv.forward_each(prompts)?;
        both.try_into().or_else(|both: Vec<_>| refused(format!("{} arrays for keys and values", both.len())))
    }

    /// The attention of `xs` `[batch, tokens, channels]` to the result of [`Self::keys_and_values`], plus `residual` of the same shape as
    /// `xs`.
    pub(in crate::ops) fn forward_plain(&self, xs: &Array, [k, v]: [&Array; 2], residual: &Array) -> Result<Array> {
        let mixed = attention(&self.to_q.forward(&self.norm.forward(xs)?, None)?, k, v, self.heads)?;
        let after = After { bias: Some(&self.bias), onto: Some(residual), rows: true, ..After::default() };
        multiply(&mixed, None, self.to_out.weight(), after)
    }

    /// The attention of `xs` `[batch, tokens, channels]` plus `residual` of the same shape. Each prompt is for as many entries of the batch.
    pub(in crate::ops) fn forward(&self, xs: &Array, prompts: &Folded, residual: &Array) -> Result<Array> {
        let Folded { keys, bias, values, tokens } = prompts;
        if keys.dims()[1] != self.heads * SLOTS || !xs.dims()[0].is_multiple_of(keys.dims()[0].max(1)) {
            return refused(format!("attention of {:?} to {tokens} tokens of {:?}", xs.dims(), keys.dims()));
        }
        Array::reach(&[&self.bias])?;
        let (xs, norm_eps) = normed(&LayerNorm::alone(self.norm.eps().into()), xs)?;
        mix(&shares(&xs, norm_eps, keys, Some(bias), *tokens)?, values, &self.bias, residual)
    }
}

/// The shares of each head's tokens for each row of `xs`, `[.., heads * 80]`. `keys` are `[prompts, heads * 80, channels]`, `bias` is added to
/// the scores, `[prompts, heads * 80]`. With `norm_eps`, which is added to the variance, rows are normalised by their sums.
pub(super) fn shares(
    xs: &Array,
    norm_eps: Option<f32>,
    keys: &Array,
    bias: Option<&Array>,
    tokens: usize,
) -> Result<Array> {
    let &[count, columns, channels] = keys.dims() else { return refused(format!("keys of {:?}", keys.dims())) };
    check_alike("keys of a prompt", &[xs, keys])?;
    let fits =
        channels == xs.columns() && count > 0 && xs.rows().is_multiple_of(count) && columns.is_multiple_of(SLOTS);
    if !fits || !(1..=SLOTS).contains(&tokens) {
        return refused(format!("{:?} times {tokens} tokens of {:?}", xs.dims(), keys.dims()));
    }
    let out = xs.gpu().scratch(&with_columns(xs.dims(), columns), xs.dtype())?;
    let shape = MatmulShape { batch: count, ..MatmulShape::linear(xs.dtype(), xs.rows() / count, columns, channels) };
    let at = Operands::product(xs.address(), keys.address(), out.address());
    if let Some(bias) = bias {
        check_alike("a bias of scores", &[xs, bias])?;
        check_vector("a bias of scores", bias, count * columns)?;
    }
    let scores = Problem { ending: Ending::Softmax { counted: tokens }, ..Problem::of_matmul(&shape, &at) };
    let scores = normalising(scores, xs, norm_eps)?;
    // SAFETY: `count` problems of as many rows, one after the other, with `columns` keys each, as compared above; `out` was made for them.
    unsafe { product(scores, out, After { bias, ..After::default() }) }
}

/// The values in these shares, plus bias and residual. `values` are `[prompts, channels, heads * 80]`.
pub(super) fn mix(shares: &Array, values: &Array, bias: &Array, residual: &Array) -> Result<Array> {
    let &[count, channels, columns] = values.dims() else { return refused(format!("values of {:?}", values.dims())) };
    check_alike("values of a prompt", &[shares, values, bias, residual])?;
    check_vector("a bias", bias, channels)?;
    let dims = with_columns(shares.dims(), channels);
    let fits = columns == shares.columns() && count > 0 && shares.rows().is_multiple_of(count);
    if !fits || residual.dims() != dims {
        return refused(format!("{:?} of {:?} onto {:?}", shares.dims(), values.dims(), residual.dims()));
    }
    let out = shares.gpu().scratch(&dims, shares.dtype())?;
    let rows = shares.rows() / count;
    let shape = MatmulShape { batch: count, ..MatmulShape::linear(shares.dtype(), rows, channels, columns) };
    let at = Operands::product(shares.address(), values.address(), out.address());
    let after = After { bias: Some(bias), onto: Some(residual), rows: true, ..After::default() };
    // SAFETY: as above, the other way; bias and residual were compared with the rows and columns of `out`, which was made for them.
    unsafe { product(Problem::of_matmul(&shape, &at), out, after) }
}

/// Prompts `[prompts, tokens, width]`, each with zeros up to the slots of a head.
pub(in crate::ops) fn with_slots(prompts: &Array) -> Result<Array> {
    let &[count, tokens, width] = prompts.dims() else {
        return refused(format!("{:?} is no array of prompts", prompts.dims()));
    };
    if tokens > SLOTS {
        return refused(format!("prompts of {tokens} tokens: the attention was made for up to {SLOTS}"));
    }
    let all = prompts.gpu().scratch(&[count, SLOTS, width], prompts.dtype())?;
    prompts.gpu().clear(&all)?;
    let rows = all.reshaped(&[count * SLOTS, width]);
    for prompt in 0..count {
        let to = rows.part(prompt * SLOTS, tokens).reshaped(&[1, tokens, width]);
        prompts.gpu().copy(&prompts.part(prompt, 1), &to)?;
    }
    Ok(all)
}

/// Bytes that [`PromptAttention::room`] takes for each prompt, 0 where nothing is folded. The most of any GPU, if none is given.
pub(crate) fn bytes(gpu: Option<&Gpu>, dtype: Dtype, channels: usize, heads: usize) -> usize {
    let folds = match gpu {
        Some(gpu) => pays(gpu, dtype, channels, heads),
        None => dtype != Dtype::F32 && fits(true, channels, heads),
    };
    if folds { (2 * channels + 1) * heads * SLOTS * dtype.bytes() } else { 0 }
}

/// Whether two products are the better way, here and nowhere else. They save a kernel, but have 80 columns for each head, while queries
/// and output have the channels twice. With 8 heads they are faster at 640 and 1280 channels, and on Hopper at 320, too; with the
/// other kernels, 320 channels take longer (measured on an H200, PERFORMANCE.md). With a head for each 64 channels (Stable Diffusion 2)
/// the columns are 1.25 times the channels: the more channels there are, the less is saved, and the more memory is taken. There are no
/// such kernels without tensor cores.
fn pays(gpu: &Gpu, dtype: Dtype, channels: usize, heads: usize) -> bool {
    gpu.fuses(dtype) && fits(gpu.is_hopper(), channels, heads)
}

fn fits(is_hopper: bool, channels: usize, heads: usize) -> bool {
    let columns = heads * SLOTS;
    let few = columns <= channels || is_hopper && columns <= FEW_COLUMNS.min(2 * channels);
    let whole = heads > 0 && channels.is_multiple_of(heads) && (channels / heads).is_multiple_of(LANES);
    few && whole && channels.is_multiple_of(DEPTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_folded_where_that_was_measured_to_be_faster() {
        // Stable Diffusion 1.5, on Hopper and elsewhere; Stable Diffusion 2; the small model in the repository.
        for (channels, heads, wanted) in [
            (320, 8, [true, false]),
            (640, 8, [true, true]),
            (1280, 8, [true, true]),
            (320, 5, [true, false]),
            (640, 10, [false, false]),
            (1280, 20, [false, false]),
            (96, 6, [false, false]),
            (0, 0, [false, false]),
        ] {
            assert_eq!(
                [true, false].map(|is_hopper| fits(is_hopper, channels, heads)),
                wanted,
                "{channels} in {heads}"
            );
        }
        assert_eq!(bytes(None, Dtype::F16, 1280, 8), (2 * 640 * 1280 + 640) * 2);
        assert_eq!((bytes(None, Dtype::F32, 1280, 8), bytes(None, Dtype::BF16, 1280, 20)), (0, 0));
    }
}
