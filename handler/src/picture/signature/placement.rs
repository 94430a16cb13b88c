//! Fits a name into the picture: on one line if possible, else smaller, else on two lines, and else shortened with an ellipsis.

use super::{
    SignatureError,
    shaping::{ASCENT, DESCENT, DrawableName, ShapedLine},
};
use crate::task::signature::Signature;

/// Font size (the em) as a share of the picture's height.
const SIZE_BY_HEIGHT: f64 = 0.05;
/// Limit of the font size as a share of the width, for tall pictures.
const SIZE_BY_WIDTH: f64 = 0.065;
/// A single line is shrunk to this share of the font size before the name is broken into two.
const SMALLEST_SINGLE: f32 = 0.75;
/// Letters are never shrunk below this share of the font size.
const SMALLEST: f32 = 0.6;
/// Least font size in pixels. Smaller letters are not legible.
const MIN_SIZE: f32 = 10.0;
/// Least margin in pixels, so that letters do not touch the edge.
const MIN_MARGIN: f64 = 2.0;
/// Least distance between the ink of two lines, in em.
const LEADING: f32 = 0.08;

/// One or two lines of a name, each with the start of its baseline in pixels.
#[derive(Debug)]
pub(super) struct PlacedText {
    pub(super) lines: Vec<(ShapedLine, (f32, f32))>,
    /// Font size in pixels per em.
    pub(super) size: f32,
}

/// The space in the picture, in pixels: its size, margin, and the range of font sizes.
struct Space {
    picture: (f32, f32),
    margin: f32,
    preferred: f32,
    smallest: f32,
}

/// Chooses lines and font size, and places the lines.
pub(super) fn place(
    name: &DrawableName,
    picture: (u32, u32),
    options: &Signature,
) -> Result<PlacedText, SignatureError> {
    let space = Space::of(picture, options);
    let (lines, size) = space.lines(name)?.ok_or(SignatureError::TooSmall { width: picture.0, height: picture.1 })?;
    let (across, down) = options.position.anchor();
    let mut baseline = space.margin + down * (space.height() - height(&lines) * size);
    let mut below: f32 = 0.0;
    let mut placed = Vec::with_capacity(lines.len());
    for line in lines {
        baseline += (below + line.ascent) * size;
        below = line.descent + LEADING;
        let left = space.margin + across * (space.width() - line.width() * size);
        let start = left - line.left * size;
        placed.push((line, (start, baseline)));
    }
    Ok(PlacedText { lines: placed, size })
}

/// From the top of the first line to the bottom of the last, in em.
fn height(lines: &[ShapedLine]) -> f32 {
    lines.iter().map(|line| line.ascent + line.descent + LEADING).sum::<f32>() - LEADING
}

impl Space {
    fn of((width, height): (u32, u32), options: &Signature) -> Self {
        let (across, down) = (f64::from(width), f64::from(height));
        let shorter = across.min(down);
        let size = options.size.map_or((SIZE_BY_HEIGHT * down).min(SIZE_BY_WIDTH * across), |share| share * shorter);
        let preferred = (size as f32).max(MIN_SIZE);
        let margin = (options.margin * shorter).max(MIN_MARGIN) as f32;
        let smallest = (SMALLEST * preferred).max(MIN_SIZE);
        Self { picture: (width as f32, height as f32), margin, preferred, smallest }
    }

    fn width(&self) -> f32 {
        self.picture.0 - 2.0 * self.margin
    }

    fn height(&self) -> f32 {
        self.picture.1 - 2.0 * self.margin
    }

    /// The largest font size at which these lines fit, up to the preferred one.
    fn size(&self, lines: &[ShapedLine]) -> f32 {
        let widest = lines.iter().map(ShapedLine::width).fold(0.0, f32::max);
        self.preferred.min(self.width() / widest).min(self.height() / height(lines))
    }

    fn lines(&self, name: &DrawableName) -> Result<Option<(Vec<ShapedLine>, f32)>, SignatureError> {
        if self.width() <= 0.0 || self.height() < (ASCENT + DESCENT) * self.smallest {
            return Ok(None);
        }
        let whole = name.line(0..name.length(), false)?;
        // A name of one word may be broken between any two letters, as Chinese and Japanese names are.
        let breaks = whole.breaks.clone();
        let words = Some(name.words()).filter(|words| !words.is_empty()).unwrap_or_else(|| breaks.clone());
        let one = vec![whole];
        let single = self.size(&one);
        if !name.is_truncated() && single >= SMALLEST_SINGLE * self.preferred && single >= self.smallest {
            return Ok(Some((one, single)));
        }
        let two = halves(name, &words)?;
        let both = two.as_ref().map_or(0.0, |lines| self.size(lines));
        match two {
            Some(two) if !name.is_truncated() && both >= self.smallest.max(single) => return Ok(Some((two, both))),
            _ if !name.is_truncated() && single >= self.smallest => return Ok(Some((one, single))),
            _ => {}
        }
        let shortened = self.shortened(name, &words, &breaks)?;
        Ok(shortened.map(|lines| (lines, self.smallest)))
    }

    /// As much of the name as fits at the smallest size, with an ellipsis.
    fn shortened(
        &self,
        name: &DrawableName,
        words: &[usize],
        breaks: &[usize],
    ) -> Result<Option<Vec<ShapedLine>>, SignatureError> {
        let first = self.longest(name, 0, words, false)?;
        if let Some((first, end)) = first {
            let rest: Vec<usize> = breaks.iter().copied().filter(|at| *at > end).collect();
            if let Some((second, _)) = self.longest(name, end, &rest, true)? {
                let two = vec![first, second];
                if height(&two) * self.smallest <= self.height() {
                    return Ok(Some(two));
                }
            }
        }
        Ok(self.longest(name, 0, breaks, true)?.map(|(line, _)| vec![line]))
    }

    /// The longest line from `start` on that fits at the smallest size, and where it ends.
    fn longest(
        &self,
        name: &DrawableName,
        start: usize,
        breaks: &[usize],
        ellipsis: bool,
    ) -> Result<Option<(ShapedLine, usize)>, SignatureError> {
        let (mut fits, mut low, mut high) = (None, 0, breaks.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let line = name.line(start..breaks[middle], ellipsis)?;
            if line.width() * self.smallest <= self.width() {
                (fits, low) = (Some((line, breaks[middle])), middle + 1);
            } else {
                high = middle;
            }
        }
        Ok(fits)
    }
}

/// Two lines of about the same width; `None` for a name that cannot be broken.
fn halves(name: &DrawableName, breaks: &[usize]) -> Result<Option<Vec<ShapedLine>>, SignatureError> {
    let at = |end: usize| Ok(vec![name.line(0..end, false)?, name.line(end..name.length(), false)?]);
    let wider = |lines: &[ShapedLine]| lines.iter().map(ShapedLine::width).fold(0.0, f32::max);
    let (mut low, mut high) = (0, breaks.len());
    let mut best: Option<Vec<ShapedLine>> = None;
    // With each break the first line grows and the second shrinks. The best break is where their order changes.
    while low < high {
        let middle = low + (high - low) / 2;
        let lines = at(breaks[middle])?;
        if lines[0].width() < lines[1].width() {
            low = middle + 1
        } else {
            high = middle
        }
        if best.as_ref().is_none_or(|best| wider(&lines) < wider(best)) {
            best = Some(lines);
        }
    }
    Ok(best)
}
