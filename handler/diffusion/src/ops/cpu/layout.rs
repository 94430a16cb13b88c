//! Maps and tokens that change their place in memory: transposed, joined, enlarged. On all threads, as are the operations between them.

use super::{tensor, view};
use candle_core::{Error, Result, Tensor};
use rayon::prelude::*;

/// The side of the squares that are transposed at once.
const SQUARE: usize = 16;

/// A feature map `[batch, channels, height, width]` as tokens `[batch, height x width, channels]`.
pub(crate) fn to_tokens(xs: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    tensor(transposed(&view(xs)?, channels, height * width), (batch, height * width, channels))
}

/// Tokens `[batch, height x width, channels]` as a feature map.
pub(crate) fn to_map(xs: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, tokens, channels) = xs.dims3()?;
    tensor(transposed(&view(xs)?, tokens, channels), (batch, channels, height, width))
}

/// The channels of two feature maps of one size, one after the other.
pub(crate) fn join(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((batch, first, height, width), (others, second, rows, columns)) = (a.dims4()?, b.dims4()?);
    if (batch, height, width) != (others, rows, columns) {
        return Err(Error::Msg(format!("{:?} joined with {:?}", a.dims(), b.dims())).bt());
    }
    let (plane, a, b) = (height * width, view(a)?, view(b)?);
    let mut values = vec![0f32; batch * (first + second) * plane];
    values.par_chunks_mut(plane).enumerate().for_each(|(index, to)| {
        let (item, channel) = (index / (first + second), index % (first + second));
        let (from, number) = match channel.checked_sub(first) {
            None => (&a, item * first + channel),
            Some(channel) => (&b, item * second + channel),
        };
        to.copy_from_slice(&from[number * plane..][..plane]);
    });
    tensor(values, (batch, first + second, height, width))
}

/// A feature map resized to that height and width, by the nearest neighbour.
pub(crate) fn upsample(xs: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, channels, rows, columns) = xs.dims4()?;
    if (height, width) != (2 * rows, 2 * columns) {
        return xs.upsample_nearest2d(height, width);
    }
    let input = view(xs)?;
    let mut values = vec![0f32; 4 * input.len()];
    let maps = values.par_chunks_mut(4 * rows * columns).zip(input.par_chunks(rows * columns));
    maps.for_each(|(larger, map)| {
        for (pair, row) in larger.chunks_exact_mut(2 * width).zip(map.chunks_exact(columns)) {
            let (first, second) = pair.split_at_mut(width);
            for (to, pixel) in first.as_chunks_mut::<2>().0.iter_mut().zip(row) {
                *to = [*pixel; 2];
            }
            second.copy_from_slice(first);
        }
    });
    tensor(values, (batch, channels, height, width))
}

/// Matrices of that many rows and columns, each transposed.
fn transposed(input: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut values = vec![0f32; input.len()];
    let bands = values.chunks_mut(rows * columns).zip(input.chunks(rows * columns)).flat_map(|(values, input)| {
        values.chunks_mut(SQUARE * rows).enumerate().map(move |(band, values)| (values, &input[band * SQUARE..]))
    });
    bands.collect::<Vec<_>>().into_par_iter().for_each(|(values, input)| {
        for from in (0..rows).step_by(SQUARE) {
            for (column, values) in values.chunks_mut(rows).enumerate() {
                for (offset, to) in values[from..].iter_mut().take(SQUARE).enumerate() {
                    *to = input[(from + offset) * columns + column];
                }
            }
        }
    });
    values
}
