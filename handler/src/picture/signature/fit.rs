//! Fits a name into the picture: on one line if it can, else smaller, else on two lines, and cut short as a last resort.

use super::{
    SignatureError,
    layout::{ASCENT, DESCENT, Line, Name},
};
use crate::task::signature::Signature;

/// Size of the letters (the em) as a share of the picture's height.
const SIZE_BY_HEIGHT: f64 = 0.05;
/// The same as a share of the width; keeps the name modest in tall pictures.
const SIZE_BY_WIDTH: f64 = 0.065;
/// One line is shrunk down to this share of the size before a second one is begun.
const SMALLEST_ALONE: f32 = 0.75;
/// Letters are never shrunk below this share of the size.
const SMALLEST: f32 = 0.6;
/// Letters smaller than this many pixels cannot be read.
const LEAST_PIXELS: f32 = 10.0;
/// Margins smaller than this many pixels would let letters touch the edge.
const LEAST_MARGIN: f64 = 2.0;
/// Least distance of two lines' ink, in em.
const LEADING: f32 = 0.08;

/// The lines of a name, one or two, and where they stand: pixels of the baselines' starting points.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) lines: Vec<(Line, (f32, f32))>,
    /// Pixels of an em.
    pub(super) size: f32,
}

/// What the picture has room for.
struct Room {
    picture: (f32, f32),
    margin: f32,
    preferred: f32,
    smallest: f32,
}

/// Chooses lines and size, and places them.
pub(super) fn fit(name: &Name, picture: (u32, u32), options: &Signature) -> Result<Block, SignatureError> {
    let room = Room::of(picture, options);
    let (lines, size) = room.lines(name)?.ok_or(SignatureError::TooSmall { width: picture.0, height: picture.1 })?;
    let (across, down) = options.position.anchor();
    let mut baseline = room.margin + down * (room.height() - height(&lines) * size);
    let mut below: f32 = 0.0;
    let mut placed = Vec::with_capacity(lines.len());
    for line in lines {
        baseline += (below + line.ascent) * size;
        below = line.descent + LEADING;
        let left = room.margin + across * (room.width() - line.width() * size);
        let start = left - line.left * size;
        placed.push((line, (start, baseline)));
    }
    Ok(Block { lines: placed, size })
}

/// From the first line's top to the last one's bottom, in em.
fn height(lines: &[Line]) -> f32 {
    lines.iter().map(|line| line.ascent + line.descent + LEADING).sum::<f32>() - LEADING
}

impl Room {
    fn of((width, height): (u32, u32), options: &Signature) -> Self {
        let (across, down) = (f64::from(width), f64::from(height));
        let shorter = across.min(down);
        let size = options.size.map_or((SIZE_BY_HEIGHT * down).min(SIZE_BY_WIDTH * across), |share| share * shorter);
        let preferred = (size as f32).max(LEAST_PIXELS);
        let margin = (options.margin * shorter).max(LEAST_MARGIN) as f32;
        let smallest = (SMALLEST * preferred).max(LEAST_PIXELS);
        Self { picture: (width as f32, height as f32), margin, preferred, smallest }
    }

    fn width(&self) -> f32 {
        self.picture.0 - 2.0 * self.margin
    }

    fn height(&self) -> f32 {
        self.picture.1 - 2.0 * self.margin
    }

    /// The largest size at which these lines fit, up to the preferred one.
    fn size(&self, lines: &[Line]) -> f32 {
        let widest = lines.iter().map(Line::width).fold(0.0, f32::max);
        self.preferred.min(self.width() / widest).min(self.height() / height(lines))
    }

    fn lines(&self, name: &Name) -> Result<Option<(Vec<Line>, f32)>, SignatureError> {
        if self.width() <= 0.0 || self.height() < (ASCENT + DESCENT) * self.smallest {
            return Ok(None);
        }
        let whole = name.line(0..name.length(), false)?;
        // A name of one word breaks between any two letters, as Chinese and Japanese names do.
        let ends = whole.ends.clone();
        let words = Some(name.words()).filter(|words| !words.is_empty()).unwrap_or_else(|| ends.clone());
        let one = vec![whole];
        let alone = self.size(&one);
        if !name.is_cut() && alone >= SMALLEST_ALONE * self.preferred && alone >= self.smallest {
            return Ok(Some((one, alone)));
        }
        let two = halves(name, &words)?;
        let both = two.as_ref().map_or(0.0, |lines| self.size(lines));
        match two {
            Some(two) if !name.is_cut() && both >= self.smallest.max(alone) => return Ok(Some((two, both))),
            _ if !name.is_cut() && alone >= self.smallest => return Ok(Some((one, alone))),
            _ => {}
        }
        let cut = self.cut(name, &words, &ends)?;
        Ok(cut.map(|lines| (lines, self.smallest)))
    }

    /// As much of the name as there is room for at the smallest size, and an ellipsis.
    fn cut(&self, name: &Name, words: &[usize], ends: &[usize]) -> Result<Option<Vec<Line>>, SignatureError> {
        let first = self.longest(name, 0, words, false)?;
        if let Some((first, end)) = first {
            let rest: Vec<usize> = ends.iter().copied().filter(|candidate| *candidate > end).collect();
            if let Some((second, _)) = self.longest(name, end, &rest, true)? {
                let two = vec![first, second];
                if height(&two) * self.smallest <= self.height() {
                    return Ok(Some(two));
                }
            }
        }
        Ok(self.longest(name, 0, ends, true)?.map(|(line, _)| vec![line]))
    }

    /// The longest line from `start` on that fits at the smallest size, and where it ends.
    fn longest(
        &self,
        name: &Name,
        start: usize,
        ends: &[usize],
        ellipsis: bool,
    ) -> Result<Option<(Line, usize)>, SignatureError> {
        let (mut fits, mut low, mut high) = (None, 0, ends.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let line = name.line(start..ends[middle], ellipsis)?;
            if line.width() * self.smallest <= self.width() {
                (fits, low) = (Some((line, ends[middle])), middle + 1);
            } else {
                high = middle;
            }
        }
        Ok(fits)
    }
}

/// The two lines of about the same width; none for a name that cannot be broken.
fn halves(name: &Name, breaks: &[usize]) -> Result<Option<Vec<Line>>, SignatureError> {
    let at = |end: usize| Ok(vec![name.line(0..end, false)?, name.line(end..name.length(), false)?]);
    let wider = |lines: &[Line]| lines.iter().map(Line::width).fold(0.0, f32::max);
    let (mut low, mut high) = (0, breaks.len());
    let mut best: Option<Vec<Line>> = None;
    // The first line grows and the second shrinks with each break: the best are the two where that turns.
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
