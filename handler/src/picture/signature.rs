//! Draws the artist's name, small, into the picture.
//!
//! Works for every script that the bundled fonts cover, also right-to-left. Ink and halo are chosen by the pixels beneath, so that the name
//! is legible on light, dark and busy backgrounds. A name of which nothing can be drawn is an error. Names are never logged.

mod fonts;
mod placement;
mod rendering;
mod shaping;
#[cfg(test)]
mod tests;
mod text;

use crate::task::signature::Signature;
use image::RgbImage;

/// Why a picture could not be signed. Trying again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The name is empty or has only spaces.
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

/// Signs the picture. An opacity of 0 checks the name and leaves the picture as it is.
///
/// ```
/// use handler::{picture::signature::sign, task::signature::Signature};
///
/// let mut picture = image::RgbImage::new(256, 256);
/// sign(&mut picture, "Ada Kowalska", &Signature::default()).unwrap();
/// assert!(picture.pixels().any(|pixel| pixel.0 != [0; 3]));
/// ```
///
/// # Errors
/// A name that cannot be drawn, or a picture that is too small for it; the picture is then unchanged.
pub fn sign(picture: &mut RgbImage, artist_name: &str, options: &Signature) -> Result<(), SignatureError> {
    let faces = fonts::bundled()?;
    let text = placement::place(&shaping::DrawableName::parse(artist_name, faces)?, picture.dimensions(), options)?;
    if options.opacity > 0 {
        let mask = rendering::Mask::draw(&text, faces, picture.dimensions());
        rendering::blend(picture, &mask, options.opacity);
    }
    Ok(())
}

/// Checks, before a picture of that size is painted, whether [`sign`] would succeed. Logs a warning if characters are left out.
///
/// # Errors
/// As [`sign`].
pub fn check(size: (u32, u32), artist_name: &str, options: &Signature) -> Result<(), SignatureError> {
    let name = shaping::DrawableName::parse(artist_name, fonts::bundled()?)?;
    if name.dropped() > 0 {
        tracing::warn!(dropped = name.dropped(), "the signature leaves out characters that cannot be drawn");
    }
    placement::place(&name, size, options).map(|_| ())
}

/// The characters of a name that [`sign`] leaves out because no font has a glyph for them, each once, the first few of them.
///
/// # Errors
/// A bundled font does not load, or nothing of the name can be drawn.
pub fn left_out(artist_name: &str) -> Result<Vec<char>, SignatureError> {
    Ok(text::filter(artist_name, fonts::bundled()?)?.left_out)
}
