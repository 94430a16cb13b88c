//! The shape of a convolution, and its dimensions for cuDNN.

use crate::gpu::{
    Dtype,
    cudnn::int,
    error::{GpuError, Result},
};
use serde::{Deserialize, Serialize};

/// A convolution's shape: square kernel, cross-correlation, the same padding on all four sides or on the left and right alone, no
/// dilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// Whether there are no zeros above and below, because x has real rows there.
    #[serde(default)]
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
    pub(in crate::gpu) fn padding_down(&self) -> usize {
        if self.open { 0 } else { self.padding }
    }

    fn out(&self, size: usize, padding: usize) -> usize {
        let rest = (size + 2 * padding).checked_sub(self.side);
        rest.and_then(|rest| rest.checked_div(self.stride)).map_or(0, |steps| steps + 1)
    }

    /// Dimensions (N, C, H, W) of x, w (as K, C, R, S) and y.
    pub(super) fn dimensions(&self) -> Result<[[i64; 4]; 3]> {
        let x = [self.batch, self.channels_in, self.height, self.width];
        let w = [self.channels_out, self.channels_in, self.side, self.side];
        let y = [self.batch, self.channels_out, self.out_height(), self.out_width()];
        let mut dimensions = [[0; 4]; 3];
        for (to, from) in dimensions.iter_mut().zip([x, w, y]) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = int(from)?;
                if from == 0 {
                    return Err(GpuError::Unavailable(format!("there is no convolution of this shape: {self:?}")));
                }
            }
        }
        Ok(dimensions)
    }
}

/// Strides, in elements, of dimensions (N, C, H, W) stored channels last.
pub(super) fn channels_last([_, c, h, w]: [i64; 4]) -> [i64; 4] {
    [h * w * c, 1, w * c, c]
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
        let point = ConvShape { side: 1, padding: 0, ..shape() };
        assert_eq!((point.out_height(), point.out_width()), (64, 48));
        let open = ConvShape { open: true, ..shape() };
        assert_eq!((open.out_height(), open.out_width()), (62, 48));
    }

    #[test]
    fn impossible_shapes_have_no_output() {
        assert_eq!(ConvShape { height: 1, padding: 0, ..shape() }.out_height(), 0);
        assert_eq!(ConvShape { stride: 0, ..shape() }.out_width(), 0);
        assert!(ConvShape { height: 1, padding: 0, ..shape() }.dimensions().is_err());
        assert!(ConvShape { channels_in: 0, ..shape() }.dimensions().is_err());
    }

    #[test]
    fn dimensions_and_strides() {
        let [x, w, y] = ConvShape { stride: 2, ..shape() }.dimensions().unwrap();
        assert_eq!(x, [2, 320, 64, 48]);
        assert_eq!(w, [640, 320, 3, 3]);
        assert_eq!(y, [2, 640, 32, 24]);
        assert_eq!(channels_last(x), [64 * 48 * 320, 1, 48 * 320, 320]);
        assert_eq!(channels_last(w), [3 * 3 * 320, 1, 3 * 320, 320]);
    }
}
