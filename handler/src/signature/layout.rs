//! Sets a name on one line: a font for each character, right-to-left order, joined and combined letters. In em, at no size.

use super::{SignatureError, faces::Face};
use ab_glyph::GlyphId;
use rustybuzz::{Direction, UnicodeBuffer};
use std::ops::Range;
use unicode_bidi::BidiInfo;

/// Room above the baseline, in em.
pub(super) const ASCENT: f32 = 0.8;
/// Room below the baseline, in em.
pub(super) const DESCENT: f32 = 0.22;
/// Characters of a name that are looked at. No picture has room for more.
const MOST_CHARACTERS: usize = 1000;
/// Marks on one letter that are drawn; text that stacks more is meant to spill.
const MOST_MARKS: usize = 4;

/// A name with only characters that can be drawn.
pub(super) struct Name<'a> {
    faces: &'a [Face],
    text: String,
    cut: bool,
}

/// Glyphs of a line and how far their ink reaches from the starting point, in em.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) glyphs: Vec<Placed>,
    pub(super) left: f32,
    pub(super) right: f32,
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
    /// Collapses spaces and drops what cannot be drawn: control characters, and what no font covers.
    pub(super) fn read(name: &str, faces: &'a [Face]) -> Result<Self, SignatureError> {
        let mut characters = name.trim().chars();
        let (mut text, mut dropped, mut marks) = (String::new(), 0_usize, 0_usize);
        for character in characters.by_ref().take(MOST_CHARACTERS) {
            marks = if is_mark(character) { marks + 1 } else { 0 };
            if character.is_whitespace() {
                if !text.is_empty() && !text.ends_with(' ') {
                    text.push(' ');
                }
            } else if is_drawable(character) && marks <= MOST_MARKS && faces.iter().any(|face| face.covers(character)) {
                text.push(character);
            } else {
                dropped += 1;
            }
        }
        if dropped > 0 {
            tracing::warn!(dropped, "the signature leaves out characters that cannot be drawn");
        }
        text.truncate(text.trim_end().len());
        match (text.is_empty(), name.trim().is_empty()) {
            (false, _) => Ok(Self { faces, text, cut: characters.next().is_some() }),
            (true, false) => Err(SignatureError::NothingDrawable),
            (true, true) => Err(SignatureError::Empty),
        }
    }

    /// Whether there was more than could be looked at.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    /// The whole name, or its first `end` bytes and an ellipsis.
    pub(super) fn line(&self, end: Option<usize>) -> Result<Line, SignatureError> {
        let text = match end.and_then(|end| self.text.get(..end)) {
            Some(start) => format!("{}…", start.trim_end()),
            None => self.text.clone(),
        };
        let mut line = Line { glyphs: Vec::new(), left: f32::MAX, right: f32::MIN, ends: Vec::new() };
        let mut pen = 0.0;
        for (run, direction) in visual_runs(&text) {
            let mut pieces = self.by_face(&text, run);
            if direction == Direction::RightToLeft {
                pieces.reverse();
            }
            for (face, range) in pieces {
                pen = self.shape(&text[range.clone()], range.start, face, direction, pen, &mut line);
            }
        }
        line.ends.sort_unstable();
        line.ends.dedup();
        if line.left < line.right { Ok(line) } else { Err(SignatureError::NothingDrawable) }
    }

    /// Splits a run where the font changes. Spaces, joiners and marks stay with what they follow, if its font has them.
    fn by_face(&self, text: &str, run: Range<usize>) -> Vec<(usize, Range<usize>)> {
        let mut pieces: Vec<(usize, Range<usize>)> = Vec::new();
        for (offset, character) in text[run.clone()].char_indices() {
            let (start, end) = (run.start + offset, run.start + offset + character.len_utf8());
            let current = pieces.last().map(|piece| piece.0);
            let clings = matches!(character, ' ' | '\u{200c}' | '\u{200d}') || is_mark(character);
            let first = self.faces.iter().position(|face| face.covers(character)).unwrap_or(0);
            let face = current.filter(|face| clings && self.faces[*face].covers(character)).unwrap_or(first);
            match pieces.last_mut() {
                Some(piece) if piece.0 == face => piece.1.end = end,
                _ => pieces.push((face, start..end)),
            }
        }
        pieces
    }

    /// Shapes one piece from `pen` on and says where the next one starts.
    fn shape(&self, text: &str, start: usize, face: usize, way: Direction, mut pen: f32, line: &mut Line) -> f32 {
        let font = &self.faces[face];
        let mut buffer = UnicodeBuffer::new();
        buffer.push_str(text);
        buffer.guess_segment_properties();
        buffer.set_direction(way);
        let shaped = rustybuzz::shape(&font.shaper, &[], buffer);
        let unit = font.unit();
        for (info, place) in shaped.glyph_infos().iter().zip(shaped.glyph_positions()) {
            let glyph = GlyphId(info.glyph_id as u16);
            let x = pen + place.x_offset as f32 * unit;
            if let Some(outline) = font.outline(glyph) {
                line.left = line.left.min(x + outline.bounds.min.x * unit);
                line.right = line.right.max(x + outline.bounds.max.x * unit);
            }
            line.glyphs.push(Placed { face, glyph, x, y: -(place.y_offset as f32) * unit });
            // A cluster's start is a place where the text before it may end.
            line.ends.extend(Some(start + info.cluster as usize).filter(|end| *end > 0));
            pen += place.x_advance as f32 * unit;
        }
        pen
    }
}

impl Line {
    /// From the first ink to the last, in em.
    pub(super) fn width(&self) -> f32 {
        self.right - self.left
    }
}

/// Runs of one direction, in the order in which they stand on the line.
fn visual_runs(text: &str) -> Vec<(Range<usize>, Direction)> {
    let info = BidiInfo::new(text, None);
    let Some(paragraph) = info.paragraphs.first() else { return Vec::new() };
    let (levels, runs) = info.visual_runs(paragraph, paragraph.range.clone());
    let direction = |level: unicode_bidi::Level| match level.is_rtl() {
        true => Direction::RightToLeft,
        false => Direction::LeftToRight,
    };
    runs.into_iter().map(|run| (run.clone(), direction(levels[run.start]))).collect()
}

/// Neither a control character nor one that only steers layout. The joiners of Persian and Indic names are kept.
fn is_drawable(character: char) -> bool {
    let steers = matches!(character, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff0}'..='\u{fffd}');
    !character.is_control() && !steers
}

/// A combining mark of the scripts that the fonts cover.
fn is_mark(character: char) -> bool {
    matches!(character, '\u{300}'..='\u{36f}' | '\u{483}'..='\u{489}' | '\u{591}'..='\u{5bd}' | '\u{5bf}'..='\u{5c7}'
        | '\u{610}'..='\u{61a}' | '\u{64b}'..='\u{65f}' | '\u{670}' | '\u{6d6}'..='\u{6ed}' | '\u{1ab0}'..='\u{1aff}'
        | '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}' | '\u{302a}'..='\u{302f}' | '\u{3099}' | '\u{309a}'
        | '\u{fe20}'..='\u{fe2f}')
}
