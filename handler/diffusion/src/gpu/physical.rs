//! Pieces of a GPU's physical memory, and the addresses that they are mapped to: CUDA's virtual memory.

use super::{Meter, Result, check};
use cudarc::driver::sys::{
    self, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationHandleType, CUmemAllocationProp,
    CUmemAllocationProp_st__bindgen_ty_1, CUmemAllocationType, CUmemLocation, CUmemLocationType,
};
use std::{ptr::null_mut, sync::Arc};

/// A reserved range in bytes, far more than any GPU's memory.
pub(super) const RESERVED: usize = 1 << 38;
/// It starts at a multiple of this.
const ALIGNMENT: usize = 16 << 20;

/// Where pieces come from: one GPU.
#[derive(Clone)]
pub(super) struct Physical {
    properties: CUmemAllocationProp,
    meter: Arc<Meter>,
}

// SAFETY: plain data; the properties hold no pointer that is used.
unsafe impl Send for Physical {}

/// A piece of memory. The memory is given back when this is dropped and nothing is mapped to it any more.
pub(super) struct Chunk {
    handle: u64,
    bytes: usize,
    meter: Arc<Meter>,
}

impl Physical {
    pub(super) fn new(device: i32, meter: Arc<Meter>) -> Self {
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
        Self { properties, meter }
    }

    /// Reserves a range of so many addresses for the rest of the process' life. It holds no memory.
    pub(super) fn reserve(&self, bytes: usize) -> Result<u64> {
        let mut base = 0;
        // SAFETY: reserves addresses, no memory.
        check("cuMemAddressReserve", unsafe { sys::cuMemAddressReserve(&mut base, bytes, ALIGNMENT, 0, 0) })?;
        Ok(base)
    }

    /// Takes memory from the driver, with any contents. `bytes` is a multiple of the driver's granularity, 2 MiB.
    pub(super) fn take(&self, bytes: usize) -> Result<Chunk> {
        let mut handle = 0;
        // SAFETY: writes the handle of new memory.
        check("cuMemCreate", unsafe { sys::cuMemCreate(&mut handle, bytes, &self.properties, 0) })?;
        self.meter.add(bytes);
        Ok(Chunk { handle, bytes, meter: self.meter.clone() })
    }

    /// Maps a piece to reserved addresses that nothing is mapped to. One piece may be mapped to several ranges.
    pub(super) fn map(&self, chunk: &Chunk, address: u64) -> Result<()> {
        let flags = CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        let access = CUmemAccessDesc { location: self.properties.location, flags };
        // SAFETY: the handle is alive, and the driver refuses addresses that are not reserved or in use.
        unsafe {
            check("cuMemMap", sys::cuMemMap(address, chunk.bytes, 0, chunk.handle, 0))?;
            let open = check("cuMemSetAccess", sys::cuMemSetAccess(address, chunk.bytes, &access, 1));
            if open.is_err() {
                sys::cuMemUnmap(address, chunk.bytes);
            }
            open
        }
    }
}

impl Chunk {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: from `cuMemCreate`, and released once. Mappings keep the memory alive.
        unsafe { sys::cuMemRelease(self.handle) };
        self.meter.remove(self.bytes);
    }
}

/// Ends a mapping of exactly this range.
pub(super) fn unmap(address: u64, bytes: usize) -> Result<()> {
    // SAFETY: a range of ours that was mapped as one. A kernel that still used it would fail, and touch nothing else.
    check("cuMemUnmap", unsafe { sys::cuMemUnmap(address, bytes) })
}
