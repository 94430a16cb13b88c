//! The number of a weight, as Python reads it: AUTOMATIC1111's web UI finds it with Python's regular expressions and gives it to
//! `float`, and both know the decimal digits of every script.

use std::borrow::Cow;

/// The zeros of all scripts in Unicode 14; the digits 1 to 9 follow each.
const ZEROS: [u32; 66] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0,
    0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620,
    0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0,
    0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60,
    0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// Parses `:1.3)` at the start of a text: a colon, a sign, digits and points, a bracket, with white space between. Returns its length in
/// bytes and the number's text with the digits 0 to 9. That text may still be no number, like `1.2.3`.
pub(super) fn closing_weight(text: &str) -> Option<(usize, Cow<'_, str>)> {
    let (inside, _) = text.strip_prefix(':')?.split_once(')')?;
    let number = inside.trim_matches(is_space);
    let unsigned = number.strip_prefix(['+', '-']).unwrap_or(number);
    let numeric = !unsigned.is_empty() && unsigned.chars().all(|letter| letter == '.' || digit(letter).is_some());
    numeric.then(|| (inside.len() + 2, plain(number)))
}

/// Python also takes the four separators of ASCII for white space.
fn is_space(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '\u{1c}'..='\u{1f}')
}

/// The value of a decimal digit of any script.
fn digit(letter: char) -> Option<u32> {
    let before = ZEROS.partition_point(|&zero| zero <= letter as u32).checked_sub(1)?;
    Some(letter as u32 - ZEROS[before]).filter(|&value| value < 10)
}

fn plain(number: &str) -> Cow<'_, str> {
    if number.is_ascii() {
        return number.into();
    }
    number.chars().map(|letter| digit(letter).and_then(|value| char::from_digit(value, 10)).unwrap_or(letter)).collect()
}
