//! Which parts of the networks stay in a GPU's memory: decided by sizes alone, before anything is loaded.
//!
//! A picture has four phases: the text encoder and what is prepared for all steps, the steps, the decoder, and the safety checker. What
//! stays is there in all of them, what is lent comes for its phase, and what is streamed passes through a window in each step. Of all ways
//! that fit into the free memory the fastest is taken. The safety checker is the first to leave.

use crate::{
    gpu::Stay,
    offload::{Offload, Shortage},
};

/// The fewest pages of a window that are ahead of the widest layer, best first.
const AHEAD: [usize; 3] = [4, 2, 1];
/// What it costs to copy a page once, and to give memory to a page that was away, in microseconds for 8 MiB. The link's rate is that of
/// PCIe 4.0 with 16 lanes.
const COPY: usize = 340;
const MAP: usize = 160;
/// Steps that are counted with.
const STEPS: usize = 50;
/// Pages are reckoned in these.
const MIB: usize = 1 << 20;

/// What the parts need. Weights are in pages, everything else in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Needs {
    /// Bytes of a page.
    pub page: usize,
    /// Pages of the text encoder.
    pub text: usize,
    /// Pages of what the UNet prepares for all steps.
    pub ahead: usize,
    /// Pages of the rest of the UNet.
    pub unet: usize,
    /// Pages of the decoder.
    pub vae: usize,
    /// Pages of the safety checker, 0 without one.
    pub checker: usize,
    /// The first and last page of each of the UNet's arrays.
    pub spans: Vec<(usize, usize)>,
    /// What is there in every phase beside weights and scratch memory, kernels included.
    pub fixed: usize,
    /// Scratch memory of a step, which stays between pictures.
    pub step: usize,
    /// Scratch memory of the decoder.
    pub whole: usize,
    /// The same, if it works in bands.
    pub bands: Option<usize>,
}

/// Where the safety checker looks at pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CheckerPlace {
    /// On the GPU, where it stays.
    #[default]
    Stays,
    /// On the GPU, to which it comes for each look.
    Comes,
    /// On the CPU.
    Cpu,
}

impl CheckerPlace {
    /// As logs have it: `stays`, `comes` or `cpu`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stays => "stays",
            Self::Comes => "comes",
            Self::Cpu => "cpu",
        }
    }
}

/// What stays, what is lent and what is streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fit {
    /// Whether text encoder, what the UNet prepares, and decoder stay.
    pub kept: [bool; 3],
    /// Pages of the UNet that are streamed.
    pub streamed: usize,
    /// Pages of the window.
    pub places: usize,
    /// Pages of the UNet that leave for the other phases.
    pub lent: usize,
    /// Whether the decoder works in bands, unless a picture fits whole into as much scratch memory.
    pub in_bands: bool,
    /// Where the safety checker looks at pictures, if there is one.
    pub checker: CheckerPlace,
    /// Scratch memory of the decoder.
    pub decode: usize,
    /// The most bytes of any phase.
    pub needed: usize,
}

impl Fit {
    /// The way that was asked for, in `free` bytes. `Model` and `Sequential` take the least memory of their kind with
    /// which the decoder works whole, `Auto` as much as it takes to be fastest. If the safety checker cannot even come, the CPU has it.
    pub(super) fn choose(needs: &Needs, free: usize, offload: Offload) -> Result<Self, Shortage> {
        let choose = |needs: &Needs| match offload {
            Offload::Never => needs.never(free),
            Offload::Model => needs.best(free.min(needs.model(needs.whole())), Streams::No),
            Offload::Sequential => needs.best(free.min(needs.sequential(needs.whole(), AHEAD[0])), Streams::Must),
            Offload::Auto => {
                let ideal = |fit: &Self| !fit.in_bands && fit.checker == CheckerPlace::Stays;
                needs.never(free).filter(ideal).or_else(|| needs.best(free, Streams::May))
            }
        };
        let on_cpu = || Some(Self { checker: CheckerPlace::Cpu, ..choose(&needs.without_checker())? });
        choose(needs).or_else(|| on_cpu().filter(|_| needs.checker > 0)).ok_or_else(|| {
            let needs = needs.without_checker();
            let ways = [
                (Offload::Never, needs.least_never()),
                (Offload::Model, needs.least_model()),
                (Offload::Sequential, needs.least_sequential()),
            ];
            let asked = if offload == Offload::Auto { Offload::Sequential } else { offload };
            let needed = ways.iter().find(|(way, _)| *way == asked).map_or(0, |(_, needed)| *needed);
            let others = ways.into_iter().filter(|(way, _)| *way != asked).collect();
            Shortage { offload, needed, free, others }
        })
    }

    /// Whether nothing is slower than in any amount of memory.
    pub(super) fn is_ideal(&self) -> bool {
        self.offload() == Offload::Never && !self.in_bands && self.checker == CheckerPlace::Stays
    }

    /// What it is called.
    pub(super) fn offload(&self) -> Offload {
        match self {
            Self { streamed: 0, lent: 0, kept: [true, true, true], .. } => Offload::Never,
            Self { streamed: 0, .. } => Offload::Model,
            _ => Offload::Sequential,
        }
    }

    /// How each page of the UNet stays. Streamed pages are spread over all of them, so that copying has the time of the whole step.
    pub(super) fn stays(&self, needs: &Needs) -> Vec<Stay> {
        let streamed = |page: usize| between(page, page, self.streamed, needs.unet) > 0;
        let stay = |page| if streamed(page) { Stay::Streamed } else { Stay::Kept };
        let mut stays: Vec<Stay> = (0..needs.unet).map(stay).collect();
        let resident = stays.iter_mut().rev().filter(|stay| **stay == Stay::Kept);
        resident.take(self.lent).for_each(|stay| *stay = Stay::Lent);
        stays
    }
}

/// How many of `streamed` pages, spread over `pages`, are from `first` to `last`.
fn between(first: usize, last: usize, streamed: usize, pages: usize) -> usize {
    (last + 1) * streamed / pages.max(1) - first * streamed / pages.max(1)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Streams {
    No,
    May,
    Must,
}

impl Needs {
    /// The decoder's scratch memory if it is as small as can be.
    fn least_decode(&self) -> usize {
        self.bands.map_or(self.whole, |bands| bands.min(self.whole)).max(self.step)
    }

    fn all_pages(&self) -> usize {
        (self.text + self.ahead + self.unet + self.vae) * self.page
    }

    fn least_never(&self) -> usize {
        self.fixed + self.all_pages() + self.least_decode()
    }

    /// The decoder's scratch memory if it works whole.
    fn whole(&self) -> usize {
        self.whole.max(self.step)
    }

    fn least_model(&self) -> usize {
        self.model(self.least_decode())
    }

    fn least_sequential(&self) -> usize {
        self.sequential(self.least_decode(), AHEAD[2]).min(self.least_model())
    }

    fn without_checker(&self) -> Self {
        Self { checker: 0, ..self.clone() }
    }

    /// The least memory without streaming, with so much scratch memory for the decoder.
    fn model(&self, decode: usize) -> usize {
        let pages = |pages: usize| pages * self.page;
        let most = self.text.max(self.ahead).max(self.unet).max(self.checker);
        self.fixed + (pages(most) + self.step).max(pages(self.vae) + decode)
    }

    /// The least memory with streaming, with a window that is so many pages ahead.
    fn sequential(&self, decode: usize, ahead: usize) -> usize {
        let pages = |pages: usize| pages * self.page;
        let most = pages(self.text.max(self.ahead).max(self.checker)) + self.step;
        self.fixed + pages(self.places(self.unet, ahead)) + most.max(pages(self.vae) + decode)
    }

    fn never(&self, free: usize) -> Option<Fit> {
        let (whole, fixed) = (self.whole.max(self.step), self.fixed + self.all_pages());
        let decode = if fixed + whole <= free { whole } else { self.least_decode() };
        let with_checker = fixed + whole + self.checker * self.page;
        let (checker, needed) = match self.checker {
            0 => (CheckerPlace::Stays, fixed + decode),
            _ if with_checker <= free => (CheckerPlace::Stays, with_checker),
            _ => (CheckerPlace::Comes, fixed + decode),
        };
        let in_bands = decode < whole;
        let fit = Fit { kept: [true; 3], streamed: 0, places: 0, lent: 0, in_bands, decode, checker, needed };
        (fit.needed <= free).then_some(fit)
    }

    /// Pages of a window for so many streamed pages: those of the widest layer, and some ahead.
    fn places(&self, streamed: usize, ahead: usize) -> usize {
        let widest = self.spans.iter().map(|&(first, last)| between(first, last, streamed, self.unet)).max();
        (widest.unwrap_or(1) + ahead).min(streamed)
    }

    /// The fewest pages to stream, and the window's of at most `most`, so that what stays of the UNet and the window take `room` pages.
    fn streaming(&self, room: usize, most: usize) -> Option<(usize, usize)> {
        let room = room.min(self.unet.checked_sub(1)?);
        let fits = |streamed: usize, ahead: usize| {
            let places = self.places(streamed, ahead);
            (places <= most && self.unet - streamed + places <= room).then_some((streamed, places))
        };
        AHEAD.into_iter().find_map(|ahead| {
            let (streamed, places) = (1..=self.unet).find_map(|streamed| fits(streamed, ahead))?;
            // Whole turns of the window, so that the end of a pass leaves no place idle.
            let whole = fits(streamed.next_multiple_of(places).min(self.unet), ahead);
            Some(whole.unwrap_or((streamed, places)))
        })
    }

    /// The fastest way in so many bytes.
    fn best(&self, free: usize, streams: Streams) -> Option<Fit> {
        // In bands only if nothing else fits: they round otherwise.
        [false, true].into_iter().find_map(|in_bands| {
            let fits = (0..8).filter_map(|bits| {
                let kept = [0, 1, 2].map(|part| bits >> part & 1 == 1);
                self.with(free, streams, kept, in_bands)
            });
            fits.min_by_key(|(_, cost)| *cost).map(|(fit, _)| fit)
        })
    }

    /// The fastest way in so many bytes with these parts kept, and its cost in microseconds for a picture.
    fn with(&self, free: usize, streams: Streams, kept: [bool; 3], in_bands: bool) -> Option<(Fit, usize)> {
        let decode = if in_bands { self.bands? } else { self.whole }.max(self.step);
        let parts = [self.text, self.ahead, self.vae];
        let stays: usize = parts.iter().zip(kept).filter(|(_, kept)| *kept).map(|(pages, _)| pages).sum();
        let also = |part: usize| if kept[part] { 0 } else { parts[part] };
        // Pages that a phase has for the UNet, beside what stays and what comes for it.
        let room = |comes: usize, scratch: usize| {
            let taken = self.fixed + scratch + (stays + comes) * self.page;
            Some(free.checked_sub(taken)? / self.page)
        };
        let in_steps = room(0, self.step)?;
        // Text encoder, preparation and checker come one after the other.
        let text = also(0).max(also(1)).max(self.checker);
        let around = room(text, self.step)?.min(room(also(2), decode)?);
        let whole = self.unet <= in_steps && streams != Streams::Must;
        let (streamed, places) = match streams {
            _ if whole => (0, 0),
            Streams::No => return None,
            _ => self.streaming(in_steps, around)?,
        };
        let resident = self.unet - streamed;
        let stay = around.checked_sub(places)?.min(resident);
        let lent = resident - stay;
        let away: usize = lent + (0..3).map(also).sum::<usize>() + self.checker;
        let each = |cost: usize| cost * self.page / (8 * MIB);
        let cost = away * each(COPY + MAP) + streamed * each(COPY) * STEPS;
        let phase = |unet: usize, comes: usize, scratch: usize| (stays + comes + unet + places) * self.page + scratch;
        let needed = self.fixed
            + [phase(stay, text, self.step), phase(resident, 0, self.step), phase(stay, also(2), decode)]
                .into_iter()
                .max()?;
        let checker = if self.checker > 0 { CheckerPlace::Comes } else { CheckerPlace::Stays };
        Some((Fit { kept, streamed, places, lent, in_bands, decode, checker, needed }, cost))
    }
}

#[cfg(test)]
pub(super) mod tests;
