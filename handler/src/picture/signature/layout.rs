//! Sets a line of a name: a font for each character, right-to-left order, joined and combined letters. In em, at no size.

use super::{
    SignatureError,
    faces::Face,
    text::{self, Drawable, is_mark},
};
use ab_glyph::GlyphId;
use harfrust::{Buffer, Direction, ShapeOptions, ShaperFont};
use std::ops::Range;
use unicode_bidi::{BidiInfo, Level};

/// Room above the baseline that every line has, in em.
pub(super) const ASCENT: f32 = 0.8;
/// Room below the baseline that every line has, in em.
pub(super) const DESCENT: f32 = 0.22;
/// How much more than that the marks of a script may take.
const TALL: f32 = 1.5;

/// A name with only characters that can be drawn.
pub(super) struct Name<'a> {
    faces: &'a [Face],
    text: String,
    level: Option<Level>,
    cut: bool,
    dropped: usize,
}

/// Glyphs of a line and how far their ink reaches from the starting point, in em.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) glyphs: Vec<Placed>,
    pub(super) left: f32,
    pub(super) right: f32,
    /// Above the baseline; what is higher is cut off.
    pub(super) ascent: f32,
    /// Below the baseline; what is lower is cut off.
    pub(super) descent: f32,
    /// Byte positions at which the text may be cut without splitting a letter from its marks.
    pub(super) ends: Vec<usize>,
}

/// A glyph and where it stands on the line, y downwards, in em.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) face: usize,
    pub(super) glyph: GlyphId,
    pub(super) x: f32,
    pub(super) y: f32,
}

impl<'a> Name<'a> {
    /// Collapses spaces and drops what cannot be drawn.
    pub(super) fn read(name: &str, faces: &'a [Face]) -> Result<Self, SignatureError> {
        let Drawable { text, dropped, cut } = text::drawable(name, faces)?;
        let level = BidiInfo::new(&text, None).paragraphs.first().map(|paragraph| paragraph.level);
        Ok(Self { faces, text, level, cut, dropped })
    }

    /// Whether there was more than could be looked at.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    /// How many characters were left out.
    pub(super) fn dropped(&self) -> usize {
        self.dropped
    }

    /// How many bytes the text has.
    pub(super) fn length(&self) -> usize {
        self.text.len()
    }

    /// Where the text after a space begins.
    pub(super) fn words(&self) -> Vec<usize> {
        self.text.match_indices(' ').map(|(index, _)| index + 1).collect()
    }

    /// A part of the name, with an ellipsis if it is cut short.
    pub(super) fn line(&self, part: Range<usize>, ellipsis: bool) -> Result<Line, SignatureError> {
        let mut text = self.text.get(part.clone()).unwrap_or_default().trim_end().to_string();
        if ellipsis {
            text.push('…');
        }
        let mut line = Line {
            glyphs: Vec::new(),
            left: f32::MAX,
            right: f32::MIN,
            ascent: ASCENT,
            descent: DESCENT,
            ends: vec![],
        };
        let mut pen = 0.0;
        for (run, direction) in visual_runs(&text, self.level) {
            let mut pieces = self.by_face(&text, run);
            if direction == Direction::RightToLeft {
                pieces.reverse();
            }
            for (face, range) in pieces {
                pen = self.shape(&text[range.clone()], part.start + range.start, face, direction, pen, &mut line)?;
            }
        }
        line.ends.retain(|end| *end > part.start && *end < part.end);
        line.ends.sort_unstable();
        line.ends.dedup();
        line.ascent = line.ascent.min(TALL * ASCENT);
        line.descent = line.descent.min(TALL * DESCENT);
        if line.left < line.right { Ok(line) } else { Err(SignatureError::NothingDrawable) }
    }

    /// Splits a run where the font changes. Spaces, joiners and marks stay with what they follow, if its font has them.
    fn by_face(&self, text: &str, run: Range<usize>) -> Vec<(usize, Range<usize>)> {
        let mut pieces: Vec<(usize, Range<usize>)> = Vec::new();
        for (offset, character) in text[run.clone()].char_indices() {
            let (start, end) = (run.start + offset, run.start + offset + character.len_utf8());
            let current = pieces.last().map(|piece| piece.0);
            let clings = matches!(character, ' ' | '\u{200c}' | '\u{200d}') || is_mark(character);
            let first = self.faces.iter().position(|face| face.draws(character) || clings && face.covers(character));
            let face = current.filter(|face| clings && self.faces[*face].covers(character)).or(first).unwrap_or(0);
            match pieces.last_mut() {
                Some(piece) if piece.0 == face => piece.1.end = end,
                _ => pieces.push((face, start..end)),
            }
        }
        pieces
    }

    /// Shapes one piece from `pen` on and says where the next one starts.
    fn shape(
        &self,
        text: &str,
        start: usize,
        face: usize,
        way: Direction,
        mut pen: f32,
        line: &mut Line,
    ) -> Result<f32, SignatureError> {
        let font = &self.faces[face];
        let mut buffer = Buffer::new();
        buffer.push_str(text);
        buffer.guess_segment_properties();
        buffer.set_direction(way);
        harfrust::shape(&ShaperFont::new(&font.tables), &mut buffer, ShapeOptions::default())
            .map_err(|_| SignatureError::Font(font.name))?;
        let unit = font.unit();
        for (info, place) in buffer.glyph_infos().iter().zip(buffer.glyph_positions()) {
            let glyph = GlyphId(info.glyph_id as u16);
            let (x, y) = (pen + place.x_offset as f32 * unit, -(place.y_offset as f32) * unit);
            if let Some(outline) = font.outline(glyph) {
                // Which of an outline's corners is the upper one differs between font formats.
                let heights = [outline.bounds.min.y * unit - y, outline.bounds.max.y * unit - y];
                line.left = line.left.min(x + outline.bounds.min.x * unit);
                line.right = line.right.max(x + outline.bounds.max.x * unit);
                line.ascent = line.ascent.max(heights[0]).max(heights[1]);
                line.descent = line.descent.max(-heights[0]).max(-heights[1]);
            }
            line.glyphs.push(Placed { face, glyph, x, y });
            // A cluster's start is a place where the text before it may end.
            line.ends.push(start + info.cluster as usize);
            pen += place.x_advance as f32 * unit;
        }
        Ok(pen)
    }
}

impl Line {
    /// From the first ink to the last, in em.
    pub(super) fn width(&self) -> f32 {
        self.right - self.left
    }
}

/// Runs of one direction, in the order in which they stand on the line.
fn visual_runs(text: &str, level: Option<Level>) -> Vec<(Range<usize>, Direction)> {
    let info = BidiInfo::new(text, level);
    let Some(paragraph) = info.paragraphs.first() else { return Vec::new() };
    let (levels, runs) = info.visual_runs(paragraph, paragraph.range.clone());
    let direction = |level: Level| match level.is_rtl() {
        true => Direction::RightToLeft,
        false => Direction::LeftToRight,
    };
    runs.into_iter().map(|run| (run.clone(), direction(levels[run.start]))).collect()
}
