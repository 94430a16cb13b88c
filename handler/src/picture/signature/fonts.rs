//! The bundled fonts. The first one that has a character draws it. `fonts/README.md` says where they come from.

use super::SignatureError;
use ab_glyph::{Font, FontRef, GlyphId, Outline};
use std::sync::LazyLock;

/// A font face: its outlines, and its tables for shaping.
pub(super) struct Face {
    pub(super) name: &'static str,
    outlines: FontRef<'static>,
    pub(super) tables: harfrust::Font,
    /// Makes the fonts look equally large beside each other.
    scale: f32,
}

/// A font file in the binary.
struct FontFile {
    name: &'static str,
    bytes: &'static [u8],
    scale: f32,
}

macro_rules! bundled {
    ($name:literal, $scale:literal) => {
        FontFile { name: $name, bytes: include_bytes!(concat!("../../../fonts/", $name)), scale: $scale }
    };
}

const FONTS: [FontFile; 8] = [
    bundled!("LinLibertine_RZI.otf", 1.0),
    bundled!("NotoNaskhArabic-Regular.ttf", 1.0),
    bundled!("NotoSerifArmenian-Regular.ttf", 0.9),
    bundled!("NotoSerifGeorgian-Regular.ttf", 0.9),
    bundled!("NotoSerifThai-Regular.ttf", 0.9),
    bundled!("NotoSansDevanagari-Regular.ttf", 0.9),
    bundled!("NotoSerifTamil-Regular.ttf", 0.85),
    bundled!("DroidSansFallback.ttf", 0.9),
];

static FACES: LazyLock<Result<Vec<Face>, SignatureError>> =
    LazyLock::new(|| FONTS.iter().map(|font| Face::load(font).ok_or(SignatureError::Font(font.name))).collect());

/// The fonts, parsed once.
pub(super) fn bundled() -> Result<&'static [Face], SignatureError> {
    FACES.as_deref().map_err(Clone::clone)
}

impl Face {
    fn load(font: &FontFile) -> Option<Self> {
        let outlines = FontRef::try_from_slice(font.bytes).ok()?;
        let tables = harfrust::Font::new(font.bytes, 0)?;
        Some(Self { name: font.name, outlines, tables, scale: font.scale })
    }

    /// Whether the font has a glyph for the character.
    pub(super) fn covers(&self, character: char) -> bool {
        self.outlines.glyph_id(character).0 != 0
    }

    /// Whether the font has a glyph with an outline for the character. Some glyphs are empty.
    pub(super) fn draws(&self, character: char) -> bool {
        let glyph = self.outlines.glyph_id(character);
        glyph.0 != 0 && self.outlines.outline(glyph).is_some_and(|outline| !outline.curves.is_empty())
    }

    /// Em per font unit, scaled.
    pub(super) fn unit(&self) -> f32 {
        self.scale / f32::from(self.tables.units_per_em().max(1))
    }

    /// The glyph's outline in font units; `None` for a space.
    pub(super) fn outline(&self, glyph: GlyphId) -> Option<Outline> {
        self.outlines.outline(glyph)
    }

    /// The outline at `size` pixels per em, with its origin on the baseline at `at`, ready to rasterise.
    pub(super) fn outlined(&self, glyph: GlyphId, size: f32, at: (f32, f32)) -> Option<ab_glyph::OutlinedGlyph> {
        // ab_glyph scales by the font's full height, not by the em.
        let scale = size * self.unit() * self.outlines.height_unscaled();
        self.outlines.outline_glyph(glyph.with_scale_and_position(scale, ab_glyph::point(at.0, at.1)))
    }
}
