//! Selects the characters of a name that are drawn. Emoji, layout controls and what no font has are left out.

use super::{SignatureError, fonts::Face};
use icu_normalizer::ComposingNormalizerBorrowed;

/// Characters of a name that are considered. No picture has space for more.
const MAX_CHARACTERS: usize = 1000;
/// Combining marks drawn on one letter. More are only used to spill over other content.
const MAX_MARKS: usize = 4;
/// Characters left out that are named.
const MAX_NAMED: usize = 8;
/// Variation selector 16: makes the character before it an emoji.
const EMOJI_SELECTOR: char = '\u{fe0f}';

/// The part of a name that can be drawn.
pub(super) struct FilteredText {
    /// The characters, with single spaces.
    pub(super) text: String,
    /// Number of characters left out.
    pub(super) dropped: usize,
    /// The first of these that can be seen, each once.
    pub(super) left_out: Vec<char>,
    /// Whether the name is longer than [`MAX_CHARACTERS`].
    pub(super) truncated: bool,
}

/// Composes letters with their marks, drops characters that cannot be drawn and collapses spaces.
pub(super) fn filter(name: &str, faces: &[Face]) -> Result<FilteredText, SignatureError> {
    let composed = composed(name.trim());
    let mut characters = composed.chars().peekable();
    let (mut text, mut dropped, mut marks) = (String::new(), 0_usize, 0_usize);
    let mut left_out = Vec::new();
    for _ in 0..MAX_CHARACTERS {
        let Some(character) = characters.next() else { break };
        marks = if is_mark(character) { marks + 1 } else { 0 };
        let emoji = is_emoji(character) || characters.peek() == Some(&EMOJI_SELECTOR);
        if character.is_whitespace() {
            if !text.is_empty() && !text.ends_with(' ') {
                text.push(' ');
            }
        } else if !emoji && !is_control(character) && marks <= MAX_MARKS && is_drawn(character, faces) {
            text.push(character);
        } else {
            dropped += 1;
            if !is_control(character) && !left_out.contains(&character) && left_out.len() < MAX_NAMED {
                left_out.push(character);
            }
        }
    }
    text.truncate(text.trim_end().len());
    match (text.is_empty(), name.trim().is_empty()) {
        (false, _) => Ok(FilteredText { text, dropped, left_out, truncated: characters.next().is_some() }),
        (true, false) => Err(SignatureError::NothingDrawable),
        (true, true) => Err(SignatureError::Empty),
    }
}

/// The name in NFC, because fonts have Hangul syllables and precomposed letters. CJK compatibility ideographs stay: NFC would replace
/// them by the usual form, but people's names contain them.
fn composed(name: &str) -> String {
    let normalizer = ComposingNormalizerBorrowed::new_nfc();
    let parts = name.split_inclusive(is_compatibility_ideograph).map(|part| match part.char_indices().next_back() {
        Some((index, character)) if is_compatibility_ideograph(character) => (&part[..index], &part[index..]),
        _ => (part, ""),
    });
    parts.map(|(before, last)| normalizer.normalize(before).into_owned() + last).collect()
}

/// Whether this is a CJK compatibility ideograph.
fn is_compatibility_ideograph(character: char) -> bool {
    matches!(character, '\u{f900}'..='\u{faff}' | '\u{2f800}'..='\u{2fa1f}')
}

/// Whether a font draws the character. A joiner needs no outline: it changes the letters beside it.
fn is_drawn(character: char, faces: &[Face]) -> bool {
    let joins = matches!(character, '\u{200c}' | '\u{200d}');
    faces.iter().any(|face| if joins { face.covers(character) } else { face.draws(character) })
}

/// Whether this is a control character, or one that only controls layout. Persian and Indic names need the joiners.
fn is_control(character: char) -> bool {
    let is_layout_control = matches!(character, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff0}'..='\u{fffd}');
    character.is_control() || is_layout_control
}

/// Whether this is an emoji by default (Unicode's Emoji_Presentation), or part of one. Some fonts have outlines for these.
fn is_emoji(character: char) -> bool {
    matches!(character, '\u{20e3}' | '\u{231a}' | '\u{231b}' | '\u{23e9}'..='\u{23ec}' | '\u{23f0}' | '\u{23f3}'
        | '\u{25fd}' | '\u{25fe}' | '\u{2614}' | '\u{2615}' | '\u{2648}'..='\u{2653}' | '\u{267f}' | '\u{2693}'
        | '\u{26a1}' | '\u{26aa}' | '\u{26ab}' | '\u{26bd}' | '\u{26be}' | '\u{26c4}' | '\u{26c5}' | '\u{26ce}'
        | '\u{26d4}' | '\u{26ea}' | '\u{26f2}' | '\u{26f3}' | '\u{26f5}' | '\u{26fa}' | '\u{26fd}' | '\u{2705}'
        | '\u{270a}' | '\u{270b}' | '\u{2728}' | '\u{274c}' | '\u{274e}' | '\u{2753}'..='\u{2755}' | '\u{2757}'
        | '\u{2795}'..='\u{2797}' | '\u{27b0}' | '\u{27bf}' | '\u{2b1b}' | '\u{2b1c}' | '\u{2b50}' | '\u{2b55}'
        | '\u{1f000}'..='\u{1faff}' | '\u{e0020}'..='\u{e007f}')
}

/// Whether this is a combining mark of a script that the fonts cover.
pub(super) fn is_mark(character: char) -> bool {
    matches!(character, '\u{300}'..='\u{36f}' | '\u{483}'..='\u{489}' | '\u{591}'..='\u{5bd}' | '\u{5bf}'..='\u{5c7}'
        | '\u{610}'..='\u{61a}' | '\u{64b}'..='\u{65f}' | '\u{670}' | '\u{6d6}'..='\u{6ed}' | '\u{1ab0}'..='\u{1aff}'
        | '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}' | '\u{302a}'..='\u{302f}' | '\u{3099}' | '\u{309a}'
        | '\u{fe20}'..='\u{fe2f}')
}
