//! How much of each pixel a name's letters cover, and their halo. Knows nothing of colours.

use super::{faces::Face, fit::Block};

/// Reach of the halo in em.
const HALO_REACH: f32 = 0.16;

/// Shares of ink and halo over a small part of the picture.
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
    /// Rasterises the lines. What leaves the band of a line is cut off.
    pub(super) fn draw(block: &Block, faces: &[Face], picture: (u32, u32)) -> Self {
        let reach = HALO_REACH * block.size;
        let frames: Vec<Frame> = (0..block.lines.len()).map(|line| frame(block, line, reach, picture)).collect();
        let whole = frames.iter().copied().reduce(|a, b| (a.0.min(b.0), a.1.min(b.1), a.2.max(b.2), a.3.max(b.3)));
        let (left, top, right, bottom) = whole.unwrap_or_default();
        let (width, height) = (right.saturating_sub(left) as usize, bottom.saturating_sub(top) as usize);
        let mut ink = vec![0.0_f32; width * height];
        for ((line, start), frame) in block.lines.iter().zip(frames) {
            for placed in &line.glyphs {
                let point = (start.0 + placed.x * block.size, start.1 + placed.y * block.size);
                let Some(glyph) = faces[placed.face].outlined(placed.glyph, block.size, point) else { continue };
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

    /// Each pixel's place in the picture, with its share of ink and halo.
    pub(super) fn pixels(&self) -> impl Iterator<Item = (u32, u32, f32, f32)> {
        self.ink.iter().zip(&self.halo).enumerate().map(|(index, (ink, halo))| {
            let (x, y) = (index % self.width, index / self.width);
            (self.left + x as u32, self.top + y as u32, *ink, *halo)
        })
    }
}

/// The pixels that a line with its halo may touch.
fn frame(block: &Block, line: usize, reach: f32, picture: (u32, u32)) -> Frame {
    let (line, (x, y)) = &block.lines[line];
    let limit = |value: f32, most: u32| value.clamp(0.0, most as f32) as u32;
    (
        limit((x + line.left * block.size - reach).floor(), picture.0),
        limit((y - line.ascent * block.size - reach).floor(), picture.1),
        limit((x + line.right * block.size + reach).ceil(), picture.0),
        limit((y + line.descent * block.size + reach).ceil(), picture.1),
    )
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
