//! An allocator over one reserved range of addresses. Memory is mapped into it piece by piece as it fills, so addresses never change.
//! cudarc's own arrays come from the driver's pool, which chooses an address anew each time.
//!
//! First fit from the lowest address: the same sequence of requests always gets the same addresses.

use super::{GpuError, Meter, Result, check};
use cudarc::driver::sys::{
    self, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationHandleType, CUmemAllocationProp,
    CUmemAllocationProp_st__bindgen_ty_1, CUmemAllocationType, CUmemLocation, CUmemLocationType,
};
use std::{collections::BTreeMap, ptr::null_mut, sync::Arc};

/// Allocations start at multiples of this many bytes.
const ALIGNMENT: usize = 512;
/// Memory is taken from the driver in multiples of this, unless an arena has a smaller page.
pub(crate) const PAGE: usize = 16 << 20;
/// The reserved range in bytes, far more than any GPU's memory.
const RESERVED: usize = 1 << 38;

pub(super) struct Arena {
    base: u64,
    free: Free,
    /// Lengths of the mapped pieces, in order of address.
    mapped: Vec<usize>,
    /// Whether the memory is given back to the driver for now.
    released: bool,
    page: usize,
    properties: CUmemAllocationProp,
    meter: Arc<Meter>,
}

// SAFETY: plain data; the properties hold no pointer that is used.
unsafe impl Send for Arena {}

impl Arena {
    pub(super) fn new(device: i32, page: usize, meter: Arc<Meter>) -> Result<Self> {
        let mut base = 0;
        // SAFETY: reserves addresses, no memory.
        check("cuMemAddressReserve", unsafe { sys::cuMemAddressReserve(&mut base, RESERVED, PAGE, 0, 0) })?;
        let properties = CUmemAllocationProp {
            type_: CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            location: CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device },
            win32HandleMetaData: null_mut(),
            allocFlags: CUmemAllocationProp_st__bindgen_ty_1 {
                compressionType: 0,
                gpuDirectRDMACapable: 0,
                usage: 0,
                reserved: [0; 4],
            },
        };
        Ok(Self { base, free: Free::default(), mapped: Vec::new(), released: false, page, properties, meter })
    }

    /// Allocates `bytes`, rounded up to the alignment.
    pub(super) fn take(&mut self, bytes: usize) -> Result<u64> {
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT);
        if let Some(offset) = self.free.take(bytes) {
            return Ok(self.base + offset as u64);
        }
        let end: usize = self.mapped.iter().sum();
        let missing = (bytes - self.free.tail(end)).next_multiple_of(self.page);
        self.map(end, missing)?;
        self.mapped.push(missing);
        self.free.give(end, missing);
        let offset = self.free.take(bytes).ok_or_else(|| GpuError::Unavailable("an arena lost its memory".into()))?;
        Ok(self.base + offset as u64)
    }

    /// Frees what [`Arena::take`] allocated.
    pub(super) fn give(&mut self, address: u64, bytes: usize) {
        self.free.give((address - self.base) as usize, bytes.max(1).next_multiple_of(ALIGNMENT));
    }

    /// Gives free memory at the end back to the driver.
    pub(super) fn trim(&mut self) -> Result<()> {
        let mut end: usize = self.mapped.iter().sum();
        while let Some(&last) = self.mapped.last().filter(|&&last| self.free.tail(end) >= last) {
            end -= last;
            self.free.cut(end, last);
            self.mapped.pop();
            // SAFETY: exactly one range that was mapped, and nothing lies in it.
            check("cuMemUnmap", unsafe { sys::cuMemUnmap(self.base + end as u64, last) })?;
            self.meter.remove(last);
        }
        Ok(())
    }

    fn map(&mut self, offset: usize, bytes: usize) -> Result<()> {
        let (address, mut handle) = (self.base + offset as u64, 0);
        // SAFETY: new memory, mapped into addresses that are reserved and not yet mapped. The mapping keeps it alive.
        unsafe {
            check("cuMemCreate", sys::cuMemCreate(&mut handle, bytes, &self.properties, 0))?;
            let mapped = check("cuMemMap", sys::cuMemMap(address, bytes, 0, handle, 0));
            check("cuMemRelease", sys::cuMemRelease(handle))?;
            mapped?;
            let flags = CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
            let access = CUmemAccessDesc { location: self.properties.location, flags };
            let open = check("cuMemSetAccess", sys::cuMemSetAccess(address, bytes, &access, 1));
            if open.is_err() {
                sys::cuMemUnmap(address, bytes);
            }
            open?;
        }
        self.meter.add(bytes);
        Ok(())
    }

    /// Gives all memory back to the driver, and with it its contents. Allocations keep their addresses.
    pub(super) fn release(&mut self) -> Result<()> {
        if self.released {
            return Ok(());
        }
        self.unmap(self.mapped.len())?;
        self.released = true;
        Ok(())
    }

    /// Unmaps the first pieces.
    fn unmap(&self, pieces: usize) -> Result<()> {
        let mut offset = 0;
        for &bytes in &self.mapped[..pieces] {
            // SAFETY: exactly one range that was mapped. A kernel that still used it would fail, and touch nothing else.
            check("cuMemUnmap", unsafe { sys::cuMemUnmap(self.base + offset as u64, bytes) })?;
            self.meter.remove(bytes);
            offset += bytes;
        }
        Ok(())
    }

    /// Maps new memory, with any contents, to the same addresses: all of it or, after an error, none. Returns whether it was released.
    pub(super) fn restore(&mut self) -> Result<bool> {
        if !self.released {
            return Ok(false);
        }
        let mut offset = 0;
        for (piece, bytes) in self.mapped.clone().into_iter().enumerate() {
            if let Err(error) = self.map(offset, bytes) {
                self.unmap(piece)?;
                return Err(error);
            }
            offset += bytes;
        }
        self.released = false;
        Ok(true)
    }
}

/// Free pieces by offset; no two touch.
#[derive(Default)]
struct Free(BTreeMap<usize, usize>);

impl Free {
    fn take(&mut self, bytes: usize) -> Option<usize> {
        let (&offset, &length) = self.0.iter().find(|(_, length)| **length >= bytes)?;
        self.0.remove(&offset);
        if length > bytes {
            self.0.insert(offset + bytes, length - bytes);
        }
        Some(offset)
    }

    fn give(&mut self, mut offset: usize, mut bytes: usize) {
        if let Some((&before, &length)) = self.0.range(..offset).next_back()
            && before + length == offset
        {
            self.0.remove(&before);
            (offset, bytes) = (before, length + bytes);
        }
        if let Some(length) = self.0.remove(&(offset + bytes)) {
            bytes += length;
        }
        self.0.insert(offset, bytes);
    }

    /// The length of the free piece that ends at `end`.
    fn tail(&self, end: usize) -> usize {
        self.0.last_key_value().filter(|(offset, length)| **offset + **length == end).map_or(0, |(_, &length)| length)
    }

    /// Removes the free `bytes` from `start` on, the last ones.
    fn cut(&mut self, start: usize, bytes: usize) {
        if let Some((&offset, _)) =
            self.0.last_key_value().filter(|(offset, length)| *offset + *length == start + bytes)
        {
            self.0.remove(&offset);
            if offset < start {
                self.0.insert(offset, start - offset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Free;

    #[test]
    fn free_pieces_are_taken_from_below_and_join_again() {
        let mut free = Free::default();
        free.give(0, 4096);
        assert_eq!(free.take(1024), Some(0));
        assert_eq!(free.take(1024), Some(1024));
        assert_eq!(free.take(4096), None);
        free.give(0, 1024);
        assert_eq!(free.take(2048), Some(2048), "the hole at the start is too small");
        assert_eq!(free.tail(4096), 0);
        free.give(2048, 2048);
        free.give(1024, 1024);
        assert_eq!(free.tail(4096), 4096);
        assert_eq!(free.take(4096), Some(0));
    }

    #[test]
    fn the_tail_can_be_cut_off() {
        let mut free = Free::default();
        free.give(512, 1536);
        free.cut(1024, 1024);
        assert_eq!(free.tail(1024), 512);
        free.cut(512, 512);
        assert_eq!(free.take(1), None);
    }
}
