//! The convolution after a feature map was resized by the nearest neighbour.

use super::{Array, Form, Window, cpu, gpu, mixed, pad_rows, params::Params, upsample};
use candle_core::{DType, Device, Result, Tensor};
use std::ops::Range;

/// A 3x3 convolution with bias of [`upsample`]'s result, which keeps that height and width.
pub(crate) struct UpsampledConv(Form<cpu::Conv, gpu::UpsampledConv>);

impl UpsampledConv {
    pub(crate) fn new(channels_in: usize, channels_out: usize, params: Params) -> Result<Self> {
        let window = Window { side: 3, stride: 1, padding: 1, past: 0 };
        Ok(Self(match params.placed() {
            None => Form::Cpu(cpu::Conv::new(channels_in, channels_out, window, &params)?),
            Some(placed) => Form::Gpu(gpu::UpsampledConv::new(channels_in, channels_out, &params, placed)?),
        }))
    }

    /// As [`Conv::measured_in`](super::Conv::measured_in).
    pub(crate) fn measured_in(self, groups: Option<usize>) -> Self {
        Self(match self.0 {
            Form::Cpu(conv) => Form::Cpu(conv),
            Form::Gpu(conv) => Form::Gpu(conv.measured_in(groups)),
        })
    }

    /// Of a map that is resized to that height and width.
    pub(crate) fn forward(&self, xs: &Array, height: usize, width: usize) -> Result<Array> {
        match (&self.0, xs) {
            (Form::Cpu(conv), Array::Cpu(xs)) => {
                conv.forward(&cpu::upsample(xs, height, width)?, None, None).map(Array::Cpu)
            }
            (Form::Gpu(conv), Array::Gpu(xs)) => conv.forward(xs, height, width).map(Array::Gpu),
            _ => Err(mixed()),
        }
    }

    /// Some rows of the output of twice the size. `xs` is one image.
    ///
    /// # Errors
    /// There are no such rows, or the device fails or has too little memory.
    pub(crate) fn forward_rows(&self, xs: &Array, rows: Range<usize>) -> Result<Array> {
        let conv = match (&self.0, xs) {
            (Form::Gpu(conv), Array::Gpu(xs)) => return conv.forward_rows(xs, rows).map(Array::Gpu),
            (Form::Cpu(conv), Array::Cpu(_)) => conv,
            _ => return Err(mixed()),
        };
        let (height, width) = xs.size()?;
        let (first, end) = (rows.start == 0, rows.end == 2 * height);
        // The convolution reads a row more above and below.
        let around = rows.start - usize::from(!first)..rows.end + usize::from(!end);
        let from = around.start / 2..around.end.div_ceil(2);
        let larger = upsample(&xs.rows(from.clone())?, 2 * from.len(), 2 * width)?;
        let larger = larger.rows(around.start - 2 * from.start..around.end - 2 * from.start)?;
        let padded = pad_rows(larger, first, end)?;
        conv.forward_open(padded.cpu()?, None).map(Array::Cpu)
    }

    /// A map for the output of twice the size, with any content.
    ///
    /// # Errors
    /// The device has too little memory.
    pub(crate) fn room(&self, xs: &Array) -> Result<Array> {
        let (height, width) = xs.size()?;
        match (&self.0, xs) {
            (Form::Cpu(conv), Array::Cpu(_)) => {
                let dims = (1, conv.channels_out()?, 2 * height, 2 * width);
                Tensor::zeros(dims, DType::F32, &Device::Cpu).map(Array::Cpu)
            }
            (Form::Gpu(conv), Array::Gpu(xs)) => {
                let dims = [1, 2 * height, 2 * width, conv.channels_out()];
                Ok(Array::Gpu(xs.gpu().scratch(&dims, xs.dtype())?))
            }
            _ => Err(mixed()),
        }
    }
}
