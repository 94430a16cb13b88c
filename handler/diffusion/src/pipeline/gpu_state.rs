//! What the networks keep on a GPU: their tensors, which of them LoRAs have changed, and the recorded graphs.

use super::graphs::Recordings;
use crate::{
    gpu::{GpuError, Placed, Product},
    loading::weights::Weights,
    lora::{LoraError, LowRankUpdate, MergePlan},
};
use std::sync::Arc;

/// Tensors, changes and recordings on one GPU.
pub(super) struct GpuState {
    pub(super) text: Arc<Placed>,
    pub(super) unet: Arc<Placed>,
    pub(super) vae: Arc<Placed>,
    /// Whether text encoder and VAE leave the GPU while they are not in use.
    pub(super) offloads: bool,
    /// Names of the tensors that LoRAs have changed, in the text encoder and in the UNet.
    pub(super) changed: [Vec<String>; 2],
    pub(super) recordings: Recordings,
}

impl GpuState {
    /// Restores what the last plan changed, then applies this one. Addresses do not change, so recorded graphs stay valid. Products are
    /// added on the GPU, everything else is merged on the CPU. Returns the text encoder's weights with the overlay.
    pub(super) fn apply(
        &mut self,
        mut plan: MergePlan,
        text: &Weights,
        unet: &Weights,
    ) -> std::result::Result<Weights, LoraError> {
        let gpu = self.unet.gpu();
        gpu.enter().and_then(|()| gpu.synchronize()).map_err(on_device)?;
        self.text.restore(text).and_then(|()| self.unet.restore(unet)).map_err(on_device)?;
        for ((placed, weights), changed) in [(&self.text, text), (&self.unet, unet)].into_iter().zip(&mut self.changed)
        {
            placed.fill(weights, Some(changed)).map_err(on_device)?;
            changed.clear();
        }
        let low_rank =
            plan.take_low_rank(|of_unet, name| if of_unet { &self.unet } else { &self.text }.takes_products(name));
        for (placed, of_unet) in [(&self.text, false), (&self.unet, true)] {
            let ours: Vec<_> = low_rank.iter().filter(|product| product.of_unet == of_unet).collect();
            self.changed[usize::from(of_unet)].extend(ours.iter().map(|product| product.name.clone()));
            add_products(placed, &ours)?;
        }
        // The rest is copied on other streams.
        self.unet.gpu().synchronize().map_err(on_device)?;
        let overlays = plan.merge(unet, text)?;
        let (text, unet) = (text.with_overlay(overlays.text_encoder), unet.with_overlay(overlays.unet));
        for ((placed, weights), changed) in
            [(&self.text, &text), (&self.unet, &unet)].into_iter().zip(&mut self.changed)
        {
            let merged: Vec<String> = weights.overlay().keys().filter(|name| placed.has(name)).cloned().collect();
            // Before filling, so that tensors are restored even if it fails halfway.
            changed.extend(merged.iter().cloned());
            placed.fill(weights, Some(&merged)).map_err(on_device)?;
        }
        Ok(text)
    }
}

/// Adds products to matrices on the GPU.
fn add_products(placed: &Placed, products: &[&LowRankUpdate]) -> std::result::Result<(), LoraError> {
    let of = |product: &&LowRankUpdate| Product {
        name: product.name.clone(),
        rows: product.rows,
        columns: product.columns,
        rank: product.rank,
    };
    let write = |index: usize, left: &mut [f32], right: &mut [f32]| {
        products[index].write(left, right).map_err(|error| GpuError::Unavailable(error.to_string()))
    };
    placed.add_products(&products.iter().map(of).collect::<Vec<_>>(), &write).map_err(on_device)
}

fn on_device(error: GpuError) -> LoraError {
    candle_core::Error::from(error).into()
}
