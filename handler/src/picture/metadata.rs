//! Writes a picture's provenance into its file, as EXIF and as an XMP packet. The encoded pixels stay the same, byte for byte.
//!
//! EXIF has fields for software, artist and date; the rest goes into its comment, as readers of generated pictures expect it. XMP uses
//! Dublin Core, XMP Basic and IPTC Extension (2025.1 for the `AI…` properties), and a namespace of Easel for what they do not cover.

use super::provenance::{DIGITAL_SOURCE_TYPE, GENERATOR, Provenance};
use crate::task::Format;
use exif::{Field, In, Rational, Tag, Value, experimental::Writer};
use img_parts::{
    Bytes, ImageEXIF,
    jpeg::{Jpeg, JpegSegment, markers},
    png::{Png, PngChunk},
    riff::{RiffChunk, RiffContent},
    webp::{CHUNK_XMP, WebP},
};
use std::io::Cursor;
use xmp_writer::{CustomNamespace, Namespace, RdfCollectionType, XmpWriter};

/// Start of a JPEG segment with XMP.
pub(super) const XMP_SEGMENT: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
/// Start of a PNG chunk with XMP: the keyword, then not compressed, no language and no translated keyword.
const XMP_CHUNK: &[u8] = b"XML:com.adobe.xmp\0\0\0\0\0";

/// Why metadata could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The EXIF fields do not fit together.
    #[error("metadata: {0}")]
    Exif(#[from] exif::Error),
    /// The encoded file cannot be parsed.
    #[error("metadata: {0}")]
    File(#[from] img_parts::Error),
}

/// Returns the file with the picture's provenance in it.
///
/// # Errors
/// See [`EmbedError`]. None is the task's fault.
pub fn embed(file: Vec<u8>, format: Format, provenance: &Provenance) -> Result<Vec<u8>, EmbedError> {
    let (file, exif) = (Bytes::from(file), Bytes::from(exif_block(provenance, format)?));
    let xmp = xmp_packet(provenance).into_bytes();
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
            // After the header and before the pixels, so that readers find it without reading those.
            png.chunks_mut().insert(1, PngChunk::new(*b"iTXt", [XMP_CHUNK, &xmp].concat().into()));
            png.encoder().bytes()
        }
        Format::WebP => {
            let mut webp = WebP::from_bytes(file)?;
            webp.chunks_mut().push(RiffChunk::new(CHUNK_XMP, RiffContent::Data(xmp.into())));
            // This also writes the header that lists the chunks.
            webp.set_exif(Some(exif));
            webp.encoder().bytes()
        }
    };
    Ok(whole.to_vec())
}

/// Version 2.32 of the standard. Time zones came with 2.31.
const EXIF_VERSION: &[u8] = b"0232";
/// The standard's value for an unknown resolution, in dots per inch.
const RESOLUTION: Rational = Rational { num: 72, denom: 1 };

/// The EXIF block, which is a TIFF structure.
///
/// # Errors
/// The fields do not fit together.
pub(super) fn exif_block(provenance: &Provenance, format: Format) -> Result<Vec<u8>, exif::Error> {
    let ascii = |text: &str| Value::Ascii(vec![text.as_bytes().to_vec()]);
    let mut fields = vec![
        (Tag::Software, ascii(GENERATOR)),
        (Tag::ExifVersion, Value::Undefined(EXIF_VERSION.to_vec(), 0)),
        (Tag::UserComment, Value::Undefined(user_comment(&parameters(provenance)), 0)),
    ];
    fields.extend(required(provenance, format));
    if let Some(artist) = provenance.artist() {
        fields.push((Tag::Artist, ascii(&artist)));
    }
    if let Some(created) = provenance.created() {
        // 2026-11-25T14:00:00Z becomes 2026:11:25 14:00:00.
        let date = created.trim_end_matches('Z').replace('-', ":").replace('T', " ");
        fields.push((Tag::DateTimeOriginal, ascii(&date)));
        fields.push((Tag::DateTimeDigitized, ascii(&date)));
        fields.push((Tag::OffsetTimeOriginal, ascii("+00:00")));
        fields.push((Tag::OffsetTimeDigitized, ascii("+00:00")));
    }
    let fields: Vec<Field> =
        fields.into_iter().map(|(tag, value)| Field { tag, ifd_num: In::PRIMARY, value }).collect();
    let mut writer = Writer::new();
    fields.iter().for_each(|field| writer.push_field(field));
    let mut block = Cursor::new(Vec::new());
    writer.write(&mut block, false)?;
    Ok(block.into_inner())
}

/// Fields that the standard requires, though they say nothing new.
fn required(provenance: &Provenance, format: Format) -> Vec<(Tag, Value)> {
    let (inch, srgb, centred) = (2, 1, 1);
    let mut fields = vec![
        (Tag::XResolution, Value::Rational(vec![RESOLUTION])),
        (Tag::YResolution, Value::Rational(vec![RESOLUTION])),
        (Tag::ResolutionUnit, Value::Short(vec![inch])),
        (Tag::ColorSpace, Value::Short(vec![srgb])),
        (Tag::PixelXDimension, Value::Long(vec![provenance.request.width as u32])),
        (Tag::PixelYDimension, Value::Long(vec![provenance.request.height as u32])),
    ];
    match format {
        Format::Jpeg => fields.extend([
            // Y, Cb, Cr.
            (Tag::ComponentsConfiguration, Value::Undefined(vec![1, 2, 3, 0], 0)),
            (Tag::FlashpixVersion, Value::Undefined(b"0100".to_vec(), 0)),
            (Tag::YCbCrPositioning, Value::Short(vec![centred])),
        ]),
        Format::Png | Format::WebP => {}
    }
    fields
}

/// Prompt, negative prompt and settings, in the format of AUTOMATIC1111's web UI.
fn parameters(provenance: &Provenance) -> String {
    let (prompt, negative) = provenance.prompts();
    let mut lines: Vec<String> = prompt.into_iter().collect();
    lines.extend(negative.map(|negative| format!("Negative prompt: {negative}")));
    let mut settings: Vec<String> = provenance.settings().into_iter().map(labelled).collect();
    let loras = provenance.loras.iter().map(|applied| format!("{}: {}", applied.lora.sha256(), applied.scale));
    let loras = loras.collect::<Vec<_>>().join(", ");
    settings.extend(Some(format!("Lora hashes: \"{loras}\"")).filter(|_| !provenance.loras.is_empty()));
    let weighted = provenance.loras.iter().filter(|applied| !applied.weights.is_empty());
    let weights: Vec<String> =
        weighted.map(|applied| format!("{}: {}", applied.lora.sha256(), applied.weights)).collect();
    settings.extend(Some(format!("Lora weights: \"{}\"", weights.join("; "))).filter(|_| !weights.is_empty()));
    let inversions: Vec<&str> = provenance.inversions.iter().map(|applied| applied.inversion.sha256()).collect();
    settings.extend(Some(format!("TI hashes: \"{}\"", inversions.join(", "))).filter(|_| !inversions.is_empty()));
    settings.push(format!("Version: {GENERATOR}"));
    lines.push(settings.join(", "));
    lines.join("\n")
}

fn labelled((name, value): (&'static str, String)) -> String {
    let name = match name {
        "GenerationId" => "Task",
        "ModelRevision" => "Model revision",
        "DenoisingStrength" => "Denoising strength",
        "GuidanceScale" => "CFG scale",
        "Scheduler" => "Sampler",
        "KarrasSigmas" => "Karras sigmas",
        "LongPrompt" => "Long prompt",
        // The web UI counts from the last layer, which is 1.
        "ClipSkip" => return format!("Clip skip: {}", value.parse().map_or(1, |skipped: usize| skipped + 1)),
        "NoiseSource" => "RNG",
        "NsfwContentDetected" => "NSFW",
        name => name,
    };
    format!("{name}: {value}")
}

/// The value of UserComment: its character code, then the text as ASCII if possible, else as UTF-16, big-endian like the block.
fn user_comment(text: &str) -> Vec<u8> {
    if text.is_ascii() {
        return [b"ASCII\0\0\0", text.as_bytes()].concat();
    }
    let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    [b"UNICODE\0", units.as_slice()].concat()
}

/// The namespace's name. A URN, since there is no page to link to.
const EASEL_NAMESPACE: &str = "urn:easel:picture:1.0/";

/// The XMP packet. Not padded, since nobody edits it in place.
pub(super) fn xmp_packet(provenance: &Provenance) -> String {
    let own = || Namespace::Custom(Box::new(CustomNamespace::new("Easel", "easel", EASEL_NAMESPACE)));
    let iptc = || {
        let address = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/";
        Namespace::Custom(Box::new(CustomNamespace::new("IPTC Extension", "Iptc4xmpExt", address)))
    };
    let mut writer = XmpWriter::new();
    writer.creator_tool(GENERATOR);
    if let Some(artist) = &provenance.artist() {
        writer.creator([artist.as_str()]);
    }
    if let Some(created) = &provenance.created() {
        writer.element("CreateDate", Namespace::Xmp).value(created.as_str());
        writer.element("date", Namespace::DublinCore).ordered_array([created.as_str()]);
    }
    writer.element("DigitalSourceType", iptc()).value(DIGITAL_SOURCE_TYPE);
    writer.element("AISystemUsed", iptc()).value(provenance.model.name.as_str());
    if let Some(revision) = &provenance.model.revision {
        writer.element("AISystemVersionUsed", iptc()).value(revision.as_str());
    }
    let (prompt, negative) = provenance.prompts();
    if let Some(prompt) = &prompt {
        writer.element("AIPromptInformation", iptc()).value(prompt.as_str());
        writer.element("PromptWeighting", own()).value(provenance.request.prompt_weighting.to_string().as_str());
    }
    if let Some(negative) = &negative {
        writer.element("NegativePrompt", own()).value(negative.as_str());
    }
    for (name, value) in &provenance.settings() {
        writer.element(name, own()).value(value.as_str());
    }
    if !provenance.loras.is_empty() {
        let mut loras = writer.element("Loras", own()).array(RdfCollectionType::Seq);
        for applied in provenance.loras {
            let mut lora = loras.element().obj();
            lora.element("Sha256", own()).value(applied.lora.sha256());
            lora.element("Scale", own()).value(applied.scale);
            if !applied.weights.is_empty() {
                lora.element("Weights", own()).value(applied.weights.to_string().as_str());
            }
        }
    }
    if !provenance.inversions.is_empty() {
        let mut inversions = writer.element("TextualInversions", own()).array(RdfCollectionType::Seq);
        for applied in provenance.inversions {
            inversions.element().obj().element("Sha256", own()).value(applied.inversion.sha256());
        }
    }
    writer.finish(None)
}
