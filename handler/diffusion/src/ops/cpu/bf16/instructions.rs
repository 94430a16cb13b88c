//! Products of bf16 numbers with f32 sums, by the instructions that CPUs have for them: the tiles of Intel's AMX, or the vectors of
//! AVX512-BF16. Intel, "Architecture instruction set extensions programming reference", chapters 3 and 5.
//!
//! All that is unsafe in the operations on the CPU is here. Each function checks the slices that it reads and writes before an
//! instruction gets their addresses, and nobody has an [`Instructions`] of a CPU that lacks them.

#![allow(unsafe_code, reason = "tiles and vectors are loaded by address; each use says why it stays inside its slice")]

mod tiles;
mod vectors;

use super::super::vectors::Vectors;
use std::{cell::Cell, marker::PhantomData, slice};

/// Rows and columns of a tile of sums. A tile of factors has this many rows, each of this many pairs of numbers.
pub(super) const SIDE: usize = 16;
/// Numbers along the depth of a tile.
pub(super) const DEPTH: usize = 2 * SIDE;
/// Rows and columns of a [`Block`].
pub(super) const BLOCK: usize = 2 * SIDE;

/// 16 rows of 32 bf16 numbers. The first number of a pair is in its low half.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Tile(pub(super) [[u32; SIDE]; SIDE]);

impl Tile {
    pub(super) const ZERO: Self = Self([[0; SIDE]; SIDE]);
}

/// The pairs of tiles that follow each other.
pub(super) fn flat(tiles: &[Tile]) -> &[u32] {
    // SAFETY: a tile is 256 pairs without padding, 1024 bytes at a multiple of 64, so that tiles lie one behind the other.
    unsafe { slice::from_raw_parts(tiles.as_ptr().cast(), tiles.len() * SIDE * SIDE) }
}

/// The same, to be written.
pub(super) fn flat_mut(tiles: &mut [Tile]) -> &mut [u32] {
    // SAFETY: as in `flat`, and any pair is one of a tile.
    unsafe { slice::from_raw_parts_mut(tiles.as_mut_ptr().cast(), tiles.len() * SIDE * SIDE) }
}

/// Sums of a product, row by row.
#[repr(C, align(64))]
pub(super) struct Block(pub(super) [[f32; BLOCK]; BLOCK]);

impl Block {
    pub(super) const ZERO: Self = Self([[0.0; BLOCK]; BLOCK]);
}

/// The second factor of products: where its tiles lie. Rows of a tile are pairs of rows of the factor, 16 pairs each.
pub(super) struct Columns<'a> {
    pairs: &'a [u32],
    /// From where on the tile of each step is.
    offsets: &'a [usize],
    /// From one row of a tile to the next.
    stride: usize,
    /// From the first 16 columns to the second.
    apart: usize,
    /// So much is read after the place where a product begins.
    reach: usize,
}

impl<'a> Columns<'a> {
    /// None if the numbers are too large for addresses.
    pub(super) fn new(pairs: &'a [u32], offsets: &'a [usize], stride: usize, apart: usize) -> Option<Self> {
        let furthest = offsets.iter().copied().max()?;
        let rows = stride.checked_mul(SIDE - 1)?;
        let reach = furthest.checked_add(rows)?.checked_add(apart)?.checked_add(SIDE)?;
        (reach <= pairs.len()).then_some(Self { pairs, offsets, stride, apart, reach })
    }
}

/// The instructions of this CPU for bf16. Whoever has one, has a CPU and an operating system with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instructions(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tiles,
    Vectors,
}

impl Instructions {
    /// The fastest that the CPU has and that limit allows.
    ///
    /// # Errors
    /// There are none. Says what is lacking.
    pub fn detect(most: Vectors) -> Result<Self, &'static str> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16");
        if !there {
            return Err("this CPU has no AVX512-BF16 (`avx512_bf16` in /proc/cpuinfo)");
        }
        match most {
            Vectors::Avx2 => Err("vectors of 256 bits at most have no AVX512-BF16"),
            Vectors::Avx512 => Ok(Self(Kind::Vectors)),
            Vectors::Widest => Ok(Self(if tiles::are_there() { Kind::Tiles } else { Kind::Vectors })),
        }
    }

    /// Their name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Tiles => "AMX-BF16",
            Kind::Vectors => "AVX512-BF16",
        }
    }

    /// Readies this thread for products.
    pub(super) fn session(self) -> Session {
        if self.0 == Kind::Tiles && SESSIONS.replace(SESSIONS.get() + 1) == 0 {
            // SAFETY: an `Instructions` of this kind exists only after `tiles::are_there`.
            unsafe { tiles::give_shapes() };
        }
        Session { kind: self.0, here: PhantomData }
    }

    /// Rounds two rows to bf16 and interleaves them: each pair has a number of the first and one of the second.
    pub(super) fn interleave(self, first: &[f32], second: &[f32], pairs: &mut [u32]) {
        // SAFETY: an `Instructions` exists only if the CPU has these features.
        unsafe { vectors::interleave(first, second, pairs) }
    }

    /// Rounds a row to bf16: each pair has two neighbours. What is after the row becomes zero.
    pub(super) fn round(self, row: &[f32], pairs: &mut [u32]) {
        // SAFETY: an `Instructions` exists only if the CPU has these features.
        unsafe { vectors::round(row, pairs) }
    }
}

thread_local! {
    /// How many sessions hold the shapes of this thread's tiles.
    static SESSIONS: Cell<usize> = const { Cell::new(0) };
}

/// Lets this thread multiply. It stays on its thread.
pub(super) struct Session {
    kind: Kind,
    here: PhantomData<*const ()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.kind == Kind::Tiles {
            SESSIONS.set(SESSIONS.get() - 1);
            if SESSIONS.get() == 0 {
                // SAFETY: as in `session`. Nobody has a session whose tiles could be lost.
                unsafe { tiles::release() };
            }
        }
    }
}

impl Session {
    /// `out = rows @ columns`, whose tiles begin `at` places after the offsets. The second 16 rows may be missing; then the lower half of
    /// `out` stays as it is.
    ///
    /// # Panics
    /// There is not a tile for each step, or the columns end before.
    #[inline]
    pub(super) fn multiply(&self, rows: [&[Tile]; 2], columns: &Columns, at: usize, out: &mut Block) {
        let steps = columns.offsets.len();
        let [upper, lower] = rows;
        let both = !lower.is_empty();
        assert!(upper.len() == steps && (lower.len() == steps || !both), "{} tiles, {steps} steps", upper.len());
        let end = at.checked_add(columns.reach);
        assert!(end.is_some_and(|end| end <= columns.pairs.len()), "columns end before {at} + {}", columns.reach);
        let operands = Operands {
            upper: upper.as_ptr(),
            lower: if both { lower.as_ptr() } else { upper.as_ptr() },
            // SAFETY: `at` is inside `pairs`, by the assertion.
            columns: unsafe { columns.pairs.as_ptr().add(at) },
            offsets: columns.offsets.as_ptr(),
            steps,
            stride: columns.stride,
            apart: columns.apart,
            out: &raw mut *out,
        };
        // SAFETY: `upper` and `lower` have a tile for each step, by the first assertion. Behind `columns`, each offset has 16 rows
        // `stride` apart of 16 pairs, and as many again `apart` further on, by the second and `Columns::new`, which takes the largest
        // offset. `steps` is not 0: `Columns::new` refuses that. `out` is a whole block. The kind is one that the CPU has, as an
        // `Instructions` was there, and this thread's tiles have their shapes as long as a session lives on it.
        unsafe {
            match (self.kind, both) {
                (Kind::Tiles, true) => tiles::multiply_2x2(operands),
                (Kind::Tiles, false) => tiles::multiply_1x2(operands),
                (Kind::Vectors, _) => vectors::multiply(operands, if both { BLOCK } else { SIDE }),
            }
        }
    }
}

/// Addresses of a product.
struct Operands {
    upper: *const Tile,
    lower: *const Tile,
    columns: *const u32,
    offsets: *const usize,
    steps: usize,
    /// In pairs.
    stride: usize,
    /// In pairs.
    apart: usize,
    out: *mut Block,
}
