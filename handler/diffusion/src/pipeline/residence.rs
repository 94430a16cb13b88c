//! Where the networks of a model are on a GPU: which parts stay, and what comes and leaves with the phases of a picture.

use super::{
    fit::{CheckerPlace, Fit, Needs},
    networks::parameters,
    options::LoadOptions,
    safety::checker_parameters,
};
use crate::{
    error::{PipelineError, Result},
    gpu::{Dtype, Gpu, GpuError, Placed, Stay},
    loading::config::{UnetConfig, VaeConfig},
    models::{unet::room_bytes, vae::DecodeMemory},
    offload::{Offload, Shortage},
};
use std::{path::Path, sync::Arc};

/// Memory comes and leaves in pages of this many bytes, or smaller ones for a small UNet.
const PAGE: usize = 8 << 20;
const SMALL_PAGE: usize = 2 << 20;
/// A UNet of fewer parameters is small.
const SMALL: usize = 64 << 20;

/// What is there in every phase beside weights and scratch memory: kernels, which load when they are first used, the lanes that carry
/// weights, and the tables that steps share.
const FIXED: usize = 96 << 20;
/// Scratch memory of one step for one 512x512 picture of Stable Diffusion 1.5 with guidance in f16: 8 pictures took 870 MiB.
const STEP: usize = 112 << 20;
/// Keys and values of the longest prompts for one picture with guidance.
const LONG_KEYS: usize = 64 << 20;
/// Height and width of the latents of the largest usual size.
const LARGEST: (usize, usize) = (96, 96);
/// What is always taken of scratch memory.
const SCRATCH_PAGE: usize = 16 << 20;

/// How a model lies in a GPU's memory. Figures are bytes, if nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// The way that was chosen.
    pub offload: Offload,
    /// The most memory of any phase of a picture, by reckoning.
    pub needed: usize,
    /// Width and height in pixels of the largest picture that is reckoned with. What a larger one needs is freed when it comes.
    pub size: (usize, usize),
    /// What was free when the way was chosen.
    pub free: usize,
    /// Weights that stay.
    pub kept: usize,
    /// Weights that come and leave once a picture.
    pub lent: usize,
    /// Weights that are copied in each step.
    pub streamed: usize,
    /// The window that they pass through.
    pub window: usize,
    /// Whether the decoder works in bands, unless a picture fits whole into as much memory.
    pub in_bands: bool,
    /// Where a safety checker looks at pictures, if there is one.
    pub checker: CheckerPlace,
}

/// The networks' tensors on one GPU.
pub(super) struct Residence {
    pub(super) text: Arc<Placed>,
    /// What the UNet prepares for all steps.
    pub(super) ahead: Arc<Placed>,
    /// What each step of the UNet uses.
    pub(super) unet: Arc<Placed>,
    pub(super) vae: Arc<Placed>,
    /// Pages of the safety checker.
    checker: usize,
    needs: Needs,
    fit: Fit,
    /// Height and width of the latents that are reckoned with.
    reckoned: (usize, usize),
    free: usize,
}

/// Heights and widths of latents.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Of the first picture.
    pub(crate) first: (usize, usize),
    /// Of the largest picture to come.
    pub(crate) largest: (usize, usize),
}

impl Sizes {
    /// Of pictures of that width and height in pixels, of which each `factor` are one place of the latents.
    pub(crate) fn of(first: (usize, usize), largest: Option<(usize, usize)>, factor: usize) -> Self {
        let latents = |(width, height): (usize, usize)| (height.div_ceil(factor), width.div_ceil(factor));
        let largest = largest.map_or((0, 0), latents);
        Self { first: latents(first), largest: larger(larger(latents(first), LARGEST), largest) }
    }
}

/// The size to reckon with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Height and width of the latents.
    pub(crate) latents: (usize, usize),
    /// Pictures at once.
    pub(crate) images: usize,
    /// Whether prompts may be long: their steps use what otherwise only prepares them.
    pub(crate) long_prompts: bool,
}

impl Residence {
    /// Places for tensors, without memory yet. Room is reckoned for a safety checker of so many parameters, 0 without one.
    pub(super) fn new(gpu: &Gpu, dtype: Dtype, unet_parameters: usize, checker_parameters: usize) -> Result<Self> {
        let page = if unet_parameters < SMALL { SMALL_PAGE } else { PAGE };
        let unet = Placed::new(gpu, dtype, page)?;
        let none = Needs {
            page,
            text: 0,
            ahead: 0,
            unet: 0,
            vae: 0,
            checker: 0,
            spans: Vec::new(),
            fixed: 0,
            step: 0,
            whole: 0,
            bands: None,
        };
        let fit = Fit {
            kept: [true; 3],
            streamed: 0,
            places: 0,
            lent: 0,
            in_bands: false,
            decode: 0,
            checker: CheckerPlace::default(),
            needed: 0,
        };
        Ok(Self {
            text: Placed::new(gpu, dtype, page)?,
            ahead: unet.section()?,
            vae: Placed::new(gpu, dtype, page)?,
            unet,
            checker: pages_of(checker_parameters, dtype, page),
            needs: none,
            fit,
            reckoned: (0, 0),
            free: 0,
        })
    }

    pub(super) fn gpu(&self) -> &Gpu {
        self.unet.gpu()
    }

    /// Chooses a way by what the placed tensors need, and gives them memory. To be called when all are placed.
    ///
    /// # Errors
    /// There is too little memory for what was asked for: [`PipelineError::Memory`].
    pub(super) fn settle(&mut self, configs: (&UnetConfig, &VaeConfig), sizes: Sizes, offload: Offload) -> Result<()> {
        self.free = self.gpu().free_bytes()?;
        let needs = |latents| self.needs_for(configs, Extent { latents, images: 1, long_prompts: false });
        (self.needs, self.fit, self.reckoned) = choose(needs, sizes, self.free, offload)?;
        tracing::debug!(fit = ?self.fit, free = self.free, "what stays on the GPU");
        Ok(self.apply_fit()?)
    }

    fn needs_for(&self, configs: (&UnetConfig, &VaeConfig), extent: Extent) -> Needs {
        let ([step, whole, bands], (page, unet)) = (scratch(configs, extent, self.unet.dtype()), self.unet.pages());
        let step = if extent.long_prompts { step + LONG_KEYS + self.ahead.pages().1 * page } else { step };
        Needs {
            page,
            text: self.text.pages().1,
            ahead: self.ahead.pages().1,
            unet,
            vae: self.vae.pages().1,
            checker: self.checker,
            spans: self.unet.spans(),
            fixed: FIXED + self.prompts(configs.0, extent),
            step,
            whole,
            bands: Some(bands),
        }
    }

    /// Chooses again, for less memory than until now, and takes away what has to go. Numbers stay what they are. No recorded graph may be
    /// left.
    ///
    /// # Errors
    /// Even the smallest way does not fit; the driver's.
    pub(super) fn shrink(&mut self, configs: (&UnetConfig, &VaeConfig), extent: Extent) -> Result<()> {
        let gpu = self.gpu().clone();
        // What is loaded by now is not free any more.
        let fixed = gpu.resident_bytes().max(self.prompts(configs.0, extent));
        self.needs = Needs { fixed, ..self.needs_for(configs, extent) };
        self.reckoned = extent.latents;
        self.free = gpu.free_bytes()? + gpu.bytes();
        let way = |fit: &Fit| (fit.kept, fit.streamed, fit.lent, fit.places, fit.in_bands);
        let tighter = |fit: &Fit| way(fit) != way(&self.fit);
        let budgets = [self.free, self.free - self.free / 8, self.free / 4 * 3];
        let fits = budgets.iter().map(|&free| Fit::choose(&self.needs, free, Offload::Auto));
        let fit = fits.filter_map(|fit| fit.ok().filter(tighter)).find(|fit| fit.offload() != Offload::Never);
        self.fit = match fit {
            Some(fit) => fit,
            None => Fit::choose(&self.needs, self.free, Offload::Sequential).map_err(PipelineError::Memory)?,
        };
        tracing::debug!(fit = ?self.fit, free = self.free, "less stays on the GPU");
        Ok(self.apply_fit()?)
    }

    /// What is folded of the prompts, with guidance two for each picture.
    fn prompts(&self, config: &UnetConfig, extent: Extent) -> usize {
        2 * extent.images * room_bytes(config, Some(self.gpu()), self.unet.dtype())
    }

    fn apply_fit(&self) -> std::result::Result<(), GpuError> {
        let [text, ahead, vae] = self.fit.kept.map(|kept| if kept { Stay::Kept } else { Stay::Lent });
        // Those that shrink come first.
        let parts = [(&self.text, text), (&self.ahead, ahead), (&self.vae, vae)];
        let whole = |placed: &Placed, stay| placed.settle(&vec![stay; placed.pages().1], 0);
        let (lent, kept): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(_, stay)| *stay == Stay::Lent);
        lent.into_iter().try_for_each(|(placed, stay)| whole(placed, stay))?;
        self.unet.settle(&self.fit.stays(&self.needs), self.fit.places)?;
        kept.into_iter().try_for_each(|(placed, stay)| whole(placed, stay))
    }

    /// All that can leave leaves for the phases in which it is not used. No recorded graph may be left.
    ///
    /// # Errors
    /// The driver's.
    pub(super) fn lend_all(&mut self) -> Result<()> {
        self.fit = Fit { kept: [false; 3], lent: self.needs.unet - self.fit.streamed, ..self.fit.clone() };
        Ok(self.apply_fit()?)
    }

    /// What was chosen, against what is free now.
    pub(super) fn shortage(&self) -> Result<Shortage> {
        let free = self.gpu().free_bytes()? + self.gpu().bytes();
        Ok(Shortage { offload: self.fit.offload(), needed: self.fit.needed, free, others: Vec::new() })
    }

    /// Where a safety checker is. One that was not reckoned with comes, unless there is memory for everything.
    pub(super) fn checker_place(&self) -> CheckerPlace {
        if self.checker == 0 && !self.is_whole() { CheckerPlace::Comes } else { self.fit.checker }
    }

    /// How a picture of that width and height in pixels is decoded as the networks lie now.
    pub(super) fn decoding(&self, config: &VaeConfig, size: (usize, usize)) -> DecodeMemory {
        match self.fit.in_bands {
            true => DecodeMemory::fitting(config, size, self.unet.dtype(), self.fit.decode),
            false => DecodeMemory::Whole,
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.fit.offload() == Offload::Never
    }

    /// `factor` pixels of a side are one place of the latents.
    pub(super) fn footprint(&self, factor: usize) -> Footprint {
        let (fit, needs) = (&self.fit, &self.needs);
        let parts = [needs.text, needs.ahead, needs.vae].into_iter().zip(fit.kept);
        let (mut kept, mut lent) = (needs.unet - fit.streamed - fit.lent, fit.lent);
        parts.for_each(|(pages, stays)| *if stays { &mut kept } else { &mut lent } += pages);
        Footprint {
            offload: fit.offload(),
            needed: fit.needed,
            size: (self.reckoned.1 * factor, self.reckoned.0 * factor),
            free: self.free,
            kept: kept * needs.page,
            lent: lent * needs.page,
            streamed: fit.streamed * needs.page,
            window: fit.places * needs.page,
            in_bands: fit.in_bands,
            checker: self.checker_place(),
        }
    }
}

/// Pages of so many parameters. Arrays leave gaps.
fn pages_of(parameters: usize, dtype: Dtype, page: usize) -> usize {
    if parameters == 0 { 0 } else { (parameters * dtype.bytes()).div_ceil(page) + 1 }
}

/// Chooses a way, and says for which height and width of latents. `Auto` reckons with the largest size to come, if all stays on the GPU
/// nevertheless. Else it reckons with the largest usual size if that fits and leaves the safety checker on the GPU, and lets the size of
/// the first picture be decoded whole: no picture is slower because of larger ones that may never come.
fn choose(
    needs: impl Fn((usize, usize)) -> Needs,
    Sizes { first, largest }: Sizes,
    free: usize,
    offload: Offload,
) -> Result<(Needs, Fit, (usize, usize))> {
    let usual = larger(first, LARGEST);
    let is_auto = offload == Offload::Auto;
    if is_auto && largest != usual {
        let needs = needs(largest);
        if let Some(fit) = Fit::choose(&needs, free, offload).ok().filter(Fit::is_ideal) {
            return Ok((needs, fit, largest));
        }
    }
    let larger = is_auto.then(|| {
        let (asked, larger) = (needs(first), needs(usual));
        Needs { bands: larger.bands.map(|bands| bands.max(asked.whole)), ..larger }
    });
    let larger = larger.and_then(|needs| Some((Fit::choose(&needs, free, offload).ok()?, needs)));
    let on_gpu = |(fit, _): &(Fit, Needs)| fit.checker != CheckerPlace::Cpu;
    if let Some((fit, needs)) = larger.clone().filter(on_gpu) {
        return Ok((needs, fit, usual));
    }
    let asked = needs(first);
    let fit = Fit::choose(&asked, free, offload).map_err(PipelineError::Memory)?;
    // A look of the CPU takes seconds.
    Ok(match larger {
        Some((larger, needs)) if fit.checker == CheckerPlace::Cpu => (needs, larger, usual),
        _ => (asked, fit, first),
    })
}

/// How a model would lie in `free` bytes of a GPU's memory, by the shapes of its tensors. Reads only the model folder's JSON files.
///
/// # Errors
/// There is too little memory for what was asked for ([`PipelineError::Memory`]), or the folder cannot be used.
pub fn foresee(model: &Path, dtype: Dtype, options: &LoadOptions, free: usize) -> Result<Footprint> {
    let &LoadOptions { offload, size, largest, .. } = options;
    let (unet_config, vae_config) = (UnetConfig::load(model)?, VaeConfig::load(model)?);
    let configs = (&unet_config, &vae_config);
    let parameters =
        parameters(model)?.map(|shapes| shapes.iter().map(|(_, dims)| dims.iter().product::<usize>()).sum::<usize>());
    let factor = vae_config.factor();
    let page = if parameters[1] < SMALL { SMALL_PAGE } else { PAGE };
    let [text, unet, vae] = parameters.map(|count| pages_of(count, dtype, page));
    let checker = pages_of(checker_parameters(model, &options.safety_checker)?, dtype, page);
    // The share of SD 1.5's UNet that only prepares the steps, and its widest layer. With the prompts' keys go the weights of queries
    // and output.
    let ahead = unet.div_ceil(if room_bytes(&unet_config, None, dtype) > 0 { 12 } else { 18 });
    let widest = (unet / 26).max(1);
    let unet = unet - ahead;
    let spans: Vec<_> = (0..unet).map(|first| (first, (first + widest).min(unet - 1))).collect();
    let needs = |latents| {
        let extent = Extent { latents, images: 1, long_prompts: false };
        let [step, whole, bands] = scratch(configs, extent, dtype);
        Needs {
            page,
            text,
            ahead,
            unet,
            vae,
            checker,
            spans: spans.clone(),
            fixed: FIXED + 2 * extent.images * room_bytes(&unet_config, None, dtype),
            step,
            whole,
            bands: Some(bands),
        }
    };
    let (_, fit, reckoned) = choose(needs, Sizes::of(size, largest, factor), free, offload)?;
    let (kept, all) = (fit.kept, [text, ahead, vae]);
    let stays: usize = all.iter().zip(kept).filter(|(_, kept)| *kept).map(|(pages, _)| pages).sum();
    let comes = all.iter().sum::<usize>() - stays + fit.lent;
    Ok(Footprint {
        offload: fit.offload(),
        needed: fit.needed,
        size: (reckoned.1 * factor, reckoned.0 * factor),
        free,
        kept: (stays + unet - fit.streamed - fit.lent) * page,
        lent: comes * page,
        streamed: fit.streamed * page,
        window: fit.places * page,
        in_bands: fit.in_bands,
        checker: fit.checker,
    })
}

/// The one with more places; the second of two with as many.
fn larger(one: (usize, usize), other: (usize, usize)) -> (usize, usize) {
    if one.0 * one.1 > other.0 * other.1 { one } else { other }
}

/// Scratch memory of a step, and of the decoder, whole and in bands.
fn scratch((unet, vae): (&UnetConfig, &VaeConfig), extent: Extent, dtype: Dtype) -> [usize; 3] {
    let (height, width) = extent.latents;
    // Against Stable Diffusion 1.5 in f16.
    let step = STEP * height * width * extent.images / (64 * 64) * dtype.bytes() / 2 * unet.block_out_channels[0] / 320;
    let size = (width * vae.factor(), height * vae.factor());
    let decode = |memory: DecodeMemory| memory.bytes(vae, size, dtype);
    [step.next_multiple_of(SCRATCH_PAGE), decode(DecodeMemory::Whole), decode(DecodeMemory::bands(size.0))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::fit::tests::sd15;

    const MIB: usize = 1 << 20;

    /// What a picture of so many places needs.
    fn needs(checker: usize, latents: (usize, usize)) -> Needs {
        match latents {
            (64, 64) => Needs { checker, ..sd15() },
            (128, 128) => Needs { checker, step: 448 * MIB, whole: 1361 * MIB, bands: Some(570 * MIB), ..sd15() },
            _ => Needs { checker, step: 252 * MIB, whole: 765 * MIB, bands: Some(320 * MIB), ..sd15() },
        }
    }

    /// Steps of 768x768 take more than twice the memory of those of 512x512.
    #[test]
    fn larger_pictures_are_reckoned_with_unless_the_checker_would_have_to_leave_for_them() {
        let sizes = Sizes::of((512, 512), None, 8);
        let at = |checker: usize, free: usize| {
            let needs = |latents| needs(checker, latents);
            let (needs, fit, size) = choose(needs, sizes, free * MIB, Offload::Auto).unwrap();
            assert!(fit.needed <= free * MIB);
            assert_eq!(size, if needs.step == 252 * MIB { (96, 96) } else { (64, 64) });
            (needs.step / MIB, fit.checker)
        };
        use CheckerPlace::{Comes, Cpu, Stays};
        assert_eq!([at(0, 8000), at(0, 1100), at(0, 640)], [(252, Stays), (252, Stays), (112, Stays)]);
        assert_eq!([at(74, 8000), at(74, 1200), at(74, 1000)], [(252, Stays), (252, Comes), (112, Comes)]);
        assert_eq!([at(74, 800), at(74, 640)], [(252, Cpu), (112, Cpu)]);
    }

    #[test]
    fn the_largest_pictures_are_reckoned_with_where_nothing_is_slower_for_it() {
        let sizes = Sizes::of((512, 512), Some((1024, 1024)), 8);
        assert_eq!((sizes.first, sizes.largest), ((64, 64), (128, 128)));
        for checker in [0, 74] {
            for free in (400..8000).step_by(16) {
                let needs = |latents| needs(checker, latents);
                let with = |sizes| choose(needs, sizes, free * MIB, Offload::Auto).ok();
                let (Some((_, usual, _)), Some((_, fit, size))) = (with(Sizes::of((512, 512), None, 8)), with(sizes))
                else {
                    continue;
                };
                let way = |fit: &Fit| Fit { decode: 0, needed: 0, ..fit.clone() };
                assert_eq!(way(&fit), way(&usual), "{free} MiB");
                assert!(fit.needed <= free * MIB);
                if size == (128, 128) {
                    assert!(fit.is_ideal() && fit.needed > usual.needed, "{free} MiB");
                } else {
                    assert_eq!(fit, usual, "{free} MiB");
                }
            }
        }
        let most = choose(|latents| needs(0, latents), sizes, 8000 * MIB, Offload::Auto).unwrap();
        assert_eq!(most.2, (128, 128));
    }
}
