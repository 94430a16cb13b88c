//! The artist's name, set small in a lower corner of the picture.
//!
//! Any script that the bundled fonts cover, right-to-left ones included. Ink and halo are chosen from what lies beneath, so
//! that the name reads on light, dark and busy grounds. Refuses names that would leave the picture unsigned, and never
//! writes a name to a log.

mod faces;
mod ink;
mod layout;
#[cfg(test)]
mod tests;

use image::RgbImage;
use layout::Line;
use serde::{Deserialize, Serialize};

/// Size of the letters (the em) as a share of the picture's height.
const SIZE_BY_HEIGHT: f32 = 0.05;
/// The same as a share of the width; keeps the name modest on tall pictures.
const SIZE_BY_WIDTH: f32 = 0.065;
/// Distance from the edges as a share of the shorter side.
const MARGIN: f32 = 0.035;
/// A long name is shrunk down to this share of the size, then cut.
const SMALLEST: f32 = 0.6;
/// Letters smaller than this many pixels cannot be read.
const LEAST_PIXELS: f32 = 10.0;

/// Place and strength of a signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Signature {
    /// Corner.
    pub position: Position,
    /// From 0 (invisible) to 255 (solid).
    pub opacity: u8,
}

/// The corner that holds the signature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// Lower right.
    #[default]
    BottomRight,
    /// Lower left.
    BottomLeft,
}

/// Why a picture could not be signed. Trying again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The name is empty or only spaces.
    #[error("`artist_name` is empty, must hold the name to sign with")]
    Empty,
    /// No bundled font can draw any character of the name.
    #[error("`artist_name` has no character that can be drawn, must have at least one")]
    NothingDrawable,
    /// Not even the start of the name fits.
    #[error("a picture of {width}x{height} pixels is too small for a signature")]
    TooSmall {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// A bundled font does not load.
    #[error("the bundled font {0} cannot be read")]
    Font(&'static str),
}

impl Default for Signature {
    fn default() -> Self {
        Self { position: Position::default(), opacity: 128 }
    }
}

/// Signs the picture. An opacity of 0 checks the name and leaves the picture as it is.
///
/// # Errors
/// A name that cannot be drawn, or a picture that is too small for it; the picture is then unchanged.
pub fn sign(picture: &mut RgbImage, artist_name: &str, options: &Signature) -> Result<(), SignatureError> {
    let faces = faces::bundled()?;
    let name = layout::Name::read(artist_name, faces)?;
    let (line, size) = fit(&name, picture.dimensions())?;
    if options.opacity > 0 {
        let (width, height) = picture.dimensions();
        let margin = margin(width, height);
        let left = match options.position {
            Position::BottomLeft => margin - line.left * size,
            Position::BottomRight => width as f32 - margin - line.right * size,
        };
        let baseline = height as f32 - margin - layout::DESCENT * size;
        let mask = ink::Mask::draw(&line, faces, size, (left, baseline), (width, height));
        ink::lay(picture, &mask, options.opacity);
    }
    Ok(())
}

/// The line to draw and its size in pixels: whole if it fits, smaller if that helps, cut short otherwise.
fn fit(name: &layout::Name, (width, height): (u32, u32)) -> Result<(Line, f32), SignatureError> {
    let margin = margin(width, height);
    let room = width as f32 - 2.0 * margin;
    let preferred = (SIZE_BY_HEIGHT * height as f32).min(SIZE_BY_WIDTH * width as f32).max(LEAST_PIXELS);
    let smallest = (SMALLEST * preferred).max(LEAST_PIXELS);
    let too_small = SignatureError::TooSmall { width, height };
    if room <= 0.0 || height as f32 - 2.0 * margin < (layout::ASCENT + layout::DESCENT) * smallest {
        return Err(too_small);
    }
    let whole = name.line(None)?;
    let widest = room / whole.width();
    if widest >= smallest && !name.is_cut() {
        return Ok((whole, preferred.min(widest)));
    }
    longest_start(name, &whole.ends, room / smallest)?.map(|line| (line, smallest)).ok_or(too_small)
}

/// The longest start of the name that, with an ellipsis, is at most `room` em wide.
fn longest_start(name: &layout::Name, ends: &[usize], room: f32) -> Result<Option<Line>, SignatureError> {
    let (mut fits, mut low, mut high) = (None, 0, ends.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let line = name.line(Some(ends[middle]))?;
        if line.width() <= room {
            (fits, low) = (Some(line), middle + 1);
        } else {
            high = middle;
        }
    }
    Ok(fits)
}

fn margin(width: u32, height: u32) -> f32 {
    (MARGIN * width.min(height) as f32).max(2.0)
}
