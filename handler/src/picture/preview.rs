//! Small pictures of a painting under way, as they go into a webhook.

use base64::{Engine, prelude::BASE64_STANDARD};
use image::{
    RgbImage,
    codecs::jpeg::JpegEncoder,
    imageops::{FilterType, resize},
};

/// A preview has fewer bytes than this, before base64.
pub const MAX_PREVIEW: usize = 10_000;
/// Qualities of JPEG, the first that fits is taken.
const QUALITIES: [u8; 5] = [85, 70, 50, 30, 15];
/// A side that is never made smaller.
const LEAST_SIDE: u32 = 16;

/// The picture as a JPEG in base64. If it is too large even in the lowest quality, it is made half as high and wide. `None` if it cannot be
/// encoded.
pub fn preview(picture: &RgbImage) -> Option<String> {
    let mut picture = picture.clone();
    loop {
        for quality in QUALITIES {
            let mut file = Vec::new();
            JpegEncoder::new_with_quality(&mut file, quality).encode_image(&picture).ok()?;
            if file.len() < MAX_PREVIEW {
                return Some(BASE64_STANDARD.encode(file));
            }
        }
        let (width, height) = (picture.width() / 2, picture.height() / 2);
        if width < LEAST_SIDE || height < LEAST_SIDE {
            return None;
        }
        picture = resize(&picture, width, height, FilterType::Triangle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GenericImageView, ImageFormat, Rgb};

    /// Noise, which JPEG cannot make small.
    fn noise(width: u32, height: u32) -> RgbImage {
        let mut state = 1_u32;
        RgbImage::from_fn(width, height, |_, _| {
            Rgb([0; 3].map(|_: u8| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            }))
        })
    }

    #[test]
    fn every_preview_is_a_jpeg_of_less_than_10_kb() {
        let soft = |side: u32| RgbImage::from_fn(side, side, |x, y| Rgb([x as u8, y as u8, 90]));
        for (picture, size) in [
            (soft(64), (64, 64)),
            (soft(256), (256, 256)),
            (noise(64, 64), (64, 64)),
            (noise(256, 256), (64, 64)),
            (noise(8, 8), (8, 8)),
        ] {
            let file = BASE64_STANDARD.decode(preview(&picture).unwrap()).unwrap();
            assert!(file.len() < MAX_PREVIEW, "{} bytes", file.len());
            assert_eq!(image::guess_format(&file).unwrap(), ImageFormat::Jpeg);
            let decoded = image::load_from_memory(&file).unwrap();
            let (width, height) = decoded.dimensions();
            assert!(width == size.0 && height == size.1 || width < picture.width(), "{width}x{height} for {size:?}");
        }
    }
}
