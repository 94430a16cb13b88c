//! Convolutions of maps that are read as twice as high and wide: four convolutions of 2x2, which never write the larger map.

use super::{
    LANES, check_alike, check_vector,
    conv::{Conv, USUAL_GROUPS},
    product::{After, product},
    refused, rows, upsample, vector,
};
use crate::{
    gpu::{Arg, Array, Launch, Placed, WeightLayout, conv::PhasesShape, product::Problem},
    ops::{Window, params::Params},
};
use candle_core::Result;
use std::ops::Range;

/// Weights of a filter of 3x3, and of its phases.
const FILTER: usize = 9;
const PHASES: usize = 16;

/// A convolution of 3x3 with bias over a map after it was resized.
pub(in crate::ops) struct UpsampledConv {
    /// `[out, 4 phases x 2 x 2 x in]`, see [`PhasesShape`].
    weight: Array,
    /// `[1, out]`.
    bias: Array,
    /// Groups of channels whose moments it takes along.
    groups: Option<usize>,
}

impl UpsampledConv {
    pub(in crate::ops) fn new(inner: usize, outer: usize, params: &Params, placed: &Placed) -> Result<Self> {
        let layout = WeightLayout {
            rows: outer,
            inner,
            area: FILTER,
            rows_out: outer.next_multiple_of(LANES),
            inner_out: inner.next_multiple_of(LANES),
            phased: true,
        };
        Ok(Self {
            weight: params.place(placed, &[outer, inner, 3, 3], "weight", layout)?,
            bias: params.place(placed, &[outer], "bias", vector(outer))?,
            groups: Some(USUAL_GROUPS),
        })
    }

    /// Of a weight `[out, 16 x in]` and a bias `[1, out]`, which a GPU has as they are.
    pub(super) fn of_arrays(weight: Array, bias: Array) -> Self {
        Self { weight, bias, groups: Some(USUAL_GROUPS) }
    }

    pub(in crate::ops) fn measured_in(self, groups: Option<usize>) -> Self {
        Self { groups: groups.filter(|groups| *groups > 0), ..self }
    }

    /// Channels of the output, padded.
    pub(in crate::ops) fn channels_out(&self) -> usize {
        self.weight.dims()[0]
    }

    /// After the map was resized by the nearest neighbour.
    pub(in crate::ops) fn forward(&self, xs: &Array, height: usize, width: usize) -> Result<Array> {
        let &[_, from_height, from_width, _] = xs.dims() else { return refused(format!("{:?} is no map", xs.dims())) };
        if [height, width] == [2 * from_height, 2 * from_width] {
            return self.run(xs, (0, from_height));
        }
        // At an edge that halves a place, phases do not hold.
        self.check(xs)?;
        let weight = self.filters()?;
        let larger = upsample(xs, height, width)?;
        let window = Window { side: 3, stride: 1, padding: 1, past: 0 };
        Conv::of_arrays(weight, self.bias.clone(), window).measured_in(self.groups).forward(&larger, None, None)
    }

    /// Some rows of the output of twice the size. `xs` is one image.
    pub(in crate::ops) fn forward_rows(&self, xs: &Array, made: Range<usize>) -> Result<Array> {
        let &[1, height, _, _] = xs.dims() else { return refused(format!("rows of {:?}", xs.dims())) };
        if made.is_empty() || made.end > 2 * height {
            return refused(format!("rows {made:?} of twice {:?}", xs.dims()));
        }
        let whole = made.start / 2..made.end.div_ceil(2);
        // A window reads a row more above or below.
        let around = whole.start.saturating_sub(1)..(whole.end + 1).min(height);
        let band = self.run(&rows(xs, around.clone())?, (whole.start - around.start, whole.len()))?;
        if made.len() == 2 * whole.len() {
            return Ok(band);
        }
        rows(&band, made.start - 2 * whole.start..made.end - 2 * whole.start)
    }

    /// The rows of the output that are made of some rows of xs: from which one on, and how many.
    fn run(&self, xs: &Array, (first, count): (usize, usize)) -> Result<Array> {
        self.check(xs)?;
        let &[batch, height, width, channels_in] = xs.dims() else {
            return refused(format!("{:?} is no map", xs.dims()));
        };
        let (dtype, channels_out) = (xs.dtype(), self.channels_out());
        if first > 1 || first + count > height {
            return refused(format!("{count} rows from {first} on of {:?}", xs.dims()));
        }
        let shape = PhasesShape { dtype, batch, height, width, made: (first, count), channels_in, channels_out };
        let sums = xs.gpu().scratch(&[batch, 2 * count, 2 * width, channels_out], dtype)?;
        let problem = Problem::of_phases(&shape, xs.address(), self.weight.address(), sums.address());
        Array::reach(&[&self.weight, &self.bias])?;
        let after = After { bias: Some(&self.bias), groups: self.groups, ..After::default() };
        // SAFETY: dense arrays of one dtype: x, w and the bias were compared with each other, and y was made for the rows of all phases.
        unsafe { product(problem, sums, after) }
    }

    fn check(&self, xs: &Array) -> Result<()> {
        if xs.dims().len() != 4 || xs.columns() * PHASES != self.weight.columns() {
            return refused(format!("{:?} for weights of {:?}", xs.dims(), self.weight.dims()));
        }
        check_alike("a convolution", &[xs, &self.weight, &self.bias])?;
        check_vector("a bias", &self.bias, self.channels_out())
    }

    /// The weights as filters of 3x3, but for rounding: `[out, 9 x in]`.
    fn filters(&self) -> Result<Array> {
        let (gpu, dtype, outer) = (self.weight.gpu(), self.weight.dtype(), self.channels_out());
        let inner = self.weight.columns() / PHASES;
        let filters = gpu.scratch(&[outer, FILTER * inner], dtype)?;
        Array::reach(&[&self.weight, &self.bias])?;
        let args = [Arg::At(self.weight.address()), Arg::At(filters.address()), Arg::Long(outer), Arg::Int(inner)];
        let name = format!("filters_of_phases_{}", dtype.name());
        let grid = [(outer * inner / LANES).div_ceil(256), 1, 1];
        // SAFETY: both have that many rows, of 16 and 9 times so many numbers, which are whole vectors, as they are of every weight here.
        unsafe { gpu.launch(Launch { name, grid, block: 256, shared: 0 }, &args)? };
        Ok(filters)
    }
}
