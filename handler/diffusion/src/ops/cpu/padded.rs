//! Feature maps with zeros around them, for convolutions that read over the edges.

use rayon::prelude::*;

/// A map with zeros around it, so that every window of every tile is in it.
pub(super) struct Padded<'a> {
    values: &'a [f32],
    /// The length of a row.
    pub(super) width: usize,
    plane: usize,
}

/// Where a map with zeros around it is in a buffer.
#[derive(Clone, Copy)]
pub(super) struct Padding {
    width: usize,
    plane: usize,
    planes: usize,
}

impl Padding {
    /// Of `planes` maps of that height and width, for tiles of that side with a pixel more on each side.
    pub(super) fn of((height, width): (usize, usize), planes: usize, tile: usize) -> Self {
        let width = width.next_multiple_of(tile) + tile;
        Self { width, plane: (height.next_multiple_of(tile) + 2) * width, planes }
    }

    /// The length of the buffer. Vectors reach over the end of the last map.
    pub(super) fn room(self) -> usize {
        self.planes * self.plane + 2 * self.width + 64
    }

    /// Fills the buffer from the maps, which follow each other.
    pub(super) fn fill(self, buffer: &mut [f32], input: &[f32], (height, width): (usize, usize)) {
        let maps = buffer.par_chunks_mut(self.plane).zip(input.par_chunks(height * width));
        maps.for_each(|(padded, map)| {
            let mut rows = map.chunks_exact(width);
            for (index, padded) in padded.chunks_exact_mut(self.width).enumerate() {
                match if index == 0 { None } else { rows.next() } {
                    Some(row) => {
                        padded[0] = 0.0;
                        padded[1..=width].copy_from_slice(row);
                        padded[1 + width..].fill(0.0);
                    }
                    None => padded.fill(0.0),
                }
            }
        });
    }

    /// The maps from the given one on.
    pub(super) fn part(self, buffer: &[f32], first: usize) -> Padded<'_> {
        Padded { values: &buffer[first * self.plane..], width: self.width, plane: self.plane }
    }
}

impl<'a> Padded<'a> {
    /// The first maps, each with all that is after it.
    #[inline(always)]
    pub(super) fn planes(&self, count: usize) -> impl Iterator<Item = &'a [f32]> {
        let (values, plane) = (self.values, self.plane);
        (0..count).map(move |index| &values[index * plane..])
    }
}
