//! The operations on the CPU, in f32, and products and convolutions in bf16 as well. Candle's convolution gathers its input element by element, and its norms and attention read and
//! write memory many times. These do the same arithmetic in fewer passes, on all threads, with the widest vectors of the CPU.

mod attention;
mod bf16;
mod conv;
mod flash;
mod gated;
mod layout;
mod linear;
mod norm;
mod padded;
mod product;
mod vectors;
mod winograd;

pub(super) use attention::{attention, causal_attention};
pub use bf16::Instructions;
pub(crate) use bf16::Packed;
pub(super) use conv::Conv;
pub(super) use layout::{join, to_map, to_tokens, upsample};
pub(super) use linear::Linear;
pub(super) use norm::{GroupNorm, LayerNorm};
pub use vectors::{Vectors, limit_vectors};

use candle_core::{Device, Error, Result, Shape, Storage, Tensor, WithDType};
use std::{marker::PhantomData, ops::Deref};
use vectors::ROUNDER;

/// The elements of a contiguous tensor on the CPU, with the guard that borrows its storage.
struct View<T, Guard> {
    dtype: PhantomData<T>,
    storage: Guard,
    from: usize,
    to: usize,
}

fn view(xs: &Tensor) -> Result<impl Deref<Target = [f32]> + Sync> {
    view_of(xs)
}

/// The same in another dtype.
fn view_of<T: WithDType>(xs: &Tensor) -> Result<impl Deref<Target = [T]> + Sync> {
    let (storage, layout) = xs.storage_and_layout();
    let (from, to) = layout.contiguous_offsets().ok_or_else(|| Error::RequiresContiguous { op: "view" }.bt())?;
    if xs.dtype() != T::DTYPE || !matches!(&*storage, Storage::Cpu(_)) {
        return Err(Error::UnsupportedDTypeForOp(xs.dtype(), "a kernel on the CPU").bt());
    }
    Ok(View { storage, from, to, dtype: PhantomData })
}

impl<T: WithDType, Guard: Deref<Target = Storage>> Deref for View<T, Guard> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            Storage::Cpu(storage) => storage.as_slice().map_or(&[], |values| &values[self.from..self.to]),
            // `view` returned an error.
            _ => &[],
        }
    }
}

fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// `e^x` to 1 part in 10^7, in operations that a compiler can vectorise: `2^n * e^r` with `|r|` at most half of `ln 2`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let series = 1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0)));
    scaled(1.0 + r * (1.0 + r * (0.5 + r * series)), shifted)
}

/// `value` times 2 to the whole number in the low bits of `shifted`.
#[inline(always)]
fn scaled(value: f32, shifted: f32) -> f32 {
    value * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000))
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod arithmetic_tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_a_part_in_ten_million() {
        for index in -8_700..8_800 {
            let x = index as f32 / 100.0 + 0.0037;
            let truth = f64::from(x).exp();
            let error = (f64::from(exp(x)) - truth).abs() / truth;
            assert!(error < 2.5e-7, "exp({x}) is off by {error}");
        }
        assert!(exp(-200.0) < 1e-37 && exp(0.0) == 1.0);
    }
}
