//! Which kernel takes a problem, and in how many parts along k. A model of the time that each takes decides, so that nothing is tried
//! out at a start.

use super::{
    Ending, Problem, is_measurable,
    tile::{Facts, STEP, Tile, split},
};
use crate::gpu::{
    Dtype, Generation, Gpu, GpuError, Launch, Result,
    constants::{PLAIN_COLUMNS, PLAIN_DEPTH, PLAIN_ROWS, PLAIN_THREADS},
};

/// The most splits.
const SPLITS: usize = 32;

/// How a problem is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    launch: Launch,
    /// Of k, in each split.
    depth: usize,
    splits: usize,
    /// Rows and columns of a warp's part, if there are tensor cores in it.
    part: Option<[usize; 2]>,
}

impl Plan {
    pub(crate) fn of(problem: &Problem, gpu: &Gpu) -> Result<Self> {
        Self::among(problem, &Facts::of(gpu), leaves_none(problem))
    }

    /// One in one part.
    pub(crate) fn whole(problem: &Problem, gpu: &Gpu) -> Result<Self> {
        Self::among(problem, &Facts::of(gpu), false)
    }

    fn among(problem: &Problem, facts: &Facts, may_split: bool) -> Result<Self> {
        if problem.rows * problem.columns * problem.inner * problem.problems == 0 {
            return Err(GpuError::Unavailable(format!("there is nothing to compute: {problem:?}")));
        }
        let has_cores = match problem.dtype {
            Dtype::F16 => true,
            Dtype::BF16 => facts.generation >= Generation::Ampere,
            Dtype::F32 => false,
        };
        let tiles = Tile::all().filter(|tile| has_cores && problem.is_whole() && tile.fits(problem, facts));
        let most = if may_split { (problem.inner / (2 * STEP)).clamp(1, SPLITS) } else { 1 };
        // For each product of a picture: what does not depend on the splits is worked out once.
        let all = tiles.flat_map(|tile| {
            let (pace, count) = (tile.pace(facts), tile.count(problem));
            (1..=most).map(move |splits| (pace.clocks(problem, count, splits), tile, splits))
        });
        match all.min_by_key(|(clocks, ..)| *clocks) {
            Some((_, tile, splits)) => Ok(Self::tiled(&tile, problem, splits, facts)),
            None if matches!(problem.ending, Ending::Softmax { .. }) => {
                Err(GpuError::Unavailable(format!("no kernel has a softmax after {problem:?}")))
            }
            None if problem.a_sums != 0 => {
                Err(GpuError::Unavailable(format!("no kernel normalises the rows of {problem:?}")))
            }
            None => Ok(Self::plain(problem, facts, may_split)),
        }
    }

    fn tiled(tile: &Tile, problem: &Problem, splits: usize, facts: &Facts) -> Self {
        let (depth, splits) = split(problem.inner, STEP, splits);
        let (dtype, ending) = (problem.dtype.name(), tile.ending);
        let name = match (problem.crossed, tile.is_steady) {
            _ if tile.is_softmax => format!("product_softmax_{dtype}_{ending}"),
            (true, _) => format!("product_crossed_{dtype}"),
            (false, true) => format!("product_{dtype}_{ending}"),
            (false, false) => format!("product_any_{dtype}_{ending}"),
        };
        let grid = [tile.count(problem), splits, problem.problems];
        let launch = Launch { name, grid, block: tile.threads(), shared: tile.shared(facts) };
        Self { launch, depth, splits, part: Some(tile.part()) }
    }

    fn plain(problem: &Problem, facts: &Facts, may_split: bool) -> Self {
        let tiles = problem.rows.div_ceil(PLAIN_ROWS) * problem.columns.div_ceil(PLAIN_COLUMNS);
        let most = if may_split { (2 * facts.multiprocessors / tiles).clamp(1, SPLITS) } else { 1 };
        let (depth, splits) = split(problem.inner, PLAIN_DEPTH, most.min(problem.inner.div_ceil(16 * PLAIN_DEPTH)));
        let name = format!("product_plain_{}", problem.dtype.name());
        let launch = Launch { name, grid: [tiles, splits, problem.problems], block: PLAIN_THREADS, shared: 0 };
        Self { launch, depth, splits, part: None }
    }

    /// Parts along k; with more than one, `partials` of the problem must have room for them, and the ending is left to do.
    pub(crate) fn splits(&self) -> usize {
        self.splits
    }

    /// Units of channels and chunks of an image's rows whose moments the kernel can take, if a norm of so many groups follows: a unit is a
    /// group or an equal part of one.
    pub(crate) fn measured(&self, problem: &Problem, groups: usize) -> Option<(usize, usize)> {
        let [rows, columns] = self.part.filter(|_| self.splits == 1 && problem.ending == Ending::AsItIs)?;
        let chunks = problem.area() / rows * problem.phases();
        let parts = problem.parts_of_groups(groups, columns, 1)?;
        (problem.area().is_multiple_of(rows) && is_measurable(parts, chunks)).then_some((groups * parts, chunks))
    }

    /// Parts of an output's row that the kernel can sum up along.
    pub(crate) fn row_parts(&self, problem: &Problem) -> Option<usize> {
        let [_, columns] = self.part.filter(|_| self.splits == 1 && problem.ending == Ending::AsItIs)?;
        (!problem.phased && !problem.wide).then(|| problem.columns.div_ceil(columns))
    }

    /// Enqueues it.
    ///
    /// # Safety
    /// The problem is the one that this was made for, apart from partials and moments. Its addresses are those of this GPU's memory, as
    /// large as its sizes say, until the stream gets there: if it is captured, until the graph has run for the last time.
    pub(crate) unsafe fn launch(&self, gpu: &Gpu, problem: &Problem) -> Result<()> {
        let words = problem.words(self.depth);
        let words = words.ok_or_else(|| GpuError::Unavailable(format!("too large for a kernel: {problem:?}")))?;
        // SAFETY: the one argument of these kernels, as the caller promises.
        unsafe { gpu.launch_words(self.launch.clone(), 1, &[&words]) }
    }
}

/// Whether the ending can be left to a kernel of its own.
fn leaves_none(problem: &Problem) -> bool {
    let dense = problem.out_row == problem.columns && problem.problems == 1;
    dense
        && !problem.wide
        && !problem.crossed
        && problem.ending == Ending::AsItIs
        && problem.a_sums == 0
        && problem.alpha == 1.0
        && problem.columns.is_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{
        conv::{ConvShape, PhasesShape},
        matmul::{MatmulShape, Operands},
    };

    const H200: Facts =
        Facts { generation: Generation::Ampere, copies_ahead: true, multiprocessors: 132, shared: [232_448, 233_472] };
    const L4: Facts =
        Facts { generation: Generation::Ampere, copies_ahead: true, multiprocessors: 58, shared: [101_376, 102_400] };
    const T4: Facts =
        Facts { generation: Generation::Turing, copies_ahead: false, multiprocessors: 40, shared: [65_536, 65_536] };

    fn product(dtype: Dtype, rows: usize, columns: usize, inner: usize) -> Problem {
        let at = Operands::product(4096, 8192, 12_288);
        Problem::of_matmul(&MatmulShape::linear(dtype, rows, columns, inner), &at)
    }

    /// Products and convolutions of Stable Diffusion 1.5, and odd ones.
    fn problems(dtype: Dtype) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (side, channels) in [(64, 320), (32, 640), (16, 1280), (8, 1280), (512, 128), (9, 40)] {
            let rows = 2 * side * side;
            for (columns, inner) in [(3 * channels, channels), (channels, channels), (channels, 4 * channels)] {
                problems.push(product(dtype, rows, columns, inner));
            }
            for (channels_out, stride) in [(channels, 1), (channels, 2), (8, 1)] {
                let (channels_in, padding, open) = (channels, 1, false);
                let (batch, height, width) = (2, side, side);
                let shape = ConvShape {
                    dtype,
                    batch,
                    height,
                    width,
                    channels_in,
                    channels_out,
                    side: 3,
                    stride,
                    padding,
                    past: 0,
                    open,
                };
                problems.push(Problem::of_conv(&shape, 4096, 8192, 12_288));
            }
            let (height, width, made, channels_out) = (side, side, (0, side), channels);
            let shape = PhasesShape { dtype, batch: 2, height, width, made, channels_in: channels, channels_out };
            problems.push(Problem::of_phases(&shape, 4096, 8192, 12_288));
            let gated = product(dtype, rows, 8 * channels, channels);
            problems.push(Problem { ending: Ending::Gated, out_row: 4 * channels, ..gated });
        }
        problems.push(product(dtype, 154, 640, 768));
        problems
    }

    #[test]
    fn parts_along_k_cover_all_of_it_and_none_is_empty() {
        for facts in [H200, L4, T4] {
            for problem in problems(Dtype::F16).into_iter().chain(problems(Dtype::F32)) {
                let plan = Plan::among(&problem, &facts, leaves_none(&problem)).unwrap();
                let step = if plan.part.is_some() { STEP } else { PLAIN_DEPTH };
                assert!(
                    plan.depth.is_multiple_of(step) && plan.depth * plan.splits >= problem.inner,
                    "{plan:?} {problem:?}"
                );
                assert!((plan.splits - 1) * plan.depth < problem.inner, "{plan:?} {problem:?}");
                assert_eq!(plan.launch.grid[1], plan.splits);
                assert!(problem.ending == Ending::AsItIs || plan.splits == 1, "{plan:?} {problem:?}");
            }
        }
    }

    #[test]
    fn tensor_cores_take_what_they_can_and_each_gpu_has_the_shared_memory() {
        for facts in [H200, L4, T4] {
            for problem in problems(Dtype::F16) {
                let plan = Plan::among(&problem, &facts, true).unwrap();
                assert!(plan.part.is_some() && plan.launch.shared <= facts.shared[0], "{plan:?} {problem:?}");
            }
            for problem in problems(Dtype::BF16) {
                let plan = Plan::among(&problem, &facts, true).unwrap();
                assert_eq!(plan.part.is_some(), facts.generation >= Generation::Ampere, "{plan:?} {problem:?}");
            }
        }
        let odd = Problem { a_row: 77, ..product(Dtype::F16, 77, 64, 77) };
        for problem in [odd, product(Dtype::F32, 64, 64, 64)] {
            let plan = Plan::among(&problem, &H200, true).unwrap();
            assert_eq!((plan.part, plan.launch.block), (None, PLAIN_THREADS));
        }
    }

    #[test]
    fn the_faster_kernels_take_whole_tiles_of_steady_problems_alone() {
        let mut taken = 0;
        for facts in [H200, L4, T4] {
            for problem in problems(Dtype::F16) {
                let plan = Plan::among(&problem, &facts, leaves_none(&problem)).unwrap();
                let of = |tile: &Tile| tile.is_steady && plan.launch.name == format!("product_f16_{}", tile.ending);
                if let Some(tile) = Tile::all().find(of) {
                    assert!(
                        problem.is_steady() && problem.columns.is_multiple_of(tile.columns),
                        "{plan:?} {problem:?}"
                    );
                    taken += 1;
                } else {
                    assert!(plan.launch.name.starts_with("product_any_f16_"), "{plan:?}");
                }
            }
        }
        assert!(taken > 0);
        let odd = Problem { channels: [40, 0], inner: 9 * 40, side: 3, ..product(Dtype::F16, 2048, 640, 9 * 40) };
        let plan = Plan::among(&odd, &H200, false).unwrap();
        assert!(plan.launch.name.starts_with("product_any_f16_"), "{plan:?}");
    }

    #[test]
    fn a_crossed_product_is_computed_by_the_one_tile_for_it_in_one_part() {
        let problem = Problem { crossed: true, w_row: 512, ..product(Dtype::F16, 4096, 512, 4096) };
        assert!(!leaves_none(&problem));
        let plan = Plan::among(&problem, &L4, false).unwrap();
        assert_eq!((plan.launch.name.as_str(), plan.splits), ("product_crossed_f16", 1));
    }

    #[test]
    fn moments_come_with_whole_chunks_of_groups_or_of_equal_parts_of_them() {
        let of = |side: usize, channels: usize| {
            let shape = ConvShape {
                dtype: Dtype::F16,
                batch: 2,
                height: side,
                width: side,
                channels_in: channels,
                channels_out: channels,
                side: 3,
                stride: 1,
                padding: 1,
                past: 0,
                open: false,
            };
            let problem = Problem::of_conv(&shape, 4096, 8192, 12_288);
            Plan::among(&problem, &H200, false).unwrap().measured(&problem, 32)
        };
        let (units, chunks) = of(64, 320).unwrap();
        assert!(units % 32 == 0 && 320 % units == 0 && 4096 % chunks == 0 && chunks >= 32, "{units} {chunks}");
        assert_eq!(of(9, 320), None);
        assert_eq!(of(64, 40), None);
    }

    #[test]
    fn a_softmax_is_taken_by_its_own_tiles_in_one_part_or_refused() {
        for facts in [H200, L4, T4] {
            for (rows, channels) in [(4096, 320), (1024, 640), (256, 1280), (9, 320)] {
                let shape = MatmulShape { batch: 2, ..MatmulShape::linear(Dtype::F16, rows, 640, channels) };
                let problem = Problem::of_matmul(&shape, &Operands::product(4096, 8192, 12_288));
                let problem = Problem { ending: Ending::Softmax { counted: 77 }, ..problem };
                let plan = Plan::among(&problem, &facts, leaves_none(&problem)).unwrap();
                assert!(plan.launch.name.starts_with("product_softmax_f16_"), "{plan:?}");
                assert_eq!((plan.splits, plan.launch.grid[2], plan.part.map(|part| part[1])), (1, 2, Some(80)));
            }
        }
        let plain = product(Dtype::F32, 64, 640, 320);
        let refused = Plan::among(&Problem { ending: Ending::Softmax { counted: 77 }, ..plain }, &H200, false);
        assert!(refused.unwrap_err().to_string().contains("softmax"));
    }

    #[test]
    fn nothing_to_compute_is_refused() {
        assert!(Plan::among(&product(Dtype::F16, 0, 64, 64), &H200, true).is_err());
    }
}
