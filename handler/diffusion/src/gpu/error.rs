//! What can go wrong on a GPU.

use cudarc::driver::{DriverError, sys::CUresult};
use std::fmt::Debug;

/// How the driver names a lack of memory.
const OUT_OF_MEMORY: &str = "OUT_OF_MEMORY";

/// Whether that is what a text says.
pub(crate) fn tells_of_memory(text: &str) -> bool {
    text.contains(OUT_OF_MEMORY)
}

/// A failed call of the driver, or no usable GPU.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// A function did not succeed.
    #[error("{call}: {code}")]
    Call {
        /// The function, and for what.
        call: String,
        /// The driver's own code, such as `CUDA_ERROR_OUT_OF_MEMORY`.
        code: String,
    },
    /// Nothing to compute on, or something it cannot do; says what and what helps.
    #[error("{0}")]
    Unavailable(String),
}

/// Result of everything in this module.
pub(crate) type Result<T> = std::result::Result<T, GpuError>;

impl GpuError {
    /// Whether the GPU's memory did not suffice.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Call { code, .. } if tells_of_memory(code))
    }

    pub(crate) fn call(call: impl Into<String>, code: impl Debug) -> Self {
        Self::Call { call: call.into(), code: format!("{code:?}") }
    }
}

impl From<GpuError> for candle_core::Error {
    fn from(error: GpuError) -> Self {
        Self::wrap(error)
    }
}

/// The result of a function of the driver.
pub(super) fn check(call: &str, code: CUresult) -> Result<()> {
    check_safe(call, code.result())
}

/// The result of cudarc's safe layer, with the name of the driver's function behind it.
pub(super) fn check_safe<T>(call: &str, result: std::result::Result<T, DriverError>) -> Result<T> {
    result.map_err(|DriverError(code)| GpuError::call(call, code))
}
