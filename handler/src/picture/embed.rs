//! Puts EXIF and XMP into a file where its format wants them. The encoded pixels stay as they are, byte for byte.

use super::{exif, provenance::Provenance, xmp};
use crate::task::Format;
use img_parts::{
    Bytes, ImageEXIF,
    jpeg::{Jpeg, JpegSegment, markers},
    png::{Png, PngChunk},
    riff::{RiffChunk, RiffContent},
    webp::{CHUNK_XMP, WebP},
};

/// What XMP's segment of a JPEG starts with.
pub(super) const XMP_SEGMENT: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
/// What XMP's chunk of a PNG starts with: a keyword; not compressed, no language, no translation of the keyword.
const XMP_CHUNK: &[u8] = b"XML:com.adobe.xmp\0\0\0\0\0";

/// Why a file could not be told where it comes from.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The EXIF fields do not fit together.
    #[error("metadata: {0}")]
    Exif(#[from] ::exif::Error),
    /// The encoded file is not what its format says.
    #[error("metadata: {0}")]
    File(#[from] img_parts::Error),
}

/// Returns the file with the picture's provenance in it.
///
/// # Errors
/// See [`EmbedError`]; none is the task's fault.
pub fn embed(file: Vec<u8>, format: Format, provenance: &Provenance) -> Result<Vec<u8>, EmbedError> {
    let (file, exif) = (Bytes::from(file), Bytes::from(exif::block(provenance, format)?));
    let xmp = xmp::packet(provenance).into_bytes();
    let whole = match format {
        Format::Jpeg => {
            let mut jpeg = Jpeg::from_bytes(file)?;
            let header = jpeg.segments().iter().take_while(|segment| segment.marker() == markers::APP0).count();
            let segment = JpegSegment::new_with_contents(markers::APP1, [XMP_SEGMENT, &xmp].concat().into());
            jpeg.segments_mut().insert(header, segment);
            jpeg.set_exif(Some(exif));
            jpeg.encoder().bytes()
        }
        Format::Png => {
            let mut png = Png::from_bytes(file)?;
            png.set_exif(Some(exif));
            // Behind the header, before the pixels: a reader then need not go through them.
            png.chunks_mut().insert(1, PngChunk::new(*b"iTXt", [XMP_CHUNK, &xmp].concat().into()));
            png.encoder().bytes()
        }
        Format::WebP => {
            let mut webp = WebP::from_bytes(file)?;
            webp.chunks_mut().push(RiffChunk::new(CHUNK_XMP, RiffContent::Data(xmp.into())));
            // Also writes the header that says which chunks there are.
            webp.set_exif(Some(exif));
            webp.encoder().bytes()
        }
    };
    Ok(whole.to_vec())
}
