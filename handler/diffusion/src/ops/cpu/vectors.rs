//! The vectors of this CPU, products of small matrices in its registers, and powers of two.

use pulp::{Arch, Simd, WithSimd};
use std::sync::OnceLock;

/// The widest vectors that loops may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vectors {
    /// The widest of this CPU.
    Widest,
    /// Those of AVX-512, 512 bits, and no tiles.
    Avx512,
    /// Those of AVX2, 256 bits, also where there is AVX-512.
    Avx2,
}

static ARCH: OnceLock<Arch> = OnceLock::new();
static MOST: OnceLock<Vectors> = OnceLock::new();

/// From now on, the operations on the CPU use at most these vectors. Returns whether they do: once anything was computed, nothing changes.
pub fn limit_vectors(most: Vectors) -> bool {
    let wanted = match most {
        Vectors::Widest | Vectors::Avx512 => Arch::new(),
        Vectors::Avx2 => narrow(),
    };
    let same = std::mem::discriminant(ARCH.get_or_init(|| wanted)) == std::mem::discriminant(&wanted);
    same && *MOST.get_or_init(|| most) == most
}

/// The limit on vectors that holds.
pub(super) fn most() -> Vectors {
    *MOST.get_or_init(|| Vectors::Widest)
}

/// What there is but for AVX-512.
fn narrow() -> Arch {
    match Arch::new() {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(_) => pulp::x86::V3::try_new().map_or(Arch::Scalar, Arch::V3),
        other => other,
    }
}

fn arch() -> Arch {
    #[cfg(test)]
    if std::env::var_os(tests::NARROW).is_some() {
        return *ARCH.get_or_init(narrow);
    }
    *ARCH.get_or_init(Arch::new)
}

/// Runs loops with the widest vectors of this CPU. Everything in the loops must be inlined: a `for` loop is, a closure of an iterator
/// is not always.
#[inline(always)]
pub(super) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    arch().dispatch(work)
}

/// Work that is written for vectors of any width. Everything in it must be inlined.
pub(super) trait Kernel {
    type Output;

    /// With products in blocks of `ROWS` rows and `WIDE` vectors, whose sums stay in the registers.
    fn run<S: Simd, const ROWS: usize, const WIDE: usize>(self, simd: S) -> Self::Output;
}

struct Sized<K, const ROWS: usize, const WIDE: usize>(K);

impl<K: Kernel, const ROWS: usize, const WIDE: usize> WithSimd for Sized<K, ROWS, WIDE> {
    type Output = K::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> K::Output {
        self.0.run::<S, ROWS, WIDE>(simd)
    }
}

/// Runs a kernel with the widest vectors. AVX-512 has 32 registers, the others have 16.
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    match arch() {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(simd) => Simd::vectorize(simd, Sized::<K, 8, 3>(kernel)),
        arch => arch.dispatch(Sized::<K, 6, 2>(kernel)),
    }
}

/// Rows and columns of a product's block.
pub(super) fn block() -> (usize, usize) {
    struct Size;
    impl Kernel for Size {
        type Output = (usize, usize);

        #[inline(always)]
        fn run<S: Simd, const ROWS: usize, const WIDE: usize>(self, _: S) -> (usize, usize) {
            (ROWS, WIDE * S::F32_LANES)
        }
    }
    run(Size)
}

/// `sums + a @ b` in registers: a column of `a` and a row of `b` at a time.
#[inline(always)]
pub(super) fn multiply<S: Simd, const ROWS: usize, const WIDE: usize>(
    simd: S,
    mut sums: [[S::f32s; WIDE]; ROWS],
    a: &[[f32; ROWS]],
    b: &[[S::f32s; WIDE]],
) -> [[S::f32s; WIDE]; ROWS] {
    for (a, b) in a.iter().zip(b) {
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = simd.splat_f32s(*a);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add_e_f32s(a, *b, *sum);
            }
        }
    }
    sums
}

/// The same with the rows of `a` as they lie in memory. Each is as long as `b` or longer.
#[inline(always)]
pub(super) fn multiply_rows<S: Simd, const ROWS: usize, const WIDE: usize>(
    simd: S,
    mut sums: [[S::f32s; WIDE]; ROWS],
    mut a: [&[f32]; ROWS],
    b: &[[S::f32s; WIDE]],
) -> [[S::f32s; WIDE]; ROWS] {
    for row in &mut a {
        *row = &row[..b.len()];
    }
    for (at, b) in b.iter().enumerate() {
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = simd.splat_f32s(a[at]);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add_e_f32s(a, *b, *sum);
            }
        }
    }
    sums
}

/// The first `count` rows of a matrix that are `stride` apart. After the last of them comes that one again.
#[inline(always)]
pub(super) fn rows_of<const ROWS: usize>(matrix: &[f32], stride: usize, count: usize) -> [&[f32]; ROWS] {
    let mut rows = [matrix; ROWS];
    for (index, row) in rows.iter_mut().enumerate() {
        *row = &matrix[index.min(count - 1) * stride..];
    }
    rows
}

/// Zeros, without a call if there is nothing to clear, as in most cases.
#[inline(always)]
pub(super) fn clear(numbers: &mut [f32]) {
    if !numbers.is_empty() {
        numbers.fill(0.0);
    }
}

/// 1.5 * 2^23: adding it rounds to the nearest whole number and leaves that in the low bits.
pub(super) const ROUNDER: f32 = 12_582_912.0;

/// `2^x` to 2 parts in 10^7 for `x` of at most 0. Below -126 it is at most 2^-125. NaN stays NaN.
///
/// The series is the best of the fifth degree between -1/2 and 1/2.
#[inline(always)]
pub(super) fn exp2_of_negative<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const SERIES: [f32; 6] = [1.000_000_1, 0.693_146_97, 0.240_221_2, 0.055_507_13, 0.009_675_542, 0.001_327_647_2];
    // The second operand is the one that is kept if either is NaN.
    let x = simd.max_f32s(simd.splat_f32s(-126.0), x);
    let rounder = simd.splat_f32s(ROUNDER);
    let shifted = simd.add_f32s(x, rounder);
    let rest = simd.sub_f32s(x, simd.sub_f32s(shifted, rounder));
    let mut series = simd.splat_f32s(SERIES[5]);
    for factor in SERIES[..5].iter().rev() {
        series = simd.mul_add_e_f32s(series, rest, simd.splat_f32s(*factor));
    }
    // The whole number is added to the exponent's bits.
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(series), exponent))
}

/// The elements of a buffer that start at a cache line, `length` of them. They may have old values.
pub(super) fn aligned(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    const LINE: usize = 64;
    let room = length + LINE / size_of::<f32>();
    if buffer.len() < room {
        // Without a copy of the old values.
        buffer.clear();
        buffer.resize(room, 0.0);
    }
    let from = buffer.as_ptr().align_offset(LINE).min(room - length);
    &mut buffer[from..from + length]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With this variable, tests compute with the vectors of AVX2.
    pub(super) const NARROW: &str = "DIFFUSION_TESTS_NARROW_VECTORS";

    #[test]
    fn operations_are_right_with_the_vectors_of_avx2_too() {
        if std::env::var_os(NARROW).is_some() {
            return;
        }
        let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
        let ended = tests.args(["ops::cpu", "--test-threads", "2"]).env(NARROW, "1").output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && said.contains("attention_matches_candle ... ok"), "{said}");
    }

    struct Powers<'a>(&'a mut [f32]);

    impl Kernel for Powers<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd, const ROWS: usize, const WIDE: usize>(self, simd: S) {
            for x in self.0 {
                let power = exp2_of_negative(simd, simd.splat_f32s(*x));
                simd.partial_store_f32s(std::slice::from_mut(x), power);
            }
        }
    }

    #[test]
    fn powers_of_two_are_exact_to_two_parts_in_ten_million() {
        let arguments: Vec<f32> = (0..12_500).map(|index| -(index as f32) / 100.0).collect();
        let mut powers = arguments.clone();
        run(Powers(&mut powers));
        for (x, power) in arguments.into_iter().zip(powers) {
            let truth = f64::from(x).exp2();
            let error = (f64::from(power) - truth).abs() / truth;
            assert!(error < 2.5e-7, "2^{x} is off by {error}");
        }
        let mut ends = [f32::NAN, -1e30, f32::NEG_INFINITY, 0.0];
        run(Powers(&mut ends));
        let [unknown, far, farthest, one] = ends;
        assert!(unknown.is_nan() && far.abs() < 1e-37 && farthest.abs() < 1e-37 && (one - 1.0).abs() < 2.5e-7);
    }

    #[test]
    fn narrow_vectors_are_those_of_avx2_at_most() {
        let names = |arch: Arch| format!("{arch:?}");
        assert!(!names(narrow()).starts_with("V4"));
        if !names(Arch::new()).starts_with("V4") {
            assert_eq!(names(narrow()), names(Arch::new()));
        }
    }
}
