//! What the guidance scale does: nothing, classifier-free guidance, or it is an input of the UNet.

use crate::loading::config::UnetConfig;
use candle_core::{Result, Tensor};

/// What the guidance scale does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Guidance {
    /// Nothing.
    Off,
    /// It scales classifier-free guidance, for which the batch has negative prompts before the others.
    ClassifierFree(f64),
    /// It is an input of the UNet, which was distilled with guidance.
    Embedded(f64),
}

impl Guidance {
    /// What a scale does with that UNet.
    pub(super) fn of(unet: &UnetConfig, scale: f64) -> Self {
        match unet.time_cond_proj_dim {
            Some(_) => Self::Embedded(scale),
            None if scale > 1.0 => Self::ClassifierFree(scale),
            None => Self::Off,
        }
    }

    /// The scale of classifier-free guidance.
    pub(super) fn classifier_free(self) -> Option<f64> {
        match self {
            Self::ClassifierFree(scale) => Some(scale),
            Self::Off | Self::Embedded(_) => None,
        }
    }

    /// Prompts with which each latent is looked at.
    pub(super) fn copies(self) -> usize {
        if self.classifier_free().is_some() { 2 } else { 1 }
    }

    /// The scale as the UNet's input.
    pub(super) fn embedded(self) -> Option<f64> {
        match self {
            Self::Embedded(scale) => Some(scale),
            Self::Off | Self::ClassifierFree(_) => None,
        }
    }
}

/// Classifier-free guidance. The first half of the batch is for the negative prompts.
pub(super) fn guide(output: &Tensor, scale: f64) -> Result<Tensor> {
    let halves = output.chunk(2, 0)?;
    &halves[0] + ((&halves[1] - &halves[0])? * scale)?
}
