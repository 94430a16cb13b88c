//! The operations on a GPU, by our own kernels.
//!
//! Rounding is to the model's dtype wherever an array is written; sums, norms and softmax are f32. Each function checks its
//! arrays before it enqueues anything, so that no kernel reads or writes outside them.

#![allow(unsafe_code, reason = "kernels take addresses; each call says why it stays inside its arrays")]

mod attention;
mod bands;
mod conv;
mod linear;
mod maps;
mod norm;
mod pointwise;
mod product;
mod prompt;
mod shapes;
pub(crate) mod steps;
mod upsampled;

pub(crate) use attention::SCORES;
pub(super) use attention::{attention, causal_attention, self_attention};
pub(super) use bands::{Part, merged, moments_by, pad_rows, rows};
pub(super) use conv::Conv;
pub(super) use linear::Linear;
pub(super) use maps::Maps;
pub(super) use norm::{GroupNorm, LayerNorm};
pub(super) use pointwise::{add, geglu, quick_gelu, repeated, silu, to_map, to_tokens, upsample};
pub(crate) use prompt::Folded;
pub(crate) use prompt::bytes as prompt_bytes;
pub(super) use prompt::{PromptAttention, SLOTS as PROMPT_SLOTS, with_slots};
pub use shapes::{ShapeTime, StepSize, time_shapes};
pub(super) use upsampled::UpsampledConv;

use crate::gpu::{Arg, Array, Dtype, Gpu, WeightLayout};
use candle_core::{Error, Result};

/// Channels are padded with zeros to a multiple of this.
pub(crate) const LANES: usize = 8;

/// A vector as one row.
fn vector(length: usize) -> WeightLayout {
    WeightLayout {
        rows: 1,
        inner: length,
        area: 1,
        rows_out: 1,
        inner_out: length.next_multiple_of(LANES),
        phased: false,
    }
}

fn refused<T>(what: String) -> Result<T> {
    Err(Error::Msg(what).bt())
}

/// Checks that arrays can go into one kernel: all are of one GPU and dtype, and rows are whole vectors of 8 without gaps, at
/// addresses that are multiples of 16 bytes.
fn check_alike(what: &str, arrays: &[&Array]) -> Result<()> {
    let first = arrays[0];
    match arrays.iter().find(|array| !is_plain(first.gpu(), first.dtype(), array)) {
        Some(array) => refused(format!("{what} of {:?} {:?} with {:?}", array.dtype(), array.dims(), first.dtype())),
        None => Ok(()),
    }
}

/// Checks that an array of f32 (or of `int`, which is as long) can go into a kernel on this GPU.
fn check_f32(what: &str, gpu: &Gpu, array: &Array) -> Result<()> {
    let fits = array.gpu().is(gpu) && array.dtype() == Dtype::F32 && array.is_contiguous() && array.count() > 0;
    if fits { Ok(()) } else { refused(format!("{what} is {:?} {:?}", array.dtype(), array.dims())) }
}

fn is_plain(gpu: &Gpu, dtype: Dtype, array: &Array) -> bool {
    let whole = array.columns().is_multiple_of(LANES) && array.address().is_multiple_of(16);
    array.gpu().is(gpu) && array.dtype() == dtype && array.is_contiguous() && whole
}

/// Checks the length of a vector.
fn check_vector(what: &str, vector: &Array, length: usize) -> Result<()> {
    if vector.count() == length {
        Ok(())
    } else {
        refused(format!("{what} of {:?} for {length} channels", vector.dims()))
    }
}

/// Dims with another last one.
fn with_columns(dims: &[usize], columns: usize) -> Vec<usize> {
    let mut dims = dims.to_vec();
    if let Some(last) = dims.last_mut() {
        *last = columns;
    }
    dims
}

fn addresses<const N: usize>(arrays: [&Array; N]) -> [Arg; N] {
    arrays.map(|array| Arg::At(array.address()))
}

/// The address of an array, or null.
fn address_or_null(array: Option<&Array>) -> Arg {
    Arg::At(array.map_or(0, Array::address))
}

#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests;
