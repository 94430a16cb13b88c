//! The options of a signature: position, opacity, size and margin, with their limits and defaults.

use std::{fmt, str::FromStr};

/// Smallest and largest letters, as shares of the picture's shorter side.
pub const SIZES: (f64, f64) = (0.02, 0.25);
/// Largest margin, as a share of the picture's shorter side.
pub const MAX_MARGIN: f64 = 0.25;
/// The default opacity.
pub const OPACITY: u8 = 128;
/// The default margin.
pub const MARGIN: f64 = 0.035;

/// How the artist's name is drawn into the picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Signature {
    /// The part of the picture that holds it.
    pub position: Position,
    /// From 0 (invisible) to 255 (solid).
    pub opacity: u8,
    /// Height of the letters (the em) as a share of the picture's shorter side; by default a twentieth, more in tall pictures.
    pub size: Option<f64>,
    /// Distance from the edges as a share of the picture's shorter side.
    pub margin: f64,
}

/// The part of the picture that holds the signature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Position {
    /// Upper left corner.
    TopLeft,
    /// In the middle of the upper edge.
    Top,
    /// Upper right corner.
    TopRight,
    /// In the middle of the left edge.
    Left,
    /// In the middle of the picture.
    Center,
    /// In the middle of the right edge.
    Right,
    /// Lower left corner.
    BottomLeft,
    /// In the middle of the lower edge.
    Bottom,
    /// Lower right corner.
    #[default]
    BottomRight,
}

impl Default for Signature {
    fn default() -> Self {
        Self { position: Position::default(), opacity: OPACITY, size: None, margin: MARGIN }
    }
}

impl Position {
    /// All of them, row by row.
    pub const ALL: [Self; 9] = [
        Self::TopLeft,
        Self::Top,
        Self::TopRight,
        Self::Left,
        Self::Center,
        Self::Right,
        Self::BottomLeft,
        Self::Bottom,
        Self::BottomRight,
    ];
    /// Their names, for an error.
    pub const NAMES: &'static str = "top-left, top, top-right, left, center, right, bottom-left, bottom, bottom-right";

    /// How far to the right and how far down it is, each 0, 0.5 or 1.
    pub(crate) fn anchor(self) -> (f32, f32) {
        let index = self as usize;
        ((index % 3) as f32 / 2.0, (index / 3) as f32 / 2.0)
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().zip(Self::NAMES.split(", ")).find(|(_, known)| *known == name);
        found.map(|(position, _)| position).ok_or_else(|| format!("unknown position, known: {}", Self::NAMES))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES.split(", ").nth(*self as usize).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_have_the_names_of_their_anchors() {
        for (position, name) in Position::ALL.into_iter().zip(Position::NAMES.split(", ")) {
            assert_eq!((position.to_string().as_str(), name.parse()), (name, Ok(position)));
            let across = if name.ends_with("left") {
                0.0
            } else if name.ends_with("right") {
                1.0
            } else {
                0.5
            };
            let down = if name.starts_with("top") {
                0.0
            } else if name.starts_with("bottom") {
                1.0
            } else {
                0.5
            };
            assert_eq!(position.anchor(), (across, down), "{name}");
        }
    }
}
