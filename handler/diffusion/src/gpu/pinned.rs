//! Memory of the host that the GPU reads and writes itself. cudarc's own copies whole slices, and only to and from its own arrays.

use super::{Gpu, GpuError, Result, check, check_safe};
use cudarc::driver::{CudaEvent, CudaStream, sys};
use std::ptr::null_mut;

/// Pinned memory. Borrowing it waits for copies to and from it.
pub(crate) struct Pinned {
    memory: *mut u8,
    bytes: usize,
    /// The end of the last copy.
    used: CudaEvent,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(crate) fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        let used = gpu.event()?;
        let mut memory = null_mut();
        // SAFETY: writes the address of new memory.
        check("cuMemAllocHost", unsafe { sys::cuMemAllocHost_v2(&mut memory, bytes) })?;
        Ok(Self { memory: memory.cast(), bytes, used })
    }

    /// Whether there is room for so many f32.
    pub(super) fn holds(&self, count: usize) -> bool {
        count <= self.bytes / 4
    }

    /// The first bytes, when no copy uses them any more.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&mut [u8]> {
        if count > self.bytes {
            return Err(GpuError::Unavailable(format!("{count} bytes through memory for {}", self.bytes)));
        }
        check_safe("cuEventSynchronize", self.used.synchronize())?;
        // SAFETY: memory of at least that length, which the driver has cleared, borrowed with its owner. No copy is on its way: each
        // is followed by `mark_used`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory, count) })
    }

    /// The first numbers, when no copy uses them any more.
    pub(super) fn numbers(&mut self, count: usize) -> Result<&mut [f32]> {
        let bytes = self.bytes(4 * count)?;
        // SAFETY: any bits are a number, and pinned memory begins at a page.
        let (_, numbers, _) = unsafe { bytes.align_to_mut::<f32>() };
        Ok(numbers)
    }

    /// Notes that copies or kernels on this stream use it until they are done. To be called after each of them was enqueued.
    pub(super) fn mark_used(&self, stream: &CudaStream) -> Result<()> {
        check_safe("cuEventRecord", self.used.record(stream))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // An error here means that the GPU is lost: nothing copies any more.
        let _ = self.used.synchronize();
        // SAFETY: from `cuMemAllocHost`, and no copy uses it any more.
        unsafe { sys::cuMemFreeHost(self.memory.cast()) };
    }
}
