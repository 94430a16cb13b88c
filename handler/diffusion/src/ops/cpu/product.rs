//! Products of a matrix and panels: some columns of another matrix, row by row, as many as the sums in the registers are wide.
//!
//! Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", 2008: the panel stays in the cache.

use super::vectors::{multiply_rows, rows_of};
use pulp::Simd;
use std::ops::Range;

/// The most rows of a panel that are multiplied before the sums leave the registers. With AVX-512 they take 28 KiB, with AVX2 9 KiB.
pub(super) const DEPTH: usize = 144;

/// The rows of an output, each of the panel's width or less.
pub(super) trait Rows {
    /// Must be inlined.
    fn row(&mut self, row: usize) -> &mut [f32];
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    Zero,
    /// A number for each row.
    OfRow(&'a [f32]),
    /// A number for each column.
    OfColumn(&'a [f32]),
    /// What is in the output.
    There,
}

/// `out = a @ panel + start` for `count` rows. `a` has its rows `stride` apart.
#[inline(always)]
pub(super) fn product<S: Simd, const ROWS: usize, const WIDE: usize>(
    simd: S,
    count: usize,
    (a, stride): (&[f32], usize),
    panel: &[[S::f32s; WIDE]],
    start: Start,
    out: &mut impl Rows,
) {
    let columns = match start {
        Start::OfColumn(numbers) => load::<S, WIDE>(simd, numbers),
        _ => [simd.splat_f32s(0.0); WIDE],
    };
    for first in (0..count).step_by(ROWS) {
        let rows = ROWS.min(count - first);
        let a = rows_of(&a[first * stride..], stride, rows);
        let mut sums = [columns; ROWS];
        match start {
            Start::OfRow(numbers) => {
                for (sums, number) in sums.iter_mut().zip(&numbers[first..first + rows]) {
                    *sums = [simd.splat_f32s(*number); WIDE];
                }
            }
            Start::There => {
                for (row, sums) in sums.iter_mut().enumerate().take(rows) {
                    *sums = load::<S, WIDE>(simd, out.row(first + row));
                }
            }
            Start::Zero | Start::OfColumn(_) => {}
        }
        let sums = multiply_rows(simd, sums, a, panel);
        for (row, sums) in sums.into_iter().enumerate().take(rows) {
            store::<S, WIDE>(simd, out.row(first + row), sums);
        }
    }
}

/// A product along the whole depth.
#[inline(always)]
pub(super) fn deep<S: Simd, const ROWS: usize, const WIDE: usize>(
    simd: S,
    count: usize,
    (input, depth): (&[f32], usize),
    panel: &[[S::f32s; WIDE]],
    mut start: Start,
    rows: &mut Columns,
) {
    for (part, panel) in panel.chunks(DEPTH).enumerate() {
        product::<S, ROWS, WIDE>(simd, count, (&input[part * DEPTH..], depth), panel, start, rows);
        start = Start::There;
    }
}

/// Some columns of an output.
pub(super) struct Columns<'a> {
    pub(super) values: &'a mut [f32],
    /// Columns in all.
    pub(super) out: usize,
    pub(super) columns: Range<usize>,
}

impl Rows for Columns<'_> {
    #[inline(always)]
    fn row(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.out..][self.columns.clone()]
    }
}

/// The numbers as vectors, with zeros after the last.
#[inline(always)]
pub(super) fn load<S: Simd, const WIDE: usize>(simd: S, numbers: &[f32]) -> [S::f32s; WIDE] {
    let (whole, _) = S::as_simd_f32s(numbers);
    if let Some(whole) = whole.first_chunk() {
        return *whole;
    }
    let mut vectors = [simd.splat_f32s(0.0); WIDE];
    for (vector, numbers) in vectors.iter_mut().zip(numbers.chunks(S::F32_LANES)) {
        *vector = simd.partial_load_f32s(numbers);
    }
    vectors
}

/// As many elements of the vectors as there is room for.
#[inline(always)]
pub(super) fn store<S: Simd, const WIDE: usize>(simd: S, room: &mut [f32], vectors: [S::f32s; WIDE]) {
    let (whole, _) = S::as_mut_simd_f32s(room);
    if let Some(whole) = whole.first_chunk_mut() {
        *whole = vectors;
        return;
    }
    for (vector, room) in vectors.into_iter().zip(room.chunks_mut(S::F32_LANES)) {
        simd.partial_store_f32s(room, vector);
    }
}
