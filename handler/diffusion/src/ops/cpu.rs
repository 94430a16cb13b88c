//! The operations on the CPU, in f32. Candle's convolution gathers its input element by element, and its norms and attention read and
//! write memory many times. These do the same arithmetic in fewer passes, on all threads, with the widest vectors of the CPU.

mod attention;
mod conv;
mod linear;
mod norm;
mod winograd;

pub(super) use attention::{attention, causal_attention};
pub(super) use conv::Conv;
pub(super) use linear::{Linear, geglu};
pub(super) use norm::{GroupNorm, LayerNorm};

use candle_core::{CpuStorage, Device, Error, Result, Shape, Storage, Tensor};
use std::ops::Deref;

/// The elements of a contiguous f32 tensor on the CPU, with the guard that borrows its storage.
struct View<Guard> {
    storage: Guard,
    from: usize,
    to: usize,
}

fn view(xs: &Tensor) -> Result<impl Deref<Target = [f32]> + Sync> {
    let (storage, layout) = xs.storage_and_layout();
    let (from, to) = layout.contiguous_offsets().ok_or_else(|| Error::RequiresContiguous { op: "view" }.bt())?;
    if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
        return Err(Error::UnsupportedDTypeForOp(xs.dtype(), "a kernel for f32 on the CPU").bt());
    }
    Ok(View { storage, from, to })
}

impl<Guard: Deref<Target = Storage>> Deref for View<Guard> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.from..self.to],
            // `view` returned an error.
            _ => &[],
        }
    }
}

fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// The first `length` elements of a thread's buffer, which grows if it is too short. They may have old values.
fn scratch(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    buffer.resize(buffer.len().max(length), 0.0);
    &mut buffer[..length]
}

/// Runs loops with the widest vectors of this CPU. Everything in the loops must be inlined: a `for` loop is, a closure of an iterator
/// is not always.
#[inline(always)]
fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// The layout of a matrix in a slice: the element of row `r` and column `c` is at `r * row + c * column`.
#[derive(Clone, Copy)]
struct Strides {
    row: usize,
    column: usize,
}

impl Strides {
    /// Rows of `width` elements, one after another.
    fn rows(width: usize) -> Self {
        Self { row: width, column: 1 }
    }

    /// The same memory read as the transposed matrix.
    fn transposed(self) -> Self {
        Self { row: self.column, column: self.row }
    }

    /// The length of the slice that a matrix needs.
    fn extent(self, rows: usize, columns: usize) -> usize {
        (rows - 1) * self.row + (columns - 1) * self.column + 1
    }
}

/// `out = a @ b` with `a` `[m, k]` and `b` `[k, n]`, on the calling thread.
fn matmul(
    (m, n, k): (usize, usize, usize),
    out: &mut [f32],
    out_strides: Strides,
    (a, a_strides): (&[f32], Strides),
    (b, b_strides): (&[f32], Strides),
) {
    assert!(m > 0 && n > 0 && k > 0);
    assert!(out_strides.extent(m, n) <= out.len() && (out_strides.column == 1 || out_strides.row == 1));
    assert!(a_strides.extent(m, k) <= a.len() && b_strides.extent(k, n) <= b.len());
    let step = |stride: usize| stride as isize;
    // SAFETY: the assertions above keep every element that gemm accesses inside its slice. `out` is borrowed mutably, so it overlaps
    // neither input.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            step(out_strides.column),
            step(out_strides.row),
            false,
            a.as_ptr(),
            step(a_strides.column),
            step(a_strides.row),
            b.as_ptr(),
            step(b_strides.column),
            step(b_strides.row),
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// 1.5 * 2^23: adding it rounds to the nearest whole number and leaves that in the low bits.
const ROUNDER: f32 = 12_582_912.0;

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

/// `2^x` to 1 part in 10^7 for `x` of at most 0. Below -126 it is 2^-126.
#[inline(always)]
fn exp2_of_negative(x: f32) -> f32 {
    const LN_2: f64 = std::f64::consts::LN_2;
    const SERIES: [f32; 6] = [
        LN_2 as f32,
        (LN_2 * LN_2 / 2.0) as f32,
        (LN_2 * LN_2 * LN_2 / 6.0) as f32,
        (LN_2 * LN_2 * LN_2 * LN_2 / 24.0) as f32,
        (LN_2 * LN_2 * LN_2 * LN_2 * LN_2 / 120.0) as f32,
        (LN_2 * LN_2 * LN_2 * LN_2 * LN_2 * LN_2 / 720.0) as f32,
    ];
    // Not `max`: NaN has to stay NaN.
    let x = if x < -126.0 { -126.0 } else { x };
    let shifted = x + ROUNDER;
    let r = x - (shifted - ROUNDER);
    let [a, b, c, d, e, f] = SERIES;
    let series = f.mul_add(r, e).mul_add(r, d).mul_add(r, c).mul_add(r, b).mul_add(r, a).mul_add(r, 1.0);
    scaled(series, shifted)
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

    #[test]
    fn powers_of_two_are_exact_to_a_part_in_ten_million() {
        for index in 0..12_500 {
            let x = -(index as f32) / 100.0;
            let truth = f64::from(x).exp2();
            let error = (f64::from(exp2_of_negative(x)) - truth).abs() / truth;
            assert!(error < 2.5e-7, "2^{x} is off by {error}");
        }
        assert!(exp2_of_negative(f32::NAN).is_nan());
        assert!(exp2_of_negative(-1e30) < 1e-37 && exp2_of_negative(f32::NEG_INFINITY) < 1e-37);
    }
}
