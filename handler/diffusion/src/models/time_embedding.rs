//! The timestep's embedding, which shifts each ResNet block of a UNet; and that of the guidance scale, where the UNet has it as an
//! input: a latent consistency model does in one pass what classifier-free guidance does in two.
//!
//! Meng et al., "On distillation of guided diffusion models", 2023; Luo et al., "Latent consistency models", 2023. The numbers are
//! those of diffusers' `Timesteps`, `TimestepEmbedding` and `get_guidance_scale_embedding`.

use crate::{
    loading::config::UnetConfig,
    ops::params::Params,
    ops::{Array, Linear, silu},
};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// diffusers' `TimestepEmbedding` with the sinusoids before it.
pub(super) struct TimeEmbedding {
    channels: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    /// The projection of the guidance scale's embedding, and that embedding's width.
    guidance: Option<(Linear, usize)>,
    linear_1: Linear,
    linear_2: Linear,
}

impl TimeEmbedding {
    pub(super) fn new(config: &UnetConfig, channels: usize, params: Params) -> Result<Self> {
        let projection =
            |width| Ok::<_, candle_core::Error>((Linear::no_bias(width, channels, params.pp("cond_proj"))?, width));
        Ok(Self {
            channels,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
            guidance: config.time_cond_proj_dim.map(projection).transpose()?,
            linear_1: Linear::new(channels, channels * 4, params.pp("linear_1"))?,
            linear_2: Linear::new(channels * 4, channels * 4, params.pp("linear_2"))?,
        })
    }

    /// The embeddings after SiLU, `[timesteps, 4 x channels]`. The sinusoids are computed in f32 for every dtype.
    pub(super) fn forward(&self, timesteps: &[f64], guidance_scale: Option<f64>, like: &Array) -> Result<Array> {
        let on_device = |rows: Vec<f32>| {
            let width = rows.len() / timesteps.len().max(1);
            Array::like(&Tensor::from_vec(rows, (timesteps.len(), width), &Device::Cpu)?, like)
        };
        let frequencies = self.frequencies();
        let rows: Vec<_> = timesteps.par_iter().map(|&timestep| self.sinusoids(timestep, &frequencies)).collect();
        let mut hidden = on_device(rows.concat())?;
        if let (Some((projection, width)), Some(scale)) = (&self.guidance, guidance_scale) {
            let rows = guidance_embedding(scale, *width).repeat(timesteps.len());
            hidden = projection.forward_adding(&on_device(rows)?, &hidden)?;
        }
        let hidden = silu(&self.linear_1.forward(&hidden)?)?;
        silu(&self.linear_2.forward(&hidden)?)
    }

    /// What the timestep is multiplied by.
    fn frequencies(&self) -> Vec<f32> {
        let half = self.channels / 2;
        let exponent = |index: usize| -10_000f64.ln() * index as f64 / (half as f64 - self.freq_shift);
        (0..half).map(|index| exponent(index).exp() as f32).collect()
    }

    fn sinusoids(&self, timestep: f64, frequencies: &[f32]) -> Vec<f32> {
        let angles: Vec<f32> = frequencies.iter().map(|frequency| timestep as f32 * frequency).collect();
        let (sines, cosines) = (angles.iter().map(|a| a.sin()), angles.iter().map(|a| a.cos()));
        if self.flip_sin_to_cos { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() }
    }
}

/// The guidance scale as `width` numbers. It enters as the weight of the paper, which is one less.
fn guidance_embedding(scale: f64, width: usize) -> Vec<f32> {
    let half = width / 2;
    let weight = (scale - 1.0) as f32 * 1000.0;
    let falloff = 10_000f32.ln() / (half as f32 - 1.0);
    // In f32, as torch does: the angles are large, and each rounding shows in their sines.
    let angle = |index: usize| weight * f64::from(index as f32 * -falloff).exp() as f32;
    let angles: Vec<f32> = (0..half).map(angle).collect();
    let (sines, cosines) = (angles.iter().map(|a| a.sin()), angles.iter().map(|a| a.cos()));
    sines.chain(cosines).chain((0..width % 2).map(|_| 0.0)).collect()
}
