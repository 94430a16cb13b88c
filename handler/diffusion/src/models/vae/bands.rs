//! The decoder's large levels in bands of rows. Of the maps at a picture's full size, two are held whole at most; the rest of a ResNet
//! block exists for one band at a time.
//!
//! A convolution reads a row more above and below, so each band is made with those. A group norm needs the whole map: it is measured
//! before the bands are normalised. Rows are computed as in the whole map but for the order of sums.

use crate::{
    models::blocks::{ResnetBlock, Upsample},
    ops::{Array, Conv, GroupNorm, Measured, Statistics, pad_rows},
};
use candle_core::{Error, Result};
use std::ops::Range;

/// The input of a block.
pub(super) enum Source<'a> {
    /// A map that is held whole.
    Whole(Array),
    /// An upsampled map, whose rows are computed from the smaller one each time that they are read.
    Upsampled { from: Array, by: &'a Upsample },
}

impl Source<'_> {
    /// Height and width.
    fn size(&self) -> Result<(usize, usize)> {
        match self {
            Self::Whole(map) => map.size(),
            Self::Upsampled { from, .. } => from.size().map(|(height, width)| (2 * height, 2 * width)),
        }
    }

    fn rows(&self, rows: Range<usize>) -> Result<Array> {
        match self {
            Self::Whole(map) => map.rows(rows),
            Self::Upsampled { from, by } => by.forward_rows(from, rows),
        }
    }

    /// The whole map.
    pub(super) fn into_map(self) -> Result<Array> {
        match self {
            Self::Whole(map) => Ok(map),
            Self::Upsampled { from, by } => by.forward(&from, None),
        }
    }
}

/// How many rows of a map a band has.
#[derive(Clone, Copy)]
pub(super) struct Bands(pub(super) usize);

impl Bands {
    /// The bands of a map of that height; the last may have fewer rows.
    fn of(self, height: usize) -> impl Iterator<Item = Range<usize>> {
        let rows = self.0.max(1);
        (0..height).step_by(rows).map(move |from| from..(from + rows).min(height))
    }

    /// The source with its map held whole.
    pub(super) fn held<'a>(self, source: Source<'a>) -> Result<Source<'a>> {
        let Source::Upsampled { from, by } = source else { return Ok(source) };
        let map = by.room(&from)?;
        let (height, _) = map.size()?;
        for rows in self.of(height) {
            map.write_rows(rows.start, &by.forward_rows(&from, rows.clone())?)?;
        }
        Ok(Source::Whole(map))
    }

    /// The block's output, held whole: in the memory of its input if that is whole and as wide.
    pub(super) fn block(self, block: &ResnetBlock, source: Source) -> Result<Array> {
        let (height, width) = source.size()?;
        let hidden = match &source {
            Source::Whole(map) => block.conv1.room(map, (height, width))?,
            Source::Upsampled { from, .. } => block.conv1.room_beside(from, (height, width))?,
        };
        let statistics = self.measured(&block.norm1, &source)?;
        for rows in self.of(height) {
            let normed = normed_rows(&block.norm1, &statistics, rows.clone(), height, |rows| source.rows(rows))?;
            hidden.write_rows(rows.start, &block.conv1.forward_open(&normed, None)?)?;
        }
        let statistics = block.norm2.measure(&hidden)?.statistics()?;
        let out = match (&source, &block.shortcut) {
            (Source::Whole(map), None) => map.to_overwrite()?,
            _ => hidden.to_overwrite()?,
        };
        // A band is written when the next one has read the row that it needs of it.
        let mut last: Option<(usize, Array)> = None;
        for rows in self.of(height) {
            let normed = normed_rows(&block.norm2, &statistics, rows.clone(), height, |rows| hidden.rows(rows))?;
            if let Some((from, band)) = last.take() {
                out.write_rows(from, &band)?;
            }
            let mut residual = source.rows(rows.clone())?;
            if let Some(shortcut) = &block.shortcut {
                residual = shortcut.forward(&residual)?;
            }
            last = Some((rows.start, block.conv2.forward_open(&normed, Some(&residual))?));
        }
        if let Some((from, band)) = last {
            out.write_rows(from, &band)?;
        }
        Ok(out)
    }

    /// Calls `take` with the rows of the convolution's output, from the first band to the last.
    pub(super) fn finish(
        self,
        (norm, conv): (&GroupNorm, &Conv),
        map: &Array,
        take: &mut dyn FnMut(Array) -> Result<()>,
    ) -> Result<()> {
        let (height, _) = map.size()?;
        let statistics = norm.measure(map)?.statistics()?;
        for rows in self.of(height) {
            let normed = normed_rows(norm, &statistics, rows, height, |rows| map.rows(rows))?;
            take(conv.forward_open(&normed, None)?)?;
        }
        Ok(())
    }

    fn measured(self, norm: &GroupNorm, source: &Source) -> Result<Statistics> {
        if let Source::Whole(map) = source {
            return norm.measure(map)?.statistics();
        }
        let (height, _) = source.size()?;
        let mut measured: Option<Measured> = None;
        for rows in self.of(height) {
            let band = norm.measure(&source.rows(rows)?)?;
            measured = Some(match measured {
                None => band,
                Some(others) => others.and(band)?,
            });
        }
        measured.ok_or_else(|| Error::Msg("a map without rows".into()).bt())?.statistics()
    }
}

/// Rows of a map after its norm and SiLU, with one more above and below: zeros at the map's edges.
fn normed_rows(
    norm: &GroupNorm,
    statistics: &Statistics,
    rows: Range<usize>,
    height: usize,
    read: impl Fn(Range<usize>) -> Result<Array>,
) -> Result<Array> {
    let around = rows.start.saturating_sub(1)..(rows.end + 1).min(height);
    let normed = norm.forward_silu_by(&read(around)?, statistics)?;
    pad_rows(normed, rows.start == 0, rows.end == height)
}
