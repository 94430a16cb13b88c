//! Mean and variance of numbers that come in parts.

/// How many numbers there are, their mean, and the sum of their squared deviations from it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spread {
    pub(super) count: f64,
    pub(super) mean: f64,
    pub(super) squares: f64,
}

impl Spread {
    /// That of both together: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    pub(super) fn merge(&mut self, other: Self) {
        let count = self.count + other.count;
        if count > 0.0 {
            let apart = other.mean - self.mean;
            self.mean += apart * other.count / count;
            self.squares += other.squares + apart * apart * self.count * other.count / count;
            self.count = count;
        }
    }

    /// The biased variance.
    pub(super) fn variance(&self) -> f64 {
        self.squares / self.count.max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn parts_merge_to_the_spread_of_all() {
        let numbers: Vec<f64> = (0..100).map(|index| 1000.0 + f64::from(index * index % 37)).collect();
        let of = |numbers: &[f64]| {
            let count = numbers.len() as f64;
            let mean = numbers.iter().sum::<f64>() / count;
            Spread { count, mean, squares: numbers.iter().map(|number| (number - mean).powi(2)).sum() }
        };
        let mut merged = Spread::default();
        for part in [&numbers[..0], &numbers[..7], &numbers[7..80], &numbers[80..]] {
            merged.merge(if part.is_empty() { Spread::default() } else { of(part) });
        }
        let all = of(&numbers);
        assert_eq!(merged.count, 100.0);
        assert!((merged.mean - all.mean).abs() < 1e-9 && (merged.variance() - all.variance()).abs() < 1e-9);
    }
}
