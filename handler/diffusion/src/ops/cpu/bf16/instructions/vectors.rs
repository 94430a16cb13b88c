//! Products by the vectors of AVX512-BF16, and rounding by them.

use super::{DEPTH, Operands, SIDE};
use std::{arch::x86_64::*, mem::transmute};

/// The first rows and 32 columns, eight rows at a time.
///
/// # Safety
/// As `Session::multiply` says; `rows` is 16 or 32.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn multiply(at: Operands, rows: usize) {
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
pub(super) fn interleave(first: &[f32], second: &[f32], pairs: &mut [u32]) {
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
pub(super) fn round(row: &[f32], pairs: &mut [u32]) {
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
