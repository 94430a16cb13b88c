//! Puts a line of glyphs onto the picture: ink that stands out from what lies beneath, in a soft halo of the opposite tone.

use super::{
    faces::Face,
    layout::{ASCENT, DESCENT, Line},
};
use image::{Rgb, RgbImage};

/// Warm white and near-black read softer than the pure ones.
const LIGHT: [f32; 3] = [252.0, 250.0, 245.0];
const DARK: [f32; 3] = [22.0, 20.0, 24.0];
/// Reach of the halo in em.
const HALO_REACH: f32 = 0.16;
/// Strength of the halo on an even ground and on a busy one.
const HALO: (f32, f32) = (0.3, 0.95);
/// How much firmer than asked a translucent signature gets on a busy ground, from 0 (not at all) to 1 (solid).
const FIRMER: f32 = 0.65;
/// Spread of the luminance beneath, as a share of the full range, from which on a ground counts as busy.
const BUSY: f32 = 0.16;

/// How much of each pixel the glyphs and their halo cover, over a small part of the picture.
pub(super) struct Mask {
    left: u32,
    top: u32,
    width: usize,
    ink: Vec<f32>,
    halo: Vec<f32>,
}

/// What lies beneath the name: its mean colour, and how busy it is, from 0 to 1.
struct Ground {
    colour: [f32; 3],
    unrest: f32,
}

impl Mask {
    /// Rasterises the line at `size` pixels per em from a point of its baseline. What leaves the band of the line is cut off.
    pub(super) fn draw(line: &Line, faces: &[Face], size: f32, at: (f32, f32), picture: (u32, u32)) -> Self {
        let reach = HALO_REACH * size;
        let limit = |value: f32, most: u32| value.clamp(0.0, most as f32) as u32;
        let left = limit((at.0 + line.left * size - reach).floor(), picture.0);
        let right = limit((at.0 + line.right * size + reach).ceil(), picture.0);
        let top = limit((at.1 - 1.5 * ASCENT * size - reach).floor(), picture.1);
        let bottom = limit((at.1 + 1.5 * DESCENT * size + reach).ceil(), picture.1);
        let (width, height) = (right.saturating_sub(left) as usize, bottom.saturating_sub(top) as usize);
        let mut ink = vec![0.0_f32; width * height];
        for placed in &line.glyphs {
            let point = (at.0 + placed.x * size, at.1 + placed.y * size);
            let Some(glyph) = faces[placed.face].outlined(placed.glyph, size, point) else { continue };
            let corner = glyph.px_bounds().min;
            glyph.draw(|x, y, coverage| {
                let (x, y) =
                    (corner.x as i64 + i64::from(x) - i64::from(left), corner.y as i64 + i64::from(y) - i64::from(top));
                if (0..width as i64).contains(&x) && (0..height as i64).contains(&y) {
                    let pixel = &mut ink[y as usize * width + x as usize];
                    *pixel = (*pixel + coverage).min(1.0);
                }
            });
        }
        let halo = soften(&ink, width, (reach / 2.0).round().max(1.0) as usize);
        Self { left, top, width, ink, halo }
    }

    /// Each pixel's place in the picture, with its share of ink and halo.
    fn pixels(&self) -> impl Iterator<Item = (u32, u32, f32, f32)> {
        self.ink.iter().zip(&self.halo).enumerate().map(|(index, (ink, halo))| {
            let (x, y) = (index % self.width, index / self.width);
            (self.left + x as u32, self.top + y as u32, *ink, *halo)
        })
    }
}

/// Lays halo, then ink, over the picture.
pub(super) fn lay(picture: &mut RgbImage, mask: &Mask, opacity: u8) {
    let opacity = f32::from(opacity) / 255.0;
    let ground = Ground::beneath(picture, mask);
    let (ink, halo) = ground.tones(opacity);
    let opacity = opacity.powf(1.0 - FIRMER * ground.unrest);
    let strength = (HALO.0 + (HALO.1 - HALO.0) * ground.unrest) * opacity;
    for (x, y, ink_share, halo_share) in mask.pixels() {
        if ink_share > 0.0 || halo_share > 0.0 {
            let pixel = picture.get_pixel_mut(x, y);
            let beneath = pixel.0.map(f32::from);
            // The halo stays out from under the ink, which it would grey.
            let haloed = mix(beneath, halo, halo_share * (1.0 - ink_share) * strength);
            *pixel = Rgb(mix(haloed, ink, ink_share * opacity).map(|level| level.round() as u8));
        }
    }
}

impl Ground {
    fn beneath(picture: &RgbImage, mask: &Mask) -> Self {
        let (mut weight, mut colour, mut square) = (0.0_f64, [0.0_f64; 3], 0.0_f64);
        for (x, y, _, halo) in mask.pixels() {
            let (share, pixel) = (f64::from(halo), picture.get_pixel(x, y).0.map(f64::from));
            weight += share;
            colour.iter_mut().zip(pixel).for_each(|(sum, level)| *sum += share * level);
            square += share * luma(pixel).powi(2);
        }
        let colour = colour.map(|sum| sum / weight.max(f64::MIN_POSITIVE));
        let variance = square / weight.max(f64::MIN_POSITIVE) - luma(colour).powi(2);
        let spread = (variance.max(0.0).sqrt() / 255.0) as f32;
        Self { colour: colour.map(|level| level as f32), unrest: (spread / BUSY).min(1.0) }
    }

    /// Ink and halo: the ink is the one that, at this opacity, stands out more.
    fn tones(&self, opacity: f32) -> ([f32; 3], [f32; 3]) {
        let standing_out = |ink| contrast(mix(self.colour, ink, opacity), self.colour);
        if standing_out(LIGHT) >= standing_out(DARK) { (LIGHT, DARK) } else { (DARK, LIGHT) }
    }
}

/// Contrast ratio of two sRGB colours (WCAG 2).
pub(super) fn contrast(one: [f32; 3], other: [f32; 3]) -> f32 {
    let (one, other) = (luminance(one) + 0.05, luminance(other) + 0.05);
    one.max(other) / one.min(other)
}

fn luminance(colour: [f32; 3]) -> f32 {
    let linear = |level: f32| match level / 255.0 {
        level if level <= 0.040_45 => level / 12.92,
        level => ((level + 0.055) / 1.055).powf(2.4),
    };
    let [red, green, blue] = colour.map(linear);
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

fn luma([red, green, blue]: [f64; 3]) -> f64 {
    0.299 * red + 0.587 * green + 0.114 * blue
}

fn mix(from: [f32; 3], to: [f32; 3], share: f32) -> [f32; 3] {
    std::array::from_fn(|channel| from[channel] + (to[channel] - from[channel]) * share)
}

/// Spreads the mask by about two radii, full beside the ink and fading outwards.
fn soften(mask: &[f32], width: usize, radius: usize) -> Vec<f32> {
    let mut soft = mask.to_vec();
    for _ in 0..2 {
        soft = transpose(&blur_rows(&soft, width, radius), width);
        let height = mask.len().checked_div(width).unwrap_or(0);
        soft = transpose(&blur_rows(&soft, height, radius), height);
    }
    soft.iter().map(|share| (share * 2.2).min(1.0)).collect()
}

/// A box blur along rows of `width`.
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
