//! The file formats of a picture: their names in a task, their file names' endings, their MIME types. Encodes nothing.

use std::{fmt, str::FromStr};

/// File format of a picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// JPEG.
    #[default]
    Jpeg,
    /// PNG, lossless.
    Png,
    /// WebP, lossy.
    WebP,
}

impl Format {
    /// All of them, the default first.
    pub const ALL: [Self; 3] = [Self::Jpeg, Self::Png, Self::WebP];
    /// Their names, for an error.
    pub const NAMES: &'static str = "jpeg, png, webp";

    /// The file name's ending.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::WebP => "webp",
        }
    }

    /// The format that a file name's ending stands for, in upper or lower case.
    pub fn of_extension(ending: &str) -> Option<Self> {
        let ending = ending.to_ascii_lowercase();
        let known = if ending == "jpeg" { Self::Jpeg.extension() } else { &ending };
        Self::ALL.into_iter().find(|format| format.extension() == known)
    }

    /// The MIME type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::WebP => "image/webp",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.to_string() == name);
        found.ok_or_else(|| format!("unknown file format, known: {}", Self::NAMES))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_endings_lead_back_to_the_format() {
        let names: Vec<String> = Format::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(names.join(", "), Format::NAMES);
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
            assert_eq!(Format::of_extension(&format.extension().to_uppercase()), Some(format));
        }
        assert_eq!(Format::of_extension("jpeg"), Some(Format::Jpeg));
        assert_eq!(Format::of_extension("gif"), None);
    }
}
