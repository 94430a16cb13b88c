//! A GPU's memory: how much is used, new arrays, and copies on the device. Copies to and from the host are in `array`.

use super::{Array, Dtype, Gpu, GpuError, Result, arena::Arena, check, check_safe, lock};
use cudarc::driver::sys::{self, CUmemorytype};
use std::{
    ptr::{null, null_mut},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// How much of a GPU's memory is used, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// By all processes.
    pub used: u64,
    /// All of it.
    pub total: u64,
}

/// Bytes of the GPU's memory that this process's arenas hold.
#[derive(Default)]
pub(crate) struct Meter {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl Meter {
    pub(super) fn add(&self, bytes: usize) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, bytes: usize) {
        self.now.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Gpu {
    /// The most bytes held at once, without the driver's own.
    pub fn peak_bytes(&self) -> usize {
        self.0.meter.peak.load(Ordering::Relaxed)
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.0.meter.now.load(Ordering::Relaxed)
    }

    /// A new array that lives for a while, with any contents.
    pub(crate) fn resident(&self, dims: &[usize], dtype: Dtype) -> Result<Array> {
        Array::new(self, &self.0.resident, dims, dtype)
    }

    /// A new array between operations, with any contents.
    pub(crate) fn scratch(&self, dims: &[usize], dtype: Dtype) -> Result<Array> {
        Array::new(self, &self.0.scratch, dims, dtype)
    }

    /// Gives unused scratch memory back to the driver. Graphs that were recorded before are stale then.
    pub(crate) fn trim(&self) -> Result<()> {
        self.synchronize()?;
        self.0.trims.fetch_add(1, Ordering::Relaxed);
        lock(&self.0.scratch).trim()
    }

    pub(super) fn trims(&self) -> usize {
        self.0.trims.load(Ordering::Relaxed)
    }

    /// Fills an array with zeros.
    pub(crate) fn clear(&self, array: &Array) -> Result<()> {
        self.fill(array, 0)
    }

    /// Fills a contiguous array with a byte.
    pub(crate) fn fill(&self, array: &Array, byte: u8) -> Result<()> {
        if !array.is_contiguous() || !array.gpu().is(self) {
            return Err(GpuError::Unavailable(format!("{:?} is filled as one piece of this GPU", array.dims())));
        }
        let (address, stream) = (array.address(), self.stream().cu_stream());
        // SAFETY: the range of the array, which is contiguous; the next user of its memory comes later on the same stream.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(address, byte, array.bytes(), stream) })
    }

    /// Copies `from`, which may be a view of some columns, to the contiguous `to` of the same dims.
    pub(crate) fn copy(&self, from: &Array, to: &Array) -> Result<()> {
        let alike = from.dims() == to.dims() && from.dtype() == to.dtype() && to.is_contiguous();
        if !alike || ![from, to].iter().all(|array| array.gpu().is(self)) {
            return Err(GpuError::Unavailable(format!("a copy of {:?} to {:?}", from.dims(), to.dims())));
        }
        if from.is_contiguous() {
            let (to, from, bytes) = (to.address(), from.address(), from.bytes());
            // SAFETY: two arrays of that many bytes; the next user of their memory comes later on the same stream.
            let code = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream().cu_stream()) };
            return check("cuMemcpyDtoDAsync", code);
        }
        let width = from.columns() * from.dtype().bytes();
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: null(),
            srcDevice: from.address(),
            srcArray: null_mut(),
            srcPitch: from.row() * from.dtype().bytes(),
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: null_mut(),
            dstDevice: to.address(),
            dstArray: null_mut(),
            dstPitch: width,
            WidthInBytes: width,
            Height: from.rows(),
        };
        // SAFETY: rows of two arrays of the same dims; the next user of their memory comes later on the same stream.
        check("cuMemcpy2DAsync", unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.stream().cu_stream()) })
    }

    /// A new arena, for what may be offloaded.
    pub(super) fn arena(&self, page: usize) -> Result<Arc<Mutex<Arena>>> {
        Ok(Arc::new(Mutex::new(Arena::new(self.0.context.cu_device(), page, self.0.meter.clone())?)))
    }

    /// Bytes that are free, by the driver.
    pub fn free_bytes(&self) -> Result<usize> {
        Ok(self.memory_info()?.0)
    }

    /// The memory that all processes use together.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory(&self) -> Result<Memory> {
        let (free, total) = self.memory_info()?;
        Ok(Memory { used: total.saturating_sub(free) as u64, total: total as u64 })
    }

    /// Free and all bytes.
    fn memory_info(&self) -> Result<(usize, usize)> {
        check_safe("cuMemGetInfo", self.0.context.mem_get_info())
    }
}
