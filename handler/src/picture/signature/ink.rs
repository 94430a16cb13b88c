//! Lays a name over the picture: in the one of two inks that stands out more from what lies beneath, and on a busy ground in
//! a soft halo of the opposite tone.

use super::mask::Mask;
use image::{Rgb, RgbImage};
use std::sync::LazyLock;

/// Warm white and near-black read softer than the pure ones.
pub(super) const LIGHT: [f32; 3] = [252.0, 250.0, 245.0];
pub(super) const DARK: [f32; 3] = [22.0, 20.0, 24.0];
/// Strength of the halo on the busiest ground. An even one gets none.
const HALO: f32 = 0.95;
/// How much firmer than asked a translucent signature gets on a busy ground, from 0 (not at all) to 1 (solid).
const FIRMER: f32 = 0.65;
/// Spread of the lightness beneath, as a share of the full range, up to which a ground is even, and from which on it is as
/// busy as can be.
const BUSY: (f32, f32) = (0.04, 0.16);

/// Relative luminance of the 256 levels of a channel (WCAG 2, sRGB).
static LUMINANCE: LazyLock<[f32; 256]> = LazyLock::new(|| {
    std::array::from_fn(|level| match level as f32 / 255.0 {
        level if level <= 0.040_45 => level / 12.92,
        level => ((level + 0.055) / 1.055).powf(2.4),
    })
});

/// What lies beneath a name, and what it becomes in either ink.
#[derive(Default)]
struct Ground {
    weight: f64,
    luminance: f64,
    in_light: f64,
    in_dark: f64,
    lightness: f64,
    square: f64,
}

/// Lays halo, then ink, over the picture.
pub(super) fn lay(picture: &mut RgbImage, mask: &Mask, opacity: u8) {
    let opacity = f32::from(opacity) / 255.0;
    let ground = Ground::beneath(picture, mask, opacity);
    let (ink, halo) = ground.tones();
    let unrest = ground.unrest();
    let opacity = opacity.powf(1.0 - FIRMER * unrest);
    let strength = HALO * unrest * opacity;
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
    fn beneath(picture: &RgbImage, mask: &Mask, opacity: f32) -> Self {
        let mut ground = Self::default();
        for (x, y, _, share) in mask.pixels().filter(|(.., share)| *share > 0.0) {
            let (share, pixel) = (f64::from(share), picture.get_pixel(x, y).0.map(f32::from));
            let lightness = lightness(pixel);
            ground.weight += share;
            ground.luminance += share * luminance(pixel);
            ground.in_light += share * luminance(mix(pixel, LIGHT, opacity));
            ground.in_dark += share * luminance(mix(pixel, DARK, opacity));
            ground.lightness += share * lightness;
            ground.square += share * lightness * lightness;
        }
        ground
    }

    /// Ink and halo: the ink is the one that, at this opacity, has the higher contrast ratio to the ground.
    fn tones(&self) -> ([f32; 3], [f32; 3]) {
        let mean = |sum: f64| sum / self.weight.max(f64::MIN_POSITIVE);
        let ground = mean(self.luminance);
        let (light, dark) = (contrast(mean(self.in_light), ground), contrast(mean(self.in_dark), ground));
        if light >= dark { (LIGHT, DARK) } else { (DARK, LIGHT) }
    }

    /// How busy it is, from 0 to 1.
    fn unrest(&self) -> f32 {
        let weight = self.weight.max(f64::MIN_POSITIVE);
        let variance = self.square / weight - (self.lightness / weight).powi(2);
        let spread = (variance.max(0.0).sqrt() / 255.0) as f32;
        ((spread - BUSY.0) / (BUSY.1 - BUSY.0)).clamp(0.0, 1.0)
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

/// How light a colour looks, from 0 to 255; unlike luminance, even steps look even.
fn lightness(colour: [f32; 3]) -> f64 {
    let [red, green, blue] = colour.map(f64::from);
    0.299 * red + 0.587 * green + 0.114 * blue
}

fn mix(from: [f32; 3], to: [f32; 3], share: f32) -> [f32; 3] {
    std::array::from_fn(|channel| from[channel] + (to[channel] - from[channel]) * share)
}
