//! Which characters of a name are drawn: letters, marks and signs that a font draws. Emoji and what only steers layout are not.

use super::{SignatureError, faces::Face};
use icu_normalizer::ComposingNormalizerBorrowed;

/// Characters of a name that are looked at. No picture has room for more.
const MOST_CHARACTERS: usize = 1000;
/// Marks on one letter that are drawn; text that stacks more is meant to spill.
const MOST_MARKS: usize = 4;
/// Asks for the character before it as an emoji.
const AS_EMOJI: char = '\u{fe0f}';

/// The part of a name that can be drawn.
pub(super) struct Drawable {
    /// With single spaces.
    pub(super) text: String,
    /// How many characters were left out.
    pub(super) dropped: usize,
    /// Whether the name had more than is looked at.
    pub(super) cut: bool,
}

/// Composes letters with their marks, drops what cannot be drawn and collapses spaces.
pub(super) fn drawable(name: &str, faces: &[Face]) -> Result<Drawable, SignatureError> {
    let composed = composed(name.trim());
    let mut characters = composed.chars().peekable();
    let (mut text, mut dropped, mut marks) = (String::new(), 0_usize, 0_usize);
    for _ in 0..MOST_CHARACTERS {
        let Some(character) = characters.next() else { break };
        marks = if is_mark(character) { marks + 1 } else { 0 };
        let emoji = is_emoji(character) || characters.peek() == Some(&AS_EMOJI);
        if character.is_whitespace() {
            if !text.is_empty() && !text.ends_with(' ') {
                text.push(' ');
            }
        } else if !emoji && !steers(character) && marks <= MOST_MARKS && is_drawn(character, faces) {
            text.push(character);
        } else {
            dropped += 1;
        }
    }
    text.truncate(text.trim_end().len());
    match (text.is_empty(), name.trim().is_empty()) {
        (false, _) => Ok(Drawable { text, dropped, cut: characters.next().is_some() }),
        (true, false) => Err(SignatureError::NothingDrawable),
        (true, true) => Err(SignatureError::Empty),
    }
}

/// The name in NFC: fonts have Hangul as syllables, and other letters with their marks. Chinese characters of old forms, which
/// NFC replaces by the usual form, stay: people are named with them.
fn composed(name: &str) -> String {
    let normalizer = ComposingNormalizerBorrowed::new_nfc();
    let parts = name.split_inclusive(is_old_form).map(|part| match part.char_indices().next_back() {
        Some((last, character)) if is_old_form(character) => (&part[..last], &part[last..]),
        _ => (part, ""),
    });
    parts.map(|(before, old_form)| normalizer.normalize(before).into_owned() + old_form).collect()
}

/// A CJK compatibility ideograph.
fn is_old_form(character: char) -> bool {
    matches!(character, '\u{f900}'..='\u{faff}' | '\u{2f800}'..='\u{2fa1f}')
}

/// Whether a font draws the character. A joiner is drawn by what it does to the letters beside it.
fn is_drawn(character: char, faces: &[Face]) -> bool {
    let joins = matches!(character, '\u{200c}' | '\u{200d}');
    faces.iter().any(|face| if joins { face.covers(character) } else { face.draws(character) })
}

/// A control character, or one that only steers layout. The joiners of Persian and Indic names are kept.
fn steers(character: char) -> bool {
    let steers = matches!(character, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff0}'..='\u{fffd}');
    character.is_control() || steers
}

/// Shown as an emoji unless told otherwise (Unicode's Emoji_Presentation), or part of one. Some fonts have outlines for these.
fn is_emoji(character: char) -> bool {
    matches!(character, '\u{20e3}' | '\u{231a}' | '\u{231b}' | '\u{23e9}'..='\u{23ec}' | '\u{23f0}' | '\u{23f3}'
        | '\u{25fd}' | '\u{25fe}' | '\u{2614}' | '\u{2615}' | '\u{2648}'..='\u{2653}' | '\u{267f}' | '\u{2693}'
        | '\u{26a1}' | '\u{26aa}' | '\u{26ab}' | '\u{26bd}' | '\u{26be}' | '\u{26c4}' | '\u{26c5}' | '\u{26ce}'
        | '\u{26d4}' | '\u{26ea}' | '\u{26f2}' | '\u{26f3}' | '\u{26f5}' | '\u{26fa}' | '\u{26fd}' | '\u{2705}'
        | '\u{270a}' | '\u{270b}' | '\u{2728}' | '\u{274c}' | '\u{274e}' | '\u{2753}'..='\u{2755}' | '\u{2757}'
        | '\u{2795}'..='\u{2797}' | '\u{27b0}' | '\u{27bf}' | '\u{2b1b}' | '\u{2b1c}' | '\u{2b50}' | '\u{2b55}'
        | '\u{1f000}'..='\u{1faff}' | '\u{e0020}'..='\u{e007f}')
}

/// A combining mark of the scripts that the fonts cover.
pub(super) fn is_mark(character: char) -> bool {
    matches!(character, '\u{300}'..='\u{36f}' | '\u{483}'..='\u{489}' | '\u{591}'..='\u{5bd}' | '\u{5bf}'..='\u{5c7}'
        | '\u{610}'..='\u{61a}' | '\u{64b}'..='\u{65f}' | '\u{670}' | '\u{6d6}'..='\u{6ed}' | '\u{1ab0}'..='\u{1aff}'
        | '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}' | '\u{302a}'..='\u{302f}' | '\u{3099}' | '\u{309a}'
        | '\u{fe20}'..='\u{fe2f}')
}
