//! Tensors with f32 numbers, rounded where torch rounds: as close as a run of many steps can follow it.

use candle_core::{Result, Tensor};

/// `tensor * factor`.
pub(super) fn times(tensor: &Tensor, factor: f32) -> Result<Tensor> {
    tensor * f64::from(factor)
}

/// `tensor / divisor`.
pub(super) fn over(tensor: &Tensor, divisor: f32) -> Result<Tensor> {
    tensor.broadcast_div(&Tensor::new(divisor, tensor.device())?)
}
