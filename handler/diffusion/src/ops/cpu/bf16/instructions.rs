//! Products of bf16 numbers with f32 sums, by the instructions that CPUs have for them: the tiles of Intel's AMX, or the vectors of
//! AVX512-BF16. Intel, "Architecture instruction set extensions programming reference", chapters 3 and 5.
//!
//! All that is unsafe in the operations on the CPU is here. Each function checks the slices that it reads and writes before an
//! instruction gets their addresses, and nobody has an [`Instructions`] of a CPU that lacks them.

#![allow(unsafe_code, reason = "tiles and vectors are loaded by address; each use says why it stays inside its slice")]

use super::super::vectors::Vectors;
use std::{
    arch::{asm, x86_64::*},
    cell::Cell,
    marker::PhantomData,
    mem::transmute,
    slice,
    sync::OnceLock,
};

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
            Vectors::Widest => Ok(Self(if tiles_are_there() { Kind::Tiles } else { Kind::Vectors })),
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
            // SAFETY: an `Instructions` of this kind exists only after `tiles_are_there`, and `SHAPES` is the 64 bytes that LDTILECFG
            // reads. Nothing but this module uses tile registers.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly, preserves_flags)) };
        }
        Session { kind: self.0, here: PhantomData }
    }

    /// Rounds two rows to bf16 and interleaves them: each pair has a number of the first and one of the second.
    pub(super) fn interleave(self, first: &[f32], second: &[f32], pairs: &mut [u32]) {
        // SAFETY: an `Instructions` exists only if the CPU has these features.
        unsafe { interleave(first, second, pairs) }
    }

    /// Rounds a row to bf16: each pair has two neighbours. What is after the row becomes zero.
    pub(super) fn round(self, row: &[f32], pairs: &mut [u32]) {
        // SAFETY: an `Instructions` exists only if the CPU has these features.
        unsafe { round(row, pairs) }
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
                // SAFETY: as for LDTILECFG in `session`. After it, nobody has a session whose tiles could be lost.
                unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
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
                (Kind::Tiles, true) => tiles_2x2(operands),
                (Kind::Tiles, false) => tiles_1x2(operands),
                (Kind::Vectors, _) => vectors(operands, if both { BLOCK } else { SIDE }),
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

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile.
    columns: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles are whole: 16 rows of 64 bytes.
static SHAPES: Shapes = {
    let (mut columns, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        (columns[tile], rows[tile]) = (64, 16);
        tile += 1;
    }
    Shapes { palette: 1, start_row: 0, reserved: [0; 14], columns, rows }
};

/// Whether the CPU has AMX with bf16, and Linux lets this process use it. Asks once.
fn tiles_are_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        /// Linux, arch/x86/include/uapi/asm/prctl.h.
        const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
        /// The component of the state that has the tiles.
        const XTILEDATA: libc::c_ulong = 18;
        let features = __cpuid_count(7, 0).edx;
        features & BF16 != 0
            && features & TILE != 0
            // SAFETY: this call takes two numbers and writes no memory of the process.
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0
    })
}

/// 32 rows and 32 columns.
///
/// # Safety
/// As `Session::multiply` says.
unsafe fn tiles_2x2(at: Operands) {
    // SAFETY: passed on to the caller. Rows of tiles are 64 bytes apart, those of the block 128, its halves 2048.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "mov {from}, [{offsets}]",
            "lea {from}, [{columns} + {from}*4]",
            "tileloadd tmm4, [{upper} + {line}*1]",
            "tileloadd tmm6, [{from} + {stride}*1]",
            "add {from}, {apart}",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{lower} + {line}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm7, [{from} + {stride}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {upper}, 1024",
            "add {lower}, 1024",
            "add {offsets}, 8",
            "dec {steps}",
            "jnz 2b",
            "add {line}, {line}",
            "tilestored [{out} + {line}*1], tmm0",
            "tilestored [{out} + {line}*1 + 64], tmm1",
            "tilestored [{out} + {line}*1 + 2048], tmm2",
            "tilestored [{out} + {line}*1 + 2112], tmm3",
            upper = inout(reg) at.upper => _,
            lower = inout(reg) at.lower => _,
            columns = in(reg) at.columns,
            offsets = inout(reg) at.offsets => _,
            steps = inout(reg) at.steps => _,
            stride = in(reg) at.stride * 4,
            apart = in(reg) at.apart * 4,
            line = inout(reg) 64usize => _,
            out = in(reg) at.out,
            from = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 16 rows and 32 columns.
///
/// # Safety
/// As `Session::multiply` says.
unsafe fn tiles_1x2(at: Operands) {
    // SAFETY: passed on to the caller. Rows of tiles are 64 bytes apart, those of the block 128.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "mov {from}, [{offsets}]",
            "lea {from}, [{columns} + {from}*4]",
            "tileloadd tmm4, [{upper} + {line}*1]",
            "tileloadd tmm6, [{from} + {stride}*1]",
            "add {from}, {apart}",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{from} + {stride}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {upper}, 1024",
            "add {offsets}, 8",
            "dec {steps}",
            "jnz 2b",
            "add {line}, {line}",
            "tilestored [{out} + {line}*1], tmm0",
            "tilestored [{out} + {line}*1 + 64], tmm1",
            upper = inout(reg) at.upper => _,
            columns = in(reg) at.columns,
            offsets = inout(reg) at.offsets => _,
            steps = inout(reg) at.steps => _,
            stride = in(reg) at.stride * 4,
            apart = in(reg) at.apart * 4,
            line = inout(reg) 64usize => _,
            out = in(reg) at.out,
            from = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// The first rows and 32 columns, eight rows at a time.
///
/// # Safety
/// As `Session::multiply` says; `rows` is 16 or 32.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn vectors(at: Operands, rows: usize) {
    const AT_ONCE: usize = 8;
    for first in (0..rows).step_by(AT_ONCE) {
        let tiles = if first < SIDE { at.upper } else { at.lower };
        let mut sums = [[_mm512_setzero_ps(); 2]; AT_ONCE];
        for step in 0..at.steps {
            // SAFETY: there is a tile and an offset for each step, and behind the offset 16 rows of pairs, `apart` further on again.
            let (tile, from) = unsafe { (&(*tiles.add(step)).0, at.columns.add(*at.offsets.add(step))) };
            let lines = &tile[first % SIDE..][..AT_ONCE];
            for pair in 0..SIDE {
                // SAFETY: the same.
                let columns = unsafe {
                    let from = from.add(pair * at.stride);
                    [pairs(_mm512_loadu_si512(from.cast())), pairs(_mm512_loadu_si512(from.add(at.apart).cast()))]
                };
                for (sums, line) in sums.iter_mut().zip(lines) {
                    let row = pairs(_mm512_set1_epi32(line[pair].cast_signed()));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = _mm512_dpbf16_ps(*sum, row, column);
                    }
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            // SAFETY: the block has 32 rows of 32 numbers, and `first + row` is one of them.
            unsafe {
                let to = (&raw mut (*at.out).0[first + row]).cast::<f32>();
                _mm512_storeu_ps(to, sums[0]);
                _mm512_storeu_ps(to.add(SIDE), sums[1]);
            }
        }
    }
}

fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of any content.
    unsafe { transmute(bits) }
}

/// Two vectors rounded to bf16, the first in the low half.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn rounded(first: &[f32; SIDE], second: &[f32; SIDE]) -> __m512i {
    // SAFETY: each array is the 64 bytes that a load reads, and both results are 512 bits of any content.
    unsafe {
        let [first, second] = [first, second].map(|numbers| _mm512_loadu_ps(numbers.as_ptr()));
        transmute(_mm512_cvtne2ps_pbh(second, first))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn write(to: &mut [u32; SIDE], pairs: __m512i) {
    // SAFETY: the array is the 64 bytes that a store writes.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn interleave(first: &[f32], second: &[f32], pairs: &mut [u32]) {
    /// Numbers in turns of the low half of a vector and of its high half.
    const TURNS: [u16; DEPTH] = {
        let mut turns = [0; DEPTH];
        let mut at = 0;
        while at < DEPTH {
            turns[at] = (at / 2 + at % 2 * SIDE) as u16;
            at += 1;
        }
        turns
    };
    // SAFETY: the array is the 64 bytes that a load reads.
    let turns = unsafe { _mm512_loadu_si512(TURNS.as_ptr().cast()) };
    for (index, to) in pairs.chunks_mut(SIDE).enumerate() {
        let from = [first, second].map(|row| row.get(index * SIDE..).unwrap_or_default());
        match (from.map(|row| row.first_chunk()), to.first_chunk_mut()) {
            ([Some(first), Some(second)], Some(to)) => {
                write(to, _mm512_permutexvar_epi16(turns, rounded(first, second)));
            }
            _ => {
                let [first, second] = from.map(filled);
                let mut all = [0; SIDE];
                write(&mut all, _mm512_permutexvar_epi16(turns, rounded(&first, &second)));
                to.copy_from_slice(&all[..to.len()]);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn round(row: &[f32], pairs: &mut [u32]) {
    for (index, to) in pairs.chunks_mut(SIDE).enumerate() {
        let from = row.get(index * DEPTH..).unwrap_or_default();
        let rest = from.get(SIDE..).unwrap_or_default();
        match (from.first_chunk(), rest.first_chunk(), to.first_chunk_mut()) {
            (Some(first), Some(second), Some(to)) => write(to, rounded(first, second)),
            _ => {
                let mut all = [0; SIDE];
                write(&mut all, rounded(&filled(from), &filled(rest)));
                to.copy_from_slice(&all[..to.len()]);
            }
        }
    }
}

/// The first numbers, with zeros after the last.
fn filled(numbers: &[f32]) -> [f32; SIDE] {
    let mut all = [0.0; SIDE];
    let there = numbers.len().min(SIDE);
    all[..there].copy_from_slice(&numbers[..there]);
    all
}
