//! Products and convolutions by our own kernels, with what comes right after them.

use super::{
    address_or_null,
    norm::{Share, moments_for},
};
use crate::gpu::{
    Arg, Array, Dtype, Gpu, Launch, Moments,
    constants::{CHUNKS_MERGED, MERGE_THREADS},
    product::{HopperPlan, Plan, Problem, WidePlan, are_many},
};
use candle_core::Result;
use std::sync::Arc;

/// What is added to a product, and was compared with it.
#[derive(Clone, Copy, Default)]
pub(super) struct After<'a> {
    /// As many as `out` has columns.
    pub(super) bias: Option<&'a Array>,
    /// What the first so many columns are multiplied by, with their bias, before anything else is added.
    pub(super) scaled: Option<(usize, f32)>,
    /// A table of rows of as many, and the number of the step.
    pub(super) shift: Option<(&'a Array, &'a Array)>,
    /// Of `out`'s dims.
    pub(super) onto: Option<&'a Array>,
    /// Groups of channels whose moments are taken along where the kernel can, for a group norm that follows.
    pub(super) groups: Option<usize>,
    /// Whether the rows are summed up along where the kernel can, for a layer norm that follows.
    pub(super) rows: bool,
    /// What is added to the variance of A's rows, if they are to be normalised by the sums that were taken along.
    pub(super) norm_eps: Option<f32>,
}

/// Enqueues a product whose result is `out`, dense, and returns that, with its moments if they come with it.
///
/// # Safety
/// The problem's A and W are memory of this GPU, as large as its sizes say, and `out` and what comes after fit its rows and columns. All
/// are alive; the next user of their memory comes later on the same stream.
pub(super) unsafe fn product(problem: Problem, out: Array, after: After) -> Result<Array> {
    let gpu = out.gpu().clone();
    let (table, step) = after.shift.unzip();
    let address = |array: Option<&Array>| array.map_or(0, Array::address);
    let (scaled, alpha) = after.scaled.unwrap_or((problem.scaled, problem.alpha));
    let mut problem = Problem {
        scaled,
        alpha,
        out: out.address(),
        bias: address(after.bias),
        table: address(table),
        step: address(step),
        steps: table.map_or(0, Array::rows),
        onto: address(after.onto),
        ..problem
    };
    if let Some(plan) = WidePlan::of(&problem, &gpu).filter(|_| after.groups.is_none() && !after.rows) {
        // SAFETY: as the caller promises.
        unsafe { plan.launch(&gpu, &problem)? };
        return Ok(out);
    }
    if let Some(plan) = HopperPlan::of(&problem, &gpu) {
        // SAFETY: as the caller promises.
        return unsafe { hopper(&plan, problem, out, after) };
    }
    let plan = Plan::of(&problem, &gpu)?;
    if plan.splits() > 1 {
        let partials = gpu.scratch(&[plan.splits(), problem.rows, problem.columns], Dtype::F32)?;
        problem.partials = partials.address();
        // SAFETY: as the caller promises; there is room for the sums of each split.
        unsafe { plan.launch(&gpu, &problem)? };
        return after_split(&partials, out, after);
    }
    let moments = after.groups.and_then(|groups| plan.measured(&problem, groups));
    let moments = moments.map(|measured| room_for_moments(&mut problem, out.gpu(), measured)).transpose()?;
    let row_parts = plan.row_parts(&problem).filter(|_| after.rows);
    let row_sums = room_for_row_sums(&mut problem, &gpu, row_parts)?;
    // SAFETY: as the caller promises; there is room for the moments of each group and chunk, and for the sums of each row.
    unsafe { plan.launch(&gpu, &problem)? };
    let moments = moments.map(|moments| few(moments, &out, after.groups)).transpose()?;
    Ok(with(out, moments, row_sums))
}

/// Room for the moments of so many groups, or parts of groups, and chunks of rows, of which the problem is told.
fn room_for_moments(problem: &mut Problem, gpu: &Gpu, (groups, chunks): (usize, usize)) -> Result<Moments> {
    let images = problem.rows / problem.area();
    let array = gpu.scratch(&[images, groups, chunks, 2], Dtype::F32)?;
    problem.moments = array.address();
    problem.measured = [groups, chunks];
    Ok(Moments { array: Arc::new(array), groups })
}

/// The moments that were taken of `out`, for a norm of so many groups. Where they are too many for it, chunks are merged.
fn few(moments: Moments, out: &Array, groups: Option<usize>) -> Result<Moments> {
    let &[images, units, chunks, 2] = moments.array.dims() else { return Ok(moments) };
    if !are_many(units / groups.unwrap_or(units).max(1), chunks) {
        return Ok(moments);
    }
    let (gpu, left) = (out.gpu(), chunks / CHUNKS_MERGED);
    let merged = gpu.scratch(&[images, units, left, 2], Dtype::F32)?;
    let (all, count) = (images * units * left, out.count() / (images * units * chunks));
    let args = [Arg::At(moments.array.address()), Arg::At(merged.address()), Arg::Int(all), Arg::Float(count as f32)];
    let grid = [(32 * all).div_ceil(MERGE_THREADS), 1, 1];
    // SAFETY: all chunks are of one size, and `is_measurable` has said that they are a multiple of those that become one, of which
    // `merged` has room for all.
    unsafe { gpu.launch(Launch { name: "merge_moments_f32".into(), grid, block: MERGE_THREADS, shared: 0 }, &args)? };
    Ok(Moments { array: merged.into(), groups: moments.groups })
}

/// Room for sums of so many parts of each row, of which the problem is told.
fn room_for_row_sums(problem: &mut Problem, gpu: &Gpu, parts: Option<usize>) -> Result<Option<Array>> {
    let Some(parts) = parts else { return Ok(None) };
    let sums = gpu.scratch(&[parts, problem.problems * problem.rows, 2], Dtype::F32)?;
    problem.row_sums = sums.address();
    Ok(Some(sums))
}

fn with(out: Array, moments: Option<Moments>, row_sums: Option<Array>) -> Array {
    let out = match moments {
        Some(moments) => out.with_moments(moments),
        None => out,
    };
    match row_sums {
        Some(sums) => out.with_row_sums(sums.into()),
        None => out,
    }
}

/// The same by the kernels for Hopper.
///
/// # Safety
/// As for [`product`].
unsafe fn hopper(plan: &HopperPlan, mut problem: Problem, out: Array, after: After) -> Result<Array> {
    let moments = after.groups.and_then(|groups| plan.measured(&problem, groups));
    let moments = moments.map(|measured| room_for_moments(&mut problem, out.gpu(), measured)).transpose()?;
    let row_parts = plan.row_parts(&problem).filter(|_| after.rows);
    let row_sums = room_for_row_sums(&mut problem, out.gpu(), row_parts)?;
    // SAFETY: as the caller promises; there is room for the moments of each unit and chunk, and for the sums of each row.
    unsafe { plan.launch(out.gpu(), &problem)? };
    let moments = moments.map(|moments| few(moments, &out, after.groups)).transpose()?;
    Ok(with(out, moments, row_sums))
}

/// Adds the parts of a product that was split along k, and does what comes after it.
fn after_split(partials: &Array, out: Array, after: After) -> Result<Array> {
    let (gpu, channels) = (out.gpu().clone(), out.columns());
    // As one image, if nobody asks for the moments of each.
    let map = if after.groups.is_some() { out.clone() } else { out.reshaped(&[1, out.rows(), channels]) };
    let (share, moments) = moments_for(&map, after.groups, 2)?;
    let (table, step) = after.shift.unzip();
    let args = [
        Arg::At(partials.address()),
        Arg::Int(partials.dims()[0]),
        Arg::At(out.address()),
        address_or_null(after.bias),
        address_or_null(table),
        address_or_null(step),
        Arg::Int(table.map_or(0, Array::rows)),
        address_or_null(after.onto),
        address_or_null(moments.as_ref().map(|moments| &*moments.array)),
    ];
    let Share { rows, groups, vectors, height, .. } = share;
    let args = [&args[..], &[rows, channels, groups, vectors, height].map(Arg::Int)].concat();
    let launch = share.launch(format!("after_split_{}", out.dtype().name()));
    // SAFETY: the partial sums are f32, of as many rows and columns as `out` for each split; bias, each row of the table and what is
    // added were compared with it, and the kernel takes no row past the table's last one. `moments_for` made the moments for this map and
    // grid.
    unsafe { gpu.launch(launch, &args)? };
    Ok(with(out, moments, None))
}
