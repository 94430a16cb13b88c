//! Encodes pixels as JPEG, PNG or WebP. The same pixels give the same bytes.

use crate::{picture::options::PictureConfig, task::Format};
use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::jpeg::JpegEncoder, codecs::png::PngEncoder};

/// Why a picture could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// JPEG or PNG.
    #[error("encoding: {0}")]
    Image(#[from] image::ImageError),
    /// WebP, which allows sides of up to 16,383 pixels.
    #[error("encoding: libwebp says {0}")]
    WebP(String),
    /// WebP, in a build without the feature `webp`.
    #[error("encoding: this build writes no WebP; build the handler with the feature webp, which is on by default")]
    NoWebP,
}

/// Encodes the picture.
///
/// # Errors
/// The picture is too large for the format, or memory is short.
pub fn encode(picture: &RgbImage, format: Format, config: &PictureConfig) -> Result<Vec<u8>, EncodeError> {
    let (width, height, color) = (picture.width(), picture.height(), ExtendedColorType::Rgb8);
    let mut file = Vec::new();
    match format {
        Format::Jpeg => {
            let encoder = JpegEncoder::new_with_quality(&mut file, config.jpeg_quality);
            encoder.write_image(picture, width, height, color)?;
        }
        Format::Png => PngEncoder::new(&mut file).write_image(picture, width, height, color)?,
        Format::WebP => file = webp(picture, config.webp_quality)?,
    }
    Ok(file)
}

#[cfg(not(feature = "webp"))]
fn webp(_: &RgbImage, _: u8) -> Result<Vec<u8>, EncodeError> {
    Err(EncodeError::NoWebP)
}

/// Lossy, with the slower conversion (sharp YUV) that keeps colour edges sharp, such as those of the signature.
#[cfg(feature = "webp")]
fn webp(picture: &RgbImage, quality: u8) -> Result<Vec<u8>, EncodeError> {
    use webp::{Encoder, WebPConfig};

    let mut config = WebPConfig::new().map_err(|()| EncodeError::WebP("no configuration".into()))?;
    config.quality = f32::from(quality);
    config.use_sharp_yuv = 1;
    let encoder = Encoder::from_rgb(picture, picture.width(), picture.height());
    let file = encoder.encode_advanced(&config).map_err(|error| EncodeError::WebP(format!("{error:?}")))?;
    Ok(file.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GenericImageView, Rgb};

    /// A gradient, and a bright red edge.
    fn picture() -> RgbImage {
        RgbImage::from_fn(96, 64, |x, y| if x > 60 { Rgb([230, 20, 30]) } else { Rgb([x as u8, y as u8 * 2, 120]) })
    }

    /// Root of the mean square difference, in levels.
    fn difference(one: &RgbImage, other: &RgbImage) -> f64 {
        let square = |(one, other): (&u8, &u8)| f64::from(one.abs_diff(*other)).powi(2);
        (one.iter().zip(other.iter()).map(square).sum::<f64>() / one.len() as f64).sqrt()
    }

    #[test]
    fn each_format_holds_the_picture() {
        let (config, picture) = (PictureConfig::default(), picture());
        for &format in Format::ALL {
            let file = encode(&picture, format, &config).unwrap();
            assert_eq!(image::guess_format(&file).unwrap().to_mime_type(), format.content_type());
            let decoded = image::load_from_memory(&file).unwrap();
            assert_eq!(decoded.dimensions(), (96, 64), "{format}");
            let far = difference(&decoded.to_rgb8(), &picture);
            let is_lossy = matches!(format, Format::Jpeg | Format::WebP);
            assert!(far < if is_lossy { 8.0 } else { 0.1 }, "{format}: {far}");
            assert!(encode(&picture, format, &config).unwrap() == file, "{format}: other bytes");
        }
    }

    #[test]
    fn a_higher_quality_is_closer_and_larger() {
        let picture = picture();
        for format in [Format::Jpeg, Format::WebP] {
            let [low, high] = [30, 95].map(|quality| {
                let config = PictureConfig { jpeg_quality: quality, webp_quality: quality, ..PictureConfig::default() };
                let file = encode(&picture, format, &config).unwrap();
                (file.len(), difference(&image::load_from_memory(&file).unwrap().to_rgb8(), &picture))
            });
            assert!(low.0 < high.0 && low.1 > high.1, "{format}: {low:?}, {high:?}");
        }
    }

    #[test]
    fn what_webp_cannot_hold_is_an_error() {
        let wide = RgbImage::new(16_384, 1);
        let error = encode(&wide, Format::WebP, &PictureConfig::default()).unwrap_err();
        assert!(error.to_string().contains("DIMENSION"), "{error}");
    }
}
