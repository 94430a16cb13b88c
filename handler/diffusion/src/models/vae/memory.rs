//! How a picture is decoded, and how much of a GPU's memory that takes.

use crate::{
    gpu::{Dtype, PAGE},
    loading::config::VaeConfig,
    ops::{LANES, SCORES},
};

/// How much memory decoding may take. The pictures of both forms differ by rounding alone: sums are made in another order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DecodeMemory {
    /// Every map is whole: the fastest.
    #[default]
    Whole,
    /// Large maps are made in bands of rows, and the last level's input is computed three times: about half the memory.
    Bands {
        /// Rows of a map in a band; 0 counts as 1.
        rows: usize,
    },
}

/// Places of a band that keep a GPU busy.
const PLACES: usize = 24_576;

impl DecodeMemory {
    /// Bands for a picture of that width in pixels: so many rows that they keep a GPU busy, 8 to 64, a power of two.
    pub fn bands(width: usize) -> Self {
        let rows = (PLACES / width.max(1)).clamp(8, 64);
        Self::Bands { rows: 1 << rows.ilog2() }
    }

    /// The most bytes of a GPU's memory that decoding one picture takes beside the weights. `size` is its width and height in pixels.
    ///
    /// It counts the maps that exist at once, and whole pages of the allocator.
    pub fn bytes(self, config: &VaeConfig, size: (usize, usize), dtype: Dtype) -> usize {
        let levels = Levels::of(config);
        let (width, height) = (size.0.div_ceil(config.factor()), size.1.div_ceil(config.factor()));
        let (number, places) = (dtype.bytes(), height * width);
        let channels = levels.channels[0];
        // Input, norm, queries, keys and values, output; and the scores of some queries.
        let scores = SCORES.max(4 * places).min(4 * places * places);
        let attention = 6 * channels * places * number + scores / 4 * (4 + number);
        let block = 3 * channels * places * number;
        let middle = if config.mid_block_add_attention { attention.max(block) } else { block };
        let most = match self {
            Self::Whole => {
                let whole = levels.each().map(|level| level.whole() * places * number).max().unwrap_or_default();
                whole.max(middle)
            }
            Self::Bands { rows } => {
                let rows = rows.max(1);
                let each = levels.each().zip(levels.forms()).flat_map(|(level, form)| {
                    // Rows around those of the band are read as well.
                    let band = (width << level.index) * (rows.min(height << level.index) + 4);
                    level.stages(form).into_iter().map(move |(maps, bands)| number * (maps * places + bands * band))
                });
                each.max().unwrap_or_default().max(middle)
            }
        };
        (most + PAGE).next_multiple_of(PAGE)
    }

    /// Whole if that takes no more than `free` bytes, else in bands, which may take more than that as well.
    pub fn fitting(config: &VaeConfig, size: (usize, usize), dtype: Dtype, free: usize) -> Self {
        if Self::Whole.bytes(config, size, dtype) <= free { Self::Whole } else { Self::bands(size.0) }
    }
}

/// The form in which a level of the decoder is computed where memory is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Whole.
    Whole,
    /// In bands, with its upsampled input held whole.
    Held,
    /// In bands, with the rows of its upsampled input computed anew for each use.
    Anew,
}

/// The channels of the decoder's levels, from the latents to the picture, padded as on a GPU. Each level is twice as high and wide as
/// the one before it.
#[derive(Debug, Clone)]
pub(super) struct Levels {
    channels: Vec<usize>,
}

/// A level. Numbers of its maps are counted for each place of the latents.
struct Level {
    index: usize,
    /// Channels of its input and its output.
    channels: (usize, usize),
    /// Places for each of the latents.
    area: usize,
}

impl Levels {
    pub(super) fn of(config: &VaeConfig) -> Self {
        let padded = |channels: &usize| channels.next_multiple_of(LANES);
        Self { channels: config.block_out_channels.iter().rev().map(padded).collect() }
    }

    fn each(&self) -> impl Iterator<Item = Level> {
        self.channels.iter().enumerate().map(|(index, &channels)| Level {
            index,
            channels: (self.channels[index.saturating_sub(1)], channels),
            area: 1 << (2 * index),
        })
    }

    /// The form of each level where memory is short. The last level needs two maps of its own; whatever fits into as much is held.
    pub(super) fn forms(&self) -> Vec<Form> {
        let most = self.each().last().map_or(0, |level| 2 * level.channels.1 * level.area);
        let mut bands = false;
        let form = |level: Level| {
            bands |= level.whole() > most;
            // Once a level is in bands, so are those after it.
            match bands {
                false => Form::Whole,
                true if level.stages(Form::Held).iter().any(|(maps, _)| *maps > most) => Form::Anew,
                true => Form::Held,
            }
        };
        self.each().map(form).collect()
    }
}

impl Level {
    /// Numbers of the map before the upsampling.
    fn before(&self) -> usize {
        if self.index == 0 { 0 } else { self.channels.0 * self.area / 4 }
    }

    /// The most numbers of maps at once where all are whole. A norm takes the place of a map that nothing else reads, and a doubled map is
    /// not written.
    fn whole(&self) -> usize {
        let (inner, outer) = self.channels;
        // The norm of the input, what is to be added, and the hidden map; then output instead of the first.
        let block = (inner + 2 * outer).max(3 * outer) * self.area;
        let upsampling = if self.index == 0 { 0 } else { self.before() + inner * self.area };
        block.max(upsampling)
    }

    /// What exists at once at each stage: the numbers of maps that are whole, and the channels of all bands.
    fn stages(&self, form: Form) -> Vec<(usize, usize)> {
        let ((inner, outer), area) = (self.channels, self.area);
        let later = (2 * outer * area, 3 * outer);
        match form {
            Form::Whole => vec![(self.whole(), 0)],
            Form::Held => {
                let first = ((inner + outer) * area, (2 * inner).max(3 * outer));
                vec![(self.before() + inner * area, 2 * inner), first, later]
            }
            Form::Anew => vec![(self.before() + outer * area, 2 * inner + outer), later],
        }
    }
}
