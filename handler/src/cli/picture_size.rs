//! The size of pictures from the shell.

use crate::task;
use clap::Args;

/// The size of pictures from the shell.
#[derive(Debug, Clone, Args)]
pub struct PictureSize {
    /// 1:1 is 512x512, 2:2 is 768x768, 1:2 is 512x1024.
    #[arg(long, default_value = "1:1", value_parser = ["1:1", "2:2", "1:2"])]
    pub aspect_ratio: String,
    /// Width in pixels, a multiple of 8 from 64 to 2048, together with --height and instead of --aspect-ratio.
    #[arg(long, value_name = "PIXELS", requires = "height", conflicts_with = "aspect_ratio", value_parser = task::side)]
    pub width: Option<usize>,
    /// Height in pixels, as the width.
    #[arg(long, value_name = "PIXELS", requires = "width", conflicts_with = "aspect_ratio", value_parser = task::side)]
    pub height: Option<usize>,
}

impl PictureSize {
    /// Width and height in pixels.
    pub fn pixels(&self) -> (usize, usize) {
        self.width.zip(self.height).unwrap_or_else(|| task::size(Some(&self.aspect_ratio)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        size: PictureSize,
    }

    fn read(words: &[&str]) -> Result<(usize, usize), String> {
        let line = Line::try_parse_from(["x"].iter().chain(words)).map_err(|error| error.to_string())?;
        Ok(line.size.pixels())
    }

    #[test]
    fn a_size_is_a_ratio_or_two_sides() {
        assert_eq!(read(&[]), Ok((512, 512)));
        assert_eq!(read(&["--aspect-ratio", "1:2"]), Ok((512, 1024)));
        assert_eq!(read(&["--width", "264", "--height", "328"]), Ok((264, 328)));
        for (words, named) in [
            (&["--width", "264"][..], "--height"),
            (&["--height", "264"], "--width"),
            (&["--width", "264", "--height", "328", "--aspect-ratio", "1:1"], "--aspect-ratio"),
            (&["--width", "260", "--height", "328"], "multiple of 8"),
            (&["--width", "264", "--height", "4096"], "--height"),
        ] {
            let error = read(words).unwrap_err();
            assert!(error.contains(named), "{words:?}: {error}");
        }
    }
}
