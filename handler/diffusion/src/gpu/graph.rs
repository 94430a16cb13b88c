//! Work recorded once and replayed with one call: CUDA graphs.

use super::{Gpu, Result, check};
use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUstreamCaptureMode};
use std::ptr::null_mut;

/// Recorded work. Every array it names must outlive it, and keep its place.
pub(crate) struct Graph {
    gpu: Gpu,
    exec: CUgraphExec,
}

// SAFETY: a graph may be launched from any thread, one at a time: to launch it takes it for oneself.
unsafe impl Send for Graph {}

/// What was captured, until it is destroyed.
struct Captured(CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        // SAFETY: nobody else has it. A capture that failed left none.
        if !self.0.is_null() {
            unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

impl Graph {
    /// Records what `work` asks for, without running it.
    pub(crate) fn record<T>(
        gpu: &Gpu,
        work: impl FnOnce() -> candle_core::Result<T>,
    ) -> candle_core::Result<(Self, T)> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: our own stream, which no other thread uses now.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(gpu.stream(), mode) })?;
        let done = work();
        let mut captured = Captured(null_mut());
        // SAFETY: ends what was begun above, also after an error.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(gpu.stream(), &mut captured.0) });
        let done = done?;
        ended?;
        let mut exec = null_mut();
        // SAFETY: a graph from the capture; the executable form does not need it any more.
        check("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, captured.0, 0) })?;
        let graph = Self { gpu: gpu.clone(), exec };
        // SAFETY: an instantiated graph; uploading it now saves time at its first launch.
        check("cuGraphUpload", unsafe { sys::cuGraphUpload(graph.exec, gpu.stream()) })?;
        Ok((graph, done))
    }

    /// Runs it once.
    pub(crate) fn launch(&mut self) -> Result<()> {
        // SAFETY: an instantiated graph on the stream it was captured from.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.exec, self.gpu.stream()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; a running launch is finished first by the driver.
        unsafe { sys::cuGraphExecDestroy(self.exec) };
    }
}
