//! Kernels for the CPU in f32. Candle's own convolution gathers its input element by element, and its GroupNorm and attention
//! pass over memory many times: these do the same arithmetic in one pass, on all threads.

mod attention;
mod conv;
mod geglu;
mod norm;

pub(super) use attention::Attention;
pub(super) use conv::Conv;
pub(super) use geglu::Geglu;
pub(super) use norm::GroupNorm;

use candle_core::{CpuStorage, Error, Layout, Result};

/// The elements of a contiguous f32 tensor.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout, op: &'static str) -> Result<&'a [f32]> {
    let (from, to) = layout.contiguous_offsets().ok_or_else(|| Error::RequiresContiguous { op }.bt())?;
    match storage {
        CpuStorage::F32(values) => Ok(&values[from..to]),
        other => Err(Error::UnsupportedDTypeForOp(candle_core::backend::BackendStorage::dtype(other), op).bt()),
    }
}

/// A matrix inside a slice: the element of row `r` and column `c` is at `r * row_stride + c * column_stride`.
#[derive(Clone, Copy)]
struct Strides {
    row: usize,
    column: usize,
}

impl Strides {
    /// Rows of `width` elements, one after the other.
    fn rows(width: usize) -> Self {
        Self { row: width, column: 1 }
    }

    /// The same memory read as the transposed matrix.
    fn transposed(self) -> Self {
        Self { row: self.column, column: self.row }
    }

    fn reach(self, rows: usize, columns: usize) -> usize {
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
    assert!(out_strides.reach(m, n) <= out.len() && (out_strides.column == 1 || out_strides.row == 1));
    assert!(a_strides.reach(m, k) <= a.len() && b_strides.reach(k, n) <= b.len());
    let step = |stride: usize| stride as isize;
    // SAFETY: every element that the strides reach lies in its slice, as asserted above; `out` is borrowed mutably, so it
    // overlaps neither input.
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

/// `e^x` to 1 part in 10^7, in operations that compilers turn into vector code: `2^n * e^r` with `r` within half a `ln 2`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to the nearest whole number and leaves it in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let series = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r / 720.0)))));
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000));
    series * power
}

#[cfg(test)]
mod tests {
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
