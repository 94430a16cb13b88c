//! The VAE encoder of a model: made when the first run begins from a picture, and kept. On a GPU it comes for each picture and leaves, so
//! that it takes no memory from anything else.

use super::{DeviceState, Model, Networks, on_cpu};
use crate::{
    error::{PipelineError, Result},
    gpu::{Dtype, Gpu, Placed, Stay},
    loading::config::VaeConfig,
    models::vae::encoder::VaeEncoder,
    ops::{
        Array, on_pool,
        params::{Params, ShapeRecorder, Shapes},
    },
    pipeline::inspection,
};
use candle_core::Tensor;
use std::sync::{Arc, PoisonError};

/// Bytes in which its memory comes and leaves.
const PAGE: usize = 8 << 20;

/// The encoder, and on a GPU its tensors there.
pub(super) struct Encoder {
    network: VaeEncoder,
    placed: Option<Arc<Placed>>,
}

/// Names and shapes of the tensors of an encoder, in diffusers' names.
///
/// # Errors
/// A setting is not supported.
fn shapes(config: &VaeConfig) -> Result<Shapes> {
    let shapes = ShapeRecorder::default();
    VaeEncoder::new(config, Params::recording(&shapes))?;
    let found = std::mem::take(&mut *shapes.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(found)
}

impl Model {
    /// Whether it has an encoder that can be used. Reads only headers.
    ///
    /// # Errors
    /// A setting is not supported, or a tensor is missing or has another shape.
    pub(crate) fn check_encoder(&self) -> Result<()> {
        inspection::fits("vae", &self.vae_weights, &shapes(&self.vae_config)?)
    }
}

impl Networks {
    /// The distribution of the latents of pixels `[1, 3, height, width]`, -1 to 1: means and logarithms of variances,
    /// `[1, 2 x channels, height / 8, width / 8]`, not multiplied by the scaling factor. All f32 on the CPU. If memory runs out on a GPU,
    /// the CPU does it.
    ///
    /// # Errors
    /// The model has no encoder that can be used: see [`Model::check_encoder`]. Or the device fails.
    pub(crate) fn encode(&mut self, pixels: &Tensor) -> Result<Tensor> {
        self.model.check_encoder()?;
        let encoder = self.encoder.take();
        let (encoder, encoded) = match &self.state {
            DeviceState::Cpu(packed) => {
                let make = || {
                    let params = on_cpu("vae", &self.model.vae_weights, packed.as_ref());
                    let network = VaeEncoder::new(&self.model.vae_config, params)?;
                    Ok::<_, PipelineError>(Encoder { network, placed: None })
                };
                let encoder = encoder.map_or_else(make, Ok)?;
                let encoded = self.run(&encoder, pixels);
                (encoder, encoded)
            }
            DeviceState::Gpu(state) => {
                // What is lent of the UNet leaves, and scratch memory that only the decoder used.
                self.make_way_for_checker()?;
                let (gpu, dtype) = (state.residence.gpu(), state.residence.unet.dtype());
                let encoder = match encoder {
                    Some(encoder) => Ok(encoder),
                    None => self.encoder_on(gpu, dtype),
                };
                match encoder {
                    Ok(encoder) => {
                        let encoded = self.run_here(&encoder, pixels);
                        state.tidy()?;
                        (encoder, encoded)
                    }
                    Err(error) if error.is_out_of_memory() => return self.encode_on_cpu(pixels, &error),
                    Err(error) => return Err(error),
                }
            }
        };
        self.encoder = Some(encoder);
        match encoded {
            Err(error) if error.is_out_of_memory() && self.gpu().is_some() => self.encode_on_cpu(pixels, &error),
            encoded => encoded,
        }
    }

    /// Places its tensors on a GPU and copies them. Their memory is lent.
    fn encoder_on(&self, gpu: &Gpu, dtype: Dtype) -> Result<Encoder> {
        let (config, weights) = (&self.model.vae_config, &self.model.vae_weights);
        let placed = Placed::new(gpu, dtype, PAGE)?;
        let network = VaeEncoder::new(config, Params::on_gpu(weights, &placed))?;
        let lent = || placed.settle(&vec![Stay::Lent; placed.pages().1], 0);
        let filled = lent().and_then(|()| placed.come()).and_then(|_| placed.clear_padding());
        let filled = filled.and_then(|()| gpu.synchronize()).and_then(|()| placed.fill(weights, None));
        if let Err(error) = filled {
            // None of the memory stays taken.
            lent()?;
            return Err(error.into());
        }
        Ok(Encoder { network, placed: Some(placed) })
    }

    /// The same with the weights on the GPU for as long as it takes.
    fn run_here(&self, encoder: &Encoder, pixels: &Tensor) -> Result<Tensor> {
        let Some(placed) = &encoder.placed else { return self.run(encoder, pixels) };
        let encoded = placed.come().map_err(Into::into).and_then(|_| self.run(encoder, pixels));
        let left = placed.leave();
        let encoded = encoded?;
        left?;
        Ok(encoded)
    }

    fn run(&self, encoder: &Encoder, pixels: &Tensor) -> Result<Tensor> {
        let moments = 2 * self.model.vae_config.latent_channels;
        let forward = |pixels: &Array| encoder.network.encode(pixels);
        let encoded = match &self.state {
            DeviceState::Cpu(_) => on_pool(|| forward(&Array::Cpu(pixels.contiguous()?)))?,
            DeviceState::Gpu(_) => forward(&self.inputs.map_on_device(pixels)?)?,
        };
        Ok(encoded.to_map(moments)?)
    }

    /// On the CPU of a machine whose GPU has no room for it, where it is loaded for this picture alone.
    fn encode_on_cpu(&self, pixels: &Tensor, error: &PipelineError) -> Result<Tensor> {
        tracing::warn!(%error, "no room on the GPU for the picture to begin from: the CPU encodes it");
        let network = VaeEncoder::new(&self.model.vae_config, Params::on_cpu(&self.model.vae_weights))?;
        let encoded = on_pool(|| network.encode(&Array::Cpu(pixels.contiguous()?)))?;
        Ok(encoded.to_map(2 * self.model.vae_config.latent_channels)?)
    }

    fn gpu(&self) -> Option<&Gpu> {
        match &self.state {
            DeviceState::Cpu(_) => None,
            DeviceState::Gpu(state) => Some(state.residence.gpu()),
        }
    }
}
