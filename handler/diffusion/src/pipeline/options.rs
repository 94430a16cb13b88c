//! How a model is loaded.

use super::{Offload, SafetySource};

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// What leaves the GPU while it is not in use.
    pub offload: Offload,
    /// Width and height in pixels of the first pictures. Other sizes work as well, but on a GPU the first picture of a size takes longer.
    pub size: (usize, usize),
    /// Width and height in pixels of the largest pictures to come. On a GPU, memory is reckoned for them if all stays there nevertheless;
    /// else for 768x768, as without it, and what a larger one needs is freed when it comes.
    pub largest: Option<(usize, usize)>,
    /// Which safety checker is loaded.
    pub safety_checker: SafetySource,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { offload: Offload::default(), size: (512, 512), largest: None, safety_checker: SafetySource::default() }
    }
}
