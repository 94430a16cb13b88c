//! Layer and group normalisation. The moments of a group norm are taken by the operations before it where that can be, also if it reads
//! two maps as one.

use super::{LANES, Maps, address_or_null, addresses, check_alike, check_f32, check_vector, refused, vector};
use crate::gpu::{
    Arg, Array, Dtype, Gpu, Launch, Moments, Placed,
    constants::{
        LARGEST_BLOCK, LARGEST_NARROW_BLOCK, LARGEST_TABLE, LAYER_NORM_BLOCKS, ROW_OF_8, ROW_OF_16, ROW_OF_32,
    },
};
use crate::ops::params::Params;
use candle_core::Result;
use std::{ops::Range, sync::Arc};

/// As many moments of one group, or more, are not merged: the kernel's quick division is exact below.
const MOST_PARTS: usize = 1 << 20;

/// Layer normalisation over the last dimension.
pub(in crate::ops) struct LayerNorm {
    /// None if they are in the layer behind it.
    weight_and_bias: Option<[Array; 2]>,
    eps: f64,
}

impl LayerNorm {
    pub(in crate::ops) fn new(channels: usize, eps: f64, params: &Params, placed: &Placed) -> Result<Self> {
        let place = |leaf| params.place(placed, &[channels], leaf, vector(channels));
        Ok(Self { weight_and_bias: Some([place("weight")?, place("bias")?]), eps })
    }

    /// Without weight and bias.
    pub(super) fn alone(eps: f64) -> Self {
        Self { weight_and_bias: None, eps }
    }

    pub(super) fn eps(&self) -> f32 {
        self.eps as f32
    }

    /// Weight and bias `[1, channels]`.
    pub(super) fn weight_and_bias(&self) -> Option<&[Array; 2]> {
        self.weight_and_bias.as_ref()
    }

    pub(in crate::ops) fn forward(&self, xs: &Array) -> Result<Array> {
        let (gpu, rows, channels) = (xs.gpu(), xs.rows(), xs.columns());
        let ours: Vec<&Array> = self.weight_and_bias.iter().flatten().collect();
        check_alike("a layer norm", &[&[xs], &ours[..]].concat())?;
        ours.iter().try_for_each(|each| check_vector("a layer norm", each, channels))?;
        // Threads that share a row, as the kernel has them.
        let widths = [(ROW_OF_8, 8), (ROW_OF_16, 16), (ROW_OF_32, 32)];
        let Some((_, sharing)) = widths.into_iter().find(|(most, _)| channels <= *most) else {
            return refused(format!("a layer norm of {channels} channels: the most are {ROW_OF_32}"));
        };
        let out = gpu.scratch(xs.dims(), xs.dtype())?;
        let sizes = [Arg::Int(rows), Arg::Int(channels), Arg::Float(self.eps())];
        let [weight, bias] = [ours.first(), ours.get(1)].map(|array| address_or_null(array.copied()));
        let args = [&[Arg::At(xs.address()), weight, bias, Arg::At(out.address())], &sizes[..]].concat();
        let threads = rows * sharing;
        let block = if threads < 128 * gpu.multiprocessors() { 64 } else { 128 };
        // A thread keeps weights and biases while it goes on to another row.
        let blocks = threads.div_ceil(block).min(LAYER_NORM_BLOCKS * gpu.multiprocessors());
        let name = format!("layer_norm_{}", xs.dtype().name());
        Array::reach(&ours)?;
        // SAFETY: weight and bias, if they are there, have as many channels as xs, `out` is made like xs, and rows are not longer than the kernel can hold.
        unsafe { gpu.launch(Launch { name, grid: [blocks, 1, 1], block, shared: 0 }, &args)? };
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

    pub(in crate::ops) fn forward(&self, maps: &Maps, silu: bool) -> Result<Array> {
        let out = maps.gpu().scratch(&maps.dims(), maps.parts().0.dtype())?;
        self.forward_to(maps, out, silu)
    }

    /// The same of maps that nobody needs any more. The result takes the place of the only one, if nobody else has that.
    pub(in crate::ops) fn forward_over(&self, maps: Maps, silu: bool) -> Result<Array> {
        match maps.parts() {
            (map, None) if map.is_alone() => self.forward_to(&maps, map.without_moments(), silu),
            _ => self.forward(&maps, silu),
        }
    }

    fn forward_to(&self, maps: &Maps, out: Array, silu: bool) -> Result<Array> {
        match self.known(maps) {
            Some(known) => self.apply(maps, &known, out, silu),
            None => self.apply(maps, &[&moments(maps, self.groups)?], out, silu),
        }
    }

    /// The moments of each group of each image, chunk by chunk: those that the operation before has taken, or new ones.
    pub(super) fn moments_of(&self, xs: &Array) -> Result<Arc<Array>> {
        Ok(match xs.moments().filter(|moments| moments.groups == self.groups) {
            Some(known) => known.array.clone(),
            None => moments(&xs.clone().into(), self.groups)?.into(),
        })
    }

    /// The moments that the operations before have taken, if the norm's groups are made of whole ones of theirs.
    pub(super) fn known<'a>(&self, maps: &'a Maps) -> Option<Vec<&'a Array>> {
        let (each, [batch, _]) = (maps.channels().checked_div(self.groups)?, maps.images());
        let mut from = 0;
        let moments = maps.each().map(|map| {
            let moments = map.moments().filter(|moments| moments.array.dims()[0] == batch)?;
            let fits = is_made_of(each, from, map.columns() / moments.groups);
            from += map.columns();
            fits.then_some(&*moments.array)
        });
        moments.collect()
    }

    /// The norm by moments `[images, units, chunks, 2]`, a unit being a group of the norm or a part of one: of all channels, or of those of
    /// each map. It goes to `out`, which has the dims of a map with the channels of all, and may be the only one.
    pub(super) fn apply(&self, maps: &Maps, moments: &[&Array], out: Array, silu: bool) -> Result<Array> {
        let (gpu, channels, [batch, rows]) = (maps.gpu(), maps.channels(), maps.images());
        let (first, second) = maps.parts();
        check_alike("a group norm", &[first, second.unwrap_or(first), &self.weight, &self.bias])?;
        [&self.weight, &self.bias].iter().try_for_each(|each| check_vector("a group norm", each, channels))?;
        let share = Share::of(gpu, [batch, rows, channels, self.groups], 3)?;
        let (&left, right) = match (moments, second) {
            ([all], _) => (all, None),
            ([left, right], Some(_)) => (left, Some(*right)),
            _ => return refused(format!("moments of {} maps for {:?}", moments.len(), maps.dims())),
        };
        let border = first.columns();
        let measured = if right.is_some() { border } else { channels };
        let sizes = self.sizes(maps, left, 0..measured)?;
        let others = right.map_or(Ok([1; 3]), |right| self.sizes(maps, right, measured..channels))?;
        check_alike("a group norm's result", &[first, &out])?;
        if out.dims() != maps.dims() {
            return refused(format!("the norm of {:?} into {:?}", maps.dims(), out.dims()));
        }
        let args = [
            &maps.addresses()[..],
            &[Arg::At(left.address()), address_or_null(right)],
            &addresses([&self.weight, &self.bias, &out]),
            &[rows, channels, border, self.groups, measured].map(Arg::Int),
            &sizes.map(Arg::Int),
            &others.map(Arg::Int),
            &[Arg::Int(share.vectors), Arg::Float(self.eps as f32), Arg::Int(usize::from(silu))],
        ];
        Array::reach(&[&self.weight, &self.bias])?;
        let launch = share.launch(format!("group_norm_{}", first.dtype().name()));
        // SAFETY: weight and bias have as many channels as all maps, `out` has their dims, and the moments are those of their images and
        // channels, in units that `sizes` has compared with the groups. `Share` holds the kernel's launch rule. If `out` is the map, each
        // thread reads a number before it writes it, and no other does either.
        unsafe { gpu.launch(launch, &args.concat())? };
        Ok(out)
    }

    /// Channels of a unit, chunks, and rows of a chunk of the moments of some channels. The norm's groups are made of whole units.
    fn sizes(&self, maps: &Maps, moments: &Array, of: Range<usize>) -> Result<[usize; 3]> {
        check_f32("moments", maps.gpu(), moments)?;
        let ([batch, rows], each) = (maps.images(), maps.channels() / self.groups);
        if let &[images, units, chunks, 2] = moments.dims() {
            let unit = of.len() / units;
            let fits = images == batch && unit * units == of.len() && is_made_of(each, of.start, unit);
            if fits && each / unit * chunks < MOST_PARTS {
                // They were taken in as many chunks.
                return Ok([unit, chunks, rows.div_ceil(chunks)]);
            }
        }
        let (dims, groups) = (maps.dims(), self.groups);
        refused(format!("moments of {:?} for channels {of:?} of {dims:?} in {groups} groups", moments.dims()))
    }
}

/// Whether groups of so many channels are made of whole units, if the units begin at channel `from`.
fn is_made_of(each: usize, from: usize, unit: usize) -> bool {
    unit > 0 && each.is_multiple_of(unit) && from.is_multiple_of(unit)
}

/// Moments of each image's groups, chunk by chunk of its rows: `[batch, groups, chunks, 2]`.
fn moments(maps: &Maps, groups: usize) -> Result<Array> {
    let (first, second) = maps.parts();
    check_alike("moments", &[first, second.unwrap_or(first)])?;
    let (gpu, channels, [batch, rows]) = (maps.gpu(), maps.channels(), maps.images());
    let share = Share::of(gpu, [batch, rows, channels, groups], 3)?;
    let partials = gpu.scratch(&[batch, groups, share.chunks, 2], Dtype::F32)?;
    let sizes = [rows, channels, first.columns(), groups, share.vectors, share.height].map(Arg::Int);
    let args = [&maps.addresses()[..], &addresses([&partials]), &sizes].concat();
    // SAFETY: `Maps` holds that both maps have as many rows. There is room for the moments of each group and chunk of this grid, and
    // `Share` holds the kernel's launch rule.
    unsafe { gpu.launch(share.launch(format!("moments_{}", first.dtype().name())), &args)? };
    Ok(partials)
}

/// How a kernel that writes this map is launched, and room for the moments that it takes, if the channels fall into so many groups.
pub(super) fn moments_for(map: &Array, groups: Option<usize>, resident: usize) -> Result<(Share, Option<Moments>)> {
    let channels = map.columns();
    let Some(groups) = groups.filter(|groups| channels.is_multiple_of(*groups)) else {
        return Ok((Share::new(map, channels / LANES, resident)?, None));
    };
    let share = Share::new(map, groups, resident)?;
    let partials = map.gpu().scratch(&[share.batch, groups, share.chunks, 2], Dtype::F32)?;
    Ok((share, Some(Moments { array: partials.into(), groups })))
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
        // No more than fit at once: a few more would take a round of their own.
        let busy = |blocks: usize| (blocks * gpu.multiprocessors() / (batch * slices)).max(1);
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
