//! Marks in the stream of work.

use super::{Gpu, Result, check};
use cudarc::driver::sys::{self, CUevent, CUstream};
use std::ptr::null_mut;

/// A point that the GPU gets to.
pub(crate) struct Event(CUevent);

// SAFETY: a handle that any thread may use.
unsafe impl Send for Event {}

impl Event {
    /// One that the GPU has got to.
    pub(crate) fn new() -> Result<Self> {
        Self::with(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// One that notes the time.
    pub(super) fn timed() -> Result<Self> {
        Self::with(sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(flags: sys::CUevent_flags) -> Result<Self> {
        let (mut event, flags) = (null_mut(), flags as u32);
        // SAFETY: writes the event's handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        Ok(Self(event))
    }

    /// Moves it to the end of what was asked for.
    pub(crate) fn record(&self, gpu: &Gpu) -> Result<()> {
        self.record_on(gpu.stream())
    }

    /// The same for a stream.
    pub(super) fn record_on(&self, stream: CUstream) -> Result<()> {
        // SAFETY: our own event, and a stream that is alive.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.0, stream) })
    }

    /// Milliseconds from `start` to here, when the GPU has got here; both note the time.
    pub(super) fn since(&self, start: &Self) -> Result<f32> {
        self.wait()?;
        let mut milliseconds = 0.0;
        // SAFETY: two events of this struct that were recorded.
        let code = unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, start.0, self.0) };
        check("cuEventElapsedTime", code)?;
        Ok(milliseconds)
    }

    /// Waits until the GPU has got there.
    pub(crate) fn wait(&self) -> Result<()> {
        // SAFETY: our own event.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}
