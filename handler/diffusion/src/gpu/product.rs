//! Products and convolutions by our own kernels (`kernels/product.cuh`): the problem, the tiles, and which of them takes it.

use super::constants::CHUNKS_MERGED;

mod hopper;
mod plan;
mod problem;
mod tile;
mod wide;

pub(crate) use hopper::HopperPlan;
pub(crate) use plan::Plan;
pub(crate) use problem::{Ending, Problem};
pub(crate) use wide::WidePlan;

/// The most moments of a group, of its parts and of chunks of rows, that a norm should merge.
const MOST_MOMENTS: usize = 768;

/// Whether a norm can have the moments of so many parts of each group and chunks of rows: there are few, or few once a kernel has merged
/// chunks.
fn is_measurable(parts: usize, chunks: usize) -> bool {
    let is_few = |chunks| parts * chunks <= MOST_MOMENTS;
    is_few(chunks) || chunks.is_multiple_of(CHUNKS_MERGED) && is_few(chunks / CHUNKS_MERGED)
}

/// Whether chunks of moments are to be merged before a norm reads those of so many parts of each group.
pub(crate) fn are_many(parts: usize, chunks: usize) -> bool {
    parts * chunks > MOST_MOMENTS
}
