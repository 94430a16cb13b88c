//! A picture's provenance as EXIF: software, artist and date in fields of their own, the rest in the comment, in the words
//! that readers of generated pictures look for there.

use super::provenance::{GENERATOR, Provenance};
use crate::task::Format;
use exif::{Field, In, Rational, Tag, Value, experimental::Writer};
use std::io::Cursor;

/// Version 2.32 of the standard, the first with time zones being 2.31.
const VERSION: &[u8] = b"0232";
/// What the standard wants where nobody knows: dots per inch.
const RESOLUTION: Rational = Rational { num: 72, denom: 1 };

/// Writes the TIFF structure that EXIF is.
///
/// # Errors
/// The fields do not fit together.
pub(super) fn block(provenance: &Provenance, format: Format) -> Result<Vec<u8>, exif::Error> {
    let ascii = |text: &str| Value::Ascii(vec![text.as_bytes().to_vec()]);
    let mut fields = vec![
        (Tag::Software, ascii(GENERATOR)),
        (Tag::ExifVersion, Value::Undefined(VERSION.to_vec(), 0)),
        (Tag::UserComment, Value::Undefined(comment(&text(provenance)), 0)),
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

/// Fields that tell nothing new, but that the standard requires.
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
            // Luminance and two of colour, in that order.
            (Tag::ComponentsConfiguration, Value::Undefined(vec![1, 2, 3, 0], 0)),
            (Tag::FlashpixVersion, Value::Undefined(b"0100".to_vec(), 0)),
            (Tag::YCbCrPositioning, Value::Short(vec![centred])),
        ]),
        Format::Png | Format::WebP => {}
    }
    fields
}

/// Prompt, negative prompt and settings, as AUTOMATIC1111's web UI writes them.
fn text(provenance: &Provenance) -> String {
    let (prompt, negative) = provenance.prompts();
    let mut lines: Vec<String> = prompt.into_iter().collect();
    lines.extend(negative.map(|negative| format!("Negative prompt: {negative}")));
    let mut settings: Vec<String> = provenance.settings().into_iter().map(named).collect();
    let loras = provenance.loras.iter().map(|applied| format!("{}: {}", applied.lora.sha256(), applied.scale));
    let loras = loras.collect::<Vec<_>>().join(", ");
    settings.extend(Some(format!("Lora hashes: \"{loras}\"")).filter(|_| !provenance.loras.is_empty()));
    settings.push(format!("Version: {GENERATOR}"));
    lines.push(settings.join(", "));
    lines.join("\n")
}

fn named((name, value): (&'static str, String)) -> String {
    let name = match name {
        "GenerationId" => "Task",
        "ModelRevision" => "Model revision",
        "GuidanceScale" => "CFG scale",
        "Scheduler" => "Sampler",
        "KarrasSigmas" => "Karras sigmas",
        "NoiseSource" => "RNG",
        name => name,
    };
    format!("{name}: {value}")
}

/// The comment with the code of its characters before it: ASCII where that is enough, else UTF-16, big-endian as the block.
fn comment(text: &str) -> Vec<u8> {
    if text.is_ascii() {
        return [b"ASCII\0\0\0", text.as_bytes()].concat();
    }
    let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    [b"UNICODE\0", units.as_slice()].concat()
}
