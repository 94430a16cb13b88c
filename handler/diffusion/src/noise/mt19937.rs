//! torch's CPU generator: the Mersenne Twister (Matsumoto & Nishimura, "Mersenne Twister: a 623-dimensionally equidistributed
//! uniform pseudo-random number generator", 1998), and the Box-Muller transform in torch's order.
//!
//! 16 values or more are drawn in blocks of 16. A block is made of 16 uniform numbers: the first eight give the radii, the last eight
//! the angles. If the count is not a multiple of 16, the last 16 values are drawn again. Fewer than 16 values are drawn in pairs from
//! 53-bit uniform numbers. The second value of a pair is kept for the next call.

const SIZE: usize = 624;
const SHIFT: usize = 397;

/// The stream of one seed.
#[derive(Debug, Clone)]
pub(super) struct Mt19937 {
    state: Vec<u32>,
    next: usize,
    /// The second value of the last pair, if it is not used yet.
    kept: Option<f64>,
}

impl Mt19937 {
    /// torch takes the low 32 bits of the seed.
    pub(super) fn new(seed: u64) -> Self {
        let mut state = vec![seed as u32; SIZE];
        for index in 1..SIZE {
            let before = state[index - 1];
            state[index] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(index as u32);
        }
        Self { state, next: SIZE, kept: None }
    }

    /// The next `count` normal numbers of a tensor in f32, or in half precision if `half`. In half precision torch does not draw the
    /// values of an incomplete last block twice.
    pub(super) fn normals(&mut self, count: usize, half: bool) -> Vec<f32> {
        if count < 16 {
            return (0..count).map(|_| self.normal() as f32).collect();
        }
        let drawn = if half { count / 16 * 16 } else { count };
        let mut draws: Vec<f32> = (0..drawn).map(|_| self.short_uniform()).collect();
        draws.resize(count, 0.0);
        let (blocks, rest) = draws.as_chunks_mut::<16>();
        blocks.iter_mut().for_each(transform);
        if !rest.is_empty() {
            let mut last = [(); 16].map(|()| self.short_uniform());
            transform(&mut last);
            draws[count - 16..].copy_from_slice(&last);
        }
        draws
    }

    /// One normal number, the first or second of a pair.
    fn normal(&mut self) -> f64 {
        if let Some(kept) = self.kept.take() {
            return kept;
        }
        let (angle, radius) = (self.uniform(), self.uniform());
        let radius = (-2.0 * (-radius).ln_1p()).sqrt();
        let (sin, cos) = (angle * std::f64::consts::TAU).sin_cos();
        self.kept = Some(radius * sin);
        radius * cos
    }

    /// A uniform number of 24 bits.
    fn short_uniform(&mut self) -> f32 {
        (self.word() & 0x00FF_FFFF) as f32 / 16_777_216.0
    }

    /// A uniform number of 53 bits.
    fn uniform(&mut self) -> f64 {
        let (high, low) = (u64::from(self.word()), u64::from(self.word()));
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }

    fn word(&mut self) -> u32 {
        if self.next == SIZE {
            self.twist();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9D2C_5680;
        word ^= (word << 15) & 0xEFC6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for index in 0..SIZE {
            let joined = (self.state[index] & 0x8000_0000) | (self.state[(index + 1) % SIZE] & 0x7FFF_FFFF);
            let odd = if joined & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[index] = self.state[(index + SHIFT) % SIZE] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// Turns 16 uniform numbers into 16 normal ones, in place.
fn transform(block: &mut [f32; 16]) {
    let (radii, angles) = block.split_at_mut(8);
    for (radius, angle) in radii.iter_mut().zip(angles) {
        let length = (-2.0 * (1.0 - *radius).ln()).sqrt();
        let (sin, cos) = (*angle * std::f32::consts::TAU).sin_cos();
        (*radius, *angle) = (length * cos, length * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_the_mersenne_twister() {
        // The reference implementation with its default seed 5489. The 10,000th word is in the C++ standard.
        let mut mt19937 = Mt19937::new(5489);
        assert_eq!([(); 3].map(|()| mt19937.word()), [3_499_211_612, 581_869_302, 3_890_346_734]);
        assert_eq!((3..10_000).map(|_| mt19937.word()).last(), Some(4_123_659_995));
    }

    #[test]
    fn small_draws_continue_with_the_second_of_a_pair() {
        let together = Mt19937::new(1).normals(4, false);
        let mut mt19937 = Mt19937::new(1);
        let apart: Vec<f32> = [1, 2, 1].iter().flat_map(|&count| mt19937.normals(count, false)).collect();
        assert_eq!(together, apart);
    }
}
