//! 3x3 convolution in tiles of 4x4 pixels with a quarter of the multiplications: Winograd's minimal filtering F(4x4, 3x3).
//!
//! Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016. Weights and windows of 6x6 pixels are transformed.
//! Then 36 matrix multiplications compute the products of all channels, and their results are transformed back. This goes panel by
//! panel, so that all of it stays in the cache. A panel has some tiles in a row, then those of the next row, each in a lane.

use super::{
    conv::Sizes,
    padded::{Padded, Padding},
    vectors::{self, Kernel, aligned, multiply_rows, rows_of},
    view,
};
use candle_core::{Result, Tensor, TensorId};
use pulp::Simd;
use std::{
    array,
    collections::HashMap,
    ops::Range,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
};

/// The sides of a tile and of its window.
const TILE: usize = 4;
const SIDE: usize = 6;
/// Elements of a transformed window.
const POINTS: usize = SIDE * SIDE;
/// The least width of a map. On smaller maps there are too few tiles for the panels.
const MIN_WIDTH: usize = 32;
/// Blocks of output channels that are computed point by point together, so that a point's windows come from the nearest cache.
const BLOCKS: usize = 3;
/// Pieces for each thread, so that none waits long for the others.
const PIECES: usize = 4;
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
    width >= MIN_WIDTH
}

/// How `planes` maps of that height and width are padded for the tiles.
pub(super) fn padding(size: (usize, usize), planes: usize) -> Padding {
    Padding::of(size, planes, TILE)
}

/// The output rows of a piece: whole tiles that fill panels, if there are enough for all threads.
pub(super) fn rows(sizes: &Sizes, batch: usize) -> usize {
    let down = sizes.output.0.div_ceil(TILE);
    let share = (down * batch).div_ceil(PIECES * rayon::current_num_threads()).min(down);
    share.next_multiple_of(vectors::block().1.div_ceil(sizes.output.1.div_ceil(TILE))).min(down) * TILE
}

/// Some output rows of a convolution.
pub(super) struct Piece<'a, 'b> {
    pub(super) sizes: &'a Sizes,
    pub(super) kernels: &'a Kernels,
    pub(super) input: Padded<'a>,
    /// The first row.
    pub(super) from: usize,
    pub(super) offsets: &'a [f32],
    /// Those rows of each output channel.
    pub(super) lines: &'a mut [&'b mut [f32]],
    /// For the transformed windows, and for what is on the way to and from them.
    pub(super) scratch: &'a mut [Vec<f32>; 2],
}

impl Kernel for Piece<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const WIDE: usize>(self, simd: S) {
        let Self { sizes, from, lines, scratch: [windows, buffer], .. } = self;
        let (channels, out, (_, width)) = (sizes.channels, sizes.out, sizes.output);
        let (in_row, in_panel) = (width.div_ceil(TILE), WIDE * S::F32_LANES);
        let tiles = (lines[0].len() / width).div_ceil(TILE) * in_row;
        let windows = aligned(windows, POINTS * channels * in_panel);
        let of_products = POINTS * BLOCKS * ROWS * in_panel;
        let buffer = aligned(buffer, of_products + Strips::room::<S>(in_panel));
        let (products, strips) = buffer.split_at_mut(of_products);
        let zero = [[simd.splat_f32s(0.0); WIDE]; ROWS];
        for first in (0..tiles).step_by(in_panel) {
            let panel = first..tiles.min(first + in_panel);
            let mut strips = Strips::of(strips);
            for (channel, plane) in self.input.planes(channels).enumerate() {
                for (at, run) in runs(panel.clone(), in_row) {
                    let from = (from + run.start / in_row * TILE) * self.input.width + run.start % in_row * TILE;
                    strips.read(simd, &plane[from..], self.input.width, run.len(), at);
                }
                strips.transform(simd, &mut windows[channel * in_panel..], channels * in_panel, in_panel);
            }
            let windows = S::as_simd_f32s(windows).0.as_chunks::<WIDE>().0;
            for group in (0..out).step_by(BLOCKS * ROWS) {
                let to = S::as_mut_simd_f32s(products).0.as_chunks_mut::<WIDE>().0.as_chunks_mut::<ROWS>().0;
                let kernels = self.kernels.0.chunks_exact(out * channels);
                let points = to.chunks_exact_mut(BLOCKS).zip(kernels).zip(windows.chunks_exact(channels));
                for ((to, kernels), windows) in points {
                    for (to, block) in to.iter_mut().zip((group..out).step_by(ROWS)) {
                        let kernels = rows_of(&kernels[block * channels..], channels, ROWS.min(out - block));
                        *to = multiply_rows(simd, zero, kernels, windows);
                    }
                }
                for row in 0..(BLOCKS * ROWS).min(out - group) {
                    let (line, offset) = (&mut *lines[group + row], self.offsets[group + row]);
                    let products = &products[row * in_panel..];
                    transform_back(
                        simd,
                        products,
                        BLOCKS * ROWS * in_panel,
                        offset,
                        line,
                        (in_row, width),
                        panel.clone(),
                    );
                }
            }
        }
    }
}

/// The runs of tiles of a panel that are in one row of tiles, each with its place in the panel.
#[inline(always)]
fn runs(panel: Range<usize>, in_row: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut from = panel.start;
    std::iter::from_fn(move || {
        let run = from..panel.end.min((from / in_row + 1) * in_row);
        let at = from - panel.start;
        from = run.end;
        (!run.is_empty()).then_some((at, run))
    })
}

/// What is on the way from a channel's pixels to the transformed windows of a panel: after the vertical transform, the first four columns
/// of all windows, then the columns from the fifth on.
struct Strips<'a>([&'a mut [f32]; 2]);

impl<'a> Strips<'a> {
    /// The length of a strip. Vectors reach over the end of the last run of tiles.
    fn length<S: Simd>(in_panel: usize) -> usize {
        in_panel * TILE + S::F32_LANES
    }

    /// The length of the buffer.
    fn room<S: Simd>(in_panel: usize) -> usize {
        2 * SIDE * Self::length::<S>(in_panel)
    }

    fn of(buffer: &'a mut [f32]) -> Self {
        let half = buffer.len() / 2;
        let (first, second) = buffer.split_at_mut(half);
        Self([first, second])
    }

    /// Transforms the columns of the windows of so many tiles, whose pixels start at `pixels`, and puts them at `at` in the panel.
    #[inline(always)]
    fn read<S: Simd>(&mut self, simd: S, pixels: &[f32], width: usize, tiles: usize, at: usize) {
        for (comb, strip) in self.0.iter_mut().enumerate() {
            let length = strip.len() / SIDE;
            for x in (0..tiles * TILE).step_by(S::F32_LANES) {
                let mut column = [simd.splat_f32s(0.0); SIDE];
                for y in 0..SIDE {
                    column[y] = S::as_simd_f32s(&pixels[y * width + comb * TILE + x..][..S::F32_LANES]).0[0];
                }
                let column = window(simd, column);
                for y in 0..SIDE {
                    S::as_mut_simd_f32s(&mut strip[y * length + at * TILE + x..][..S::F32_LANES]).0[0] = column[y];
                }
            }
        }
    }

    /// Transforms the rows of all windows. Their points are `step` apart.
    #[inline(always)]
    fn transform<S: Simd>(&self, simd: S, windows: &mut [f32], step: usize, in_panel: usize) {
        let [first, second] = &self.0;
        let (groups, length) = (in_panel / S::F32_LANES, first.len() / SIDE);
        for y in 0..SIDE {
            let (first, second) = (fours::<S>(&first[y * length..]), fours::<S>(&second[y * length..]));
            for group in 0..groups {
                let [a, b, c, d] = simd.deinterleave_shfl_f32s(first[group]);
                let [e, f, ..] = simd.deinterleave_shfl_f32s(second[group]);
                let points = window(simd, [a, b, c, d, e, f]);
                for x in 0..SIDE {
                    let to = &mut windows[(y * SIDE + x) * step + group * S::F32_LANES..][..S::F32_LANES];
                    S::as_mut_simd_f32s(to).0[0] = points[x];
                }
            }
        }
    }
}

/// Four vectors at a time.
#[inline(always)]
fn fours<S: Simd>(numbers: &[f32]) -> &[[S::f32s; TILE]] {
    S::as_simd_f32s(numbers).0.as_chunks().0
}

/// Computes the tiles of a panel for one channel from their products, which are `step` apart. `line` has the rows of the piece.
#[inline(always)]
fn transform_back<S: Simd>(
    simd: S,
    products: &[f32],
    step: usize,
    offset: f32,
    line: &mut [f32],
    (in_row, width): (usize, usize),
    panel: Range<usize>,
) {
    let offset = simd.splat_f32s(offset);
    for group in panel.clone().step_by(S::F32_LANES) {
        let products = &products[group - panel.start..];
        let zero = simd.splat_f32s(0.0);
        let mut rows = [[zero; SIDE]; TILE];
        for x in 0..SIDE {
            let mut points = [zero; SIDE];
            for y in 0..SIDE {
                points[y] = S::as_simd_f32s(&products[(y * SIDE + x) * step..][..S::F32_LANES]).0[0];
            }
            for (row, point) in rows.iter_mut().zip(pixels(simd, points)) {
                row[x] = point;
            }
        }
        for (y, row) in rows.into_iter().enumerate() {
            let mut row = pixels(simd, row);
            for number in &mut row {
                *number = simd.add_f32s(*number, offset);
            }
            let row: [S::f32s; TILE] = simd.interleave_shfl_f32s(row);
            let row: &[f32] = pulp::bytemuck::cast_slice(&row);
            for (at, run) in runs(group..panel.end.min(group + S::F32_LANES), in_row) {
                let (down, right) = (run.start / in_row * TILE + y, run.start % in_row * TILE);
                // The last tiles may end after the picture.
                let there = (width - right).min(run.len() * TILE);
                if let Some(line) = line.get_mut(down * width + right..).filter(|line| line.len() >= there) {
                    line[..there].copy_from_slice(&row[at * TILE..][..there]);
                }
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
fn window<S: Simd>(simd: S, [a, b, c, d, e, f]: [S::f32s; SIDE]) -> [S::f32s; SIDE] {
    let (even, odd) = (times(simd, -4.0, c, e), times(simd, -4.0, b, d));
    let (far_even, far_odd) = (simd.sub_f32s(e, c), simd.sub_f32s(d, b));
    [
        times(simd, 4.0, a, times(simd, -5.0, c, e)),
        simd.add_f32s(even, odd),
        simd.sub_f32s(even, odd),
        times(simd, 2.0, far_odd, far_even),
        times(simd, -2.0, far_odd, far_even),
        times(simd, 4.0, b, times(simd, -5.0, d, f)),
    ]
}

/// Computes four pixels of a tile's row or column from six products.
#[inline(always)]
fn pixels<S: Simd>(simd: S, [a, b, c, d, e, f]: [S::f32s; SIDE]) -> [S::f32s; TILE] {
    let (near_sum, near_gap) = (simd.add_f32s(b, c), simd.sub_f32s(b, c));
    let (far_sum, far_gap) = (simd.add_f32s(d, e), simd.sub_f32s(d, e));
    [
        simd.add_f32s(simd.add_f32s(a, near_sum), far_sum),
        times(simd, 2.0, far_gap, near_gap),
        times(simd, 4.0, far_sum, near_sum),
        times(simd, 8.0, far_gap, simd.add_f32s(near_gap, f)),
    ]
}

/// `factor * x + y`.
#[inline(always)]
fn times<S: Simd>(simd: S, factor: f32, x: S::f32s, y: S::f32s) -> S::f32s {
    simd.mul_add_e_f32s(simd.splat_f32s(factor), x, y)
}
