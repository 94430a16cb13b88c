//! The file formats of pictures: their names in a task, MIME types and file endings.

use std::{ffi::OsStr, fmt, path::Path, str::FromStr};

/// Makes [`Format`] from lines `Variant = "name in a task", "MIME type", ["ending", "other endings that are accepted" …]`. The first line is
/// the default.
macro_rules! formats {
    ($($(#[$doc:meta])* $format:ident = $name:literal, $mime:literal, [$ending:literal $(, $other:literal)*];)+) => {
        /// File format of a picture.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Format {
            $($(#[$doc])* $format,)+
        }

        impl Format {
            /// All of them, the default first.
            pub const ALL: &[Self] = &[$(Self::$format),+];

            /// The name in a task.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$format => $name,)+
                }
            }

            /// The MIME type.
            pub const fn content_type(self) -> &'static str {
                match self {
                    $(Self::$format => $mime,)+
                }
            }

            /// Endings of file names; the first is the one that we write.
            const fn endings(self) -> &'static [&'static str] {
                match self {
                    $(Self::$format => &[$ending $(, $other)*],)+
                }
            }
        }
    };
}

formats! {
    /// JPEG.
    Jpeg = "jpeg", "image/jpeg", ["jpg", "jpeg"];
    /// PNG, lossless.
    Png = "png", "image/png", ["png"];
    /// WebP, lossy.
    WebP = "webp", "image/webp", ["webp"];
}

impl Format {
    /// All names, for an error.
    pub fn names() -> String {
        Self::ALL.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ")
    }

    /// All endings, for an error or a help text.
    pub fn all_endings() -> String {
        let endings = Self::ALL.iter().flat_map(|format| format.endings());
        endings.map(|ending| format!(".{ending}")).collect::<Vec<_>>().join(", ")
    }

    /// The ending of file names that we write.
    pub fn extension(self) -> &'static str {
        self.endings()[0]
    }

    /// The format of an ending, in upper or lower case.
    pub fn of_extension(ending: &str) -> Option<Self> {
        let stands_for = |format: &&Self| format.endings().iter().any(|known| known.eq_ignore_ascii_case(ending));
        Self::ALL.iter().find(stands_for).copied()
    }

    /// The format of a file by its name.
    ///
    /// # Errors
    /// The name ends in none of [`all_endings`](Self::all_endings).
    pub fn of_path(path: &Path) -> Result<Self, String> {
        let known = path.extension().and_then(OsStr::to_str).and_then(Self::of_extension);
        known.ok_or_else(|| format!("the name must end in one of {}", Self::all_endings()))
    }
}

impl Default for Format {
    fn default() -> Self {
        Self::ALL[0]
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|format| format.name() == name);
        found.copied().ok_or_else(|| format!("unknown file format, known: {}", Self::names()))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_endings_lead_back_to_the_format() {
        for &format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
            assert!(Format::names().split(", ").any(|name| name == format.name()));
            for ending in format.endings() {
                assert_eq!(Format::of_extension(&ending.to_uppercase()), Some(format));
                assert!(Format::all_endings().split(", ").any(|known| known == format!(".{ending}")));
            }
        }
        assert_eq!((Format::default(), Format::of_extension("jpeg")), (Format::Jpeg, Some(Format::Jpeg)));
        assert_eq!(Format::of_extension("gif"), None);
    }
}
