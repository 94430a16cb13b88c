//! The tiles of the kernels on tensor cores, and how long each takes for a problem.

use super::{Ending, Problem};
use crate::gpu::{Generation, Gpu};

/// A tile of the kernels on tensor cores: the ending of its name, rows, columns, warps down, across, and that share a part, and stages
/// in shared memory.
type Row = (&'static str, usize, usize, usize, usize, usize, usize);

/// The tables in `kernels/product.cu`: for steady problems, and for all.
const STEADY_TILES: &[Row] = include!(concat!(env!("OUT_DIR"), "/product_tiles.rs"));
const ANY_TILES: &[Row] = include!(concat!(env!("OUT_DIR"), "/product_any_tiles.rs"));
/// Those of the first table that there are with a softmax at their end.
const SOFTMAX_TILES: &[Row] = include!(concat!(env!("OUT_DIR"), "/softmax_tiles.rs"));
/// What they take, in clocks of an H200: a step along k of one block alone on a multiprocessor, and of two there, and what is around the
/// steps. Measured.
const CLOCKS: &[(&str, usize, usize, usize)] = &[
    ("256x160", 2720, 5440, 10_700),
    ("256x128", 2170, 4340, 9400),
    ("128x160", 1330, 2660, 11_600),
    ("128x160_pair", 1810, 2730, 10_200),
    ("128x128", 1650, 2150, 7400),
    ("64x160", 890, 1410, 10_200),
    ("64x160_short", 1350, 1550, 10_200),
    ("64x80", 560, 860, 7900),
    ("64x64", 620, 760, 7500),
    ("any 128x160", 1460, 2920, 11_000),
    ("any 128x128", 1560, 3120, 9000),
    ("any 64x80", 730, 1000, 7600),
    ("any 128x16", 600, 1000, 7000),
];
/// The tile that there is for `W` as `[inner, columns]`, too.
const CROSSED: &str = "128x128";
/// Of k, in a step.
pub(super) const STEP: usize = 64;
/// The most sums of a thread on a GPU that does not copy ahead.
const SUMS_WITHOUT_COPIES: usize = 80;
/// A multiprocessor of compute capability 7.5, 8.6, 8.9 and 12.0 has less shared memory than that, and does so many multiplications in
/// a clock.
const SMALL: usize = 128 << 10;
const SMALL_RATE: usize = 512;
/// Clocks of the kernel that adds what a split has left, and of each KiB of partial sums, on all of the GPU.
const SPLIT: usize = 4000;
const PARTIAL_KIB: usize = 1;

/// As in the table, and which of both.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub(super) ending: &'static str,
    rows: usize,
    pub(super) columns: usize,
    down: usize,
    across: usize,
    sharing: usize,
    stages: usize,
    pub(super) is_steady: bool,
    pub(super) is_softmax: bool,
}

impl Tile {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let tile = |is_steady, is_softmax| {
            move |&(ending, rows, columns, down, across, sharing, stages): &Row| Self {
                ending,
                rows,
                columns,
                down,
                across,
                sharing,
                stages,
                is_steady,
                is_softmax,
            }
        };
        let plain = STEADY_TILES.iter().map(tile(true, false)).chain(ANY_TILES.iter().map(tile(false, false)));
        plain.chain(SOFTMAX_TILES.iter().map(tile(true, true)))
    }

    pub(super) fn threads(&self) -> usize {
        32 * self.down * self.across * self.sharing
    }

    /// Rows and columns of what a warp ends with.
    pub(super) fn part(&self) -> [usize; 2] {
        [self.rows / self.down / self.sharing, self.columns / self.across]
    }

    /// How many there are of this size in the output.
    pub(super) fn count(&self, problem: &Problem) -> usize {
        problem.rows.div_ceil(self.rows) * problem.columns.div_ceil(self.columns)
    }

    /// Whether it takes this problem.
    pub(super) fn fits(&self, problem: &Problem, facts: &Facts) -> bool {
        let crossed = !problem.crossed || !self.is_steady && self.ending == CROSSED;
        let steady = !self.is_steady || problem.is_steady() && problem.columns.is_multiple_of(self.columns);
        let ends = self.is_softmax == matches!(problem.ending, Ending::Softmax { .. });
        // Of few columns, and nothing else.
        let narrow = self.columns >= 64 || problem.columns <= 2 * self.columns;
        let sums = facts.copies_ahead || self.rows * self.columns / self.threads() <= SUMS_WITHOUT_COPIES;
        crossed && steady && ends && narrow && sums && self.shared(facts) <= facts.shared[0]
    }

    /// Dynamic shared memory: a ring of stages of 128 bytes a row, or one, and later the sums; behind them a scale for each row.
    pub(super) fn shared(&self, facts: &Facts) -> usize {
        let stages = if facts.copies_ahead { self.stages } else { 1 };
        let pitch = (self.columns / self.across + 7) / 16 * 16 + 8;
        let staging = self.rows * self.across * pitch * 4;
        (stages * (self.rows + self.columns) * 2 * STEP).max(staging) + self.rows * 4
    }

    /// What it takes on that GPU, whatever the problem is.
    pub(super) fn pace(&self, facts: &Facts) -> Pace {
        let is_this = |of: &str| match of.strip_prefix("any ") {
            Some(ending) => !self.is_steady && ending == self.ending,
            None => self.is_steady && of == self.ending,
        };
        // Until it is measured: by its size.
        let size = self.rows * self.columns;
        let (one, two, around) = CLOCKS
            .iter()
            .find(|(of, ..)| is_this(of))
            .map_or((size / 12, size / 8, 10_000), |&(_, one, two, around)| (one, two, around));
        let least = if facts.shared[1] < SMALL { size * STEP / SMALL_RATE } else { 0 };
        let fit = facts.shared[1] / (self.shared(facts) + 1024) >= 2 && self.threads() <= 128;
        Pace { one: one.max(least), two: two.max(2 * least), around, fit, multiprocessors: facts.multiprocessors }
    }
}

/// Clocks of a tile's step along k for one block alone on a multiprocessor, and for two there, and those around the steps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    one: usize,
    two: usize,
    around: usize,
    /// Whether two blocks fit.
    fit: bool,
    multiprocessors: usize,
}

impl Pace {
    /// A model of the time that a problem takes in so many tiles: that of the multiprocessor with the most blocks.
    pub(super) fn clocks(&self, problem: &Problem, tiles: usize, splits: usize) -> usize {
        let (depth, splits) = split(problem.inner, STEP, splits);
        let steps = depth / STEP;
        let busiest = (tiles * splits * problem.problems).div_ceil(self.multiprocessors);
        let (pairs, rest) = if self.fit { (busiest / 2, busiest % 2) } else { (0, busiest) };
        let products = pairs * (steps * self.two + self.around * 9 / 8) + rest * (steps * self.one + self.around);
        let partials = problem.rows * problem.columns * splits * 4 / 1024;
        products + if splits > 1 { SPLIT + partials * PARTIAL_KIB } else { 0 }
    }
}

/// What the choice depends on, of a GPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) generation: Generation,
    pub(super) copies_ahead: bool,
    pub(super) multiprocessors: usize,
    /// Of a block, and of a multiprocessor.
    pub(super) shared: [usize; 2],
}

impl Facts {
    pub(super) fn of(gpu: &Gpu) -> Self {
        Self {
            generation: gpu.generation(),
            copies_ahead: gpu.copies_ahead(),
            multiprocessors: gpu.multiprocessors(),
            shared: gpu.shared_memory(),
        }
    }
}

/// Depth and number of parts that are whole steps, of which none is empty.
pub(super) fn split(inner: usize, step: usize, splits: usize) -> (usize, usize) {
    let depth = inner.div_ceil(step).div_ceil(splits.max(1)) * step;
    (depth, inner.div_ceil(depth))
}
