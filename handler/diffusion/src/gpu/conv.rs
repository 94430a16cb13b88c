//! The shapes of convolutions of NHWC activations.

use super::Dtype;

/// A convolution's shape: square kernel, cross-correlation, the same padding on all four sides or on the left and right alone, or more
/// below and to the right, no dilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConvShape {
    /// Type of x, w and y; sums are f32.
    pub(crate) dtype: Dtype,
    /// Images.
    pub(crate) batch: usize,
    /// Height of x.
    pub(crate) height: usize,
    /// Width of x.
    pub(crate) width: usize,
    /// Channels of x.
    pub(crate) channels_in: usize,
    /// Channels of y.
    pub(crate) channels_out: usize,
    /// Height and width of the kernel.
    pub(crate) side: usize,
    /// Step of the kernel, down and across.
    pub(crate) stride: usize,
    /// Zeros around x, on each side.
    pub(crate) padding: usize,
    /// Zeros more below and to the right of x.
    pub(crate) past: usize,
    /// Whether there are no zeros above and below, because x has real rows there.
    pub(crate) open: bool,
}

impl ConvShape {
    /// Height of y; 0 where the kernel does not fit.
    pub(crate) fn out_height(&self) -> usize {
        self.out(self.height, self.padding_down())
    }

    /// Width of y; 0 where the kernel does not fit.
    pub(crate) fn out_width(&self) -> usize {
        self.out(self.width, self.padding)
    }

    /// Zeros above x, and as many below.
    pub(super) fn padding_down(&self) -> usize {
        if self.open { 0 } else { self.padding }
    }

    fn out(&self, size: usize, padding: usize) -> usize {
        let rest = (size + 2 * padding + self.past).checked_sub(self.side);
        rest.and_then(|rest| rest.checked_div(self.stride)).map_or(0, |steps| steps + 1)
    }
}

/// A convolution of 3x3 with a place of zeros around, over a map in which every place is there twice, down and across. A window touches
/// 2x2 places of the map itself, so it is four convolutions of 2x2, its phases: phase 2 `py` + `px` makes the places
/// (2 y + `py`, 2 x + `px`). Weights that meet at one place are added: they are `[channels_out, 4 phases, 2 x 2, channels_in]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PhasesShape {
    /// Type of x, w and y; sums are f32.
    pub(crate) dtype: Dtype,
    /// Images.
    pub(crate) batch: usize,
    /// Rows of x that are there. Others are zeros.
    pub(crate) height: usize,
    /// Width of x, half that of y.
    pub(crate) width: usize,
    /// Rows of x of which rows of y are made: from that one on, 0 or 1, so many. y is twice as high.
    pub(crate) made: (usize, usize),
    /// Channels of x.
    pub(crate) channels_in: usize,
    /// Channels of y.
    pub(crate) channels_out: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> ConvShape {
        ConvShape {
            dtype: Dtype::F16,
            batch: 2,
            height: 64,
            width: 48,
            channels_in: 320,
            channels_out: 640,
            side: 3,
            stride: 1,
            padding: 1,
            past: 0,
            open: false,
        }
    }

    #[test]
    fn output_sizes() {
        assert_eq!((shape().out_height(), shape().out_width()), (64, 48));
        let halved = ConvShape { stride: 2, ..shape() };
        assert_eq!((halved.out_height(), halved.out_width()), (32, 24));
        let odd = ConvShape { stride: 2, height: 65, padding: 0, ..shape() };
        assert_eq!((odd.out_height(), odd.out_width()), (32, 23));
        let past = ConvShape { stride: 2, height: 65, padding: 0, past: 1, ..shape() };
        assert_eq!((past.out_height(), past.out_width()), (32, 24));
        let point = ConvShape { side: 1, padding: 0, ..shape() };
        assert_eq!((point.out_height(), point.out_width()), (64, 48));
        let open = ConvShape { open: true, ..shape() };
        assert_eq!((open.out_height(), open.out_width()), (62, 48));
    }

    #[test]
    fn impossible_shapes_have_no_output() {
        assert_eq!(ConvShape { height: 1, padding: 0, ..shape() }.out_height(), 0);
        assert_eq!(ConvShape { stride: 0, ..shape() }.out_width(), 0);
    }
}
