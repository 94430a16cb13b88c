//! Which pages of an arena have memory of their own, and which come from the host when they are needed.
//!
//! A page keeps its address whatever happens, so that recorded graphs stay valid. A page that may leave has a copy on the host, in the
//! layout of the GPU: it comes back by one copy. Streamed pages share a window of memory, which is mapped to all of them: each pass over
//! the network copies them into it one after the other, ahead of their use.

use super::{
    Gpu, GpuError, Result,
    error::{check, check_safe},
    physical::{Chunk, Physical, unmap},
    pinned::HostPage,
    ring::{Moves, Ring},
};
use cudarc::driver::{CudaEvent, CudaStream, sys};
use std::{collections::HashSet, sync::Arc};

/// Where a page is while the GPU works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stay {
    /// In memory of its own, always.
    Kept,
    /// In memory of its own between [`Residency::come`] and [`Residency::leave`].
    Lent,
    /// In the window when a pass needs it.
    Streamed,
}

/// The pages of one arena.
pub(super) struct Residency {
    physical: Physical,
    base: u64,
    page: usize,
    pages: Vec<Page>,
    window: Option<Window>,
    /// Whether every page is as it was asked for: not after an error.
    settled: bool,
}

struct Page {
    stay: Stay,
    own: Option<Chunk>,
    host: Option<HostPage>,
}

/// Memory that streamed pages share.
struct Window {
    chunks: Vec<Chunk>,
    /// The streamed pages.
    order: Vec<usize>,
    ring: Ring,
    stream: Arc<CudaStream>,
    /// The work after which a place of the window is free.
    free: CudaEvent,
    /// The last copy to each place.
    copied: Vec<CudaEvent>,
    /// Whether the window holds what a pass begins with.
    filled: bool,
    in_pass: bool,
}

impl Page {
    /// Whether it has to come before anything uses it.
    fn is_away(&self) -> bool {
        self.stay != Stay::Streamed && self.own.is_none()
    }
}

impl Residency {
    pub(super) fn new(physical: Physical, base: u64, page: usize) -> Self {
        Self { physical, base, page, pages: Vec::new(), window: None, settled: false }
    }

    fn address(&self, page: usize) -> u64 {
        self.base + (page * self.page) as u64
    }

    /// From now on, pages stay as `stays` says, and streamed ones share `places` pages of memory. Contents stay as they are; those of
    /// new pages are any. Lent pages have left. After an error, call it again before anything else: pages may lack memory.
    ///
    /// # Errors
    /// The driver's; memory is short, of the GPU or of the host.
    pub(super) fn settle(&mut self, gpu: &Gpu, stays: &[Stay], places: usize) -> Result<()> {
        gpu.synchronize()?;
        self.settled = false;
        self.pages.resize_with(stays.len(), || Page { stay: Stay::Kept, own: None, host: None });
        for (index, &stay) in stays.iter().enumerate() {
            let address = self.address(index);
            let page = &mut self.pages[index];
            if stay != Stay::Kept && page.host.is_none() {
                let mut host = HostPage::new(gpu, self.page)?;
                if page.own.is_some() {
                    host.copy_from(gpu, address)?;
                }
                page.host = Some(host);
            }
        }
        gpu.synchronize()?;
        self.drop_window()?;
        for (index, &stay) in stays.iter().enumerate() {
            self.pages[index].stay = stay;
            if stay != Stay::Kept {
                self.withdraw(index)?;
            }
        }
        for (index, &stay) in stays.iter().enumerate() {
            if stay == Stay::Kept && self.pages[index].own.is_none() {
                self.bring(gpu, index)?;
            }
        }
        gpu.synchronize()?;
        for page in self.pages.iter_mut().filter(|page| page.stay == Stay::Kept) {
            page.host = None;
        }
        self.open_window(gpu, places)?;
        self.settled = true;
        Ok(())
    }

    fn open_window(&mut self, gpu: &Gpu, places: usize) -> Result<()> {
        let is_streamed = |index: &usize| self.pages[*index].stay == Stay::Streamed;
        let order: Vec<usize> = (0..self.pages.len()).filter(is_streamed).collect();
        if order.is_empty() {
            return Ok(());
        }
        let chunks = (0..places.max(1)).map(|_| self.physical.take(self.page)).collect::<Result<Vec<_>>>()?;
        let copied = chunks.iter().map(|_| gpu.event()).collect::<Result<_>>()?;
        let (ring, free, stream) = (Ring::new(order.len(), chunks.len()), gpu.event()?, gpu.new_stream()?);
        let window = self.window.insert(Window {
            chunks,
            order: Vec::new(),
            ring,
            stream,
            free,
            copied,
            filled: false,
            in_pass: false,
        });
        for (index, page) in order.into_iter().enumerate() {
            let address = self.base + (page * self.page) as u64;
            self.physical.map(&window.chunks[window.ring.place(index)], address)?;
            window.order.push(page);
        }
        Ok(())
    }

    fn drop_window(&mut self) -> Result<()> {
        if let Some(window) = self.window.take() {
            check_safe("cuStreamSynchronize", window.stream.synchronize())?;
            window.order.iter().try_for_each(|&page| unmap(self.address(page), self.page))?;
        }
        Ok(())
    }

    /// Maps new memory to a page, and copies its content from the host if it has one there.
    fn bring(&mut self, gpu: &Gpu, index: usize) -> Result<()> {
        let chunk = self.physical.take(self.page)?;
        let address = self.address(index);
        self.physical.map(&chunk, address)?;
        let page = &mut self.pages[index];
        page.own = Some(chunk);
        page.host.as_ref().map_or(Ok(()), |host| host.copy_to(address, gpu.stream()))
    }

    /// Gives a page's memory back. Nothing may use it any more.
    fn withdraw(&mut self, index: usize) -> Result<()> {
        if self.pages[index].own.is_some() {
            unmap(self.address(index), self.page)?;
            self.pages[index].own = None;
        }
        Ok(())
    }

    fn check_settled(&self) -> Result<()> {
        // As such, so that it is settled anew with less.
        let why = || GpuError::call("weights without memory since an earlier error", "OUT_OF_MEMORY");
        self.settled.then_some(()).ok_or_else(why)
    }

    /// Brings the lent pages, in the order of the GPU's work. Returns whether any was away. After an error all are away.
    pub(super) fn come(&mut self, gpu: &Gpu) -> Result<bool> {
        self.check_settled()?;
        let missing: Vec<usize> = (0..self.pages.len()).filter(|&index| self.pages[index].is_away()).collect();
        for &index in &missing {
            if let Err(error) = self.bring(gpu, index) {
                self.leave(gpu)?;
                return Err(error);
            }
        }
        Ok(!missing.is_empty())
    }

    /// Gives the lent pages' memory back to the driver. What changed in them must have been stored.
    pub(super) fn leave(&mut self, gpu: &Gpu) -> Result<()> {
        let there = |page: &Page| page.stay == Stay::Lent && page.own.is_some();
        let lent: Vec<usize> = (0..self.pages.len()).filter(|&index| there(&self.pages[index])).collect();
        if !lent.is_empty() {
            gpu.synchronize()?;
            lent.into_iter().try_for_each(|index| self.withdraw(index))?;
        }
        Ok(())
    }

    /// The streamed pages among these, as numbers in their order.
    fn streamed(&self, (first, last): (usize, usize)) -> Option<(usize, usize)> {
        let order = &self.window.as_ref()?.order;
        let (from, to) = (order.partition_point(|&page| page < first), order.partition_point(|&page| page <= last));
        (from < to).then(|| (from, to - 1))
    }

    /// How many of these ranges of pages, from the first on, can be changed at once. They are in order of address.
    pub(super) fn at_once(&self, spans: &[(usize, usize)]) -> usize {
        let places = self.window.as_ref().map_or(0, |window| window.chunks.len());
        let mut first = None;
        spans
            .iter()
            .take_while(|&&span| match self.streamed(span) {
                Some((from, to)) => to - *first.get_or_insert(from) < places,
                None => true,
            })
            .count()
    }

    /// Makes the pages of a range ready to be changed. They must be such as [`Residency::at_once`] allows. Returns whether anything was
    /// copied: then the GPU's stream has to be waited for.
    pub(super) fn open(&mut self, gpu: &Gpu, span: (usize, usize)) -> Result<bool> {
        self.check_settled()?;
        let Some((from, to)) = self.streamed(span) else { return Ok(false) };
        let base = self.base;
        if let Some(window) = &mut self.window {
            window.filled = false;
            for &page in &window.order[from..=to] {
                let host = self.pages[page].host.as_ref().ok_or_else(lost)?;
                host.copy_to(base + (page * self.page) as u64, gpu.stream())?;
            }
        }
        Ok(true)
    }

    /// Stores pages that were changed, unless they are kept. Returns when they are stored.
    pub(super) fn store(&mut self, gpu: &Gpu, pages: &HashSet<usize>) -> Result<()> {
        let mut stored = false;
        for &index in pages {
            let address = self.address(index);
            if let Some(host) = &mut self.pages[index].host {
                host.copy_from(gpu, address)?;
                stored = true;
            }
        }
        if stored { gpu.synchronize() } else { Ok(()) }
    }

    /// Begins a pass: fills the window if it was used for something else. None may be recorded before it is filled.
    pub(super) fn begin(&mut self, gpu: &Gpu) -> Result<()> {
        self.check_settled()?;
        let Some(window) = &mut self.window else { return Ok(()) };
        if !window.filled || window.in_pass {
            let moves = window.ring.fill();
            window.run(gpu, moves, &self.pages, (self.base, self.page))?;
            window.filled = true;
        }
        window.in_pass = true;
        Ok(())
    }

    /// Fills the window if a pass cannot begin yet.
    pub(super) fn ready(&mut self, gpu: &Gpu) -> Result<()> {
        self.begin(gpu)?;
        if let Some(window) = &mut self.window {
            window.in_pass = false;
        }
        Ok(())
    }

    /// Ends a pass: copies what the next one begins with.
    pub(super) fn end(&mut self, gpu: &Gpu) -> Result<()> {
        let Some(window) = &mut self.window else { return Ok(()) };
        window.in_pass = false;
        let moves = window.ring.end();
        window.run(gpu, moves, &self.pages, (self.base, self.page))
    }

    /// To be called before work that uses these pages is enqueued. In a pass, pages are used in order of address.
    pub(super) fn reach(&mut self, gpu: &Gpu, span: (usize, usize)) -> Result<()> {
        if self.pages.get(span.0..=span.1).is_none_or(|pages| pages.iter().any(Page::is_away)) {
            return Err(GpuError::Unavailable(format!("weights on pages {span:?} are used while they are away")));
        }
        let Some((first, last)) = self.streamed(span) else { return Ok(()) };
        let Some(window) = &mut self.window else { return Ok(()) };
        let moves = window.ring.reach(first, last).filter(|_| window.in_pass);
        match moves {
            Some(moves) => window.run(gpu, moves, &self.pages, (self.base, self.page)),
            None => Err(GpuError::Unavailable(format!("weights on pages {span:?} are used out of their order"))),
        }
    }
}

impl Window {
    fn run(&mut self, gpu: &Gpu, moves: Moves, pages: &[Page], (base, size): (u64, usize)) -> Result<()> {
        if !moves.copies.is_empty() {
            gpu.record(&self.free)?;
            check_safe("cuStreamWaitEvent", self.stream.wait(&self.free))?;
        }
        for number in moves.copies {
            let page = self.order[number];
            let host = pages[page].host.as_ref().ok_or_else(lost)?;
            host.copy_to(base + (page * size) as u64, &self.stream)?;
            check_safe("cuEventRecord", self.copied[self.ring.place(number)].record(&self.stream))?;
        }
        if let Some(number) = moves.awaited {
            gpu.wait_before_next(&self.copied[self.ring.place(number)])?;
        }
        Ok(())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // Copies may be on their way from pages of the host. An error here means that the GPU is lost: nothing copies any more.
        let _ = self.stream.synchronize();
    }
}

impl Drop for Residency {
    fn drop(&mut self) {
        // Memory stays taken as long as it is mapped.
        let _ = self.drop_window();
        for index in 0..self.pages.len() {
            let _ = self.withdraw(index);
        }
    }
}

fn lost() -> GpuError {
    GpuError::Unavailable("a page without a copy on the host".into())
}

impl HostPage {
    /// Enqueues a copy to the GPU.
    fn copy_to(&self, address: u64, stream: &CudaStream) -> Result<()> {
        let (from, bytes) = self.content();
        // SAFETY: a mapped page of as many bytes; the host's page lives until its residency is settled anew, which waits for the copy.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(address, from.cast(), bytes, stream.cu_stream())
        })
    }

    /// Enqueues a copy from the GPU, after its work so far.
    fn copy_from(&mut self, gpu: &Gpu, address: u64) -> Result<()> {
        let (into, bytes) = self.content();
        // SAFETY: as above. Nobody reads the host's page but copies of the same stream, or of others that wait for it.
        check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(into.cast(), address, bytes, gpu.stream().cu_stream())
        })
    }
}
