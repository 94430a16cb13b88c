//! Products of many columns on Hopper: those whose rows of A stay in shared memory (`kernels/panel_hopper.cu`), and those with a gated
//! GELU (`kernels/geglu_hopper.cu`).

use super::{Ending, Problem};
use crate::gpu::{
    Arg, Boxes, Dtype, Gpu, GpuError, Launch, Result,
    constants::{PANEL_COLUMNS, PANEL_INNER, PANEL_SHARED, WIDE_DEPTH, WIDE_ROWS, WIDE_THREADS},
};

/// The tiles of the gated kernel: the ending of its name, columns (of `WIDE_ROWS` rows), and dynamic shared memory.
const TILES: &[(&str, usize, usize)] = include!(concat!(env!("OUT_DIR"), "/geglu_tiles.rs"));
/// With fewer rows, the kernels of [`super::HopperPlan`] and [`super::Plan`] are faster (measured on an H100 and an H200).
const FEW_ROWS: usize = 256;
const FEW_ROWS_UNGATED: usize = 4096;
/// So, too, with fewer columns, if they are not gated: items of a panel.
const FEW_ITEMS: usize = 4;

/// How a problem is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WidePlan {
    launch: Launch,
    /// Columns of the output.
    columns: usize,
    /// Those of a tile, or of an item.
    at_once: usize,
    tiles: usize,
}

impl WidePlan {
    /// `None` if another kernel must or should take the problem. Moments are not taken.
    pub(crate) fn of(problem: &Problem, gpu: &Gpu) -> Option<Self> {
        if gpu.is_hopper() { Self::on(problem, gpu.multiprocessors()) } else { None }
    }

    fn on(problem: &Problem, multiprocessors: usize) -> Option<Self> {
        let plain = problem.side == 1
            && problem.stride == 1
            && problem.problems == 1
            && !problem.wide
            && !problem.crossed
            && !problem.phased
            && problem.channels[1] == 0
            && [problem.table, problem.onto, problem.partials].iter().all(|&address| address == 0)
            && matches!(problem.dtype, Dtype::F16 | Dtype::BF16)
            && problem.is_whole();
        let is_gated = problem.ending == Ending::Gated;
        let plain = plain && if is_gated { problem.alpha == 1.0 } else { problem.ending == Ending::AsItIs };
        let columns = if is_gated { problem.columns / 2 } else { problem.columns };
        if !plain || problem.out_row != columns || is_gated && problem.bias == 0 {
            return None;
        }
        match is_gated {
            true if problem.rows < FEW_ROWS => None,
            true => Self::panel(problem, columns, PANEL_COLUMNS / 2, multiprocessors)
                .or_else(|| Self::gated(problem, columns, multiprocessors)),
            false if problem.rows < FEW_ROWS_UNGATED || columns < FEW_ITEMS * PANEL_COLUMNS => None,
            false => Self::panel(problem, columns, PANEL_COLUMNS, multiprocessors),
        }
    }

    /// With as few blocks as are done as soon as with one for each multiprocessor: then fewer of them go on to another panel.
    fn panel(problem: &Problem, columns: usize, at_once: usize, multiprocessors: usize) -> Option<Self> {
        if problem.inner != PANEL_INNER || !columns.is_multiple_of(at_once) {
            return None;
        }
        let tiles = problem.rows.div_ceil(WIDE_ROWS) * (columns / at_once);
        let each = tiles.div_ceil(multiprocessors);
        let kind = if problem.ending == Ending::Gated { "gated" } else { "plain" };
        let name = format!("panel_{}_{kind}", problem.dtype.name());
        let launch = Launch { name, grid: [tiles.div_ceil(each), 1, 1], block: WIDE_THREADS, shared: PANEL_SHARED };
        Some(Self { launch, columns, at_once, tiles })
    }

    /// With the tile that leaves the busiest processor the least work.
    fn gated(problem: &Problem, columns: usize, multiprocessors: usize) -> Option<Self> {
        let tiles = |at_once: usize| problem.rows.div_ceil(WIDE_ROWS) * (columns / at_once);
        let work = |(_, at_once, _): &&(&str, usize, usize)| tiles(*at_once).div_ceil(multiprocessors) * at_once;
        let fitting = TILES.iter().filter(|(_, at_once, _)| columns.is_multiple_of(*at_once));
        let &(ending, at_once, shared) =
            fitting.min_by_key(work).filter(|_| problem.inner.is_multiple_of(WIDE_DEPTH))?;
        let (name, tiles) = (format!("linear_geglu_{}_{ending}", problem.dtype.name()), tiles(at_once));
        let launch = Launch { name, grid: [tiles.min(multiprocessors), 1, 1], block: WIDE_THREADS, shared };
        Some(Self { launch, columns, at_once, tiles })
    }

    /// Enqueues it.
    ///
    /// # Safety
    /// The problem is the one that this was made for. Its addresses are those of this GPU's memory, as large as its sizes say, until the
    /// stream gets there: if it is captured, until the graph has run for the last time.
    pub(crate) unsafe fn launch(&self, gpu: &Gpu, problem: &Problem) -> Result<()> {
        let rows_of = |address, rows, row, at_once| {
            let lengths = [WIDE_DEPTH, 1, at_once, 1];
            let boxes = Boxes { address, sizes: [problem.inner, 1, rows, 1], row, lengths, step: 1 };
            boxes.encode_with(problem.dtype, [row, row])
        };
        let x = rows_of(problem.a, problem.rows, problem.a_row, WIDE_ROWS)?;
        let w = rows_of(problem.w, problem.columns, problem.w_row, self.at_once)?;
        let sizes = [problem.rows, problem.inner, self.columns, self.tiles].map(Arg::Int);
        let fields = [&[problem.bias, problem.out, problem.a_sums].map(Arg::At)[..], &sizes];
        let (alpha, eps) = (Arg::Float(problem.alpha), Arg::Float(problem.eps));
        let [scaled, parts, sum_rows, nothing] = [problem.scaled, problem.row_parts, problem.sum_rows, 0].map(Arg::Int);
        let last = [alpha, scaled, parts, sum_rows, eps, nothing];
        let words = Arg::packed(&[fields.concat(), last.into()].concat());
        let words = words.ok_or_else(|| GpuError::Unavailable(format!("too large for a kernel: {problem:?}")))?;
        // SAFETY: the arguments of these kernels in their order, as the caller promises.
        unsafe { gpu.launch_words(self.launch.clone(), 1, &[&x, &w, &words]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::matmul::{MatmulShape, Operands};

    /// Of an H100 and an H200.
    const MULTIPROCESSORS: usize = 132;

    fn product(rows: usize, inner: usize, columns: usize) -> Problem {
        Problem::of_matmul(
            &MatmulShape::linear(Dtype::F16, rows, columns, inner),
            &Operands::product(1 << 20, 2 << 20, 3 << 20),
        )
    }

    fn gated(rows: usize, inner: usize, columns: usize) -> Problem {
        let product = product(rows, inner, columns);
        Problem { ending: Ending::Gated, out_row: columns / 2, bias: 4 << 20, ..product }
    }

    #[test]
    fn the_unets_wide_products_are_shared_out_evenly() {
        let normed = Problem { a_sums: 5 << 20, bias: 4 << 20, ..product(8192, 320, 960) };
        for (problem, name, grid, tiles) in [
            (normed, "panel_f16_plain", 128, 64 * 6),
            (product(8192, 320, 960), "panel_f16_plain", 128, 64 * 6),
            (product(4096, 320, 960), "panel_f16_plain", 96, 32 * 6),
            (gated(8192, 320, 2560), "panel_f16_gated", 128, 64 * 16),
            (gated(300, 320, 2560), "panel_f16_gated", 48, 3 * 16),
            (gated(2048, 640, 5120), "linear_geglu_f16_160", 132, 16 * 16),
            (gated(512, 1280, 10_240), "linear_geglu_f16_160", 128, 4 * 32),
        ] {
            let plan = WidePlan::on(&problem, MULTIPROCESSORS).unwrap();
            assert_eq!((plan.launch.name.as_str(), plan.launch.grid, plan.tiles), (name, [grid, 1, 1], tiles));
        }
    }

    #[test]
    fn other_problems_are_left_to_the_kernels_that_take_them() {
        let (plain, gate) = (product(8192, 320, 960), gated(8192, 320, 2560));
        for other in [
            product(2048, 320, 960),
            product(8192, 320, 320),
            product(8192, 640, 1920),
            product(8192, 320, 968),
            gated(128, 1280, 10_240),
            gated(2048, 640, 5136),
            gated(2048, 648, 5120),
            Problem { onto: 4 << 20, ..plain },
            Problem { table: 4 << 20, ..plain },
            Problem { alpha: 0.5, ..gate },
            Problem { wide: true, ..plain },
            Problem { crossed: true, ..plain },
            Problem { channels: [160, 160], ..plain },
            Problem { out_row: 1920, ..plain },
            Problem { dtype: Dtype::F32, ..plain },
            Problem { a: 1 << 20 | 2, ..plain },
            Problem { bias: 0, ..gate },
        ] {
            assert_eq!(WidePlan::on(&other, MULTIPROCESSORS), None, "{other:?}");
        }
    }
}
