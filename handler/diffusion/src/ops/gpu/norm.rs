//! Layer and group normalisation. The moments of a group norm are taken by the operation before it where that can be.

use super::{LANES, address_or_null, addresses, check_alike, check_f32, check_vector, refused, vector, with_columns};
use crate::gpu::{
    Arg, Array, Dtype, Gpu, Launch, Moments, Placed,
    constants::{LARGEST_BLOCK, LARGEST_NARROW_BLOCK, LARGEST_TABLE, ROW_OF_8, ROW_OF_16, ROW_OF_32},
};
use crate::ops::params::Params;
use candle_core::Result;
use std::sync::Arc;

/// Groups of every GroupNorm of Stable Diffusion: an operation before one takes the moments of these.
pub(super) const USUAL_GROUPS: usize = 32;

/// Layer normalisation over the last dimension.
pub(in crate::ops) struct LayerNorm {
    weight: Array,
    bias: Array,
    eps: f64,
}

impl LayerNorm {
    pub(in crate::ops) fn new(channels: usize, eps: f64, params: &Params, placed: &Placed) -> Result<Self> {
        let place = |leaf| params.place(placed, &[channels], leaf, vector(channels));
        Ok(Self { weight: place("weight")?, bias: place("bias")?, eps })
    }

    pub(in crate::ops) fn forward(&self, xs: &Array) -> Result<Array> {
        let (gpu, rows, channels) = (xs.gpu(), xs.rows(), xs.columns());
        check_alike("a layer norm", &[xs, &self.weight, &self.bias])?;
        [&self.weight, &self.bias].iter().try_for_each(|each| check_vector("a layer norm", each, channels))?;
        // Threads that share a row, as the kernel has them.
        let widths = [(ROW_OF_8, 8), (ROW_OF_16, 16), (ROW_OF_32, 32)];
        let Some((_, sharing)) = widths.into_iter().find(|(most, _)| channels <= *most) else {
            return refused(format!("a layer norm of {channels} channels: the most are {ROW_OF_32}"));
        };
        let out = gpu.scratch(xs.dims(), xs.dtype())?;
        let sizes = [Arg::Int(rows), Arg::Int(channels), Arg::Float(self.eps as f32)];
        let args = [&addresses([xs, &self.weight, &self.bias, &out])[..], &sizes].concat();
        let threads = rows * sharing;
        let block = if threads < 128 * gpu.multiprocessors() { 64 } else { 128 };
        let name = format!("layer_norm_{}", xs.dtype().name());
        Array::reach(&[&self.weight, &self.bias])?;
        // SAFETY: weight and bias have as many channels as xs, `out` is made like xs, and rows are not longer than the kernel can hold.
        unsafe { gpu.launch(Launch { name, grid: [threads.div_ceil(block), 1, 1], block, shared: 0 }, &args)? };
        Ok(out)
    }
}

/// Group normalisation over a map.
pub(in crate::ops) struct GroupNorm {
    weight: Array,
    bias: Array,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub(in crate::ops) fn new(
        groups: usize,
        channels: usize,
        eps: f64,
        params: &Params,
        placed: &Placed,
    ) -> Result<Self> {
        let place = |leaf| params.place(placed, &[channels], leaf, vector(channels));
        Ok(Self { weight: place("weight")?, bias: place("bias")?, groups, eps })
    }

    pub(in crate::ops) fn forward(&self, xs: &Array, silu: bool) -> Result<Array> {
        let moments = self.moments_of(xs)?;
        self.apply(xs, &moments, silu)
    }

    /// The moments of each group of each image, chunk by chunk: those that the operation before has taken, or new ones.
    pub(super) fn moments_of(&self, xs: &Array) -> Result<Arc<Array>> {
        Ok(match xs.moments().filter(|moments| moments.groups == self.groups) {
            Some(known) => known.array.clone(),
            None => moments(xs, self.groups)?.into(),
        })
    }

    /// The norm by those moments, `[images, groups, chunks, 2]`.
    pub(super) fn apply(&self, xs: &Array, moments: &Array, silu: bool) -> Result<Array> {
        let (gpu, channels) = (xs.gpu(), xs.columns());
        check_alike("a group norm", &[xs, &self.weight, &self.bias])?;
        [&self.weight, &self.bias].iter().try_for_each(|each| check_vector("a group norm", each, channels))?;
        let share = Share::new(xs, self.groups, 3)?;
        check_f32("moments", gpu, moments)?;
        let chunks = match moments.dims() {
            &[batch, groups, chunks, 2] if batch == share.batch && groups == self.groups => chunks,
            dims => return refused(format!("moments of {dims:?} for {:?} in {} groups", xs.dims(), self.groups)),
        };
        let out = gpu.scratch(xs.dims(), xs.dtype())?;
        // They were taken in as many chunks.
        let height = share.rows.div_ceil(chunks);
        let sizes = [share.rows, channels, self.groups, chunks, height, share.vectors].map(Arg::Int);
        let rest = [Arg::Float(self.eps as f32), Arg::Int(usize::from(silu))];
        let args = [&addresses([xs, moments, &self.weight, &self.bias, &out])[..], &sizes, &rest].concat();
        Array::reach(&[&self.weight, &self.bias])?;
        // SAFETY: weight and bias have as many channels as xs, `out` is made like xs, and the moments are those of its images, groups
        // and chunks. `Share` holds the kernel's launch rule.
        unsafe { gpu.launch(share.launch(format!("group_norm_{}", xs.dtype().name())), &args)? };
        Ok(out)
    }
}

/// Moments of each image's groups, chunk by chunk of its rows: `[batch, groups, chunks, 2]`.
fn moments(xs: &Array, groups: usize) -> Result<Array> {
    check_alike("moments", &[xs])?;
    let (gpu, share) = (xs.gpu(), Share::new(xs, groups, 3)?);
    let partials = gpu.scratch(&[share.batch, groups, share.chunks, 2], Dtype::F32)?;
    let sizes = [share.rows, xs.columns(), groups, share.vectors, share.height].map(Arg::Int);
    let args = [&addresses([xs, &partials])[..], &sizes].concat();
    // SAFETY: there is room for the moments of each group and chunk of this grid, and `Share` holds the kernel's launch rule.
    unsafe { gpu.launch(share.launch(format!("moments_{}", xs.dtype().name())), &args)? };
    Ok(partials)
}

/// The channels of two maps, one after the other, and the moments for a norm that follows.
pub(in crate::ops) fn join(a: &Array, b: &Array) -> Result<Array> {
    check_alike("a joined map", &[a, b])?;
    let (first, second) = (a.columns(), b.columns());
    let dims = with_columns(a.dims(), first + second);
    if dims != with_columns(b.dims(), first + second) {
        return refused(format!("{:?} joined with {:?}", a.dims(), b.dims()));
    }
    let out = a.gpu().scratch(&dims, a.dtype())?;
    let (share, moments) = moments_for(&out, 3)?;
    let partials = address_or_null(moments.as_ref().map(|moments| &*moments.array));
    let Share { rows, groups, vectors, height, .. } = share;
    let sizes = [rows, first, second, groups, vectors, height].map(Arg::Int);
    let args = [&addresses([a, b, &out])[..], &[partials], &sizes].concat();
    // SAFETY: both have the rows of `out`, and together its channels. `moments_for` made the moments for this map and grid.
    unsafe { a.gpu().launch(share.launch(format!("join_{}", out.dtype().name())), &args)? };
    Ok(match moments {
        Some(moments) => out.with_moments(moments),
        None => out,
    })
}

/// How a kernel that writes this map is launched, and room for the moments that it takes, if the channels fall into the usual groups.
pub(super) fn moments_for(map: &Array, resident: usize) -> Result<(Share, Option<Moments>)> {
    let channels = map.columns();
    if !channels.is_multiple_of(USUAL_GROUPS) {
        return Ok((Share::new(map, channels / LANES, resident)?, None));
    }
    let share = Share::new(map, USUAL_GROUPS, resident)?;
    let partials = map.gpu().scratch(&[share.batch, USUAL_GROUPS, share.chunks, 2], Dtype::F32)?;
    Ok((share, Some(Moments { array: partials.into(), groups: USUAL_GROUPS })))
}

/// How a map is shared out among the blocks of a kernel that measures or normalises groups, by the launch rule in `kernels/norm.cu`:
/// each has a slice of the channels, whole groups of them, and a chunk of an image's rows.
pub(super) struct Share {
    pub(super) batch: usize,
    /// Rows of an image, and groups of its channels.
    pub(super) rows: usize,
    pub(super) groups: usize,
    /// Eights of channels in a slice, and how many slices there are.
    pub(super) vectors: usize,
    slices: usize,
    /// Threads of a block: each has 8 channels of some rows.
    block: usize,
    /// Rows of a chunk, and how many chunks there are.
    pub(super) height: usize,
    chunks: usize,
}

impl Share {
    fn new(map: &Array, groups: usize, resident: usize) -> Result<Self> {
        let (batch, channels) = (map.dims()[0], map.columns());
        let rows = map.rows() / batch.max(1);
        Self::of(map.gpu(), [batch, rows, channels, groups], resident)
    }

    /// For two blocks to a multiprocessor, or as many as `resident` while their threads would have more than four rows.
    fn of(gpu: &Gpu, [batch, rows, channels, groups]: [usize; 4], resident: usize) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) || !channels.is_multiple_of(LANES) || batch * rows == 0 {
            return refused(format!("{batch} x {rows} x {channels} in {groups} groups"));
        }
        let each = channels / groups;
        // The fewest channels that are whole groups and whole sectors of memory, or at least whole vectors.
        let whole = |unit: u32| each << unit.saturating_sub(each.trailing_zeros());
        let bundle = if channels.is_multiple_of(whole(4)) { whole(4) } else { whole(3) };
        let bundles = channels / bundle;
        let count = (1..bundles).find(|count| count * bundle >= 64 && bundles.is_multiple_of(*count));
        let slice = bundle * count.unwrap_or(bundles);
        let (vectors, slices) = (slice / LANES, channels / slice);
        let threads = if each >= 7 || each == 4 { LARGEST_BLOCK } else { LARGEST_NARROW_BLOCK };
        if vectors > threads || slice / each > LARGEST_TABLE {
            return refused(format!("{groups} groups of {each} channels"));
        }
        let busy = |blocks: usize| (blocks * gpu.multiprocessors()).div_ceil((batch * slices).max(1));
        let most = threads / vectors;
        let lanes = rows.div_ceil(busy(2)).clamp((128 / vectors).clamp(1, most), most);
        let least = busy(2).min(rows.div_ceil(lanes)).max(1);
        let chunks = rows.div_ceil(4 * lanes).clamp(least, busy(resident).max(least));
        let height = rows.div_ceil(chunks).max(1);
        let block = (vectors * lanes).next_multiple_of(32);
        Ok(Self { batch, rows, groups, vectors, slices, block, height, chunks: rows.div_ceil(height) })
    }

    pub(super) fn launch(&self, name: String) -> Launch {
        Launch { name, grid: [self.chunks, self.slices, self.batch], block: self.block, shared: 0 }
    }
}
