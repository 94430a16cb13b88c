//! Merging: `W + scale * alpha / rank * up @ down` for every module a LoRA names, as an overlay over the base weights.

use super::{AppliedLora, Layer, LoraError, keys::Component};
use crate::pipeline::weights::{Tensors, Weights};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;

/// Merged tensors of each component, to be laid over the base.
#[derive(Default)]
pub struct Overlays {
    /// Tensors of the UNet, by name.
    pub unet: Tensors,
    /// Tensors of the text encoder, by name.
    pub text_encoder: Tensors,
}

/// Merges LoRAs in order. The sum is formed in f32 and rounded once to the base's dtype.
///
/// # Errors
/// A key that fits no module, a shape that does not fit, or LoRAs that change nothing though their scale is not zero.
pub fn merge(loras: &[AppliedLora], unet: &Weights, text_encoder: &Weights) -> Result<Overlays, LoraError> {
    let names = [(Component::Unet, unet), (Component::TextEncoder, text_encoder)]
        .into_iter()
        .flat_map(|(component, weights)| weights.names().map(move |name| (component, name)))
        .filter_map(|(component, name)| Some(((component, name.strip_suffix(".weight")?.replace('.', "_")), name)));
    let names: HashMap<(Component, String), &str> = names.collect();
    let mut overlays = Overlays::default();
    for AppliedLora { lora, scale } in loras {
        let mut effect = false;
        for ((component, module), layer) in &lora.layers {
            let weights = if *component == Component::Unet { unet } else { text_encoder };
            let overlay = match component {
                Component::Unet => &mut overlays.unet,
                Component::TextEncoder => &mut overlays.text_encoder,
            };
            let refused = |reason: String| LoraError::Key { key: layer.key.clone(), reason };
            let name = *names
                .get(&(*component, module.clone()))
                .ok_or_else(|| refused(format!("the model has no module `{module}`")))?;
            let base = overlay.get(name).or_else(|| weights.base(name));
            let base = base.ok_or_else(|| refused(format!("the model has no module `{module}`")))?;
            let delta = layer.delta(base).map_err(refused)?;
            effect |= delta.abs()?.max_all()?.to_scalar::<f32>()? > 0.0;
            if *scale == 0.0 {
                continue;
            }
            let sum = (base.to_device(&Device::Cpu)?.to_dtype(DType::F32)? + (delta * *scale)?)?;
            overlay.insert(name.to_string(), sum.to_dtype(base.dtype())?.to_device(base.device())?);
        }
        if !effect {
            return Err(LoraError::NoEffect("every product of its matrices is zero"));
        }
    }
    Ok(overlays)
}

impl Layer {
    /// `alpha / rank * up @ down` in the shape of `base`, f32 on the CPU.
    fn delta(&self, base: &Tensor) -> Result<Tensor, String> {
        let rank = self.down.dims()[0];
        let out = self.up.dims()[0];
        let fits = out * self.down.elem_count() / rank == base.elem_count() && out == base.dims()[0];
        if !fits || self.up.elem_count() != out * rank {
            let (down, up, base) = (self.down.dims(), self.up.dims(), base.dims());
            let made_for = match down.get(1) {
                Some(1024) if base.get(1) == Some(&768) => ": it was made for SD2",
                Some(2048) if base.get(1) == Some(&768) => ": it was made for SDXL",
                _ => "",
            };
            return Err(format!("down {down:?} and up {up:?} do not fit the model's {base:?}{made_for}"));
        }
        let product = || -> candle_core::Result<Tensor> {
            let up = self.up.reshape((out, rank))?;
            let down = self.down.reshape((rank, ()))?;
            (up.matmul(&down)? * (self.alpha / rank as f64))?.reshape(base.dims())
        };
        product().map_err(|error| error.to_string())
    }
}
