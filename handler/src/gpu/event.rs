//! Marks in the stream of work.

use super::{Gpu, Result, check};
use cudarc::driver::sys::{self, CUevent};
use std::ptr::null_mut;

/// A point that the GPU gets to.
pub(crate) struct Event(CUevent);

// SAFETY: a handle that any thread may use.
unsafe impl Send for Event {}

impl Event {
    /// One that the GPU has got to.
    pub(crate) fn new() -> Result<Self> {
        let (mut event, flags) = (null_mut(), sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32);
        // SAFETY: writes the event's handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        Ok(Self(event))
    }

    /// Moves it to the end of what was asked for.
    pub(crate) fn record(&self, gpu: &Gpu) -> Result<()> {
        // SAFETY: our own event and stream.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.0, gpu.stream()) })
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
