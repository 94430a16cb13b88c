//! Memory of the host that the GPU reads and writes itself. cudarc's own copies whole slices, and only to and from its own arrays.

use super::{Gpu, GpuError, Result, check, check_safe};
use cudarc::driver::{CudaEvent, CudaStream, sys};
use std::{
    alloc::{self, Layout},
    ptr::null_mut,
    sync::atomic::Ordering,
};

/// Memory that is not pinned begins at a multiple of this.
const PAGE_OF_HOST: usize = 4096;

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

    /// What is kept, or more of it if that is too little.
    pub(super) fn at_least<'a>(kept: &'a mut Option<Self>, gpu: &Gpu, bytes: usize) -> Result<&'a mut Self> {
        match kept.take().filter(|pinned| bytes <= pinned.bytes) {
            Some(pinned) => Ok(kept.insert(pinned)),
            None => Ok(kept.insert(Self::new(gpu, bytes)?)),
        }
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

/// A page of the host's memory that only copies to and from the GPU use. Pinned if the machine allows it.
pub(super) struct HostPage {
    memory: *mut u8,
    bytes: usize,
    is_pinned: bool,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for HostPage {}

impl HostPage {
    /// With zeros.
    ///
    /// # Errors
    /// The host lacks even memory that is not pinned.
    pub(super) fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        let mut memory = null_mut();
        // SAFETY: writes the address of new memory.
        if check("cuMemAllocHost", unsafe { sys::cuMemAllocHost_v2(&mut memory, bytes) }).is_ok() {
            return Ok(Self { memory: memory.cast(), bytes, is_pinned: true });
        }
        if !gpu.0.unpinned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "memory of the host cannot be pinned: copies to the GPU are slower; raise the container's limit of locked memory"
            );
        }
        let none = || {
            GpuError::Unavailable(format!("the host has no {bytes} bytes for a copy of weights; give it more memory"))
        };
        let layout = Layout::from_size_align(bytes, PAGE_OF_HOST).map_err(|_| none())?;
        // SAFETY: the size is not 0.
        let memory = unsafe { alloc::alloc_zeroed(layout) };
        if memory.is_null() { Err(none()) } else { Ok(Self { memory, bytes, is_pinned: false }) }
    }

    /// Its address and length.
    pub(super) fn content(&self) -> (*mut u8, usize) {
        (self.memory, self.bytes)
    }
}

impl Drop for HostPage {
    fn drop(&mut self) {
        if self.is_pinned {
            // SAFETY: from `cuMemAllocHost`. The driver waits for copies from it.
            unsafe { sys::cuMemFreeHost(self.memory.cast()) };
        } else if let Ok(layout) = Layout::from_size_align(self.bytes, PAGE_OF_HOST) {
            // SAFETY: from `alloc_zeroed` with this layout.
            unsafe { alloc::dealloc(self.memory, layout) };
        }
    }
}
