//! Tensors with f32 numbers, rounded where torch rounds: as close as a run of many steps can follow it.

use candle_core::{Result, Tensor};

/// `tensor * factor`.
pub(super) fn times(tensor: &Tensor, factor: f32) -> Result<Tensor> {
    tensor * f64::from(factor)
}

/// `tensor / divisor`: a division on the CPU, on a GPU the product with the reciprocal.
pub(super) fn over(tensor: &Tensor, divisor: f32) -> Result<Tensor> {
    if tensor.device().is_cpu() {
        tensor.broadcast_div(&Tensor::new(divisor, tensor.device())?)
    } else {
        times(tensor, divisor.recip())
    }
}
