//! The operations on a GPU: matrix products of cuBLASLt, convolutions of cuDNN, and our own kernels for the rest.
//!
//! Rounding is to the model's dtype wherever an array is written; sums, norms and softmax are f32.

mod attention;

pub(super) use attention::{attention, causal_attention};

use super::Window;
use crate::gpu::{Arg, Array, Dtype, Gpu, Launch, Layout, Moments, Placed, conv, matmul};
use crate::ops::params::Params;
use candle_core::{Error, Result};

/// Channels are filled up to a multiple of it.
pub(crate) const LANES: usize = 8;
/// Groups of every GroupNorm of Stable Diffusion: their moments are taken on the way.
const USUAL_GROUPS: usize = 32;
/// Scores held at once where they are held at all, in bytes of f32.
const SCORES: usize = 64 << 20;

/// A convolution with bias over a map.
pub(super) struct Conv {
    /// `[out, side x side x in]`.
    weight: Array,
    /// `[1, out]`.
    bias: Array,
    window: Window,
}

/// Linear layers side by side.
pub(super) struct Linear {
    /// `[sum of out, in]`.
    weight: Array,
    /// `[1, sum of out]`.
    bias: Option<Array>,
    /// Channels of each.
    each: usize,
}

/// Layer normalisation over the last dimension.
pub(super) struct LayerNorm {
    weight: Array,
    bias: Array,
    eps: f64,
}

/// Group normalisation over a map.
pub(super) struct GroupNorm {
    weight: Array,
    bias: Array,
    groups: usize,
    eps: f64,
}

/// A vector as one row.
fn vector(length: usize) -> Layout {
    Layout { rows: 1, inner: length, area: 1, rows_out: 1, inner_out: length.next_multiple_of(LANES) }
}

fn refused<T>(what: String) -> Result<T> {
    Err(Error::Msg(what).bt())
}

impl Conv {
    pub(super) fn new(inner: usize, outer: usize, window: Window, params: &Params, placed: &Placed) -> Result<Self> {
        let side = window.side;
        let layout = Layout {
            rows: outer,
            inner,
            area: side * side,
            rows_out: outer.next_multiple_of(LANES),
            inner_out: inner.next_multiple_of(LANES),
        };
        Ok(Self {
            weight: params.place(placed, &[outer, inner, side, side], "weight", layout)?,
            bias: params.place(placed, &[outer], "bias", vector(outer))?,
            window,
        })
    }

    /// Plus the row of `shift`'s table that its counter says, at every place, and `onto`.
    pub(super) fn forward(&self, xs: &Array, shift: Option<(&Array, &Array)>, onto: Option<&Array>) -> Result<Array> {
        let &[batch, height, width, channels] = xs.dims() else { return refused(format!("{:?} is no map", xs.dims())) };
        let Window { side, stride, padding } = self.window;
        let out = self.weight.dims()[0];
        if channels * side * side != self.weight.columns() {
            return refused(format!("{channels} channels for weights of {:?}", self.weight.dims()));
        }
        if side == 1 && shift.is_none() {
            return multiply(xs, &self.weight, Some(&self.bias), onto);
        }
        let gpu = xs.gpu();
        let case = conv::Case {
            dtype: xs.dtype(),
            batch,
            height,
            width,
            channels_in: channels,
            channels_out: out,
            side,
            stride,
            padding,
        };
        let sums = gpu.scratch(&[batch, case.out_height(), case.out_width(), out], xs.dtype())?;
        let mut convolutions = gpu.convolutions()?;
        let room = convolutions.workspace(&case)?;
        let workspace = gpu.scratch(&[room.max(4) / 4], Dtype::F32)?;
        // SAFETY: arrays of the sizes that the case says, and a workspace as long as asked for.
        #[allow(unsafe_code)]
        unsafe {
            convolutions.run(&case, xs.address(), self.weight.address(), sums.address(), workspace.address())?;
        }
        drop(convolutions);
        after_conv(sums, &self.bias, shift, onto)
    }
}

/// Bias, shift and residual in place, and the moments for a norm that follows.
fn after_conv(sums: Array, bias: &Array, shift: Option<(&Array, &Array)>, onto: Option<&Array>) -> Result<Array> {
    if let Some(onto) = onto.filter(|onto| onto.dims() != sums.dims() || !onto.is_contiguous()) {
        return refused(format!("a residual of {:?} for {:?}", onto.dims(), sums.dims()));
    }
    let address = |array: Option<&Array>| Arg::At(array.map_or(0, Array::address));
    let [table, step] = [shift.map(|(table, _)| table), shift.map(|(_, step)| step)];
    let first = [Arg::At(sums.address()), Arg::At(bias.address()), address(table), address(step), address(onto)];
    measured(sums, "after_conv", &first, |_| Vec::new())
}

/// Launches a kernel that leaves moments beside `out`, if its channels fall into the usual groups.
fn measured(out: Array, kernel: &str, first: &[Arg], sizes: impl Fn(usize) -> Vec<Arg>) -> Result<Array> {
    let gpu = out.gpu().clone();
    let (batch, channels) = (out.dims()[0], out.columns());
    let rows = out.rows() / batch.max(1);
    let grouped = channels.is_multiple_of(USUAL_GROUPS);
    let groups = if grouped { USUAL_GROUPS } else { channels / LANES };
    let resident = if kernel == "after_conv" { 2 } else { 3 };
    let share = Share::new(&gpu, [batch, rows, channels, groups], resident)?;
    let partials = if grouped { Some(gpu.scratch(&[batch, groups, share.chunks, 2], Dtype::F32)?) } else { None };
    let mut args = first.to_vec();
    args.extend([Arg::At(partials.as_ref().map_or(0, Array::address)), Arg::Int(rows)]);
    let own = sizes(channels);
    args.extend(if own.is_empty() { vec![Arg::Int(channels)] } else { own });
    args.extend([groups, share.vectors, share.height].map(Arg::Int));
    gpu.launch(share.launch(format!("{kernel}_{}", out.dtype().name())), &args)?;
    Ok(match partials {
        Some(array) => out.with_moments(Moments { array: array.into(), groups }),
        None => out,
    })
}

/// How a map is shared out among the blocks of a kernel that measures or normalises groups: each has a slice of the
/// channels, whole groups of them, and a chunk of an image's rows.
struct Share {
    batch: usize,
    /// Eights of channels in a slice, and how many slices there are.
    vectors: usize,
    slices: usize,
    /// Threads of a block: each has 8 channels of some rows.
    block: usize,
    /// Rows of a chunk, and how many chunks there are.
    height: usize,
    chunks: usize,
}

impl Share {
    /// For two blocks to a multiprocessor, or as many as `resident` while their threads would have more than four rows.
    fn new(gpu: &Gpu, [batch, rows, channels, groups]: [usize; 4], resident: usize) -> Result<Self> {
        let each = channels / groups;
        // The fewest channels that are whole groups and whole sectors of memory, or at least whole vectors.
        let whole = |unit: u32| each << unit.saturating_sub(each.trailing_zeros());
        let bundle = if channels.is_multiple_of(whole(4)) { whole(4) } else { whole(3) };
        let bundles = channels / bundle;
        let count = (1..bundles).find(|count| count * bundle >= 64 && bundles.is_multiple_of(*count));
        let slice = bundle * count.unwrap_or(bundles);
        let (vectors, slices) = (slice / LANES, channels / slice);
        let threads = if each >= 7 || each == 4 { 320 } else { 64 };
        if vectors > threads || slice / each > 128 {
            return refused(format!("{groups} groups of {each} channels"));
        }
        let busy = |blocks: usize| (blocks * gpu.multiprocessors()).div_ceil((batch * slices).max(1));
        let most = threads / vectors;
        let lanes = rows.div_ceil(busy(2)).clamp((128 / vectors).clamp(1, most), most);
        let least = busy(2).min(rows.div_ceil(lanes)).max(1);
        let chunks = rows.div_ceil(4 * lanes).clamp(least, busy(resident).max(least));
        let height = rows.div_ceil(chunks).max(1);
        let block = (vectors * lanes).next_multiple_of(32);
        Ok(Self { batch, vectors, slices, block, height, chunks: rows.div_ceil(height) })
    }

    fn launch(&self, name: String) -> Launch {
        Launch { name, grid: [self.chunks, self.slices, self.batch], block: self.block, shared: 0 }
    }
}

impl Linear {
    pub(super) fn new(inner: usize, each: usize, bias: bool, params: &[Params], placed: &Placed) -> Result<Self> {
        let layout = Layout { rows: each, inner, area: 1, rows_out: each, inner_out: inner };
        let names = |leaf: &str, dims: &[usize]| -> Result<Vec<String>> {
            params.iter().map(|params| params.checked(dims, leaf)).collect()
        };
        if !inner.is_multiple_of(LANES) || !each.is_multiple_of(LANES) {
            return refused(format!("a linear layer of {inner} and {each} channels: a GPU takes multiples of {LANES}"));
        }
        let weights = names("weight", &[each, inner])?.into_iter().map(|name| (name, layout));
        let weight = placed.place(&weights.collect::<Vec<_>>())?;
        let bias = if bias {
            let biases = names("bias", &[each])?.into_iter().map(|name| (name, vector(each)));
            Some(placed.place(&biases.collect::<Vec<_>>())?)
        } else {
            None
        };
        Ok(Self { weight, bias, each })
    }

    pub(super) fn forward(&self, xs: &Array, onto: Option<&Array>) -> Result<Array> {
        multiply(xs, &self.weight, self.bias.as_ref(), onto)
    }

    /// In one kernel where there is one for it, as `kernels/geglu_hopper.cu` says.
    pub(super) fn forward_geglu(&self, xs: &Array) -> Result<Array> {
        let (gpu, rows, inner, width) = (xs.gpu(), xs.rows(), self.weight.columns(), self.weight.dims()[0] / 2);
        let fits = gpu.is_hopper() && gpu.fuses(xs.dtype()) && rows >= FEW_ROWS && xs.is_contiguous();
        let tile = Tile::for_shape(gpu, rows, width).filter(|_| fits && inner == xs.columns() && inner % 64 == 0);
        let (Some(tile), Some(bias)) = (tile, &self.bias) else { return geglu(&self.forward(xs, None)?) };
        let mut dims = xs.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = width;
        }
        let out = gpu.scratch(&dims, xs.dtype())?;
        let arrays = [xs, &self.weight, bias, &out].map(|array| Arg::At(array.address()));
        let name = format!("linear_geglu_{}{}", xs.dtype().name(), tile.ending);
        let grid = [tile.count(rows, width).min(gpu.multiprocessors()), 1, 1];
        let sizes = [rows, inner, width].map(Arg::Int);
        gpu.launch(Launch { name, grid, block: 384, shared: tile.shared }, &[&arrays[..], &sizes].concat())?;
        Ok(out)
    }

    pub(super) fn forward_each(&self, xs: &Array) -> Result<Vec<Array>> {
        let all = multiply(xs, &self.weight, self.bias.as_ref(), None)?;
        Ok((0..all.columns()).step_by(self.each).map(|from| all.columns_from(from, self.each)).collect())
    }
}

/// With fewer rows, a product and a kernel after it are faster (measured on an H100).
const FEW_ROWS: usize = 256;

/// A tile of the fused kernel: 128 rows and so many columns.
#[derive(Clone, Copy)]
struct Tile {
    columns: usize,
    ending: &'static str,
    shared: usize,
}

const TILES: [Tile; 2] =
    [Tile { columns: 128, ending: "", shared: 197_760 }, Tile { columns: 160, ending: "_160", shared: 230_528 }];

impl Tile {
    /// The one with the least work for the busiest processor.
    fn for_shape(gpu: &Gpu, rows: usize, width: usize) -> Option<Self> {
        let work = |tile: &Self| tile.count(rows, width).div_ceil(gpu.multiprocessors()) * tile.columns;
        TILES.into_iter().filter(|tile| width.is_multiple_of(tile.columns)).min_by_key(work)
    }

    fn count(&self, rows: usize, width: usize) -> usize {
        rows.div_ceil(128) * (width / self.columns)
    }
}

/// `xs @ weight^T`, plus bias, plus `onto`.
fn multiply(xs: &Array, weight: &Array, bias: Option<&Array>, onto: Option<&Array>) -> Result<Array> {
    let (gpu, inner, columns) = (xs.gpu(), weight.columns(), weight.dims()[0]);
    if xs.columns() != inner {
        return refused(format!("{:?} times weights of {:?}", xs.dims(), weight.dims()));
    }
    let mut dims = xs.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = columns;
    }
    if let Some(onto) = onto.filter(|onto| onto.dims() != dims || !onto.is_contiguous()) {
        return refused(format!("a residual of {:?} for {dims:?}", onto.dims()));
    }
    let out = gpu.scratch(&dims, xs.dtype())?;
    let case = matmul::Case {
        a_row: xs.row(),
        bias: bias.is_some(),
        onto: onto.is_some(),
        ..matmul::Case::linear(xs.dtype(), xs.rows(), columns, inner)
    };
    let at = matmul::Operands {
        a: xs.address(),
        w: weight.address(),
        out: out.address(),
        bias: bias.map(Array::address),
        onto: onto.map(Array::address),
    };
    // SAFETY: arrays of the sizes that the case says.
    #[allow(unsafe_code)]
    unsafe {
        gpu.matmuls()?.run(&case, &at)?;
    }
    Ok(out)
}

impl LayerNorm {
    pub(super) fn new(channels: usize, eps: f64, params: &Params, placed: &Placed) -> Result<Self> {
        let place = |leaf| params.place(placed, &[channels], leaf, vector(channels));
        Ok(Self { weight: place("weight")?, bias: place("bias")?, eps })
    }

    pub(super) fn forward(&self, xs: &Array) -> Result<Array> {
        let gpu = xs.gpu();
        let out = gpu.scratch(xs.dims(), xs.dtype())?;
        let [xs_at, weight, bias, out_at] = [xs, &self.weight, &self.bias, &out].map(|array| Arg::At(array.address()));
        let sizes = [Arg::Int(xs.rows()), Arg::Int(xs.columns()), Arg::Float(self.eps as f32)];
        let args = [&[xs_at, weight, bias, out_at], sizes.as_slice()].concat();
        // Threads that share a row, as the kernel has them.
        let sharing = match xs.columns() {
            0..=320 => 8,
            321..=640 => 16,
            _ => 32,
        };
        let threads = xs.rows() * sharing;
        let block = if threads < 128 * gpu.multiprocessors() { 64 } else { 128 };
        let name = format!("layer_norm_{}", xs.dtype().name());
        gpu.launch(Launch { name, grid: [threads.div_ceil(block), 1, 1], block, shared: 0 }, &args)?;
        Ok(out)
    }
}

impl GroupNorm {
    pub(super) fn new(groups: usize, channels: usize, eps: f64, params: &Params, placed: &Placed) -> Result<Self> {
        let place = |leaf| params.place(placed, &[channels], leaf, vector(channels));
        Ok(Self { weight: place("weight")?, bias: place("bias")?, groups, eps })
    }

    pub(super) fn forward(&self, xs: &Array, silu: bool) -> Result<Array> {
        let gpu = xs.gpu();
        let (batch, channels) = (xs.dims()[0], xs.columns());
        let rows = xs.rows() / batch.max(1);
        let moments = match xs.moments().filter(|moments| moments.groups == self.groups) {
            Some(known) => known.array.clone(),
            None => moments(xs, self.groups)?.into(),
        };
        let out = gpu.scratch(xs.dims(), xs.dtype())?;
        let arrays = [xs, &*moments, &self.weight, &self.bias, &out].map(|array| Arg::At(array.address()));
        // In as many chunks as they were taken in.
        let chunks = moments.dims()[2];
        let share = Share::new(gpu, [batch, rows, channels, self.groups], 3)?;
        let mut args = arrays.to_vec();
        args.extend([rows, channels, self.groups, chunks, rows.div_ceil(chunks.max(1)), share.vectors].map(Arg::Int));
        args.extend([Arg::Float(self.eps as f32), Arg::Int(usize::from(silu))]);
        gpu.launch(share.launch(format!("group_norm_{}", xs.dtype().name())), &args)?;
        Ok(out)
    }
}

/// Moments of each image's groups, chunk by chunk of its rows: `[batch, groups, chunks, 2]`.
fn moments(xs: &Array, groups: usize) -> Result<Array> {
    let gpu = xs.gpu();
    let (batch, channels) = (xs.dims()[0], xs.columns());
    let rows = xs.rows() / batch.max(1);
    let share = Share::new(gpu, [batch, rows, channels, groups], 3)?;
    let partials = gpu.scratch(&[batch, groups, share.chunks, 2], Dtype::F32)?;
    let mut args = [xs, &partials].map(|array| Arg::At(array.address())).to_vec();
    args.extend([rows, channels, groups, share.vectors, share.height].map(Arg::Int));
    gpu.launch(share.launch(format!("moments_{}", xs.dtype().name())), &args)?;
    Ok(partials)
}

/// A kernel over all elements, 8 at a time.
fn each(name: &str, inputs: &[&Array], out: &Array, sizes: &[Arg]) -> Result<()> {
    let vectors = out.count().div_ceil(LANES);
    let mut args: Vec<Arg> = inputs.iter().map(|array| Arg::At(array.address())).collect();
    args.push(Arg::At(out.address()));
    args.extend(sizes);
    let name = format!("{name}_{}", out.dtype().name());
    Ok(out.gpu().launch(Launch { name, grid: [vectors.div_ceil(256), 1, 1], block: 256, shared: 0 }, &args)?)
}

pub(super) fn geglu(xs: &Array) -> Result<Array> {
    let mut dims = xs.dims().to_vec();
    let width = xs.columns() / 2;
    if let Some(last) = dims.last_mut() {
        *last = width;
    }
    let out = xs.gpu().scratch(&dims, xs.dtype())?;
    let args = [Arg::At(xs.address()), Arg::At(out.address()), Arg::Long(xs.rows()), Arg::Int(width)];
    // Two vectors to a thread.
    let (blocks, name) = (out.count().div_ceil(2 * LANES * 256), format!("geglu_{}", out.dtype().name()));
    out.gpu().launch(Launch { name, grid: [blocks, 1, 1], block: 256, shared: 0 }, &args)?;
    Ok(out)
}

pub(super) fn silu(xs: &Array) -> Result<Array> {
    let out = xs.gpu().scratch(xs.dims(), xs.dtype())?;
    each("silu", &[xs], &out, &[Arg::Long(xs.count())])?;
    Ok(out)
}

pub(super) fn quick_gelu(xs: &Array) -> Result<Array> {
    let out = xs.gpu().scratch(xs.dims(), xs.dtype())?;
    each("quick_gelu", &[xs], &out, &[Arg::Long(xs.count())])?;
    Ok(out)
}

pub(super) fn add(a: &Array, b: &Array) -> Result<Array> {
    if a.dims() != b.dims() {
        return refused(format!("the sum of {:?} and {:?}", a.dims(), b.dims()));
    }
    let out = a.gpu().scratch(a.dims(), a.dtype())?;
    each("add", &[a, b], &out, &[Arg::Long(a.count())])?;
    Ok(out)
}

pub(super) fn join(a: &Array, b: &Array) -> Result<Array> {
    let mut dims = a.dims().to_vec();
    let (first, second) = (a.columns(), b.columns());
    if let Some(last) = dims.last_mut() {
        *last = first + second;
    }
    let out = a.gpu().scratch(&dims, a.dtype())?;
    let arrays = [a, b, &out].map(|array| Arg::At(array.address()));
    measured(out, "join", &arrays, |_| vec![Arg::Int(first), Arg::Int(second)])
}

pub(super) fn upsample(xs: &Array, height: usize, width: usize) -> Result<Array> {
    let &[batch, from_height, from_width, channels] = xs.dims() else {
        return refused(format!("{:?} is no map", xs.dims()));
    };
    let out = xs.gpu().scratch(&[batch, height, width, channels], xs.dtype())?;
    let arrays = [xs, &out].map(|array| Arg::At(array.address()));
    let sizes = [from_height, from_width, height, width, channels].map(Arg::Int);
    let blocks = (height * width * channels / LANES).div_ceil(256);
    let name = format!("upsample_nearest_{}", xs.dtype().name());
    xs.gpu()
        .launch(Launch { name, grid: [blocks, batch, 1], block: 256, shared: 0 }, &[&arrays[..], &sizes].concat())?;
    Ok(out)
}

pub(super) fn to_tokens(xs: &Array) -> Array {
    let dims = xs.dims();
    xs.reshaped(&[dims[0], dims[1..dims.len() - 1].iter().product(), xs.columns()])
}

pub(super) fn to_map(xs: &Array, height: usize, width: usize) -> Array {
    xs.reshaped(&[xs.dims()[0], height, width, xs.columns()])
}

#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests;
