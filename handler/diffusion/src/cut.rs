//! Cuts texts that others wrote, so that what tells of them stays short: a name in a file may be as long as the file.

use std::borrow::Cow;

/// What is shown of a name out of a file or a message, in bytes.
pub const NAME: usize = 200;
/// The longest sentence that a log or a webhook gets, in bytes.
pub const MESSAGE: usize = 1000;

/// At most `most` bytes of a text, cut between two characters and with a word that it was cut; the text itself if it is
/// no longer.
pub fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let mark = format!("… (cut, {} bytes in all)", text.len());
    let end = text.floor_char_boundary(most.saturating_sub(mark.len()));
    format!("{}{mark}", &text[..end]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_so() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut(&"x".repeat(100), 40), format!("{}… (cut, 100 bytes in all)", "x".repeat(13)));
        for character in ["x", "ü", "金", "🦀"] {
            for length in 0..400 {
                let text = character.repeat(length);
                let shown = cut(&text, NAME);
                assert!(shown.len() <= NAME && shown.len() + 4 > NAME.min(text.len()), "{shown}");
                assert_eq!(shown == text, text.len() <= NAME, "{shown}");
            }
        }
        assert_eq!(cut(&"x".repeat(100), 0), "… (cut, 100 bytes in all)");
    }
}
