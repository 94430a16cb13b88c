//! An allocator over one reserved range of addresses. Memory is mapped into it piece by piece as it fills, so addresses never change.
//! cudarc's own arrays come from the driver's pool, which chooses an address anew each time.
//!
//! First fit from the lowest address: the same sequence of requests always gets the same addresses.

use super::{
    GpuError, Meter, Result,
    physical::{Chunk, Physical, RESERVED, unmap},
    residency::Residency,
};
use std::{collections::BTreeMap, sync::Arc};

/// Allocations start at multiples of this many bytes.
const ALIGNMENT: usize = 512;
/// Memory is taken from the driver in multiples of this, unless an arena has a smaller page.
pub(crate) const PAGE: usize = 16 << 20;

/// The range of a section of weights. None is given back, and a process of tests needs hundreds.
const WEIGHTS: usize = if cfg!(test) { 1 << 33 } else { RESERVED };

pub(super) struct Arena {
    base: u64,
    free: Free,
    page: usize,
    physical: Physical,
    memory: Memory,
    /// The highest end of an allocation since [`Arena::forget_highest`].
    highest: usize,
}

/// How addresses get memory behind them.
enum Memory {
    /// As soon as they are allocated: pieces in order of address.
    Mapped(Vec<Chunk>),
    /// Page by page, as [`Residency`] is told. These are the bytes of all pages.
    Settled(usize, Box<Residency>),
}

impl Arena {
    /// An arena that maps memory as it fills.
    pub(super) fn new(device: i32, page: usize, meter: Arc<Meter>) -> Result<Self> {
        let physical = Physical::new(device, meter);
        let (base, memory) = (physical.reserve(RESERVED)?, Memory::Mapped(Vec::new()));
        Ok(Self { base, free: Free::default(), page, physical, memory, highest: 0 })
    }

    /// An arena that gives out addresses only. Its pages get memory by [`Residency::settle`].
    pub(super) fn of_pages(device: i32, page: usize, meter: Arc<Meter>) -> Result<Self> {
        let physical = Physical::new(device, meter);
        let base = physical.reserve(WEIGHTS)?;
        let memory = Memory::Settled(0, Box::new(Residency::new(physical.clone(), base, page)));
        Ok(Self { base, free: Free::default(), page, physical, memory, highest: 0 })
    }

    /// Allocates `bytes`, rounded up to the alignment.
    pub(super) fn take(&mut self, bytes: usize) -> Result<u64> {
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT);
        let offset = match self.free.take(bytes) {
            Some(offset) => offset,
            None => {
                self.grow(bytes)?;
                self.free.take(bytes).ok_or_else(|| GpuError::Unavailable("an arena lost its memory".into()))?
            }
        };
        self.highest = self.highest.max(offset + bytes);
        Ok(self.base + offset as u64)
    }

    /// Makes room for an allocation at the end.
    fn grow(&mut self, bytes: usize) -> Result<()> {
        let end = self.end();
        let missing = (bytes - self.free.tail(end)).next_multiple_of(self.page);
        match &mut self.memory {
            Memory::Mapped(pieces) => {
                let chunk = self.physical.take(missing)?;
                self.physical.map(&chunk, self.base + end as u64)?;
                pieces.push(chunk);
            }
            Memory::Settled(bytes, _) => *bytes += missing,
        }
        self.free.give(end, missing);
        Ok(())
    }

    /// Bytes of all pages.
    pub(super) fn end(&self) -> usize {
        match &self.memory {
            Memory::Mapped(pieces) => pieces.iter().map(Chunk::bytes).sum(),
            Memory::Settled(bytes, _) => *bytes,
        }
    }

    pub(super) fn page(&self) -> usize {
        self.page
    }

    /// The pages from the first to the last that a range of addresses touches.
    pub(super) fn pages_of(&self, address: u64, bytes: usize) -> (usize, usize) {
        let offset = (address - self.base) as usize;
        (offset / self.page, (offset + bytes.max(1) - 1) / self.page)
    }

    /// How its pages get memory; none if they have it as soon as they are allocated.
    pub(super) fn residency(&mut self) -> Option<&mut Residency> {
        match &mut self.memory {
            Memory::Mapped(_) => None,
            Memory::Settled(_, residency) => Some(residency),
        }
    }

    /// Frees what [`Arena::take`] allocated.
    pub(super) fn give(&mut self, address: u64, bytes: usize) {
        self.free.give((address - self.base) as usize, bytes.max(1).next_multiple_of(ALIGNMENT));
    }

    /// Returns the highest end of an allocation so far, in bytes from the start, and starts anew.
    pub(super) fn forget_highest(&mut self) -> usize {
        std::mem::take(&mut self.highest)
    }

    /// Gives free memory at the end back to the driver, but for the first `keep` bytes. Returns the bytes that are left.
    pub(super) fn trim(&mut self, keep: usize) -> Result<usize> {
        let mut end = self.end();
        if let Memory::Mapped(pieces) = &mut self.memory {
            while let Some(chunk) =
                pieces.pop_if(|chunk| self.free.tail(end) >= chunk.bytes() && end - chunk.bytes() >= keep)
            {
                end -= chunk.bytes();
                self.free.cut(end, chunk.bytes());
                unmap(self.base + end as u64, chunk.bytes())?;
            }
        }
        Ok(end)
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
