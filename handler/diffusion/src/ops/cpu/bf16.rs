//! Linear layers and convolutions whose factors are rounded to bf16 and whose sums are f32. Activations stay f32 outside of them.
//!
//! Weights are rounded and put in the order of the products once. Activations are rounded while they are put in it, in each product.

mod attention;
mod cache;
mod conv;
#[cfg(target_arch = "x86_64")]
mod instructions;
#[cfg(not(target_arch = "x86_64"))]
#[path = "bf16/no_instructions.rs"]
mod instructions;
mod linear;
#[cfg(test)]
mod tests;

pub(super) use attention::{Queries, attention};
pub(crate) use cache::Packed;
pub(super) use conv::Filters;
pub use instructions::Instructions;
pub(super) use linear::Matrix;

use instructions::{BLOCK, DEPTH, SIDE, Tile};

/// The most bytes of one factor that a thread goes through again and again: a part of the second nearest cache.
const NEAR: usize = 512 << 10;
/// Pieces for each thread, so that none waits long for the others.
const PIECES: usize = 4;

/// Some rows and columns of an output.
struct Part<'a, T> {
    row: usize,
    column: usize,
    /// Those columns of each row.
    lines: Vec<&'a mut [T]>,
}

/// Cuts a matrix of so many columns into parts of at most `rows` x `wide`.
fn cut<T>(values: &mut [T], columns: usize, rows: usize, wide: usize) -> Vec<Part<'_, T>> {
    let mut parts = Vec::new();
    for (index, values) in values.chunks_mut(rows * columns).enumerate() {
        let first = parts.len();
        let lines = values.len() / columns;
        parts.extend((0..columns).step_by(wide).map(|column| Part {
            row: index * rows,
            column,
            lines: Vec::with_capacity(lines),
        }));
        for line in values.chunks_mut(columns) {
            for (part, piece) in parts[first..].iter_mut().zip(line.chunks_mut(wide)) {
                part.lines.push(piece);
            }
        }
    }
    parts
}
