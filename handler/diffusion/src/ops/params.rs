//! Where modules take their parameters from: by path, from the CPU's memory or with a place on the GPU.

use crate::gpu::{Array, Placed, WeightLayout};
use crate::{loading::weights::Weights, ops};
use candle_core::{DType, Device, Error, Result, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// The parameters under one path.
#[derive(Clone)]
pub(crate) struct Params {
    weights: Weights,
    placed: Option<Arc<Placed>>,
    asked: Option<Asked>,
    path: String,
}

/// Names and shapes of tensors.
pub type Shapes = Vec<(String, Vec<usize>)>;

/// What modules ask for.
pub(crate) type Asked = Arc<Mutex<Shapes>>;

impl Params {
    /// Of modules that compute on the CPU.
    pub(crate) fn on_cpu(weights: &Weights) -> Self {
        Self { weights: weights.clone(), placed: None, asked: None, path: String::new() }
    }

    /// Of modules that compute on a GPU. They get room there; [`Placed::fill`] brings the numbers.
    pub(crate) fn on_gpu(weights: &Weights, placed: &Arc<Placed>) -> Self {
        Self { weights: weights.clone(), placed: Some(placed.clone()), asked: None, path: String::new() }
    }

    /// Of modules of which nothing is wanted but what they ask for; they get zeros.
    pub(crate) fn listed(asked: &Asked) -> Self {
        let weights = Weights::new(Default::default());
        Self { weights, placed: None, asked: Some(asked.clone()), path: String::new() }
    }

    /// Those of a part.
    pub(crate) fn pp(&self, part: impl ToString) -> Self {
        let part = part.to_string();
        let path = if self.path.is_empty() { part } else { format!("{}.{part}", self.path) };
        Self { path, ..self.clone() }
    }

    /// Where they are to be placed, if on a GPU.
    pub(crate) fn placed(&self) -> Option<&Arc<Placed>> {
        self.placed.as_ref()
    }

    /// The tensor on the CPU, in f32.
    ///
    /// # Errors
    /// There is none, or it has another shape.
    pub(crate) fn tensor(&self, dims: &[usize], leaf: &str) -> Result<Tensor> {
        let name = self.checked(dims, leaf)?;
        if self.asked.is_some() {
            return Tensor::zeros(dims, DType::F32, &Device::Cpu);
        }
        self.weights.tensor(&name)?.to_dtype(DType::F32)?.contiguous()
    }

    /// Its full name.
    ///
    /// # Errors
    /// There is none, or it has another shape.
    pub(crate) fn checked(&self, dims: &[usize], leaf: &str) -> Result<String> {
        let name = format!("{}.{leaf}", self.path);
        if let Some(asked) = &self.asked {
            asked.lock().unwrap_or_else(PoisonError::into_inner).push((name.clone(), dims.to_vec()));
            return Ok(name);
        }
        match self.weights.dims(&name) {
            Some(found) if found == dims => Ok(name),
            Some(found) => {
                let msg = format!("shape mismatch for {name}");
                Err(Error::UnexpectedShape { msg, expected: dims.into(), got: found.into() }.bt())
            }
            None => Err(Error::CannotFindTensor { path: name }.bt()),
        }
    }

    /// A place on the GPU for one tensor.
    ///
    /// # Errors
    /// There is no such tensor, it has another shape, or memory is short.
    pub(crate) fn place(&self, placed: &Placed, dims: &[usize], leaf: &str, layout: WeightLayout) -> Result<Array> {
        Ok(placed.place(&[(self.checked(dims, leaf)?, layout)])?)
    }

    /// The same with other weights.
    pub(crate) fn with(&self, weights: &Weights) -> Self {
        Self { weights: weights.clone(), ..self.clone() }
    }

    /// Some rows of a matrix, on the CPU in f32.
    ///
    /// # Errors
    /// There is no such matrix or row.
    pub(crate) fn rows(&self, leaf: &str, rows: &[u32]) -> Result<Tensor> {
        self.weights.rows(&format!("{}.{leaf}", self.path), rows)
    }

    /// A tensor of the CPU where the modules compute.
    ///
    /// # Errors
    /// Device or memory.
    pub(crate) fn on_device(&self, tensor: &Tensor) -> Result<ops::Array> {
        Ok(match &self.placed {
            None => ops::Array::Cpu(tensor.contiguous()?),
            Some(placed) => ops::Array::Gpu(Array::from_tensor(placed.gpu(), tensor, placed.dtype())?),
        })
    }

    /// A map `[batch, channels, height, width]` of the CPU where the modules compute.
    ///
    /// # Errors
    /// Device or memory.
    pub(crate) fn map_on_device(&self, map: &Tensor) -> Result<ops::Array> {
        if self.placed.is_none() {
            return Ok(ops::Array::Cpu(map.contiguous()?));
        }
        let channels = map.dim(1)?;
        let map = map.pad_with_zeros(1, 0, channels.next_multiple_of(ops::LANES) - channels)?;
        self.on_device(&map.permute((0, 2, 3, 1))?.contiguous()?)
    }
}
