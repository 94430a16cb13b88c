//! The shape of a product, and what its addresses and strides are multiples of.

use super::Operands;
use crate::gpu::Dtype;
use serde::{Deserialize, Serialize};

/// One product: `out[i] = alpha * a[i] @ w[i]^T (+ bias per column) (+ onto[i])` for `i` in `0..batch`, all row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct MatmulShape {
    /// Of `a` and `w`. Sums are in f32, and never in TF32.
    pub dtype: Dtype,
    /// Of `out`, `onto` and `bias`: `dtype`, or f32.
    pub out: Dtype,
    /// Rows of `a` and `out` (m).
    pub rows: usize,
    /// Columns of `out` (n).
    pub columns: usize,
    /// Length of each dot product (k).
    pub inner: usize,
    /// Products at once, at the strides below; 1 for none.
    pub batch: usize,
    /// Elements from one row of `a` to the next.
    pub a_row: usize,
    /// Elements from one row of `w` to the next.
    pub w_row: usize,
    /// Elements from one row of `out`, and of `onto`, to the next.
    pub out_row: usize,
    /// Elements from one batch entry of `a` to the next.
    pub a_stride: usize,
    /// Elements from one batch entry of `w` to the next.
    pub w_stride: usize,
    /// Elements from one batch entry of `out`, and of `onto`, to the next.
    pub out_stride: usize,
    /// False: `w` is `[columns, inner]`, a linear layer's weight. True: it is `[inner, columns]`, for plain `a @ w`.
    pub w_transposed: bool,
    /// `alpha`, as of `f32::to_bits`.
    pub alpha_bits: u32,
    /// Whether a vector of `columns` is added to every row.
    pub bias: bool,
    /// Whether a matrix of `out`'s layout is added; it may be `out` itself.
    pub onto: bool,
}

impl MatmulShape {
    /// A linear layer without bias: tight `[rows, inner]` by `[columns, inner]`, all of `dtype`.
    pub(crate) fn linear(dtype: Dtype, rows: usize, columns: usize, inner: usize) -> Self {
        Self {
            dtype,
            out: dtype,
            rows,
            columns,
            inner,
            batch: 1,
            a_row: inner,
            w_row: inner,
            out_row: columns,
            a_stride: rows * inner,
            w_stride: columns * inner,
            out_stride: rows * columns,
            w_transposed: false,
            alpha_bits: 1f32.to_bits(),
            bias: false,
            onto: false,
        }
    }
}

/// Bytes that addresses are taken to be multiples of, where they and the strides are.
const ALIGNMENT: u32 = 16;

/// What addresses are multiples of, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignments {
    pub(super) w: u32,
    pub(super) a: u32,
    pub(super) onto: u32,
    pub(super) out: u32,
    pub(super) bias: u32,
}

impl Alignments {
    /// What holds for both.
    pub(super) fn both(self, other: Self) -> Self {
        Self {
            w: self.w.min(other.w),
            a: self.a.min(other.a),
            onto: self.onto.min(other.onto),
            out: self.out.min(other.out),
            bias: self.bias.min(other.bias),
        }
    }
}

impl MatmulShape {
    /// What every address of each matrix, and the bias's, is a multiple of.
    pub(super) fn alignments(&self, at: &Operands) -> Alignments {
        let of = |address: u64, dtype: Dtype, row: usize, stride: usize| {
            let stride = if self.batch > 1 { stride } else { 0 };
            alignment(&[address, (row * dtype.bytes()) as u64, (stride * dtype.bytes()) as u64])
        };
        Alignments {
            w: of(at.w, self.dtype, self.w_row, self.w_stride),
            a: of(at.a, self.dtype, self.a_row, self.a_stride),
            onto: of(at.onto.unwrap_or(at.out), self.out, self.out_row, self.out_stride),
            out: of(at.out, self.out, self.out_row, self.out_stride),
            bias: alignment(&[at.bias.unwrap_or(0)]),
        }
    }
}

/// The largest power of two, at most `ALIGNMENT`, that divides every one of `bytes`.
fn alignment(bytes: &[u64]) -> u32 {
    let bits = bytes.iter().fold(u64::from(ALIGNMENT), |bits, byte| bits | byte);
    1 << bits.trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_layers_are_tight() {
        let shape = MatmulShape::linear(Dtype::F16, 8192, 960, 320);
        assert_eq!((shape.dtype, shape.out, shape.batch), (Dtype::F16, Dtype::F16, 1));
        assert_eq!((shape.rows, shape.columns, shape.inner), (8192, 960, 320));
        assert_eq!((shape.a_row, shape.w_row, shape.out_row), (320, 320, 960));
        assert_eq!((shape.a_stride, shape.w_stride, shape.out_stride), (8192 * 320, 960 * 320, 8192 * 960));
        assert_eq!(f32::from_bits(shape.alpha_bits), 1.0);
        assert!(!shape.w_transposed && !shape.bias && !shape.onto);
    }

    #[test]
    fn alignment_is_what_all_share() {
        assert_eq!(alignment(&[]), 16);
        assert_eq!(alignment(&[0, 0]), 16);
        assert_eq!(alignment(&[4096, 640]), 16);
        assert_eq!(alignment(&[4096, 72]), 8);
        assert_eq!(alignment(&[4096 + 4, 640]), 4);
        assert_eq!(alignment(&[4096, 154]), 2);
        assert_eq!(alignment(&[4097]), 1);
    }

    #[test]
    fn strides_count_in_batches_only() {
        let at = Operands { a: 4096, w: 4096, out: 4096, bias: Some(4096 + 8), onto: Some(4096 + 4) };
        let single = MatmulShape { w_stride: 77, ..MatmulShape::linear(Dtype::F16, 64, 77, 40) };
        let found = single.alignments(&at);
        assert_eq!(found, Alignments { w: 16, a: 16, onto: 2, out: 2, bias: 8 });
        let batch = MatmulShape { batch: 8, out: Dtype::F32, ..single };
        let found = batch.alignments(&at);
        assert_eq!(found, Alignments { w: 2, a: 16, onto: 4, out: 4, bias: 8 });
        let other = Alignments { w: 16, a: 4, onto: 16, out: 2, bias: 16 };
        assert_eq!(found.both(other), Alignments { w: 2, a: 4, onto: 4, out: 2, bias: 8 });
    }
}
