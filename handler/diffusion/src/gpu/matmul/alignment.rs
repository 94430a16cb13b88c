//! What a product's addresses are multiples of, as the heuristics ask.

use super::{Case, Operands};
use crate::gpu::Dtype;

/// Bytes that addresses are taken to be multiples of, where they and the strides are.
const ALIGNMENT: u32 = 16;

/// What addresses are multiples of, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignments {
    pub(super) w: u32,
    pub(super) a: u32,
    pub(super) onto: u32,
    pub(super) out: u32,
    pub(super) bias: u32,
}

impl Alignments {
    /// What holds for both.
    pub(super) fn both(self, other: Self) -> Self {
        Self {
            w: self.w.min(other.w),
            a: self.a.min(other.a),
            onto: self.onto.min(other.onto),
            out: self.out.min(other.out),
            bias: self.bias.min(other.bias),
        }
    }
}

impl Case {
    /// What every address of each matrix, and the bias's, is a multiple of.
    pub(super) fn alignments(&self, at: &Operands) -> Alignments {
        let of = |address: u64, dtype: Dtype, row: usize, stride: usize| {
            let stride = if self.batch > 1 { stride } else { 0 };
            alignment(&[address, (row * dtype.bytes()) as u64, (stride * dtype.bytes()) as u64])
        };
        Alignments {
            w: of(at.w, self.dtype, self.w_row, self.w_stride),
            a: of(at.a, self.dtype, self.a_row, self.a_stride),
            onto: of(at.onto.unwrap_or(at.out), self.out, self.out_row, self.out_stride),
            out: of(at.out, self.out, self.out_row, self.out_stride),
            bias: alignment(&[at.bias.unwrap_or(0)]),
        }
    }
}

/// The largest power of two, at most `ALIGNMENT`, that divides every one of `bytes`.
fn alignment(bytes: &[u64]) -> u32 {
    let bits = bytes.iter().fold(u64::from(ALIGNMENT), |bits, byte| bits | byte);
    1 << bits.trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_is_what_all_share() {
        assert_eq!(alignment(&[]), 16);
        assert_eq!(alignment(&[0, 0]), 16);
        assert_eq!(alignment(&[4096, 640]), 16);
        assert_eq!(alignment(&[4096, 72]), 8);
        assert_eq!(alignment(&[4096 + 4, 640]), 4);
        assert_eq!(alignment(&[4096, 154]), 2);
        assert_eq!(alignment(&[4097]), 1);
    }

    #[test]
    fn strides_count_in_batches_only() {
        let at = Operands { a: 4096, w: 4096, out: 4096, bias: Some(4096 + 8), onto: Some(4096 + 4) };
        let single = Case { w_stride: 77, ..Case::linear(Dtype::F16, 64, 77, 40) };
        let found = single.alignments(&at);
        assert_eq!(found, Alignments { w: 16, a: 16, onto: 2, out: 2, bias: 8 });
        let batch = Case { batch: 8, out: Dtype::F32, ..single };
        let found = batch.alignments(&at);
        assert_eq!(found, Alignments { w: 2, a: 16, onto: 4, out: 4, bias: 8 });
        let other = Alignments { w: 16, a: 4, onto: 16, out: 2, bias: 16 };
        assert_eq!(found.both(other), Alignments { w: 2, a: 4, onto: 4, out: 2, bias: 8 });
    }
}
