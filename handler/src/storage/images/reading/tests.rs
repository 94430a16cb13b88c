//! Pictures of every format, turned and transparent ones, and files that are none or are meant to do harm.

use super::*;
use image::{ImageEncoder, Rgb, Rgba, RgbaImage, codecs};

const ENOUGH: u64 = 1 << 20;

/// Red on the left, blue on the right.
fn picture() -> RgbImage {
    RgbImage::from_fn(32, 16, |x, _| if x < 16 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) })
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, format).unwrap();
    file.into_inner()
}

/// A PNG of one colour, with this width and height in its header.
fn png_that_claims(width: u32, height: u32) -> Vec<u8> {
    let mut file = encoded(&DynamicImage::ImageRgb8(RgbImage::new(8, 8)), ImageFormat::Png);
    file[16..20].copy_from_slice(&width.to_be_bytes());
    file[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc32(&file[12..29]);
    file[29..33].copy_from_slice(&sum.to_be_bytes());
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let byte = |sum: u32, byte: &u8| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 })
    };
    !bytes.iter().fold(u32::MAX, byte)
}

#[test]
fn each_format_is_read() {
    let whole = DynamicImage::ImageRgb8(picture());
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        assert_eq!(read(&encoded(&whole, format), ENOUGH).unwrap(), picture(), "{format:?}");
    }
    let jpeg = read(&encoded(&whole, ImageFormat::Jpeg), ENOUGH).unwrap();
    assert!(jpeg.dimensions() == (32, 16) && jpeg[(2, 2)].0[0] > 240 && jpeg[(29, 2)].0[2] > 240);
    // Grey, and 16 bits for each level.
    for grey in [whole.to_luma8().into(), DynamicImage::ImageLuma16(whole.to_luma16())] {
        let read = read(&encoded(&grey, ImageFormat::Png), ENOUGH).unwrap();
        let [red, green, blue] = read[(0, 0)].0;
        assert!(red == green && green == blue && red > 0, "{:?}", read[(0, 0)]);
    }
}

#[test]
fn what_is_transparent_is_white() {
    let alpha = |x: u32| [0, 128, 255][x as usize];
    let picture = RgbaImage::from_fn(3, 1, |x, _| Rgba([200, 0, 100, alpha(x)]));
    let read = read(&encoded(&DynamicImage::ImageRgba8(picture), ImageFormat::Png), ENOUGH).unwrap();
    assert_eq!([read[(0, 0)].0, read[(1, 0)].0, read[(2, 0)].0], [[255; 3], [227, 127, 177], [200, 0, 100]]);
}

#[test]
fn a_photograph_stands_as_its_exif_says() {
    // Orientation 6: the camera was held upright, and the picture is to be turned by 90 degrees.
    let exif = [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".as_slice(), b"\x06\0\0\0\0\0\0\0"].concat();
    let mut file = Vec::new();
    let mut encoder = codecs::png::PngEncoder::new(&mut file);
    encoder.set_exif_metadata(exif).unwrap();
    encoder.write_image(picture().as_raw(), 32, 16, image::ExtendedColorType::Rgb8).unwrap();
    let turned = read(&file, ENOUGH).unwrap();
    assert_eq!(turned.dimensions(), (16, 32));
    assert_eq!((turned[(0, 0)].0, turned[(0, 31)].0), ([255, 0, 0], [0, 0, 255]), "what was left is above");
}

#[test]
fn no_file_takes_more_memory_than_the_limit() {
    for (width, height) in [(1025, 1024), (60_000, 60_000), (u32::MAX >> 1, 1), (1, u32::MAX >> 1)] {
        let refused = read(&png_that_claims(width, height), ENOUGH).unwrap_err();
        assert_eq!(refused, ReadError::Pixels(width, height, ENOUGH));
        assert!(refused.to_string().contains("EASEL_MAX_IMAGE_PIXELS"), "{refused}");
    }
    // Long and narrow: within the limit of all pixels.
    let long = read(&png_that_claims(LONGEST_SIDE + 1, 1), ENOUGH).unwrap_err();
    assert_eq!(long, ReadError::Pixels(LONGEST_SIDE + 1, 1, ENOUGH));
    // A JPEG and a WebP that claim 16,383x16,383 pixels.
    let mut jpeg = encoded(&DynamicImage::ImageRgb8(picture()), ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x3F, 0xFF, 0x3F, 0xFF]);
    assert_eq!(read(&jpeg, ENOUGH).unwrap_err(), ReadError::Pixels(16_383, 16_383, ENOUGH));
    let mut webp = encoded(&DynamicImage::ImageRgb8(picture()), ImageFormat::WebP);
    let sizes = webp.windows(4).position(|tag| tag == b"VP8L").unwrap() + 9;
    webp[sizes..sizes + 4].copy_from_slice(&(0x0FFF_BFFF_u32 >> 2 << 2 | 0x3FFE).to_le_bytes());
    assert!(matches!(read(&webp, ENOUGH).unwrap_err(), ReadError::Pixels(..)), "{:?}", read(&webp, ENOUGH));
    // As many pixels as it says are not there, and no memory is taken for them.
    assert!(matches!(read(&png_that_claims(1024, 1024), ENOUGH), Err(ReadError::Short | ReadError::Damaged(_))));
}

#[test]
fn a_file_that_is_cut_short_is_refused_and_not_filled_up() {
    let noise = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 37) as u8, (y * 91) as u8, (x * y) as u8]));
    for format in READ {
        let whole = encoded(&DynamicImage::ImageRgb8(noise.clone()), format);
        assert!(read(&whole, ENOUGH).is_ok(), "{format:?}");
        for length in [whole.len() * 9 / 10, whole.len() / 2, whole.len() / 4, 60, 20] {
            let refused = read(&whole[..length], ENOUGH).unwrap_err();
            assert!(matches!(refused, ReadError::Short | ReadError::Damaged(_)), "{format:?} of {length}: {refused}");
        }
    }
    // Without its last mark alone nobody can say whether it is whole.
    let whole = encoded(&DynamicImage::ImageRgb8(noise.clone()), ImageFormat::Jpeg);
    assert_eq!(read(&whole[..whole.len() - 2], ENOUGH).unwrap_err(), ReadError::Short);
    // A thumbnail in a segment has an end of its own, which is not that of the picture.
    let thumbnail = [&[0xFF, 0xD8, 0xFF, 0xE1, 0x00, 0x08], b"\xFF\xD8x\xFF\xD9y".as_slice(), &whole[2..]].concat();
    assert!(read(&thumbnail, ENOUGH).is_ok());
    assert_eq!(read(&thumbnail[..thumbnail.len() / 2], ENOUGH).unwrap_err(), ReadError::Short);
}

#[test]
fn what_is_no_picture_is_said() {
    for bytes in
        [&b""[..], b"hello", b"GIF89a\x01\0\x01\0\0\0\0", b"%PDF-1.7", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
    {
        assert_eq!(read(bytes, ENOUGH).unwrap_err(), ReadError::Format, "{bytes:?}");
    }
    let mut damaged = encoded(&DynamicImage::ImageRgb8(picture()), ImageFormat::Png);
    damaged[45] ^= 0xFF;
    let said = read(&damaged, ENOUGH).unwrap_err();
    assert!(matches!(said, ReadError::Damaged(_)) && said.to_string().len() < 300, "{said}");
}
