//! Rows of a map, and group norms of them by what was measured of the whole map.

use super::{conv::Conv, norm::GroupNorm, refused};
use crate::{
    gpu::{Array, Dtype},
    ops::spread::Spread,
};
use candle_core::Result;
use std::{ops::Range, sync::Arc};

/// The moments of a band as a kernel left them.
pub(in crate::ops) struct Part {
    /// f32, `[1, groups, chunks, 2]`: mean and sum of squared deviations.
    moments: Arc<Array>,
    groups: usize,
    /// Places of the band, and of each chunk but the last.
    places: usize,
    height: usize,
    /// Channels of a group.
    channels: usize,
}

impl GroupNorm {
    pub(in crate::ops) fn measure(&self, band: &Array) -> Result<Part> {
        one_image(band)?;
        let moments = self.moments_of(band)?;
        let places = band.rows();
        match moments.dims() {
            &[1, groups, chunks, 2] if chunks > 0 => {
                Ok(Part { groups, places, height: places.div_ceil(chunks), channels: band.columns() / groups, moments })
            }
            dims => refused(format!("moments of {dims:?} for a band of {:?}", band.dims())),
        }
    }

    /// `moments` are those of [`moments_by`] for a band of as many places.
    pub(in crate::ops) fn forward_by(&self, band: &Array, silu: bool, moments: &Array) -> Result<Array> {
        one_image(band)?;
        let out = band.gpu().scratch(band.dims(), band.dtype())?;
        self.apply(&band.clone().into(), &[moments], out, silu)
    }
}

impl Conv {
    pub(in crate::ops) fn forward_open(&self, xs: &Array, onto: Option<&Array>) -> Result<Array> {
        self.run(xs, None, onto, true)
    }
}

/// The statistics of a whole map's groups as the moments of a band. The kernel takes them for those of one chunk with as many places as
/// the band has, so the sums of squares are those of as many numbers.
pub(in crate::ops) fn moments_by(band: &Array, statistics: &[Spread]) -> Result<Array> {
    let count = band.count() as f64 / statistics.len().max(1) as f64;
    let moments = band.gpu().scratch(&[1, statistics.len(), 1, 2], Dtype::F32)?;
    let numbers = statistics.iter().flat_map(|group| [group.mean as f32, (group.variance() * count) as f32]);
    moments.write(&numbers.flat_map(f32::to_le_bytes).collect::<Vec<_>>())?;
    Ok(moments)
}

/// The spread of each group over all parts of a map.
pub(in crate::ops) fn merged(parts: &[Part]) -> Result<Vec<Spread>> {
    let Some(first) = parts.first() else { return refused("nothing was measured".into()) };
    let (gpu, groups) = (first.moments.gpu(), first.groups);
    if parts.iter().any(|part| part.groups != groups || !part.moments.gpu().is(gpu)) {
        return refused(format!("moments of {groups} groups with others"));
    }
    let lines = |part: &Part| part.moments.count() / (2 * groups);
    let all = gpu.scratch(&[parts.iter().map(lines).sum(), 2 * groups], Dtype::F32)?;
    let mut from = 0;
    for part in parts {
        gpu.copy(&part.moments.reshaped(&[lines(part), 2 * groups]), &all.part(from, lines(part)))?;
        from += lines(part);
    }
    let bytes = all.read()?;
    let numbers: Vec<f64> = bytes.as_chunks().0.iter().map(|&number| f64::from(f32::from_le_bytes(number))).collect();
    let (mut spreads, mut rest) = (vec![Spread::default(); groups], &numbers[..]);
    for part in parts {
        let chunks = lines(part);
        let (ours, others) = rest.split_at(chunks * 2 * groups);
        rest = others;
        for (spread, moments) in spreads.iter_mut().zip(ours.chunks(chunks * 2)) {
            for (chunk, moment) in moments.as_chunks::<2>().0.iter().enumerate() {
                let places = part.height.min(part.places.saturating_sub(chunk * part.height));
                let count = (places * part.channels) as f64;
                spread.merge(Spread { count, mean: moment[0], squares: moment[1] });
            }
        }
    }
    Ok(spreads)
}

/// A view of some rows of a map of one image.
pub(in crate::ops) fn rows(map: &Array, rows: Range<usize>) -> Result<Array> {
    let [height, width, channels] = one_image(map)?;
    if rows.start > rows.end || rows.end > height {
        return refused(format!("rows {rows:?} of {:?}", map.dims()));
    }
    let view = map.reshaped(&[height, width, channels]).part(rows.start, rows.len());
    Ok(view.reshaped(&[1, rows.len(), width, channels]))
}

/// Zeros above and below a map of one image.
pub(in crate::ops) fn pad_rows(map: &Array, above: usize, below: usize) -> Result<Array> {
    let [height, width, channels] = one_image(map)?;
    let (gpu, all) = (map.gpu(), above + height + below);
    let padded = gpu.scratch(&[1, all, width, channels], map.dtype())?;
    for zeros in [0..above, above + height..all] {
        if !zeros.is_empty() {
            gpu.clear(&rows(&padded, zeros)?)?;
        }
    }
    gpu.copy(map, &rows(&padded, above..above + height)?)?;
    Ok(padded)
}

/// Height, width and channels of a dense map of one image.
fn one_image(map: &Array) -> Result<[usize; 3]> {
    match map.dims() {
        &[1, height, width, channels] if map.is_contiguous() => Ok([height, width, channels]),
        dims => refused(format!("rows of {dims:?}: they are those of one map")),
    }
}
