//! The weights of one component: resident base tensors, and on top of them what a LoRA has changed.
//!
//! The base is never written to. A LoRA is an overlay of merged tensors, so unloading it restores the base exactly.

use super::error::{PipelineError, Result};
use candle_core::{DType, Device, Error, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use std::{collections::HashMap, path::Path, sync::Arc};

/// Tensors by name.
pub type Tensors = HashMap<String, Tensor>;

/// The tensors of one component (text encoder, UNet or VAE) on one device in one dtype. Cheap to clone.
#[derive(Clone)]
pub struct Weights {
    base: Arc<Tensors>,
    overlay: Arc<Tensors>,
    dtype: DType,
    device: Device,
}

impl Weights {
    /// Loads the first of `names` that exists in `folder`.
    ///
    /// # Errors
    /// No such file, or a file that is no safetensors.
    pub fn load(folder: &Path, names: &[&str], dtype: DType, device: &Device) -> Result<Self> {
        let found = names.iter().map(|name| folder.join(name)).find(|path| path.exists());
        let path = found.unwrap_or_else(|| folder.join(names[0]));
        if !path.exists() {
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
            return Err(PipelineError::File { path, source });
        }
        let mut base = candle_core::safetensors::load(&path, device)
            .map_err(|error| PipelineError::File { path, source: std::io::Error::other(error.to_string()) })?;
        for tensor in base.values_mut() {
            if tensor.dtype().is_float() && tensor.dtype() != dtype {
                *tensor = tensor.to_dtype(dtype)?;
            }
        }
        Ok(Self::new(base, dtype, device))
    }

    /// Wraps tensors that are already there.
    pub fn new(base: Tensors, dtype: DType, device: &Device) -> Self {
        Self { base: Arc::new(base), overlay: Arc::default(), dtype, device: device.clone() }
    }

    /// The same base under another overlay.
    pub fn with_overlay(&self, overlay: Tensors) -> Self {
        Self { overlay: Arc::new(overlay), ..self.clone() }
    }

    /// The base tensor of that name, whatever lies over it.
    pub fn base(&self, name: &str) -> Option<&Tensor> {
        self.base.get(name)
    }

    /// Renames base tensors: for files that use older names.
    pub fn renamed(self, rename: impl Fn(&str) -> String) -> Self {
        let base = self.base.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
        Self { base: Arc::new(base), ..self }
    }

    /// Names of the base tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.base.keys().map(String::as_str)
    }

    /// The device the tensors are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype of all floating-point tensors.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// A builder from which modules take their tensors; no tensor is copied.
    pub fn builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), self.dtype, self.device.clone())
    }

    fn find(&self, name: &str) -> candle_core::Result<&Tensor> {
        let found = self.overlay.get(name).or_else(|| self.base.get(name));
        found.ok_or_else(|| Error::CannotFindTensor { path: name.to_string() }.bt())
    }
}

impl SimpleBackend for Weights {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        let tensor = self.find(name)?;
        if tensor.shape() == &shape {
            return Ok(tensor.clone());
        }
        let msg = format!("shape mismatch for {name}");
        Err(Error::UnexpectedShape { msg, expected: shape, got: tensor.shape().clone() }.bt())
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.find(name).cloned()
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.overlay.contains_key(name) || self.base.contains_key(name)
    }
}
