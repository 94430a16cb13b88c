//! Which device and dtype a configuration means on this machine.

use crate::engine::options::{DeviceKind, Precision};
use diffusion::{
    error::PipelineError,
    gpu::{self, Dtype, Gpu, GpuError},
    pipeline::Compute,
};

/// What is computed on.
pub(super) struct Chosen {
    pub(super) compute: Compute,
    /// Whether the machine has a GPU of NVIDIA's all the same, which could not be opened.
    pub(super) leaves_a_gpu: bool,
}

/// The device, if this build and machine have it.
pub(super) fn choose(kind: DeviceKind, precision: Precision) -> Result<Chosen, PipelineError> {
    let (gpu, leaves_a_gpu) = match kind {
        DeviceKind::Cpu => (None, false),
        DeviceKind::Cuda => (Some(Gpu::open(0)?), false),
        DeviceKind::Auto => match Gpu::open(0) {
            Ok(gpu) => (Some(gpu), false),
            Err(error) => (None, falls_back(&error, gpu::device_of_machine())),
        },
    };
    let Some(gpu) = gpu else {
        if matches!(precision, Precision::Auto | Precision::F32) {
            return Ok(Chosen { compute: Compute::Cpu, leaves_a_gpu });
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
    Ok(Chosen { compute: Compute::Gpu(gpu, dtype), leaves_a_gpu })
}

/// Tells why the CPU paints: a machine without a GPU is as it should be, one whose GPU cannot be opened is not.
fn falls_back(error: &GpuError, device: Option<String>) -> bool {
    match &device {
        None => tracing::info!(reason = %error, "no GPU is used"),
        Some(device) => tracing::warn!(
            device,
            reason = %error,
            "this machine has an NVIDIA GPU that cannot be used: pictures are painted by the CPU and take minutes; mend the reason and start \
             anew, or say --device cpu (EASEL_DEVICE) if that is wanted; --device cuda makes it an error"
        ),
    }
    device.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex, PoisonError},
    };

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_a_gpu_that_is_there_and_cannot_be_used_is_a_warning() {
        let error = GpuError::Unavailable("no NVIDIA driver".into());
        for (device, level, words) in [
            (None, "INFO", vec!["no GPU is used", "no NVIDIA driver"]),
            (
                Some("/dev/nvidia0".to_string()),
                "WARN",
                vec!["/dev/nvidia0", "no NVIDIA driver", "EASEL_DEVICE", "cuda"],
            ),
        ] {
            let log = Log::default();
            let writer = log.clone();
            let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
            let is_there = device.is_some();
            let told = tracing::subscriber::with_default(subscriber, || falls_back(&error, device));
            assert_eq!(told, is_there);
            let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            assert!(text.contains(level), "{text}");
            for word in words {
                assert!(text.contains(word), "{word} is not in {text}");
            }
        }
    }
}
