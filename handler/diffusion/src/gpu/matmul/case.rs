//! The shape of a product. It asks nothing of the addresses: `alignment` does.

use crate::gpu::Dtype;
use serde::{Deserialize, Serialize};

/// One product: `out[i] = alpha * a[i] @ w[i]^T (+ bias per column) (+ onto[i])` for `i` in `0..batch`, all row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Case {
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

impl Case {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_layers_are_tight() {
        let case = Case::linear(Dtype::F16, 8192, 960, 320);
        assert_eq!((case.dtype, case.out, case.batch), (Dtype::F16, Dtype::F16, 1));
        assert_eq!((case.rows, case.columns, case.inner), (8192, 960, 320));
        assert_eq!((case.a_row, case.w_row, case.out_row), (320, 320, 960));
        assert_eq!((case.a_stride, case.w_stride, case.out_stride), (8192 * 320, 960 * 320, 8192 * 960));
        assert_eq!(f32::from_bits(case.alpha_bits), 1.0);
        assert!(!case.w_transposed && !case.bias && !case.onto);
    }
}
