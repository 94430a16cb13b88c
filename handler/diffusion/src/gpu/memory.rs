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

/// How often scratch memory was given back, and how much was left.
#[derive(Default)]
pub(super) struct Trims {
    count: usize,
    /// Number and rest of those trims that left less than all later ones.
    lowest: Vec<(usize, usize)>,
}

impl Trims {
    fn note(&mut self, left: usize) {
        self.count += 1;
        while self.lowest.pop_if(|(_, least)| *least >= left).is_some() {}
        self.lowest.push((self.count, left));
    }

    /// The least that was left since there were `count` trims.
    fn least_since(&self, count: usize) -> usize {
        let after = self.lowest.partition_point(|(number, _)| *number <= count);
        self.lowest.get(after).map_or(usize::MAX, |(_, least)| *least)
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

    /// Gives unused scratch memory from `keep` bytes on back to the driver, and what is free at the end of memory that stays. Graphs that
    /// use that scratch memory are stale then.
    pub(crate) fn trim(&self, keep: usize) -> Result<()> {
        self.synchronize()?;
        lock(&self.0.resident).trim(0)?;
        let left = lock(&self.0.scratch).trim(keep)?;
        lock(&self.0.trims).note(left);
        Ok(())
    }

    /// How often scratch memory was given back. From here on, [`Gpu::scratch_reached`] counts.
    pub(super) fn trims(&self) -> usize {
        lock(&self.0.scratch).forget_highest();
        lock(&self.0.trims).count
    }

    /// The bytes of scratch memory from its start to the highest end of an array since [`Gpu::trims`].
    pub(super) fn scratch_reached(&self) -> usize {
        lock(&self.0.scratch).forget_highest()
    }

    /// Whether scratch memory below that end was given back since there were `trims`.
    pub(super) fn has_trimmed(&self, end: usize, trims: usize) -> bool {
        lock(&self.0.trims).least_since(trims) < end
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

    /// Fills a contiguous f32 array with a number.
    pub(crate) fn fill_with(&self, array: &Array, number: f32) -> Result<()> {
        if !array.is_contiguous() || !array.gpu().is(self) || array.dtype() != Dtype::F32 {
            return Err(GpuError::Unavailable(format!("{:?} is filled as f32 of this GPU", array.dims())));
        }
        let (address, bits, stream) = (array.address(), number.to_bits(), self.stream().cu_stream());
        // SAFETY: as for a byte; f32 have four.
        check("cuMemsetD32Async", unsafe { sys::cuMemsetD32Async(address, bits, array.count(), stream) })
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

    /// A new arena that maps memory as it fills.
    #[cfg(feature = "cuda")]
    pub(super) fn arena(&self, page: usize) -> Result<Arc<Mutex<Arena>>> {
        Ok(Arc::new(Mutex::new(Arena::new(self.0.context.cu_device(), page, self.0.meter.clone())?)))
    }

    /// A new arena for what may leave the GPU.
    pub(super) fn arena_of_pages(&self, page: usize) -> Result<Arc<Mutex<Arena>>> {
        Ok(Arc::new(Mutex::new(Arena::of_pages(self.0.context.cu_device(), page, self.0.meter.clone())?)))
    }

    /// The most bytes held at once from now on count for [`Gpu::peak_bytes`].
    pub fn forget_peak(&self) {
        self.0.meter.peak.store(self.bytes(), Ordering::Relaxed);
    }

    /// Bytes of arrays that live for a while, weights not counted.
    pub(crate) fn resident_bytes(&self) -> usize {
        lock(&self.0.resident).end()
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

#[cfg(test)]
mod tests {
    use super::Trims;

    #[test]
    fn the_least_that_was_left_counts_from_any_trim_on() {
        let mut trims = Trims::default();
        assert_eq!(trims.least_since(0), usize::MAX);
        [50, 20, 40, 30].into_iter().for_each(|left| trims.note(left));
        assert_eq!([0, 1, 2, 3, 4].map(|count| trims.least_since(count)), [20, 20, 30, 30, usize::MAX]);
        (0..1000).for_each(|_| trims.note(30));
        assert_eq!(trims.lowest.len(), 2, "it does not grow with the number of pictures");
    }
}
