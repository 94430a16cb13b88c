//! Products and convolutions by our own kernels (`kernels/product.cuh`): the problem, the tiles, and which of them takes it.

mod hopper;
mod plan;
mod problem;
mod tile;

pub(crate) use hopper::HopperPlan;
pub(crate) use plan::Plan;
pub(crate) use problem::{Ending, Problem};
