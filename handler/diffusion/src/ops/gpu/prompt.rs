//! Attention to a prompt as two products. A prompt's keys and values are the same at all steps of a picture, so that the weights of
//! queries and of the output are multiplied into them once, for each head `h` of `D` channels and each token `t`:
//!
//! ```text
//! K'[h * 80 + t][c] = log2(e) / sqrt(D) * sum over d of K[t][h * D + d] * Wq[h * D + d][c]
//! V'[c][h * 80 + t] = sum over d of V[t][h * D + d] * Wo[c][h * D + d]
//! ```
//!
//! A step then computes `softmax(x K'^T) V'^T + bias + residual`, the softmax of each head with base 2, at the end of the first product.
//!
//! There are 80 columns for each head, so that a long prompt goes the plain way: queries, attention and output one after the other.

use super::{
    LANES,
    attention::attention,
    check_alike, check_vector,
    linear::{Linear, multiply},
    product::{After, product},
    refused, vector, with_columns,
};
use crate::{
    gpu::{
        Array, Dtype, Gpu,
        constants::SOFTMAX_SLOTS,
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
        let places = |folded: &Self| [&folded.keys, &folded.values].map(Array::address);
        self.size() == other.size() && places(self) == places(other)
    }

    /// That of the first prompts.
    ///
    /// # Panics
    /// There are fewer.
    pub(crate) fn first(&self, prompts: usize) -> Self {
        Self { keys: self.keys.part(0, prompts), values: self.values.part(0, prompts), tokens: self.tokens }
    }
}

impl PromptAttention {
    /// `None` where queries, attention and output one after the other are the better way: see [`pays`].
    pub(in crate::ops) fn new(channels: usize, width: usize, heads: usize, params: &Params) -> Result<Option<Self>> {
        let fits = params.prompt_tokens().is_some_and(|tokens| tokens <= SLOTS);
        let Some(placed) = params.placed().filter(|placed| fits && pays(placed.gpu(), placed.dtype(), channels, heads))
        else {
            return Ok(None);
        };
        // No step uses the weights.
        let linear = |inner: usize, parts: &[&str]| {
            let params: Vec<_> = parts.iter().map(|part| params.pp(part).ahead()).collect();
            Linear::new(inner, channels, false, &params, params[0].placed().unwrap_or(placed))
        };
        Ok(Some(Self {
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
        Ok(Folded { keys, values: gpu.resident(&[prompts, self.channels, columns], dtype)?, tokens: SLOTS })
    }

    /// Folds the prompts, of which [`with_slots`] was made, and which have so many tokens. The result is in `room`, or in scratch memory.
    pub(in crate::ops) fn fold(&self, prompts: &Array, tokens: usize, room: Option<&Folded>) -> Result<Folded> {
        let &[count, SLOTS, _] = prompts.dims() else {
            return refused(format!("prompts of {:?} in slots", prompts.dims()));
        };
        let (gpu, dtype, channels, columns) = (prompts.gpu(), prompts.dtype(), self.channels, self.heads * SLOTS);
        let (heads, width) = (self.heads, channels / self.heads);
        let dims = [[count, columns, channels], [count, channels, columns]];
        let Folded { keys, values, .. } = match room {
            Some(room) => room.clone(),
            None => Folded { keys: gpu.scratch(&dims[0], dtype)?, values: gpu.scratch(&dims[1], dtype)?, tokens },
        };
        check_alike("folded prompts", &[prompts, &keys, &values, self.to_q.weight(), self.to_out.weight()])?;
        if keys.dims() != dims[0] || values.dims() != dims[1] || tokens > SLOTS {
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
        for prompt in 0..count {
            let [k, v] = [0, channels].map(|from| both.columns_from(from, channels).part(prompt, 1).address());
            let [keys, values] = [&keys, &values].map(|array| array.part(prompt, 1).address());
            // SAFETY: 80 rows of k in heads of `width` columns next to each other, `width` rows of the square weight for each head, and 80
            // rows of the keys, which have that many for each. For the values the same across. All were compared above.
            unsafe {
                gpu.multiply(&of_keys, &Operands::product(k, self.to_q.weight().address(), keys))?;
                gpu.multiply(&of_values, &Operands::product(self.to_out.weight().address(), v, values))?;
            }
        }
        Ok(Folded { keys, values, tokens })
    }

    /// Keys and values of prompts `[batch, tokens, width]`, `[batch, tokens, channels]` each, for any number of tokens.
    pub(in crate::ops) fn keys_and_values(&self, prompts: &Array) -> Result<[Array; 2]> {
        let both = self.to_kv.forward_each(prompts)?;
        both.try_into().or_else(|both: Vec<_>| refused(format!("{} arrays for keys and values", both.len())))
    }

    /// The attention of `xs` `[batch, tokens, channels]` to the result of [`Self::keys_and_values`], plus `residual` of the same shape as
    /// `xs`.
    pub(in crate::ops) fn forward_plain(&self, xs: &Array, [k, v]: [&Array; 2], residual: &Array) -> Result<Array> {
        let mixed = attention(&self.to_q.forward(xs, None)?, k, v, self.heads)?;
        let after = After { bias: Some(&self.bias), onto: Some(residual), ..After::default() };
        multiply(&mixed, None, self.to_out.weight(), after)
    }

    /// The attention of `xs` `[batch, tokens, channels]` plus `residual` of the same shape. Each prompt is for as many entries of the batch.
    pub(in crate::ops) fn forward(&self, xs: &Array, prompts: &Folded, residual: &Array) -> Result<Array> {
        let Folded { keys, values, tokens } = prompts;
        if keys.dims()[1] != self.heads * SLOTS || !xs.dims()[0].is_multiple_of(keys.dims()[0].max(1)) {
            return refused(format!("attention of {:?} to {tokens} tokens of {:?}", xs.dims(), keys.dims()));
        }
        Array::reach(&[&self.bias])?;
        mix(&shares(xs, keys, *tokens)?, values, &self.bias, residual)
    }
}

/// The shares of each head's tokens for each row of `xs`, `[.., heads * 80]`. `keys` are `[prompts, heads * 80, channels]`.
pub(super) fn shares(xs: &Array, keys: &Array, tokens: usize) -> Result<Array> {
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
    let scores = Problem { ending: Ending::Softmax { counted: tokens }, ..Problem::of_matmul(&shape, &at) };
    // SAFETY: `count` problems of as many rows, one after the other, with `columns` keys each, as compared above; `out` was made for them.
    unsafe { product(scores, out, After::default()) }
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
    let after = After { bias: Some(bias), onto: Some(residual), ..After::default() };
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
    if folds { 2 * heads * SLOTS * channels * dtype.bytes() } else { 0 }
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
        assert_eq!(bytes(None, Dtype::F16, 1280, 8), 2 * 640 * 1280 * 2);
        assert_eq!((bytes(None, Dtype::F32, 1280, 8), bytes(None, Dtype::BF16, 1280, 20)), (0, 0));
    }
}
