//! Draws a name into the picture: in the one of two inks that has more contrast with the pixels beneath, and on a busy background with
//! a soft halo of the opposite tone.

use super::{fonts::Face, placement::PlacedText};
use image::{Rgb, RgbImage};
use std::sync::LazyLock;

/// The two inks. Warm white and near-black look softer than pure white and black.
pub(super) const LIGHT: [f32; 3] = [252.0, 250.0, 245.0];
pub(super) const DARK: [f32; 3] = [22.0, 20.0, 24.0];
/// Opacity of the halo on the busiest background. An even background gets none.
const HALO_OPACITY: f32 = 0.95;
/// How much a busy background raises the opacity that was asked for, from 0 (not at all) to 1 (opaque).
const BUSY_BOOST: f32 = 0.65;
/// Standard deviation of the lightness, as a share of the full range, up to which a background is even, and from which it is busiest.
const BUSY_RANGE: (f32, f32) = (0.04, 0.16);
/// Radius of the halo in em.
const HALO_REACH: f32 = 0.16;

/// Relative luminance of the 256 levels of a channel (WCAG 2, sRGB).
static LUMINANCE: LazyLock<[f32; 256]> = LazyLock::new(|| {
    std::array::from_fn(|level| match level as f32 / 255.0 {
        level if level <= 0.040_45 => level / 12.92,
        level => ((level + 0.055) / 1.055).powf(2.4),
    })
});

/// Weighted sums over the pixels beneath a name, as they are and in either ink.
#[derive(Default)]
struct Background {
    weight: f64,
    luminance: f64,
    in_light: f64,
    in_dark: f64,
    lightness: f64,
    square: f64,
}

/// Blends the halo, then the ink, into the picture.
pub(super) fn blend(picture: &mut RgbImage, mask: &Mask, opacity: u8) {
    let opacity = f32::from(opacity) / 255.0;
    let background = Background::measure(picture, mask, opacity);
    let (ink, halo) = background.colours();
    let busyness = background.busyness();
    let opacity = opacity.powf(1.0 - BUSY_BOOST * busyness);
    let halo_opacity = HALO_OPACITY * busyness * opacity;
    for (x, y, ink_share, halo_share) in mask.pixels() {
        if ink_share > 0.0 || halo_share > 0.0 {
            let pixel = picture.get_pixel_mut(x, y);
            let beneath = pixel.0.map(f32::from);
            // No halo under the ink, where it would make the ink grey.
            let haloed = mix(beneath, halo, halo_share * (1.0 - ink_share) * halo_opacity);
            *pixel = Rgb(mix(haloed, ink, ink_share * opacity).map(|level| level.round() as u8));
        }
    }
}

impl Background {
    fn measure(picture: &RgbImage, mask: &Mask, opacity: f32) -> Self {
        let mut sums = Self::default();
        for (x, y, _, share) in mask.pixels().filter(|(.., share)| *share > 0.0) {
            let (share, pixel) = (f64::from(share), picture.get_pixel(x, y).0.map(f32::from));
            let lightness = lightness(pixel);
            sums.weight += share;
            sums.luminance += share * luminance(pixel);
            sums.in_light += share * luminance(mix(pixel, LIGHT, opacity));
            sums.in_dark += share * luminance(mix(pixel, DARK, opacity));
            sums.lightness += share * lightness;
            sums.square += share * lightness * lightness;
        }
        sums
    }

    /// Colours of ink and halo. The ink is the one with the higher contrast ratio to the background at this opacity.
    fn colours(&self) -> ([f32; 3], [f32; 3]) {
        let mean = |sum: f64| sum / self.weight.max(f64::MIN_POSITIVE);
        let background = mean(self.luminance);
        let (light, dark) = (contrast(mean(self.in_light), background), contrast(mean(self.in_dark), background));
        if light >= dark { (LIGHT, DARK) } else { (DARK, LIGHT) }
    }

    /// How busy the background is, from 0 to 1.
    fn busyness(&self) -> f32 {
        let weight = self.weight.max(f64::MIN_POSITIVE);
        let variance = self.square / weight - (self.lightness / weight).powi(2);
        let spread = (variance.max(0.0).sqrt() / 255.0) as f32;
        ((spread - BUSY_RANGE.0) / (BUSY_RANGE.1 - BUSY_RANGE.0)).clamp(0.0, 1.0)
    }
}

/// Contrast ratio of two relative luminances (WCAG 2).
fn contrast(one: f64, other: f64) -> f64 {
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

/// Relative luminance (WCAG 2).
fn luminance(colour: [f32; 3]) -> f64 {
    let [red, green, blue] = colour.map(|level| f64::from(LUMINANCE[level.round() as usize & 255]));
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

/// Perceived lightness (luma), from 0 to 255.
fn lightness(colour: [f32; 3]) -> f64 {
    let [red, green, blue] = colour.map(f64::from);
    0.299 * red + 0.587 * green + 0.114 * blue
}

fn mix(from: [f32; 3], to: [f32; 3], share: f32) -> [f32; 3] {
    std::array::from_fn(|channel| from[channel] + (to[channel] - from[channel]) * share)
}

/// How much ink and halo cover each pixel of a part of the picture, from 0 to 1.
pub(super) struct Mask {
    left: u32,
    top: u32,
    width: usize,
    ink: Vec<f32>,
    halo: Vec<f32>,
}

/// A rectangle in pixels: left, top, right and bottom.
type Frame = (u32, u32, u32, u32);

impl Mask {
    /// Rasterises the lines. Ink outside the frame of its line is cut off.
    pub(super) fn draw(text: &PlacedText, faces: &[Face], picture: (u32, u32)) -> Self {
        let reach = HALO_REACH * text.size;
        let frames: Vec<Frame> = (0..text.lines.len()).map(|line| frame(text, line, reach, picture)).collect();
        let whole = frames.iter().copied().reduce(|a, b| (a.0.min(b.0), a.1.min(b.1), a.2.max(b.2), a.3.max(b.3)));
        let (left, top, right, bottom) = whole.unwrap_or_default();
        let (width, height) = (right.saturating_sub(left) as usize, bottom.saturating_sub(top) as usize);
        let mut ink = vec![0.0_f32; width * height];
        for ((line, start), frame) in text.lines.iter().zip(frames) {
            for placed in &line.glyphs {
                let point = (start.0 + placed.x * text.size, start.1 + placed.y * text.size);
                let Some(glyph) = faces[placed.face].outlined(placed.glyph, text.size, point) else { continue };
                let corner = glyph.px_bounds().min;
                glyph.draw(|x, y, coverage| {
                    let (x, y) = (corner.x as i64 + i64::from(x), corner.y as i64 + i64::from(y));
                    let (across, down) =
                        (i64::from(frame.0)..i64::from(frame.2), i64::from(frame.1)..i64::from(frame.3));
                    if across.contains(&x) && down.contains(&y) {
                        let (x, y) = ((x - i64::from(left)) as usize, (y - i64::from(top)) as usize);
                        let pixel = &mut ink[y * width + x];
                        *pixel = (*pixel + coverage).min(1.0);
                    }
                });
            }
        }
        let halo = soften(&ink, width, (reach / 2.0).round().max(1.0) as usize);
        Self { left, top, width, ink, halo }
    }

    /// Each pixel's position in the picture, with its shares of ink and halo.
    fn pixels(&self) -> impl Iterator<Item = (u32, u32, f32, f32)> {
        self.ink.iter().zip(&self.halo).enumerate().map(|(index, (ink, halo))| {
            let (x, y) = (index % self.width, index / self.width);
            (self.left + x as u32, self.top + y as u32, *ink, *halo)
        })
    }
}

/// The pixels that a line with its halo may touch.
fn frame(text: &PlacedText, line: usize, reach: f32, picture: (u32, u32)) -> Frame {
    let (line, (x, y)) = &text.lines[line];
    let limit = |value: f32, most: u32| value.clamp(0.0, most as f32) as u32;
    (
        limit((x + line.left * text.size - reach).floor(), picture.0),
        limit((y - line.ascent * text.size - reach).floor(), picture.1),
        limit((x + line.right * text.size + reach).ceil(), picture.0),
        limit((y + line.descent * text.size + reach).ceil(), picture.1),
    )
}

/// Spreads the mask by about two radii: opaque beside the ink, fading outwards.
fn soften(mask: &[f32], width: usize, radius: usize) -> Vec<f32> {
    let mut soft = mask.to_vec();
    for _ in 0..2 {
        soft = transpose(&blur_rows(&soft, width, radius), width);
        let height = mask.len().checked_div(width).unwrap_or(0);
        soft = transpose(&blur_rows(&soft, height, radius), height);
    }
    soft.iter().map(|share| (share * 2.2).min(1.0)).collect()
}

/// Box blur along rows of `width`.
fn blur_rows(mask: &[f32], width: usize, radius: usize) -> Vec<f32> {
    let mut blurred = Vec::with_capacity(mask.len());
    for row in mask.chunks(width.max(1)) {
        for x in 0..row.len() {
            let window = &row[x.saturating_sub(radius)..(x + radius + 1).min(row.len())];
            blurred.push(window.iter().sum::<f32>() / (2 * radius + 1) as f32);
        }
    }
    blurred
}

fn transpose(mask: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|x| mask.iter().skip(x).step_by(width)).copied().collect()
}
