//! Operations on each number or place by itself: activations, sums, and maps of another size.

use super::{LANES, addresses, check_alike, refused, with_columns};
use crate::gpu::{Arg, Array, Launch, Moments};
use candle_core::Result;

pub(in crate::ops) fn silu(xs: &Array) -> Result<Array> {
    each("silu", [xs])
}

pub(in crate::ops) fn quick_gelu(xs: &Array) -> Result<Array> {
    each("quick_gelu", [xs])
}

pub(in crate::ops) fn add(a: &Array, b: &Array) -> Result<Array> {
    if a.dims() != b.dims() {
        return refused(format!("the sum of {:?} and {:?}", a.dims(), b.dims()));
    }
    each("add", [a, b])
}

/// A kernel over all elements, 8 at a time, of arrays of the same dims. Each of these takes its arrays, the output and the count.
fn each<const N: usize>(name: &str, inputs: [&Array; N]) -> Result<Array> {
    check_alike(name, &inputs)?;
    let (gpu, first) = (inputs[0].gpu(), inputs[0]);
    let out = gpu.scratch(first.dims(), first.dtype())?;
    let args = [&addresses(inputs)[..], &[Arg::At(out.address()), Arg::Long(out.count())]].concat();
    let (name, blocks) = (format!("{name}_{}", out.dtype().name()), (out.count() / LANES).div_ceil(256));
    // SAFETY: all have as many elements as `out`, a multiple of 8; the kernels take so many arrays, as the callers above show.
    unsafe { gpu.launch(Launch { name, grid: [blocks, 1, 1], block: 256, shared: 0 }, &args)? };
    Ok(out)
}

/// Its moments are repeated with it.
pub(in crate::ops) fn repeated(xs: &Array, times: usize) -> Result<Array> {
    let mut out = repeated_numbers(xs, times)?;
    if let Some(sums) = xs.row_sums() {
        // They repeat as the rows do.
        out = out.with_row_sums(sums.clone());
    }
    match xs.moments() {
        None => Ok(out),
        Some(Moments { array, groups }) => {
            let array = repeated_numbers(array, times)?.into();
            Ok(out.with_moments(Moments { array, groups: *groups }))
        }
    }
}

fn repeated_numbers(xs: &Array, times: usize) -> Result<Array> {
    let &[batch, ref image @ ..] = xs.dims() else { return refused("a number by itself, repeated".into()) };
    check_alike("a repeated array", &[&xs.reshaped(&[xs.count()])])?;
    let out = xs.gpu().scratch(&[&[batch * times], image].concat(), xs.dtype())?;
    let args = [&addresses([xs, &out])[..], &[Arg::Long(xs.count()), Arg::Int(times)]].concat();
    let (name, blocks) = (format!("repeated_{}", out.dtype().name()), (xs.count() / LANES).div_ceil(256));
    // SAFETY: `out` has `times` times as many numbers as xs, which are whole vectors of 8.
    unsafe { xs.gpu().launch(Launch { name, grid: [blocks, 1, 1], block: 256, shared: 0 }, &args)? };
    Ok(out)
}

pub(in crate::ops) fn geglu(xs: &Array) -> Result<Array> {
    check_alike("a gated GELU", &[xs])?;
    let width = xs.columns() / 2;
    if xs.columns() != 2 * width || !width.is_multiple_of(LANES) {
        return refused(format!("a gated GELU of {} channels", xs.columns()));
    }
    let out = xs.gpu().scratch(&with_columns(xs.dims(), width), xs.dtype())?;
    let args = [&addresses([xs, &out])[..], &[Arg::Long(xs.rows()), Arg::Int(width)]].concat();
    // Two vectors to a thread.
    let (name, blocks) = (format!("geglu_{}", out.dtype().name()), out.count().div_ceil(2 * LANES * 256));
    // SAFETY: xs has the rows of `out`, of twice as many channels.
    unsafe { xs.gpu().launch(Launch { name, grid: [blocks, 1, 1], block: 256, shared: 0 }, &args)? };
    Ok(out)
}

pub(in crate::ops) fn upsample(xs: &Array, height: usize, width: usize) -> Result<Array> {
    let &[batch, from_height, from_width, channels] = xs.dims() else {
        return refused(format!("{:?} is no map", xs.dims()));
    };
    check_alike("a larger map", &[xs])?;
    if xs.count() == 0 {
        return refused(format!("a larger map of {:?}", xs.dims()));
    }
    let out = xs.gpu().scratch(&[batch, height, width, channels], xs.dtype())?;
    let sizes = [from_height, from_width, height, width, channels].map(Arg::Int);
    let args = [&addresses([xs, &out])[..], &sizes].concat();
    let name = format!("upsample_nearest_{}", xs.dtype().name());
    let grid = [(height * width * channels / LANES).div_ceil(256), batch, 1];
    // SAFETY: maps of the sizes given; the kernel takes no place outside the smaller one.
    unsafe { xs.gpu().launch(Launch { name, grid, block: 256, shared: 0 }, &args)? };
    Ok(out)
}

pub(in crate::ops) fn to_tokens(xs: &Array) -> Array {
    let dims = xs.dims();
    xs.reshaped(&[dims[0], dims[1..dims.len() - 1].iter().product(), xs.columns()])
}

pub(in crate::ops) fn to_map(xs: &Array, height: usize, width: usize) -> Array {
    xs.reshaped(&[xs.dims()[0], height, width, xs.columns()])
}
