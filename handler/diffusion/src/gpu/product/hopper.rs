//! Products and convolutions on Hopper (`kernels/product_hopper.cu`): which tile and how many splits along k, and what the copy engine
//! needs to know.

#[cfg(test)]
mod tests;

use super::{Ending, Problem, is_measurable};
use crate::gpu::{
    Boxes, Dtype, Gpu, GpuError, Launch, Result,
    constants::{
        PRODUCT_HOPPER_DEPTH, PRODUCT_HOPPER_LOADED_COLUMNS, PRODUCT_HOPPER_PATCH, PRODUCT_HOPPER_ROWS,
        PRODUCT_HOPPER_SHARED, PRODUCT_HOPPER_SHARED_ITSELF, PRODUCT_HOPPER_SHARED_OF_TWO,
        PRODUCT_HOPPER_SPLIT_COLUMNS, PRODUCT_HOPPER_SPLITS, PRODUCT_HOPPER_THREADS, PRODUCT_HOPPER_THREADS_ITSELF,
    },
};

/// A tile: the ending of its name, how its rows lie, its columns, and how many are made on a multiprocessor at once; then nanoseconds on
/// an H200: around the steps of a block, of a step, and of a split.
type Tile = (&'static str, usize, usize, usize, usize, usize, usize);

/// The table in `kernels/product_hopper.cu`.
const TILES: &[Tile] = include!(concat!(env!("OUT_DIR"), "/product_hopper_tiles.rs"));
/// The same with a softmax at their end.
const SOFTMAX_TILES: &[Tile] = include!(concat!(env!("OUT_DIR"), "/softmax_hopper_tiles.rs"));
/// The most tiles of rows that a grid can have behind those of columns.
const MOST_TILES: usize = 65_535;
/// Of rows with more bytes, the first ones leave the GPU's cache before blocks come back to them for other columns.
const KEPT: usize = 16 << 20;
/// How a tile's rows lie: consecutive ones of a matrix; patches of a map, whose windows are loaded place by place; patches with the places
/// around them.
const ROWS: usize = 0;
const WINDOWS: usize = 1;
const PATCHES: usize = 2;
/// How many of 1000 multiprocessors clusters of 1, 2, … blocks can fill: the others are left over in groups that share a part of the chip.
/// Of an H100 and an H200.
const FILLED: [usize; PRODUCT_HOPPER_SPLITS] = [1000, 1000, 886, 909, 833, 772, 795, 909];
/// With fewer channels than half a step, a step is mostly zeros.
const FEW_CHANNELS: usize = PRODUCT_HOPPER_DEPTH / 2;
/// With fewer rows, a tile is mostly zeros.
const FEW_ROWS: usize = 64;
/// Groups of the norm that follows a convolution, and what its moments cost, in nanoseconds, if the tile cannot take them along, or takes
/// them in parts of groups.
const GROUPS: usize = 32;
const UNMEASURED: usize = 5000;
const IN_PARTS: usize = 1500;
/// Places of a patch, which are rows of a tile.
const PLACES: usize = PRODUCT_HOPPER_PATCH * PRODUCT_HOPPER_PATCH;

/// How a problem is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HopperPlan {
    launch: Launch,
    mode: usize,
    columns: usize,
    splits: usize,
    tiling: Tiling,
}

/// As the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tiling {
    /// Whether a tile's two patches lie beside each other, below each other, or in two images.
    across: usize,
    down: usize,
    images: usize,
    /// Of a map, or of a problem's rows.
    tiles_across: usize,
    tiles_down: usize,
    steps: usize,
    first_steps: usize,
    /// Whether blocks that read the same rows run at the same time, and not those that read the same weights.
    columns_first: usize,
}

impl HopperPlan {
    /// `None` if another kernel must or should take the problem.
    pub(crate) fn of(problem: &Problem, gpu: &Gpu) -> Option<Self> {
        if gpu.is_hopper() { Self::on(problem, gpu.multiprocessors()) } else { None }
    }

    fn on(problem: &Problem, multiprocessors: usize) -> Option<Self> {
        let mode = mode_of(problem)?;
        let tiling = Tiling::of(problem, mode)?;
        let (table, is_softmax) = match problem.ending {
            Ending::Softmax { .. } => (SOFTMAX_TILES, true),
            _ => (TILES, false),
        };
        let most = |tile| if is_softmax { 1 } else { most_splits(tile, &tiling) };
        let tiles = table.iter().filter(|tile| tile.1 == mode);
        let all = tiles.flat_map(|tile| (1..=most(tile)).map(move |splits| (tile, splits)));
        let all = all.filter(|&(_, splits)| at_once(splits, multiprocessors) > 0);
        let time = |&(tile, splits): &(&Tile, usize)| nanoseconds(tile, problem, &tiling, splits, multiprocessors);
        let (tile, splits) = all.min_by_key(time)?;
        let &(ending, _, columns, together, ..) = tile;
        let (block, shared) = match together {
            1 => (PRODUCT_HOPPER_THREADS, PRODUCT_HOPPER_SHARED),
            _ if loads_itself(tile) => (PRODUCT_HOPPER_THREADS_ITSELF, PRODUCT_HOPPER_SHARED_ITSELF),
            _ => (PRODUCT_HOPPER_THREADS, PRODUCT_HOPPER_SHARED_OF_TWO),
        };
        let (rows, across) = (tiling.tiles(problem, mode), problem.columns.div_ceil(columns));
        // Those with a softmax take both.
        let normed = if problem.a_sums != 0 && !is_softmax { "_normed" } else { "" };
        let launch = Launch {
            name: format!("product_hopper_{}_{ending}{normed}", problem.dtype.name()),
            grid: if tiling.columns_first == 1 { [across, rows, splits] } else { [rows, across, splits] },
            block,
            shared,
        };
        Some(Self { launch, mode, columns, splits, tiling })
    }

    /// Units of channels and chunks of an image's rows whose moments the kernel can take, if a norm of so many groups follows: a unit is a
    /// group or an equal part of one.
    pub(crate) fn measured(&self, problem: &Problem, groups: usize) -> Option<(usize, usize)> {
        let chunks = problem.area() / if self.splits > 1 { 16 } else { PLACES } * problem.phases();
        let parts = problem.parts_of_groups(groups, self.columns, 2)?;
        let whole = problem.area().is_multiple_of(PLACES) && problem.rows.is_multiple_of(problem.area());
        let patches_fit = self.mode == ROWS || self.tiling.is_exact(problem);
        (whole && patches_fit && is_measurable(parts, chunks)).then_some((groups * parts, chunks))
    }

    /// Parts of an output's row that the kernel can sum up along.
    pub(crate) fn row_parts(&self, problem: &Problem) -> Option<usize> {
        (self.mode == ROWS && problem.ending == Ending::AsItIs).then(|| problem.columns.div_ceil(self.columns))
    }

    /// Enqueues it.
    ///
    /// # Safety
    /// The problem is the one that this was made for, apart from moments. Its addresses are those of this GPU's memory, as large as its
    /// sizes say, until the stream gets there: if it is captured, until the graph has run for the last time.
    pub(crate) unsafe fn launch(&self, gpu: &Gpu, problem: &Problem) -> Result<()> {
        let [a, more, w] = self.maps(problem)?;
        let words = problem.words(problem.inner);
        let words = words.ok_or_else(|| GpuError::Unavailable(format!("too large for a kernel: {problem:?}")))?;
        let tiling = self.tiling.words();
        // SAFETY: the arguments of these kernels in their order, as the caller promises; the grid is that of the problem's tiles.
        unsafe { gpu.launch_words(self.launch.clone(), self.splits, &[&a, &more, &w, &words, &tiling]) }
    }

    /// What the copy engine needs to know of both maps and of the weights.
    fn maps(&self, problem: &Problem) -> Result<[[u64; 16]; 3]> {
        let images = problem.rows / problem.area();
        let map = |address, channels, row| match self.mode {
            ROWS => Boxes {
                address,
                sizes: [channels, problem.rows * problem.problems, 1, 1],
                row,
                lengths: [PRODUCT_HOPPER_DEPTH, PRODUCT_HOPPER_ROWS, 1, 1],
                step: 1,
            },
            WINDOWS => Boxes {
                address,
                sizes: [channels, problem.map[1], problem.map[0], images],
                row,
                lengths: [PRODUCT_HOPPER_DEPTH, self.reach(0) * problem.stride, self.reach(0) * problem.stride, 1],
                step: problem.stride,
            },
            _ => Boxes {
                address,
                sizes: [channels, problem.map[1], problem.map[0], images],
                row,
                lengths: [
                    PRODUCT_HOPPER_DEPTH,
                    self.reach(self.tiling.across) + problem.side - 1,
                    self.reach(self.tiling.down) + problem.side - 1,
                    1 + self.tiling.images,
                ],
                step: 1,
            },
        };
        let [channels, others] = problem.channels;
        let a = map(problem.a, channels, problem.a_row).encode(problem.dtype)?;
        let more = if others > 0 { map(problem.more, others, problem.more_row).encode(problem.dtype)? } else { a };
        // A column's places follow one another, each with all channels, as an image's rows do; those of phases, too. Where there is one
        // place, there may be several problems.
        let (places, next) = match problem.problems {
            problems if problems > 1 && !problem.phased => (problems, problem.w_batch),
            _ => (problem.side * problem.side * problem.phases(), channels + others),
        };
        let w = Boxes {
            address: problem.w,
            sizes: [channels + others, places, problem.columns, 1],
            row: next,
            lengths: [PRODUCT_HOPPER_DEPTH, 1, self.columns, 1],
            step: 1,
        };
        Ok([a, more, w.encode_with(problem.dtype, [w.row, problem.w_row])?])
    }

    /// Places of one patch or of two.
    fn reach(&self, two: usize) -> usize {
        PRODUCT_HOPPER_PATCH << two
    }
}

impl Tiling {
    /// The one that leaves the least of the tiles outside of the maps; patches below each other if there is no difference.
    fn of(problem: &Problem, mode: usize) -> Option<Self> {
        let steps = |channels: usize| channels.div_ceil(PRODUCT_HOPPER_DEPTH);
        let [channels, others] = problem.channels;
        let all = (steps(channels) + steps(others)) * problem.side * problem.side;
        let first_steps = steps(channels);
        let is_large = problem.rows * problem.problems * (channels + others) * problem.dtype.bytes() > KEPT;
        let shapes = if mode == ROWS { &[[0, 0, 0]][..] } else { &[[0, 1, 0], [1, 0, 0], [0, 0, 1]] };
        let tilings = shapes.iter().map(|&[across, down, images]| {
            let [height, width] = problem.out_map;
            let tiles = |places: usize, two: usize| places.div_ceil(PRODUCT_HOPPER_PATCH << two);
            let (tiles_across, tiles_down) = match mode {
                ROWS => (problem.rows.div_ceil(PRODUCT_HOPPER_ROWS), 1),
                _ => (tiles(width, across), tiles(height, down)),
            };
            let tiles = tiles_across * problem.problems;
            let columns_first = usize::from(mode == ROWS && is_large && tiles <= MOST_TILES);
            Self { across, down, images, tiles_across, tiles_down, steps: all, first_steps, columns_first }
        });
        tilings.min_by_key(|tiling| tiling.tiles(problem, mode))
    }

    /// Tiles of all rows.
    fn tiles(&self, problem: &Problem, mode: usize) -> usize {
        if mode == ROWS {
            return self.tiles_across * problem.problems;
        }
        let images = (problem.rows / problem.area()).div_ceil(1 + self.images);
        self.tiles_across * self.tiles_down * images * problem.phases()
    }

    /// Whether no part of a tile is outside of the maps.
    fn is_exact(&self, problem: &Problem) -> bool {
        self.tiles(problem, PATCHES) * PRODUCT_HOPPER_ROWS == problem.rows * problem.phases()
    }

    fn words(&self) -> [u64; 4] {
        let Self { across, down, images, tiles_across, tiles_down, steps, first_steps, columns_first } = *self;
        let numbers = [across, down, images, tiles_across, tiles_down, steps, first_steps, columns_first];
        let mut words = [0; 4];
        for (index, number) in numbers.into_iter().enumerate() {
            words[index / 2] |= (number as u64 & 0xffff_ffff) << (index % 2 * 32);
        }
        words
    }
}

/// Whether it is one problem, or products whose rows follow one another, or phases whose weights do.
fn is_in_turn(problem: &Problem) -> bool {
    let &Problem { problems, side, stride, phased, rows, .. } = problem;
    let rows_follow = problem.a_batch == rows * problem.a_row && problem.out_batch == rows * problem.out_row;
    let products = side == 1 && stride == 1 && !phased && problem.channels[1] == 0 && rows_follow;
    problems == 1 || products || phased && problems == 4 && problem.w_batch == problem.inner
}

/// How the rows of a tile must lie; `None` if the kernels do not take the problem, or others are faster.
fn mode_of(problem: &Problem) -> Option<usize> {
    let plain = is_in_turn(problem)
        && problem.ending != Ending::Gated
        && !problem.wide
        && !problem.crossed
        && problem.partials == 0
        && matches!(problem.dtype, Dtype::F16 | Dtype::BF16);
    let plain = plain && (problem.a_sums == 0 || problem.side == 1 && problem.stride == 1);
    let worth = problem.rows >= FEW_ROWS && problem.channels[0] >= FEW_CHANNELS && problem.columns > 0;
    if !plain || !worth || !problem.is_whole() {
        return None;
    }
    let dense = problem.area() > 0 && problem.rows.is_multiple_of(problem.area());
    match (problem.side, problem.stride) {
        (1, 1) => Some(ROWS),
        (2 | 3, 1) if dense => Some(PATCHES),
        (1 | 3, 2) if dense => Some(WINDOWS),
        _ => None,
    }
}

/// The most splits that a tile can have, each with two steps or more.
fn most_splits(tile: &Tile, tiling: &Tiling) -> usize {
    if tile.3 > 1 || tile.2 > PRODUCT_HOPPER_SPLIT_COLUMNS {
        1
    } else {
        (tiling.steps / 2).clamp(1, PRODUCT_HOPPER_SPLITS)
    }
}

/// Whether a warp of the tile's blocks loads and multiplies.
fn loads_itself(tile: &Tile) -> bool {
    tile.3 > 1 && tile.2 > PRODUCT_HOPPER_LOADED_COLUMNS
}

/// Blocks that run at once, in clusters of so many.
fn at_once(splits: usize, multiprocessors: usize) -> usize {
    multiprocessors * FILLED[splits - 1] / 1000 / splits * splits
}

/// A model of the time that it takes: rounds of blocks, each the time around its steps and that of the steps; then the moments for the norm
/// behind a convolution.
fn nanoseconds(tile: &Tile, problem: &Problem, tiling: &Tiling, splits: usize, multiprocessors: usize) -> usize {
    let &(_, mode, columns, together, around, step, split) = tile;
    let blocks = tiling.tiles(problem, mode) * problem.columns.div_ceil(columns) * splits;
    let at_once = at_once(splits, multiprocessors).max(1);
    // Where half of the multiprocessors have nothing to do, the others are not held up by each other's reads.
    let step = if 2 * blocks <= multiprocessors { step * 4 / 5 } else { step };
    // Nor does a block that loads itself go as fast by itself as it does beside another.
    let step = if loads_itself(tile) && blocks <= multiprocessors { step * 4 / 3 } else { step };
    let steps = tiling.steps.div_ceil(splits) * step;
    let moments = match problem.parts_of_groups(GROUPS, columns, 2) {
        _ if mode == ROWS || problem.columns < GROUPS => 0,
        None => UNMEASURED,
        Some(1) => 0,
        Some(_) => IN_PARTS,
    };
    if together > 1 && blocks > multiprocessors {
        // One block multiplies while the other begins or ends; only at the very end nobody does. What is left after whole rounds of two on
        // each multiprocessor goes to those that are done first, in pairs again.
        let each = steps.max((around + steps) / 2);
        let (rounds, left) = (blocks / (2 * multiprocessors), blocks % (2 * multiprocessors));
        let halves = match left {
            0 => 4 * rounds,
            _ if left <= multiprocessors => 4 * rounds + 3,
            _ => 4 * rounds + 4,
        };
        return halves * each / 2 + around / 2 + moments;
    }
    blocks.div_ceil(at_once) * (around + steps) + if splits > 1 { split } else { 0 } + moments
}
