//! Linear layers: products that take bias, residual and the gated GELU along.

use super::{
    LANES, check_alike, check_f32, check_vector, geglu, is_plain,
    norm::LayerNorm,
    product::{After, product},
    refused, vector, with_columns,
};
use crate::gpu::{
    Array, BehindNorm, Placed, WeightLayout,
    matmul::{MatmulShape, Operands},
    product::{Ending, Problem},
};
use crate::ops::params::Params;
use candle_core::Result;

/// Linear layers side by side.
pub(in crate::ops) struct Linear {
    /// `[sum of out, in]`.
    weight: Array,
    /// `[1, sum of out]`.
    bias: Option<Array>,
    /// Channels of each.
    each: usize,
    /// What its input goes through first.
    norm: Option<LayerNorm>,
    /// Whether a layer norm follows, for which rows are summed up.
    sums_rows: bool,
}

impl Linear {
    pub(in crate::ops) fn new(
        inner: usize,
        each: usize,
        bias: bool,
        params: &[Params],
        placed: &Placed,
    ) -> Result<Self> {
        let layout = WeightLayout { rows: each, inner, area: 1, rows_out: each, inner_out: inner, phased: false };
        let names = |leaf: &str, dims: &[usize]| -> Result<Vec<String>> {
            params.iter().map(|params| params.checked(dims, leaf)).collect()
        };
        if !inner.is_multiple_of(LANES) || !each.is_multiple_of(LANES) {
            return refused(format!("a linear layer of {inner} and {each} channels: a GPU takes multiples of {LANES}"));
        }
        let weights = names("weight", &[each, inner])?.into_iter().map(|name| (name, layout));
        let weight = placed.place(&weights.collect::<Vec<_>>())?;
        let bias = if bias {
            let biases = names("bias", &[each])?.into_iter().map(|name| (name, vector(each)));
            Some(placed.place(&biases.collect::<Vec<_>>())?)
        } else {
            None
        };
        Ok(Self { bias, ..Self::of(weight, each) })
    }

    fn of(weight: Array, each: usize) -> Self {
        Self { weight, bias: None, each, norm: None, sums_rows: false }
    }

    /// Behind a layer norm, whose weight and bias become part of these layers where there are kernels for it: see `kernels/row_norm.cuh`.
    pub(in crate::ops) fn behind(
        (eps, norm): (f64, &Params),
        inner: usize,
        each: usize,
        bias: bool,
        params: &[Params],
        placed: &Placed,
    ) -> Result<Self> {
        let folds = placed.gpu().fuses(placed.dtype()) && inner.is_multiple_of(LANES) && each.is_multiple_of(inner);
        if !folds {
            let norm = Some(LayerNorm::new(inner, eps, norm, placed)?);
            return Ok(Self { norm, ..Self::new(inner, each, bias, params, placed)? });
        }
        let checked = |leaf: &str, dims: &[usize]| -> Result<Vec<String>> {
            params.iter().map(|params| params.checked(dims, leaf)).collect()
        };
        let names = BehindNorm {
            norm: [norm.checked(&[inner], "weight")?, norm.checked(&[inner], "bias")?],
            weights: checked("weight", &[each, inner])?,
            biases: if bias { checked("bias", &[each])? } else { Vec::new() },
        };
        let [weight, bias] = placed.place_behind_norm(&names, each, inner)?;
        Ok(Self { bias: Some(bias), norm: Some(LayerNorm::alone(eps)), ..Self::of(weight, each) })
    }

    /// Says that a layer norm follows.
    pub(in crate::ops) fn ahead_of_norm(self) -> Self {
        Self { sums_rows: true, ..self }
    }

    /// What the layers read, and what is added to the variance of its rows if they are to be normalised by their sums.
    fn normed(&self, xs: &Array) -> Result<(Array, Option<f32>)> {
        match &self.norm {
            None => Ok((xs.clone(), None)),
            Some(norm) => normed(norm, xs),
        }
    }

    /// One layer of a weight `[out, in]` and a bias `[1, out]`, which a GPU has as they are.
    pub(super) fn of_arrays(weight: Array, bias: Array) -> Self {
        let each = weight.rows();
        Self { bias: Some(bias), ..Self::of(weight, each) }
    }

    /// Of the filters `dims` of a convolution, each as one row, with zeros up to a whole vector.
    pub(in crate::ops) fn of_windows(dims: [usize; 4], params: &Params, placed: &Placed) -> Result<Self> {
        let [each, channels, height, width] = dims;
        let inner = channels * height * width;
        if !each.is_multiple_of(LANES) {
            return refused(format!("windows to {each} channels: a GPU takes multiples of {LANES}"));
        }
        let inner_out = inner.next_multiple_of(LANES);
        let layout = WeightLayout { rows: each, inner, area: 1, rows_out: each, inner_out, phased: false };
        Ok(Self::of(params.place(placed, &dims, "weight", layout)?, each))
    }

    /// Channels of each layer's output.
    pub(super) fn each(&self) -> usize {
        self.each
    }

    pub(super) fn weight(&self) -> &Array {
        &self.weight
    }

    pub(in crate::ops) fn forward(&self, xs: &Array, onto: Option<&Array>) -> Result<Array> {
        let (xs, norm_eps) = self.normed(xs)?;
        let rows = self.sums_rows && xs.gpu().fuses(xs.dtype());
        let after = After { bias: self.bias.as_ref(), onto, rows, norm_eps, ..After::default() };
        multiply(&xs, None, &self.weight, after)
    }

    pub(in crate::ops) fn forward_each(&self, xs: &Array) -> Result<Vec<Array>> {
        self.forward_scaled(xs, None)
    }

    /// The output of each layer, that of the first one times `factor`.
    pub(super) fn forward_scaled(&self, xs: &Array, factor: Option<f32>) -> Result<Vec<Array>> {
        let scaled = factor.map(|factor| (self.each, factor));
        let (xs, norm_eps) = self.normed(xs)?;
        let after = After { bias: self.bias.as_ref(), scaled, norm_eps, ..After::default() };
        let all = multiply(&xs, None, &self.weight, after)?;
        Ok((0..all.columns()).step_by(self.each).map(|from| all.columns_from(from, self.each)).collect())
    }

    /// In one kernel where the rows are whole vectors.
    pub(in crate::ops) fn forward_geglu(&self, xs: &Array) -> Result<Array> {
        let (gpu, columns) = (xs.gpu(), self.weight.dims()[0]);
        if !is_plain(gpu, xs.dtype(), xs) {
            return geglu(&self.forward(xs, None)?);
        }
        let (xs, norm_eps) = self.normed(xs)?;
        let xs = &xs;
        check_alike("a linear layer", &[xs, &self.weight])?;
        if let Some(bias) = &self.bias {
            check_alike("a bias", &[xs, bias])?;
            check_vector("a bias", bias, columns)?;
        }
        let (inner, width) = (self.weight.columns(), columns / 2);
        if inner != xs.columns() || columns != 2 * width || !width.is_multiple_of(LANES) {
            return refused(format!("{:?} times weights of {:?} with a gated GELU", xs.dims(), self.weight.dims()));
        }
        let out = gpu.scratch(&with_columns(xs.dims(), width), xs.dtype())?;
        Array::reach(&[Some(&self.weight), self.bias.as_ref()].into_iter().flatten().collect::<Vec<_>>())?;
        let shape = MatmulShape { out_row: width, ..MatmulShape::linear(xs.dtype(), xs.rows(), columns, inner) };
        let at = Operands::product(xs.address(), self.weight.address(), out.address());
        let problem = Problem { ending: Ending::Gated, ..Problem::of_matmul(&shape, &at) };
        let problem = normalising(problem, xs, norm_eps)?;
        let after = After { bias: self.bias.as_ref(), ..After::default() };
        // SAFETY: `[rows, inner]` times `[2 width, inner]` plus `2 width` to `[rows, width]`, as compared and made above.
        unsafe { product(problem, out, after) }
    }
}

/// `xs @ weight^T` and what comes after, apart from a shift. With `more`, the columns of that follow those of xs.
pub(super) fn multiply(xs: &Array, more: Option<&Array>, weight: &Array, after: After) -> Result<Array> {
    let (gpu, columns, After { bias, onto, groups, norm_eps, .. }) = (xs.gpu(), weight.rows(), after);
    let dims = with_columns(xs.dims(), columns);
    let others = more.map_or(0, Array::columns);
    let inner = xs.columns() + others;
    if inner != weight.columns() {
        return refused(format!("{:?} times weights of {:?}", with_columns(xs.dims(), inner), weight.dims()));
    }
    if !is_plain(gpu, xs.dtype(), weight) {
        return refused(format!("{:?} {:?} times weights of {:?}", xs.dtype(), xs.dims(), weight.dtype()));
    }
    if let Some(more) = more {
        check_alike("a joined map", &[xs, more])?;
        if more.rows() != xs.rows() {
            return refused(format!("{:?} joined with {:?}", xs.dims(), more.dims()));
        }
    }
    if let Some(bias) = bias {
        check_alike("a bias", &[weight, bias])?;
        check_vector("a bias", bias, columns)?;
    }
    if let Some(onto) = onto {
        check_alike("a residual", &[weight, onto])?;
        if onto.dims() != dims {
            return refused(format!("a residual of {:?} for {dims:?}", onto.dims()));
        }
    }
    let out = gpu.scratch(&dims, xs.dtype())?;
    let shape = MatmulShape {
        a_row: xs.row(),
        bias: bias.is_some(),
        onto: onto.is_some(),
        ..MatmulShape::linear(xs.dtype(), xs.rows(), columns, inner)
    };
    let at = Operands {
        a: xs.address(),
        w: weight.address(),
        out: out.address(),
        bias: bias.map(Array::address),
        onto: onto.map(Array::address),
    };
    Array::reach(&[Some(weight), bias].into_iter().flatten().collect::<Vec<_>>())?;
    let mut problem = normalising(Problem::of_matmul(&shape, &at), xs, norm_eps)?;
    if let Some(more) = more {
        problem = Problem { more: more.address(), more_row: more.row(), channels: [xs.columns(), others], ..problem };
    }
    if let &[_, height, width, _] = xs.dims() {
        problem.out_map = [height, width];
    }
    // SAFETY: the shape is that of xs, whose rows are `a_row` apart, and of the weights; `more` has as many rows, and the columns that
    // the weights have beyond those of xs. Bias and residual were compared with the shape, and `out` was made by it. All are of this GPU,
    // and the next user of their memory comes later on the same stream.
    unsafe { product(problem, out, After { shift: None, groups: groups.filter(|_| xs.dims().len() == 4), ..after }) }
}

/// What a layer behind a norm without weight and bias reads: `xs`, if the sums of its rows were taken along, with what is added to
/// their variance, or its normalised rows.
pub(super) fn normed(norm: &LayerNorm, xs: &Array) -> Result<(Array, Option<f32>)> {
    let in_layer = norm.weight_and_bias().is_none() && is_plain(xs.gpu(), xs.dtype(), xs);
    if in_layer && xs.row_sums().is_some() {
        return Ok((xs.clone(), Some(norm.eps())));
    }
    Ok((norm.forward(xs)?, None))
}

/// The same problem with the rows of `xs`, which are A's, normalised by their sums, if `eps` says what is added to their variance.
pub(super) fn normalising(problem: Problem, xs: &Array, eps: Option<f32>) -> Result<Problem> {
    let Some(eps) = eps else { return Ok(problem) };
    match xs.row_sums().map(|sums| (sums, sums.dims())) {
        Some((sums, &[row_parts, sum_rows, 2])) if xs.rows().is_multiple_of(sum_rows) => {
            check_f32("sums of rows", xs.gpu(), sums)?;
            Ok(Problem { a_sums: sums.address(), row_parts, sum_rows, eps, ..problem })
        }
        other => refused(format!("rows of {:?} normalised by sums of {:?}", xs.dims(), other.map(|(_, dims)| dims))),
    }
}
