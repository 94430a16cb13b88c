//! Which device and dtype a configuration means on this machine.

use crate::{
    config::{DeviceKind, Precision},
    gpu::{Dtype, Gpu, GpuError},
    pipeline::{Compute, error::PipelineError},
};

/// The device, if this build and machine have it.
pub(super) fn compute(kind: DeviceKind, precision: Precision) -> Result<Compute, PipelineError> {
    let gpu = match kind {
        DeviceKind::Cpu => None,
        DeviceKind::Cuda => Some(Gpu::open(0)?),
        DeviceKind::Auto => Gpu::open(0).inspect_err(why_not).ok(),
    };
    let Some(gpu) = gpu else {
        if matches!(precision, Precision::Auto | Precision::F32) {
            return Ok(Compute::Cpu);
        }
        let value = if precision == Precision::F16 { "f16" } else { "bf16" }.to_string();
        return Err(PipelineError::Request {
            field: "--dtype (EASEL_DTYPE)",
            value,
            limit: "the CPU computes in f32 only: auto or f32".into(),
        });
    };
    let dtype = match precision {
        Precision::Auto | Precision::F16 => Dtype::F16,
        Precision::Bf16 => Dtype::BF16,
        Precision::F32 => Dtype::F32,
    };
    Ok(Compute::Gpu(gpu, dtype))
}

fn why_not(error: &GpuError) {
    tracing::info!(reason = %error, "no GPU is used");
}
