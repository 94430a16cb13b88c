//! Random numbers that can be repeated: the same seed gives the same choices (splitmix64).

use std::time::Duration;

/// A random sequence.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// The sequence number `stream` of a seed.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        Self(seed ^ stream.wrapping_mul(0xD1B5_4A32_D192_ED03))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// An element of `all`, which must not be empty.
    pub(crate) fn choose<T: Copy>(&mut self, all: &[T]) -> T {
        all[(self.next() % all.len() as u64) as usize]
    }

    /// True with this probability.
    pub(crate) fn hits(&mut self, share: f64) -> bool {
        // The upper 53 bits: an f64 holds no more.
        ((self.next() >> 11) as f64) < share * (1_u64 << 53) as f64
    }

    /// From `least` to `most` milliseconds.
    pub(crate) fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.next() % (most - least + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_another_does_not() {
        let draw = |seed, stream| {
            let mut random = Random::new(seed, stream);
            (0..50).map(|_| random.millis(0, 1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 1), draw(1, 1));
        assert_ne!(draw(1, 1), draw(2, 1));
        assert_ne!(draw(1, 1), draw(1, 2));
    }

    #[test]
    fn a_share_is_hit_in_proportion() {
        let hits = |share| {
            let mut random = Random::new(1, 1);
            (0..10_000).filter(|_| random.hits(share)).count()
        };
        assert_eq!((hits(0.0), hits(1.0)), (0, 10_000));
        assert!((900..1_100).contains(&hits(0.1)), "{}", hits(0.1));
    }
}
