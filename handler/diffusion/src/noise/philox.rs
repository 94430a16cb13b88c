//! torch's CUDA generator: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and the
//! Box-Muller transform of curand.
//!
//! torch launches one thread per element, in blocks of 256, but no more threads than the GPU runs at once. In each round a thread draws
//! four normal numbers from one counter: the first for the element of its own index, the others for the elements one, two and three
//! times the number of threads further. If a tensor has no more elements than threads, only the first of the four is used.

use rayon::prelude::*;

/// Threads per block in torch's distribution kernels.
const BLOCK: usize = 256;
/// Normal numbers per counter.
const LANES: usize = 4;
/// Numbers that are worth a task of their own.
const LEAST: usize = 1024;

/// The stream of one seed.
#[derive(Debug, Clone)]
pub(super) struct Philox {
    key: [u32; 2],
    /// The most threads of a launch.
    threads: usize,
    /// Counters that each thread has used.
    rounds: u64,
}

impl Philox {
    pub(super) fn new(seed: u64, threads: u32) -> Self {
        let threads = (threads as usize / BLOCK).max(1) * BLOCK;
        Self { key: halves(seed), threads, rounds: 0 }
    }

    /// The next `count` normal numbers.
    pub(super) fn normals(&mut self, count: usize) -> Vec<f32> {
        let launched = (count.div_ceil(BLOCK) * BLOCK).min(self.threads);
        let number = |element: usize| {
            let (lanes, thread) = (element / launched, element % launched);
            let [round_low, round_high] = halves(self.rounds + (lanes / LANES) as u64);
            let [thread_low, thread_high] = halves(thread as u64);
            normal(words([round_low, round_high, thread_low, thread_high], self.key), lanes % LANES)
        };
        // The words of a counter are made for each of its numbers: making a number of them takes longer than they do.
        let draws = (0..count).into_par_iter().with_min_len(LEAST).map(number).collect();
        self.rounds += count.div_ceil((launched * LANES).max(1)) as u64;
        draws
    }
}

/// One of the four normal numbers of a counter: sine and cosine from the first two words, then from the last two.
fn normal(words: [u32; 4], lane: usize) -> f32 {
    const UNIT: f32 = 2.328_306_4e-10; // 2^-32
    const TURN: f32 = UNIT * std::f32::consts::TAU;
    let pair = lane / 2 * 2;
    let radius = (-2.0 * (words[pair] as f32).mul_add(UNIT, UNIT / 2.0).ln()).sqrt();
    let (sin, cos) = (words[pair + 1] as f32).mul_add(TURN, TURN / 2.0).sin_cos();
    radius * if lane.is_multiple_of(2) { sin } else { cos }
}

/// Ten rounds of Philox4x32.
fn words(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// The low and the high word.
fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(seed: u64, threads: u32, counts: &[usize]) -> Vec<Vec<f32>> {
        let mut philox = Philox::new(seed, threads);
        counts.iter().map(|&count| philox.normals(count)).collect()
    }

    #[test]
    fn known_answers_of_philox4x32_10() {
        // From the authors' Random123, kat_vectors.
        let all = u32::MAX;
        assert_eq!(words([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(words([all; 4], [all; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn a_seed_repeats_and_a_second_draw_differs() {
        let draws = draw(7, 1024, &[64, 64]);
        assert_eq!(draws, self::draw(7, 1024, &[64, 64]));
        assert_ne!(draws[0], draws[1]);
        assert_ne!(draws[0], self::draw(7 + (1 << 32), 1024, &[64])[0]);
    }

    #[test]
    fn beyond_the_threads_of_the_gpu_each_thread_uses_its_other_lanes() {
        let (small, large) = (&draw(3, 512, &[512])[0], &draw(3, 512, &[512 * 5 + 7])[0]);
        assert_eq!(small[..], large[..512]);
        let words = words([0, 0, 9, 0], [3, 0]);
        for lane in 0..4 {
            assert_eq!(large[lane * 512 + 9], normal(words, lane), "lane {lane}");
        }
        // The fifth element of a thread comes from its second counter, as the first element of a second draw does.
        assert_eq!(large[4 * 512..], draw(3, 512, &[512, 519])[1][..519]);
        // Both rounds are used up: a third draw starts with the third counter.
        assert_eq!(draw(3, 512, &[512 * 5, 8])[1], draw(3, 512, &[8, 8, 8])[2]);
    }

    #[test]
    fn the_number_of_threads_does_not_matter_for_small_draws() {
        assert_eq!(draw(5, 40_960, &[16_384, 16_384]), draw(5, 270_336, &[16_384, 16_384]));
        assert_ne!(draw(5, 40_960, &[65_536]), draw(5, 270_336, &[65_536]));
        assert!(draw(5, 40_960, &[0])[0].is_empty());
    }
}
