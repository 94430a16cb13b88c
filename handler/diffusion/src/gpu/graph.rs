//! Work recorded once and replayed with one call: CUDA graphs.

use super::{Gpu, GpuError, Result, check_safe};
use cudarc::driver::{
    CudaGraph,
    sys::{CUgraphInstantiate_flags, CUstreamCaptureMode},
};

/// Recorded work.
pub(crate) struct Graph {
    gpu: Gpu,
    graph: CudaGraph,
    /// How often scratch memory had been given back when it was recorded, and the end of what it uses of it.
    trims: usize,
    scratch: usize,
}

// SAFETY: the driver takes a graph from any thread, one at a time: launching it takes `&mut`, and nothing else is done with it.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` asks for, without running it.
    ///
    /// # Safety
    /// Until the graph is dropped, each array that `work` uses and does not make itself must be alive. Meanwhile no other thread may
    /// put work on this GPU's stream. Each launch overwrites scratch memory: no scratch array may be in use across it.
    pub(crate) unsafe fn record<T>(
        gpu: &Gpu,
        work: impl FnOnce() -> candle_core::Result<T>,
    ) -> candle_core::Result<(Self, T)> {
        let (stream, trims) = (gpu.stream(), gpu.trims());
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        check_safe("cuStreamBeginCapture", stream.begin_capture(mode))?;
        let done = work();
        let scratch = gpu.scratch_reached();
        // Also after an error, or the stream would go on recording.
        let graph = check_safe("cuStreamEndCapture", stream.end_capture(CUgraphInstantiate_flags(0)));
        let done = done?;
        let graph = graph?.ok_or_else(|| GpuError::Unavailable("nothing was recorded".into()))?;
        // Now, which saves time at the first launch.
        check_safe("cuGraphUpload", graph.upload())?;
        Ok((Self { gpu: gpu.clone(), graph, trims, scratch }, done))
    }

    /// The end of the scratch memory that it uses, in bytes from the start.
    pub(crate) fn scratch(&self) -> usize {
        self.scratch
    }

    /// Whether scratch memory that it uses may be gone: then it cannot be launched any more.
    pub(crate) fn is_stale(&self) -> bool {
        self.gpu.has_trimmed(self.scratch, self.trims)
    }

    /// Runs it once.
    ///
    /// # Errors
    /// The driver's; the graph is stale.
    pub(crate) fn launch(&mut self) -> Result<()> {
        if self.is_stale() {
            return Err(GpuError::Unavailable("a recording whose memory was given back".into()));
        }
        check_safe("cuGraphLaunch", self.graph.launch())
    }
}
