//! Products and convolutions by our own kernels (`kernels/product.cuh`): the problem, the tiles, and which of them takes it.

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
