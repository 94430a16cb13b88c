//! Noise as torch's CUDA generator draws it, so that a seed paints what it painted on the Python worker.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), one counter per element, and the
//! Box-Muller transform on its first two words. Holds while the tensor has at most as many elements as the GPU has
//! resident threads (270,336 on an H100), which is every picture this pipeline paints.

use candle_core::{DType, Device, Result, Shape, Tensor};

/// A seeded stream of normal draws.
#[derive(Debug, Clone)]
pub struct Noise {
    seed: u64,
    drawn: u32,
}

impl Noise {
    /// Starts the stream of `torch.Generator("cuda").manual_seed(seed)`.
    pub fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// The next `torch.randn(shape)`, drawn in f32 and rounded to `dtype`.
    ///
    /// # Errors
    /// Device or memory.
    pub fn randn(&mut self, shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        let draws = (0..shape.elem_count() as u32).map(|index| normal(self.seed, self.drawn, index));
        let draws: Vec<f32> = draws.collect();
        self.drawn += 1;
        Tensor::from_vec(draws, shape, device)?.to_dtype(dtype)
    }
}

/// The draw of thread `index` after `offset` earlier calls.
fn normal(seed: u64, offset: u32, index: u32) -> f32 {
    const UNIT: f32 = 2.328_306_4e-10; // 2^-32
    const TURN: f32 = UNIT * std::f32::consts::TAU;
    let [first, second, ..] = philox([offset, 0, index, 0], [seed as u32, (seed >> 32) as u32]);
    let radius = (-2.0 * (first as f32).mul_add(UNIT, UNIT / 2.0).ln()).sqrt();
    radius * (second as f32).mul_add(TURN, TURN / 2.0).sin()
}

/// Ten rounds of Philox4x32.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_zero_starts_as_torch_on_cuda_does() {
        let draws = Noise::new(0).randn(4, DType::F32, &Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
        for (draw, torch) in draws.iter().zip([-0.924_662_f32, -0.425_344, -2.643_846, 0.145_184]) {
            assert!((draw - torch).abs() < 1e-5, "{draw} is not {torch}");
        }
    }

    #[test]
    fn a_seed_repeats_and_a_second_draw_differs() {
        let draw = |noise: &mut Noise| noise.randn(64, DType::F32, &Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
        let (mut one, mut two) = (Noise::new(7), Noise::new(7));
        let first = draw(&mut one);
        assert_eq!(first, draw(&mut two));
        assert_ne!(first, draw(&mut one));
        assert_ne!(first, draw(&mut Noise::new(7 + (1 << 32))));
    }
}
