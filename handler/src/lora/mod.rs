//! An artist's LoRA: read from a safetensors file, checked key by key, merged over the base weights.
//!
//! Hu et al., "LoRA: low-rank adaptation of large language models", 2021. Knows peft, diffusers and kohya files with linear
//! and convolutional layers. A file that fits nothing or changes nothing is an error, never a silent no-op.

mod keys;
mod merge;

pub use merge::{Overlays, merge};

use candle_core::{Device, Tensor};
use keys::{Component, Part};
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Why a LoRA cannot be used. All but `File` and `Device` are faults of the LoRA: the task fails and is not tried again.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// The bytes are no safetensors file.
    #[error("the LoRA is not a safetensors file: {0}")]
    NotSafetensors(String),
    /// A key of a format or layer this function does not know.
    #[error("LoRA key `{key}`: {reason}")]
    Key {
        /// The key as it stands in the file.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Every layer was read, and none changes anything.
    #[error("the LoRA changes nothing: {0}")]
    NoEffect(&'static str),
    /// The file cannot be read.
    #[error("the LoRA file cannot be read: {0}")]
    File(#[from] std::io::Error),
    /// Arithmetic, memory or device failed.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

impl LoraError {
    /// Whether the LoRA itself is at fault, so that trying again would end the same way.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, Self::File(_) | Self::Device(_))
    }
}

impl From<crate::pipeline::error::PipelineError> for LoraError {
    fn from(error: crate::pipeline::error::PipelineError) -> Self {
        match error {
            crate::pipeline::error::PipelineError::Candle(error) => Self::Device(error),
            other => Self::Device(candle_core::Error::msg(other)),
        }
    }
}

/// One LoRA file in memory.
#[derive(Debug)]
pub struct Lora {
    layers: BTreeMap<(Component, String), Layer>,
}

/// The pair of matrices for one module, in f32 on the CPU.
#[derive(Debug)]
struct Layer {
    /// A key of the file, for errors.
    key: String,
    /// `[rank, in]`, or `[rank, in, height, width]` for a convolution.
    down: Tensor,
    /// `[out, rank]`, or `[out, rank, 1, 1]`.
    up: Tensor,
    /// Numerator of the scale; the rank where the file has none.
    alpha: f64,
}

/// A LoRA and how strongly it is applied.
#[derive(Debug, Clone)]
pub struct AppliedLora {
    /// The file's content.
    pub lora: Arc<Lora>,
    /// Multiplier; 1 is what the artist trained, 0 is off, negative is away from the style.
    pub scale: f64,
}

impl PartialEq for AppliedLora {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.lora, &other.lora) && self.scale == other.scale
    }
}

impl Lora {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, or [`Lora::from_bytes`] refuses it.
    pub fn read(path: &Path) -> Result<Self, LoraError> {
        Self::from_bytes(&std::fs::read(path)?)
    }

    /// Reads a safetensors file that is in memory.
    ///
    /// # Errors
    /// See [`LoraError`]; every key is accounted for.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LoraError> {
        let header = safetensors::SafeTensors::read_metadata(bytes);
        let (_, header) = header.map_err(|error| LoraError::NotSafetensors(error.to_string()))?;
        let alphas = keys::metadata_alphas(header.metadata());
        // What fails here is the file's: data cut short, or a dtype that no LoRA has.
        let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)
            .map_err(|error| LoraError::NotSafetensors(error.to_string()))?;
        let mut parts: BTreeMap<(Component, String), Parts> = BTreeMap::new();
        for (key, tensor) in tensors {
            let refused = |reason: String| LoraError::Key { key: key.clone(), reason };
            let parsed = keys::parse(&key).map_err(refused)?;
            let tensor = tensor.to_dtype(candle_core::DType::F32)?;
            if !tensor.sum_all()?.to_scalar::<f32>()?.is_finite() {
                return Err(refused("it holds NaN or infinity".into()));
            }
            let module = parts.entry((parsed.component, parsed.module)).or_default();
            let slot = match parsed.part {
                Part::Down => &mut module.down,
                Part::Up => &mut module.up,
                Part::Alpha => &mut module.alpha,
            };
            if let Some((other, _)) = slot.replace((key.clone(), tensor)) {
                return Err(refused(format!("`{other}` is for the same module")));
            }
        }
        let layers = parts.into_iter().map(|(module, parts)| {
            let alpha = alphas.get(&module.0).copied();
            parts.layer(alpha).map(|layer| (module, layer))
        });
        let layers: BTreeMap<_, _> = layers.collect::<Result<_, _>>()?;
        if layers.is_empty() {
            return Err(LoraError::NoEffect("the file has no keys"));
        }
        Ok(Self { layers })
    }

    /// How many modules the file has matrices for.
    pub fn modules(&self) -> usize {
        self.layers.len()
    }
}

/// What the file has for one module, each with its key.
#[derive(Default)]
struct Parts {
    down: Option<(String, Tensor)>,
    up: Option<(String, Tensor)>,
    alpha: Option<(String, Tensor)>,
}

impl Parts {
    fn layer(self, metadata_alpha: Option<f64>) -> Result<Layer, LoraError> {
        let alone = |key: String, missing: &str| LoraError::Key { key, reason: format!("its `{missing}` is missing") };
        let ((key, down), up) = match (self.down, self.up, self.alpha.as_ref()) {
            (Some(down), Some((_, up)), _) => (down, up),
            (Some((key, _)), None, _) => return Err(alone(key, "up (lora_B)")),
            (None, Some((key, _)), _) => return Err(alone(key, "down (lora_A)")),
            (None, None, alpha) => {
                return Err(alone(alpha.map(|(key, _)| key.clone()).unwrap_or_default(), "down and up"));
            }
        };
        let rank = down.dims().first().copied().unwrap_or(0);
        let paired = down.rank() >= 2 && up.rank() >= 2 && rank > 0 && up.dims()[1] == rank;
        if !paired {
            let reason = format!("down {:?} and up {:?} share no rank", down.dims(), up.dims());
            return Err(LoraError::Key { key, reason });
        }
        let alpha = match self.alpha {
            Some((key, tensor)) if tensor.elem_count() != 1 => {
                return Err(LoraError::Key { key, reason: format!("alpha is {:?}, not one number", tensor.dims()) });
            }
            Some((_, tensor)) => f64::from(tensor.flatten_all()?.get(0)?.to_scalar::<f32>()?),
            None => metadata_alpha.unwrap_or(rank as f64),
        };
        Ok(Layer { key, down, up, alpha })
    }
}

#[cfg(test)]
mod tests;
