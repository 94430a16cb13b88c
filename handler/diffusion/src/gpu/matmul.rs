//! The shape of a row-major product, and its addresses.

use super::Dtype;

/// One product: `out[i] = alpha * a[i] @ w[i]^T (+ bias per column) (+ onto[i])` for `i` in `0..batch`, all row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// Device addresses of one run: of the matrices, of the bias for each column and of what the product is added to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operands {
    pub(crate) a: u64,
    pub(crate) w: u64,
    pub(crate) out: u64,
    pub(crate) bias: Option<u64>,
    pub(crate) onto: Option<u64>,
}

impl Operands {
    /// A product alone.
    pub(crate) fn product(a: u64, w: u64, out: u64) -> Self {
        Self { a, w, out, bias: None, onto: None }
    }
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
}
