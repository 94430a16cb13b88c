//! Shapes a line of a name: picks a font for each character, orders right-to-left text, joins and combines letters. All lengths are in em.

use super::{
    SignatureError,
    fonts::Face,
    text::{self, FilteredText, is_mark},
};
use ab_glyph::GlyphId;
use harfrust::{Buffer, Direction, ShapeOptions, ShaperFont};
use std::ops::Range;
use unicode_bidi::{BidiInfo, Level};

/// Least height of a line above the baseline, in em.
pub(super) const ASCENT: f32 = 0.8;
/// Least depth of a line below the baseline, in em.
pub(super) const DESCENT: f32 = 0.22;
/// Limit of ascent and descent, as a multiple of these, for scripts with high or low marks.
const MAX_EXTENT: f32 = 1.5;

/// A name, reduced to the characters that can be drawn.
pub(super) struct DrawableName<'a> {
    faces: &'a [Face],
    text: String,
    level: Option<Level>,
    truncated: bool,
    dropped: usize,
}

/// Glyphs of a line, and how far their ink extends from the starting point, in em.
#[derive(Debug)]
pub(super) struct ShapedLine {
    pub(super) glyphs: Vec<PositionedGlyph>,
    pub(super) left: f32,
    pub(super) right: f32,
    /// Above the baseline. Higher ink is cut off.
    pub(super) ascent: f32,
    /// Below the baseline. Lower ink is cut off.
    pub(super) descent: f32,
    /// Byte positions where the text may be broken without separating a letter from its marks.
    pub(super) breaks: Vec<usize>,
}

/// A glyph and its position on the line, in em, with y downwards.
#[derive(Debug)]
pub(super) struct PositionedGlyph {
    pub(super) face: usize,
    pub(super) glyph: GlyphId,
    pub(super) x: f32,
    pub(super) y: f32,
}

impl<'a> DrawableName<'a> {
    /// Drops characters that cannot be drawn and collapses spaces.
    pub(super) fn parse(name: &str, faces: &'a [Face]) -> Result<Self, SignatureError> {
        let FilteredText { text, dropped, truncated, .. } = text::filter(name, faces)?;
        let level = BidiInfo::new(&text, None).paragraphs.first().map(|paragraph| paragraph.level);
        Ok(Self { faces, text, level, truncated, dropped })
    }

    /// Whether the name was too long to be considered whole.
    pub(super) fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// Number of characters left out.
    pub(super) fn dropped(&self) -> usize {
        self.dropped
    }

    /// Length of the text in bytes.
    pub(super) fn length(&self) -> usize {
        self.text.len()
    }

    /// Byte positions after each space.
    pub(super) fn words(&self) -> Vec<usize> {
        self.text.match_indices(' ').map(|(index, _)| index + 1).collect()
    }

    /// Shapes a part of the name as a line, with or without an ellipsis.
    pub(super) fn line(&self, part: Range<usize>, ellipsis: bool) -> Result<ShapedLine, SignatureError> {
        let mut text = self.text.get(part.clone()).unwrap_or_default().trim_end().to_string();
        if ellipsis {
            text.push('…');
        }
        let mut line = ShapedLine {
            glyphs: Vec::new(),
            left: f32::MAX,
            right: f32::MIN,
            ascent: ASCENT,
            descent: DESCENT,
            breaks: vec![],
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
        line.breaks.retain(|at| *at > part.start && *at < part.end);
        line.breaks.sort_unstable();
        line.breaks.dedup();
        line.ascent = line.ascent.min(MAX_EXTENT * ASCENT);
        line.descent = line.descent.min(MAX_EXTENT * DESCENT);
        if line.left < line.right { Ok(line) } else { Err(SignatureError::NothingDrawable) }
    }

    /// Splits a run where the font changes. Spaces, joiners and marks stay in the font of the character before, if it has them.
    fn by_face(&self, text: &str, run: Range<usize>) -> Vec<(usize, Range<usize>)> {
        let mut pieces: Vec<(usize, Range<usize>)> = Vec::new();
        for (offset, character) in text[run.clone()].char_indices() {
            let (start, end) = (run.start + offset, run.start + offset + character.len_utf8());
            let current = pieces.last().map(|piece| piece.0);
            let follows = matches!(character, ' ' | '\u{200c}' | '\u{200d}') || is_mark(character);
            let first = self.faces.iter().position(|face| face.draws(character) || follows && face.covers(character));
            let face = current.filter(|face| follows && self.faces[*face].covers(character)).or(first).unwrap_or(0);
            match pieces.last_mut() {
                Some(piece) if piece.0 == face => piece.1.end = end,
                _ => pieces.push((face, start..end)),
            }
        }
        pieces
    }

    /// Shapes one piece from `pen` on, and returns where the next one starts.
    fn shape(
        &self,
        text: &str,
        start: usize,
        face: usize,
        direction: Direction,
        mut pen: f32,
        line: &mut ShapedLine,
    ) -> Result<f32, SignatureError> {
        let font = &self.faces[face];
        let mut buffer = Buffer::new();
        buffer.push_str(text);
        buffer.guess_segment_properties();
        buffer.set_direction(direction);
        harfrust::shape(&ShaperFont::new(&font.tables), &mut buffer, ShapeOptions::default())
            .map_err(|_| SignatureError::Font(font.name))?;
        let unit = font.unit();
        for (info, place) in buffer.glyph_infos().iter().zip(buffer.glyph_positions()) {
            let glyph = GlyphId(info.glyph_id as u16);
            let (x, y) = (pen + place.x_offset as f32 * unit, -(place.y_offset as f32) * unit);
            if let Some(outline) = font.outline(glyph) {
                // Font formats differ in which corner of the bounds is the upper one.
                let heights = [outline.bounds.min.y * unit - y, outline.bounds.max.y * unit - y];
                line.left = line.left.min(x + outline.bounds.min.x * unit);
                line.right = line.right.max(x + outline.bounds.max.x * unit);
                line.ascent = line.ascent.max(heights[0]).max(heights[1]);
                line.descent = line.descent.max(-heights[0]).max(-heights[1]);
            }
            line.glyphs.push(PositionedGlyph { face, glyph, x, y });
            // The text may be broken before a cluster.
            line.breaks.push(start + info.cluster as usize);
            pen += place.x_advance as f32 * unit;
        }
        Ok(pen)
    }
}

impl ShapedLine {
    /// Width of the ink, in em.
    pub(super) fn width(&self) -> f32 {
        self.right - self.left
    }
}

/// Runs of one direction, in visual order.
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
