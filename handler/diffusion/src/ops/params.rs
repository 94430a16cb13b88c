//! The parameters of modules, looked up by path. On the CPU they are tensors, on a GPU they are places for tensors.

use crate::gpu::{Array, Dtype, Placed, WeightLayout};
use crate::{
    loading::weights::Weights,
    ops::{self, Packed},
};
use candle_core::{DType, Device, Error, Result, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// The parameters below one path.
#[derive(Clone)]
pub(crate) struct Params {
    weights: Weights,
    placed: Option<Arc<Placed>>,
    /// The section of the component for what no step uses.
    ahead: Option<Arc<Placed>>,
    recorder: Option<ShapeRecorder>,
    /// The most tokens of a prompt.
    prompt_tokens: Option<usize>,
    /// Where products in bf16 find their weights. None if they are in f32.
    packed: Option<Packed>,
    path: String,
}

/// Names and shapes of tensors.
pub type Shapes = Vec<(String, Vec<usize>)>;

/// Records the names and shapes of the tensors that modules look up.
pub(crate) type ShapeRecorder = Arc<Mutex<Shapes>>;

impl Params {
    /// For modules on the CPU.
    pub(crate) fn on_cpu(weights: &Weights) -> Self {
        Self { weights: weights.clone(), ..Self::of_nothing() }
    }

    /// For modules on the CPU, with products in bf16.
    pub(crate) fn on_cpu_in_bf16(weights: &Weights, packed: &Packed) -> Self {
        Self { packed: Some(packed.clone()), ..Self::on_cpu(weights) }
    }

    /// For modules on a GPU. Tensors get a place there, and [`Placed::fill`] copies the numbers later.
    pub(crate) fn on_gpu(weights: &Weights, placed: &Arc<Placed>) -> Self {
        Self { weights: weights.clone(), placed: Some(placed.clone()), ..Self::of_nothing() }
    }

    /// The same, with a section of the component for parameters that only work ahead of the steps uses.
    pub(crate) fn with_section(self, ahead: &Arc<Placed>) -> Self {
        Self { ahead: Some(ahead.clone()), ..self }
    }

    /// The same for prompts of so many tokens at most. Modules that are not told take any.
    pub(crate) fn for_prompts_of(self, tokens: usize) -> Self {
        Self { prompt_tokens: Some(tokens), ..self }
    }

    /// The most tokens of a prompt, if it is known.
    pub(crate) fn prompt_tokens(&self) -> Option<usize> {
        self.prompt_tokens
    }

    /// For parameters that only work ahead of the steps uses: they get places in a section of their own, if there is one.
    pub(crate) fn ahead(self) -> Self {
        Self { placed: self.ahead.clone().or(self.placed), ..self }
    }

    /// Records what modules look up. Every tensor is one zero in all its places: it takes no memory, and no module can run.
    pub(crate) fn recording(recorder: &ShapeRecorder) -> Self {
        Self { recorder: Some(recorder.clone()), ..Self::of_nothing() }
    }

    fn of_nothing() -> Self {
        let weights = Weights::new(Default::default());
        let path = String::new();
        Self { weights, placed: None, ahead: None, recorder: None, prompt_tokens: None, packed: None, path }
    }

    /// The parameters below a part of the path, as in candle's `VarBuilder`.
    pub(crate) fn pp(&self, part: impl ToString) -> Self {
        let part = part.to_string();
        let path = if self.path.is_empty() { part } else { format!("{}.{part}", self.path) };
        Self { path, ..self.clone() }
    }

    /// Whether the modules are built for the names and shapes of their tensors alone.
    pub(crate) fn is_recording(&self) -> bool {
        self.recorder.is_some()
    }

    /// Where products in bf16 on the CPU find their weights. None in f32 and on a GPU.
    pub(crate) fn packed(&self) -> Option<&Packed> {
        self.packed.as_ref()
    }

    /// The full name of the tensor `leaf`, unless a LoRA has changed it.
    pub(crate) fn unchanged(&self, leaf: &str) -> Option<String> {
        let name = self.name(leaf);
        (!self.weights.overlay().contains_key(&name)).then_some(name)
    }

    fn name(&self, leaf: &str) -> String {
        if self.path.is_empty() { leaf.to_string() } else { format!("{}.{leaf}", self.path) }
    }

    /// The places on the GPU. None on the CPU.
    pub(crate) fn placed(&self) -> Option<&Arc<Placed>> {
        self.placed.as_ref()
    }

    /// The tensor `leaf` on the CPU, in f32.
    ///
    /// # Errors
    /// There is none, or its shape is not `dims`.
    pub(crate) fn tensor(&self, dims: &[usize], leaf: &str) -> Result<Tensor> {
        let name = self.checked(dims, leaf)?;
        if self.recorder.is_some() {
            return Tensor::zeros(1, DType::F32, &Device::Cpu)?.broadcast_as(dims);
        }
        self.weights.tensor(&name)?.to_dtype(DType::F32)?.contiguous()
    }

    /// The full name of the tensor `leaf`.
    ///
    /// # Errors
    /// There is none, or its shape is not `dims`.
    pub(crate) fn checked(&self, dims: &[usize], leaf: &str) -> Result<String> {
        let name = self.name(leaf);
        if let Some(recorder) = &self.recorder {
            recorder.lock().unwrap_or_else(PoisonError::into_inner).push((name.clone(), dims.to_vec()));
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

    /// A place on the GPU for the tensor `leaf`.
    ///
    /// # Errors
    /// There is no such tensor, its shape is not `dims`, or there is not enough memory.
    pub(crate) fn place(&self, placed: &Placed, dims: &[usize], leaf: &str, layout: WeightLayout) -> Result<Array> {
        Ok(placed.place(&[(self.checked(dims, leaf)?, layout)])?)
    }

    /// The same path in other weights.
    pub(crate) fn with_weights(&self, weights: &Weights) -> Self {
        Self { weights: weights.clone(), ..self.clone() }
    }

    /// Some rows of the matrix `leaf`, `[rows, columns]` on the CPU in f32.
    ///
    /// # Errors
    /// There is no such matrix or row.
    pub(crate) fn rows(&self, leaf: &str, rows: &[u32]) -> Result<Tensor> {
        self.weights.rows(&format!("{}.{leaf}", self.path), rows)
    }

    /// A CPU tensor copied to the device of the modules.
    ///
    /// # Errors
    /// The device fails or has too little memory.
    pub(crate) fn on_device(&self, tensor: &Tensor) -> Result<ops::Array> {
        Ok(match &self.placed {
            None => ops::Array::Cpu(tensor.contiguous()?),
            Some(placed) => ops::Array::Gpu(Array::from_tensor(placed.gpu(), tensor, placed.dtype())?),
        })
    }

    /// Rows `[.., columns]` copied from the CPU to the device of the modules, on a GPU with zeros up to a whole vector.
    ///
    /// # Errors
    /// The device fails or has too little memory.
    pub(crate) fn rows_on_device(&self, rows: &Tensor) -> Result<ops::Array> {
        if self.placed.is_none() {
            return self.on_device(rows);
        }
        let mut dims = rows.dims().to_vec();
        let Some(columns) = dims.last_mut() else { return self.on_device(rows) };
        let (old, new) = (*columns, columns.next_multiple_of(ops::LANES));
        *columns = new;
        let mut padded = vec![0f32; dims.iter().product()];
        let numbers = rows.flatten_all()?.to_vec1::<f32>()?;
        for (to, from) in padded.chunks_exact_mut(new).zip(numbers.chunks_exact(old)) {
            to[..old].copy_from_slice(from);
        }
        self.on_device(&Tensor::from_vec(padded, dims, rows.device())?)
    }

    /// The dtype of the modules' parameters and activations: f32 on the CPU.
    pub(crate) fn dtype(&self) -> DType {
        match self.placed.as_ref().map(|placed| placed.dtype()) {
            None | Some(Dtype::F32) => DType::F32,
            Some(Dtype::F16) => DType::F16,
            Some(Dtype::BF16) => DType::BF16,
        }
    }

    /// A feature map `[batch, channels, height, width]` copied from the CPU to the device of the modules.
    ///
    /// # Errors
    /// The device fails or has too little memory.
    pub(crate) fn map_on_device(&self, map: &Tensor) -> Result<ops::Array> {
        if self.placed.is_none() {
            return Ok(ops::Array::Cpu(map.contiguous()?));
        }
        let channels = map.dim(1)?;
        let map = map.pad_with_zeros(1, 0, channels.next_multiple_of(ops::LANES) - channels)?;
        self.on_device(&map.permute((0, 2, 3, 1))?.contiguous()?)
    }
}
