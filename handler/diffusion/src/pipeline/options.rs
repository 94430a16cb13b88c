//! How a model is loaded.

use super::{Offload, SafetySource};

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// What leaves the GPU while it is not in use.
    pub offload: Offload,
    /// Width and height in pixels of the first pictures. Other sizes work as well, but on a GPU the first picture of a size takes longer.
    pub size: (usize, usize),
    /// Which safety checker is loaded.
    pub safety_checker: SafetySource,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { offload: Offload::default(), size: (512, 512), safety_checker: SafetySource::default() }
    }
}
