//! Convolutions that take bias, shift, residual and the moments for a norm along.

use super::{
    LANES, Maps, check_alike, check_f32, check_vector,
    linear::multiply,
    product::{After, product},
    refused, vector,
};
use crate::gpu::{Array, Placed, WeightLayout, conv::ConvShape, product::Problem};
use crate::ops::{Window, params::Params};
use candle_core::Result;

/// Groups of every GroupNorm of Stable Diffusion.
pub(super) const USUAL_GROUPS: usize = 32;

/// A convolution with bias over a map.
pub(in crate::ops) struct Conv {
    /// `[out, side x side x in]`.
    weight: Array,
    /// `[1, out]`.
    bias: Array,
    window: Window,
    /// Groups of channels whose moments it takes along.
    groups: Option<usize>,
    /// Whether a layer norm follows, for which rows are summed up.
    sums_rows: bool,
}

impl Conv {
    pub(in crate::ops) fn new(
        inner: usize,
        outer: usize,
        window: Window,
        params: &Params,
        placed: &Placed,
    ) -> Result<Self> {
        let side = window.side;
        let layout = WeightLayout {
            rows: outer,
            inner,
            area: side * side,
            rows_out: outer.next_multiple_of(LANES),
            inner_out: inner.next_multiple_of(LANES),
            phased: false,
        };
        Ok(Self {
            weight: params.place(placed, &[outer, inner, side, side], "weight", layout)?,
            bias: params.place(placed, &[outer], "bias", vector(outer))?,
            window,
            groups: Some(USUAL_GROUPS),
            sums_rows: false,
        })
    }

    pub(in crate::ops) fn measured_in(self, groups: Option<usize>) -> Self {
        Self { groups: groups.filter(|groups| *groups > 0), ..self }
    }

    /// Says that a layer norm follows, and no group norm.
    pub(in crate::ops) fn ahead_of_norm(self) -> Self {
        Self { groups: None, sums_rows: true, ..self }
    }

    /// Of a weight `[out, side x side x in]` and a bias `[1, out]`, which a GPU has as they are.
    pub(super) fn of_arrays(weight: Array, bias: Array, window: Window) -> Self {
        Self { weight, bias, window, groups: Some(USUAL_GROUPS), sums_rows: false }
    }

    /// Plus the row of `shift`'s table that its counter names, at every place, and `onto`.
    pub(in crate::ops) fn forward(
        &self,
        xs: &Array,
        shift: Option<(&Array, &Array)>,
        onto: Option<&Array>,
    ) -> Result<Array> {
        self.run(xs, shift, onto, false)
    }

    /// Of a map, or of two if a window is one place.
    pub(in crate::ops) fn forward_joined(&self, maps: &Maps) -> Result<Array> {
        let (xs, more) = maps.parts();
        if more.is_some() && self.window.side != 1 {
            return refused(format!("two maps for windows of {0} x {0}", self.window.side));
        }
        match more {
            Some(_) => multiply(xs, more, &self.weight, self.after(None, None)),
            None => self.forward(xs, None, None),
        }
    }

    fn after<'a>(&'a self, shift: Option<(&'a Array, &'a Array)>, onto: Option<&'a Array>) -> After<'a> {
        let rows = self.sums_rows && self.window.side == 1 && self.weight.gpu().fuses(self.weight.dtype());
        After { bias: Some(&self.bias), shift, onto, groups: self.groups, rows, ..After::default() }
    }

    /// The shape of the convolution of a map, and room for its result.
    fn shape_for(&self, xs: &Array, open: bool) -> Result<(ConvShape, Array)> {
        let &[batch, height, width, channels] = xs.dims() else { return refused(format!("{:?} is no map", xs.dims())) };
        let Window { side, stride, padding, past } = self.window;
        let out = self.channels_out();
        if channels * side * side != self.weight.columns() {
            return refused(format!("{channels} channels for weights of {:?}", self.weight.dims()));
        }
        if side != 1 && side != 3 || side == 1 && padding > 0 {
            return refused(format!("windows of {side} x {side} with {padding} around"));
        }
        check_alike("a convolution", &[xs, &self.weight])?;
        let (dtype, channels_in, channels_out) = (xs.dtype(), channels, out);
        let shape =
            ConvShape { dtype, batch, height, width, channels_in, channels_out, side, stride, padding, past, open };
        let sums = xs.gpu().scratch(&[batch, shape.out_height(), shape.out_width(), out], dtype)?;
        Ok((shape, sums))
    }

    /// Channels of the output, padded.
    pub(in crate::ops) fn channels_out(&self) -> usize {
        self.weight.dims()[0]
    }

    /// As [`Conv::forward`]. If it is `open`, xs has a row more above and below instead of zeros there.
    pub(super) fn run(
        &self,
        xs: &Array,
        shift: Option<(&Array, &Array)>,
        onto: Option<&Array>,
        open: bool,
    ) -> Result<Array> {
        if self.window.side == 1 && shift.is_none() && !open {
            return multiply(xs, None, &self.weight, self.after(None, onto));
        }
        let (shape, sums) = self.shape_for(xs, open)?;
        let problem = Problem::of_conv(&shape, xs.address(), self.weight.address(), sums.address());
        check_after(&sums, &self.bias, shift, onto)?;
        Array::reach(&[&self.weight, &self.bias])?;
        // SAFETY: dense arrays of the shape's dtype: x and w were compared with it above, y was made by it, and what comes after was
        // compared with that.
        unsafe { product(problem, sums, self.after(shift, onto)) }
    }
}

/// Compares what is added to a map with it.
fn check_after(sums: &Array, bias: &Array, shift: Option<(&Array, &Array)>, onto: Option<&Array>) -> Result<()> {
    let channels = sums.columns();
    check_alike("a bias", &[sums, bias])?;
    check_vector("a bias", bias, channels)?;
    if let Some(onto) = onto {
        check_alike("a residual", &[sums, onto])?;
        if onto.dims() != sums.dims() {
            return refused(format!("a residual of {:?} for {:?}", onto.dims(), sums.dims()));
        }
    }
    if let Some((table, step)) = shift {
        check_alike("a shift", &[sums, table])?;
        check_f32("the step's number", sums.gpu(), step)?;
        if table.columns() != channels || table.count() == 0 {
            return refused(format!("a shift of {:?} for {:?}", table.dims(), sums.dims()));
        }
    }
    Ok(())
}
