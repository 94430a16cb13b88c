//! Reads a picture that somebody else made, to begin from. Its size is checked before anything of it is decoded, so that a small file can
//! take no more memory than the limit allows.

use diffusion::error::cut;
use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage, metadata::Orientation,
};
use std::io::Cursor;

/// The longest side, in pixels, whatever the limit of all pixels is.
const LONGEST_SIDE: u32 = 16_384;
/// Bytes of a decoded pixel, at most: four channels of 16 bits.
const BYTES_OF_PIXEL: u64 = 8;
/// What a decoder needs beside the pixels.
const SCRATCH: u64 = 16 << 20;
/// The longest text of a decoder's error that is shown, in bytes.
const LONGEST_ERROR: usize = 200;

/// Why a file is no picture to begin from; the rest of a sentence about it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReadError {
    /// Its first bytes are those of no format that is read.
    #[error("is no PNG, JPEG or WebP file: convert it to one")]
    Format,
    /// It has too many pixels.
    #[error(
        "has {0}x{1} pixels, the limit is {2} in all (--max-image-pixels, EASEL_MAX_IMAGE_PIXELS) and {LONGEST_SIDE} on a side: \
         scale it down, to no more than the size that is painted"
    )]
    Pixels(u32, u32, u64),
    /// It needs more memory than its pixels do.
    #[error("needs more memory than its pixels do: save it without anything but the pixels")]
    Memory,
    /// It ends before the picture does.
    #[error("ends before the picture does: upload it again")]
    Short,
    /// It is damaged, or of a kind that is not read.
    #[error("cannot be decoded ({0}): save it again as PNG or JPEG")]
    Damaged(String),
}

/// The pixels of a PNG, JPEG or WebP file, turned as its EXIF says, of an animation the first picture. What is transparent is white.
/// Colour profiles are not read: numbers are taken for sRGB.
///
/// # Errors
/// See [`ReadError`].
pub fn read(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, ReadError> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|_| ReadError::Format)?;
    let format = reader.format().filter(|format| READ.contains(format)).ok_or(ReadError::Format)?;
    if format == ImageFormat::Jpeg && !has_end(bytes) {
        return Err(ReadError::Short);
    }
    let mut limits = Limits::no_limits();
    (limits.max_image_width, limits.max_image_height) = (Some(LONGEST_SIDE), Some(LONGEST_SIDE));
    limits.max_alloc = Some(max_pixels.saturating_mul(BYTES_OF_PIXEL).saturating_add(SCRATCH));
    // Where a decoder compares the sides itself, it does not say how long they are.
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(|error| fault(error, size_of(bytes, format), max_pixels))?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels || width.max(height) > LONGEST_SIDE {
        return Err(ReadError::Pixels(width, height, max_pixels));
    }
    decoder.set_limits(limits).map_err(|error| fault(error, Some((width, height)), max_pixels))?;
    // What its EXIF says wrong turns nothing.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let decoded = DynamicImage::from_decoder(decoder);
    let decoded = decoded.map_err(|error| fault(error, Some((width, height)), max_pixels))?;
    let mut upright = DynamicImage::ImageRgb8(on_white(decoded));
    upright.apply_orientation(orientation);
    Ok(upright.into_rgb8())
}

/// The formats that are read.
const READ: [ImageFormat; 3] = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];

/// Width and height by the header of a PNG alone, whose decoder compares them before it tells them.
fn size_of(bytes: &[u8], format: ImageFormat) -> Option<(u32, u32)> {
    let side = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    (format == ImageFormat::Png).then(|| Some((side(16)?, side(20)?))).flatten()
}

fn fault(error: ImageError, size: Option<(u32, u32)>, max_pixels: u64) -> ReadError {
    match (error, size) {
        (ImageError::Limits(_), Some((width, height)))
            if width.max(height) > LONGEST_SIDE || u64::from(width) * u64::from(height) > max_pixels =>
        {
            ReadError::Pixels(width, height, max_pixels)
        }
        (ImageError::Limits(_), _) => ReadError::Memory,
        (ImageError::IoError(error), _) if error.kind() == std::io::ErrorKind::UnexpectedEof => ReadError::Short,
        (error, _) => ReadError::Damaged(cut(&error.to_string(), LONGEST_ERROR).into_owned()),
    }
}

/// A picture over white.
fn on_white(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let over = |level: u8, alpha: u8| {
        let (level, alpha) = (u32::from(level), u32::from(alpha));
        ((level * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    let picture = picture.into_rgba8();
    let pixels = picture.pixels().flat_map(|pixel| {
        let [red, green, blue, alpha] = pixel.0;
        [red, green, blue].map(|level| over(level, alpha))
    });
    RgbImage::from_raw(picture.width(), picture.height(), pixels.collect()).unwrap_or_default()
}

/// Whether a JPEG has the mark of its end, outside of what its segments hold. The decoder fills up with grey what is missing.
fn has_end(bytes: &[u8]) -> bool {
    const END: u8 = 0xD9;
    let mut at = 2;
    while let Some(&[first, mark]) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        match (first, mark) {
            (0xFF, END) => return true,
            // A mark may have more than one FF before it.
            (0xFF, 0xFF) => at += 1,
            // A byte of the picture, or a mark without a segment.
            (0xFF, 0 | 1 | 0xD0..=0xD7) => at += 2,
            (0xFF, _) => {
                let length =
                    bytes.get(at + 2..).and_then(|rest| rest.first_chunk()).map(|&length| u16::from_be_bytes(length));
                at += 2 + usize::from(length.unwrap_or_default()).max(2);
            }
            _ => at += 1,
        }
    }
    false
}

#[cfg(test)]
mod tests;
