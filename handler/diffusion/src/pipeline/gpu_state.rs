//! What the networks keep on a GPU: their tensors, which of them LoRAs have changed, and the recorded graphs.

use super::{graphs::Recordings, residence::Residence};
use crate::{
    gpu::{GpuError, Placed, Product},
    loading::weights::Weights,
    lora::{LoraError, LowRankUpdate, MergePlan},
};
/// Tensors, changes and recordings on one GPU.
pub(super) struct GpuState {
    pub(super) residence: Residence,
    /// Names of the tensors that LoRAs have changed, in the text encoder and in the UNet.
    pub(super) changed: [Vec<String>; 2],
    pub(super) recordings: Recordings,
}

impl GpuState {
    /// Restores what the last plan changed, then applies this one. Addresses do not change, so recorded graphs stay valid. Products are
    /// added on the GPU, everything else is merged on the CPU. One network after the other, as one may have to leave for the other.
    /// Returns the text encoder's weights with the overlay.
    pub(super) fn apply(
        &mut self,
        mut plan: MergePlan,
        text: &Weights,
        unet: &Weights,
    ) -> std::result::Result<Weights, LoraError> {
        let (gpu, placed) = (self.residence.gpu(), [&self.residence.text, &self.residence.unet]);
        gpu.enter().and_then(|()| gpu.synchronize()).map_err(on_device)?;
        let low_rank = plan.take_low_rank(|of_unet, name| placed[usize::from(of_unet)].takes_products(name));
        let overlays = plan.merge(unet, text)?;
        let merged = [text.with_overlay(overlays.text_encoder), unet.with_overlay(overlays.unet)];
        let parts = placed.into_iter().zip(&merged).zip(&mut self.changed);
        for (of_unet, ((placed, merged), changed)) in [false, true].into_iter().zip(parts) {
            let ours: Vec<_> = low_rank.iter().filter(|product| product.of_unet == of_unet).collect();
            let names: Vec<String> = merged.overlay().keys().filter(|name| placed.has(name)).cloned().collect();
            let now: Vec<String> =
                ours.iter().map(|product| product.name.clone()).chain(names.iter().cloned()).collect();
            let filled = [&changed[..], &names].concat();
            // Before they are, so that all are restored even if it fails halfway.
            changed.extend(now.iter().cloned());
            rewrite(placed, merged, &filled, &ours)?;
            *changed = now;
        }
        let [text, _] = merged;
        Ok(text)
    }

    /// Gives scratch memory back that only the decoder or a larger picture used, unless there is memory for everything.
    pub(super) fn tidy(&self) -> std::result::Result<(), GpuError> {
        if self.residence.is_whole() {
            return Ok(());
        }
        self.residence.gpu().trim(self.recordings.scratch())
    }
}

/// Fills tensors on the GPU, and adds products to matrices there.
fn rewrite(
    placed: &Placed,
    source: &Weights,
    filled: &[String],
    products: &[&LowRankUpdate],
) -> std::result::Result<(), LoraError> {
    let of = |product: &&LowRankUpdate| Product {
        name: product.name.clone(),
        rows: product.rows,
        columns: product.columns,
        rank: product.rank,
    };
    let write = |index: usize, left: &mut [f32], right: &mut [f32]| {
        products[index].write(left, right).map_err(|error| GpuError::Unavailable(error.to_string()))
    };
    placed.rewrite(source, filled, &products.iter().map(of).collect::<Vec<_>>(), &write).map_err(on_device)
}

fn on_device(error: GpuError) -> LoraError {
    candle_core::Error::from(error).into()
}
