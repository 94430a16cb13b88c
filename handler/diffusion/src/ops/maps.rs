//! Two feature maps that are read as one.

use super::{Array, Conv, Form, GroupNorm, cpu, gpu, mixed};
use candle_core::{Result, Tensor};

/// A feature map, or two of one size whose channels follow one another. On a GPU two are not written side by side: what reads them
/// reads both.
pub(crate) struct Maps(Form<Tensor, gpu::Maps>);

impl From<Array> for Maps {
    fn from(map: Array) -> Self {
        Self(match map {
            Array::Cpu(map) => Form::Cpu(map),
            Array::Gpu(map) => Form::Gpu(map.into()),
        })
    }
}

impl Maps {
    /// The channels of `first`, then those of `second`.
    ///
    /// # Errors
    /// The maps differ in more than channels, or are on different devices.
    pub(crate) fn joined(first: Array, second: Array) -> Result<Self> {
        Ok(Self(match (first, second) {
            (Array::Cpu(first), Array::Cpu(second)) => Form::Cpu(cpu::join(&first, &second)?),
            (Array::Gpu(first), Array::Gpu(second)) => Form::Gpu(gpu::Maps::joined(first, second)?),
            _ => return Err(mixed()),
        }))
    }

    /// The map, if it is one.
    ///
    /// # Errors
    /// There are two on a GPU.
    pub(crate) fn one(&self) -> Result<Array> {
        Ok(match &self.0 {
            Form::Cpu(map) => Array::Cpu(map.clone()),
            Form::Gpu(maps) => Array::Gpu(maps.one()?.clone()),
        })
    }
}

impl GroupNorm {
    /// The norm over the channels of all, with SiLU after it, as one map. A GPU writes it over the only map if nobody else has that.
    ///
    /// # Errors
    /// There are other channels, or the device fails.
    pub(crate) fn forward_silu(&self, maps: impl Into<Maps>) -> Result<Array> {
        match (&self.0, maps.into().0) {
            (Form::Cpu(norm), Form::Cpu(xs)) => norm.forward(&xs, true).map(Array::Cpu),
            (Form::Gpu(norm), Form::Gpu(maps)) => norm.forward_over(maps, true).map(Array::Gpu),
            _ => Err(mixed()),
        }
    }
}

impl Conv {
    /// The convolution of all channels; of two maps, it must be a 1x1 convolution.
    ///
    /// # Errors
    /// There are other channels, or the device fails.
    pub(crate) fn forward_joined(&self, maps: &Maps) -> Result<Array> {
        match (&self.0, &maps.0) {
            (Form::Cpu(conv), Form::Cpu(xs)) => conv.forward(xs, None, None).map(Array::Cpu),
            (Form::Gpu(conv), Form::Gpu(maps)) => conv.forward_joined(maps).map(Array::Gpu),
            _ => Err(mixed()),
        }
    }
}
