//! Pictures to begin from. No claim in a file can make us decode more pixels than the limit allows.

use crate::storage::{ReadError, read_image as read};

/// The limit of pixels.
const MOST: u64 = 1 << 16;

/// Whether the bytes are a picture.
pub fn image(bytes: &[u8]) -> bool {
    match read(bytes, MOST) {
        Ok(picture) => {
            let (width, height) = picture.dimensions();
            assert!(width > 0 && height > 0, "a picture of {width}x{height}");
            assert!(u64::from(width) * u64::from(height) <= MOST, "{width}x{height} pixels");
            true
        }
        Err(error) => {
            if let ReadError::Pixels(width, height, _) = error {
                let all = u64::from(width) * u64::from(height);
                assert!(all > MOST || width.max(height) > 16_384, "{width}x{height} pixels are few enough");
            }
            assert!(error.to_string().len() <= 1000, "{error}");
            false
        }
    }
}
