//! 3x3 convolution in tiles of 4x4 pixels with a quarter of the multiplications: Winograd's minimal filtering F(4x4, 3x3).
//!
//! Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016. Weights and windows of 6x6 pixels are transformed.
//! Then 36 matrix multiplications compute the products of all channels, and their results are transformed back. The transforms work on
//! eight neighbouring tiles at once.

use super::{Strides, conv::Sizes, matmul, scratch, vectorised, view};
use candle_core::{Result, Tensor, TensorId};
use std::{
    array,
    collections::HashMap,
    ops::{Add, Mul, Sub},
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
};

/// The sides of a tile and of its window.
const TILE: usize = 4;
const SIDE: usize = 6;
/// Elements of a transformed window.
const POINTS: usize = SIDE * SIDE;
/// Tiles that are transformed at once.
const LANES: usize = 8;
/// Rows of a block in gemm's matrix multiplication with AVX-512.
const BLOCK: usize = 64;
/// The most elements of a piece's transformed windows and products: 2 MiB.
const PIECE: usize = 512 << 10;
/// The most pairs of input and output channels for which the transformed weights are kept, 9 MiB. For all layers of SD1.5 they would
/// take gigabytes.
const MAX_PAIRS: usize = 1 << 16;

/// Transformed weights, `[36, out, in]`.
pub(super) struct Kernels(Vec<f32>);

/// The transformed weights in use, by the id of their tensor. After a change of LoRAs, unchanged layers find theirs here.
static IN_USE: LazyLock<Mutex<HashMap<TensorId, Weak<Kernels>>>> = LazyLock::new(Mutex::default);

impl Kernels {
    /// Whether a 3x3 convolution with that many channels should have transformed weights.
    pub(super) fn suit(channels_in: usize, channels_out: usize) -> bool {
        channels_in * channels_out <= MAX_PAIRS
    }

    /// The transformed weights of `weight`, `[out, in, 3, 3]`.
    pub(super) fn of(weight: &Tensor) -> Result<Arc<Self>> {
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = in_use.get(&weight.id()).and_then(Weak::upgrade) {
            return Ok(kernels);
        }
        in_use.retain(|_, kernels| kernels.strong_count() > 0);
        let kernels = Arc::new(Self::new(weight)?);
        in_use.insert(weight.id(), Arc::downgrade(&kernels));
        Ok(kernels)
    }

    fn new(weight: &Tensor) -> Result<Self> {
        let weight = view(weight)?;
        let (kernels, _) = weight.as_chunks::<9>();
        let mut values = vec![0f32; POINTS * kernels.len()];
        for (pair, kernel) in kernels.iter().enumerate() {
            let rows: [[f32; 3]; SIDE] = {
                let columns: [[f32; SIDE]; 3] = array::from_fn(|x| spread([kernel[x], kernel[3 + x], kernel[6 + x]]));
                array::from_fn(|y| array::from_fn(|x| columns[x][y]))
            };
            for (y, row) in rows.into_iter().enumerate() {
                for (x, value) in spread(row).into_iter().enumerate() {
                    values[(y * SIDE + x) * kernels.len() + pair] = value;
                }
            }
        }
        Ok(Self(values))
    }
}

/// Whether an output of this height and width is large enough for this algorithm.
pub(super) fn suits((_, width): (usize, usize)) -> bool {
    width >= LANES * TILE
}

/// The output rows of a piece: whole tiles, at least one piece for each thread, and a number of tiles that fills gemm's blocks.
pub(super) fn rows(sizes: &Sizes, batch: usize) -> usize {
    let across = across(sizes.output.1);
    let in_row = POINTS * (sizes.channels + sizes.out) * across;
    let down = sizes.output.0.div_ceil(TILE);
    let share = (down * batch).div_ceil(rayon::current_num_threads()).min(down);
    let rows = (PIECE / in_row).clamp(1, share);
    let full = BLOCK.div_ceil(across);
    (if rows > full { rows / full * full } else { rows }) * TILE
}

/// Tiles in a row, a whole number of lanes.
fn across(width: usize) -> usize {
    width.div_ceil(TILE).next_multiple_of(LANES)
}

/// Computes the output rows from `from` on. `lines` has those rows of each output channel.
pub(super) fn piece(
    sizes: &Sizes,
    kernels: &Kernels,
    input: &[f32],
    from: usize,
    offsets: &[f32],
    lines: &mut [&mut [f32]],
    (windows, products): (&mut Vec<f32>, &mut Vec<f32>),
) {
    let (channels, out) = (sizes.channels, sizes.out);
    let across = across(sizes.output.1);
    let tiles = (lines[0].len() / sizes.output.1).div_ceil(TILE) * across;
    let windows = scratch(windows, POINTS * channels * tiles);
    let products = scratch(products, POINTS * out * tiles);
    vectorised(
        #[inline(always)]
        || transform_input(sizes, input, from, across, tiles, windows),
    );
    let parts = windows.chunks(channels * tiles).zip(products.chunks_mut(out * tiles));
    for (kernel, (windows, products)) in kernels.0.chunks(out * channels).zip(parts) {
        let rows = Strides::rows(tiles);
        matmul((out, tiles, channels), products, rows, (kernel, Strides::rows(channels)), (windows, rows));
    }
    vectorised(
        #[inline(always)]
        || {
            for (channel, (line, offset)) in lines.iter_mut().zip(offsets).enumerate() {
                transform_output(products, channel * tiles, out * tiles, across, sizes.output.1, *offset, line);
            }
        },
    );
}

/// Fills `[36, channels, tiles]`.
#[inline(always)]
fn transform_input(sizes: &Sizes, input: &[f32], from: usize, across: usize, tiles: usize, windows: &mut [f32]) {
    let (height, width) = sizes.input;
    // A row with a zero before it and zeros after it. `combed` has its pixels 0, 4, 8, ..., then 1, 5, 9, ... and so on, so that
    // neighbouring tiles find their pixels side by side.
    let mut row = vec![0f32; (across + 1) * TILE];
    let stride = across + 1;
    let mut combed = vec![0f32; SIDE * TILE * stride];
    let step = sizes.channels * tiles;
    for channel in 0..sizes.channels {
        let plane = &input[channel * height * width..][..height * width];
        for down in 0..tiles / across {
            for (y, combed) in combed.chunks_exact_mut(TILE * stride).enumerate() {
                match (from + down * TILE + y).checked_sub(1).filter(|&y| y < height) {
                    Some(y) => row[1..=width].copy_from_slice(&plane[y * width..][..width]),
                    None => row.fill(0.0),
                }
                let (fours, _) = row.as_chunks::<TILE>();
                let (first, rest) = combed.split_at_mut(stride);
                let (second, rest) = rest.split_at_mut(stride);
                let (third, fourth) = rest.split_at_mut(stride);
                let combs = first.iter_mut().zip(second).zip(third).zip(fourth);
                for (four, (((a, b), c), d)) in fours.iter().zip(combs) {
                    [*a, *b, *c, *d] = *four;
                }
            }
            for tile in (0..across).step_by(LANES) {
                // The columns of the window, each from top to bottom.
                let mut columns = [[Lanes::ZERO; SIDE]; SIDE];
                for (x, column) in columns.iter_mut().enumerate() {
                    let mut pixels = [Lanes::ZERO; SIDE];
                    for (y, pixel) in pixels.iter_mut().enumerate() {
                        *pixel = Lanes::read(&combed[(y * TILE + x % TILE) * stride + x / TILE + tile..]);
                    }
                    *column = window(pixels);
                }
                let first_tile = channel * tiles + down * across + tile;
                for y in 0..SIDE {
                    let [a, b, c, d, e, f] = &columns;
                    let points = window([a[y], b[y], c[y], d[y], e[y], f[y]]);
                    for (x, point) in points.iter().enumerate() {
                        point.write(&mut windows[(y * SIDE + x) * step + first_tile..]);
                    }
                }
            }
        }
    }
}

/// Computes the output rows of one channel from its products, which start at `first` and are `step` apart.
#[inline(always)]
fn transform_output(
    products: &[f32],
    first: usize,
    step: usize,
    across: usize,
    width: usize,
    offset: f32,
    line: &mut [f32],
) {
    for (down, rows) in line.chunks_mut(TILE * width).enumerate() {
        for tile in (0..width.div_ceil(TILE)).step_by(LANES) {
            let first_tile = first + down * across + tile;
            let mut columns = [[Lanes::ZERO; TILE]; SIDE];
            for (x, column) in columns.iter_mut().enumerate() {
                let mut points = [Lanes::ZERO; SIDE];
                for (y, point) in points.iter_mut().enumerate() {
                    *point = Lanes::read(&products[(y * SIDE + x) * step + first_tile..]);
                }
                *column = pixels(points);
            }
            for (y, row) in rows.chunks_mut(width).enumerate() {
                let [a, b, c, d, e, f] = &columns;
                let [first, second, third, fourth] = pixels([a[y], b[y], c[y], d[y], e[y], f[y]]);
                let mut run = [0f32; LANES * TILE];
                let (fours, _) = run.as_chunks_mut::<TILE>();
                for (lane, four) in fours.iter_mut().enumerate() {
                    let tile = [first.0[lane], second.0[lane], third.0[lane], fourth.0[lane]];
                    for (pixel, sum) in four.iter_mut().zip(tile) {
                        *pixel = sum + offset;
                    }
                }
                let there = (width - tile * TILE).min(run.len());
                row[tile * TILE..][..there].copy_from_slice(&run[..there]);
            }
        }
    }
}

/// Transforms three weights of a row or column.
fn spread([a, b, c]: [f32; 3]) -> [f32; SIDE] {
    let (even, odd) = ((a + c) / 6.0, b / 6.0);
    let (far_even, far_odd) = (a / 24.0 + c / 6.0, b / 12.0);
    [a / 4.0, -even - odd, odd - even, far_even + far_odd, far_even - far_odd, c]
}

/// Transforms six pixels of a window's row or column.
#[inline(always)]
fn window([a, b, c, d, e, f]: [Lanes; SIDE]) -> [Lanes; SIDE] {
    let (even, odd) = (e - c * 4.0, d - b * 4.0);
    let (far_even, far_odd) = (e - c, (d - b) * 2.0);
    [a * 4.0 - c * 5.0 + e, even + odd, even - odd, far_even + far_odd, far_even - far_odd, b * 4.0 - d * 5.0 + f]
}

/// Computes four pixels of a tile's row or column from six products.
#[inline(always)]
fn pixels([a, b, c, d, e, f]: [Lanes; SIDE]) -> [Lanes; TILE] {
    let (near_sum, near_gap, far_sum, far_gap) = (b + c, b - c, d + e, d - e);
    [a + near_sum + far_sum, near_gap + far_gap * 2.0, near_sum + far_sum * 4.0, near_gap + far_gap * 8.0 + f]
}

/// One value of each of eight tiles.
#[derive(Clone, Copy)]
struct Lanes([f32; LANES]);

impl Lanes {
    const ZERO: Self = Self([0.0; LANES]);

    #[inline(always)]
    fn read(from: &[f32]) -> Self {
        let mut lanes = [0.0; LANES];
        lanes.copy_from_slice(&from[..LANES]);
        Self(lanes)
    }

    #[inline(always)]
    fn write(&self, to: &mut [f32]) {
        to[..LANES].copy_from_slice(&self.0);
    }
}

impl Add for Lanes {
    type Output = Self;

    #[inline(always)]
    fn add(mut self, other: Self) -> Self {
        for lane in 0..LANES {
            self.0[lane] += other.0[lane];
        }
        self
    }
}

impl Sub for Lanes {
    type Output = Self;

    #[inline(always)]
    fn sub(mut self, other: Self) -> Self {
        for lane in 0..LANES {
            self.0[lane] -= other.0[lane];
        }
        self
    }
}

impl Mul<f32> for Lanes {
    type Output = Self;

    #[inline(always)]
    fn mul(mut self, factor: f32) -> Self {
        for lane in 0..LANES {
            self.0[lane] *= factor;
        }
        self
    }
}
