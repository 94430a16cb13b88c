//! Steps on a GPU, recorded once for each size and replayed: what a step costs the CPU is one call. And the way to pixels.
//!
//! What is recorded reads and writes arrays that keep their place: latents, the step's number, guidance, what the steps share,
//! and the weights. A LoRA changes weights in place, so recordings outlive it.

use super::{
    ops::{self, LANES, Step},
    unet::{Prepared, Unet},
    vae::VaeDecoder,
};
use crate::gpu::{Arg, Array, Dtype, Gpu, Graph, Launch, Pinned};
use candle_core::{Device, Error, Result, Tensor};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// More recordings than this are forgotten, all at once.
const MOST: usize = 24;
/// Tables hold at least so many steps.
const STEPS: usize = 128;

/// Recordings by what they are for.
pub(super) struct Recorded {
    gpu: Gpu,
    dtype: Dtype,
    steps: Mutex<HashMap<StepKey, StepRecord>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct StepKey {
    images: usize,
    channels: usize,
    height: usize,
    width: usize,
    guided: bool,
    /// Tokens of the prompt.
    tokens: usize,
}

/// One size's step.
struct StepRecord {
    key: StepKey,
    /// f32, as the CPU has them.
    latents: Array,
    noise: Array,
    guidance: Array,
    step: Array,
    prepared: Prepared,
    /// Steps that the tables hold.
    room: usize,
    pinned: Pinned,
    graph: Option<Graph>,
}

/// The steps of one picture.
pub(super) struct Steps<'a> {
    recorded: &'a Recorded,
    unet: &'a Unet,
    key: StepKey,
}

impl Recorded {
    pub(super) fn new(gpu: &Gpu, dtype: Dtype) -> Self {
        Self { gpu: gpu.clone(), dtype, steps: Mutex::default() }
    }

    /// Gets the arrays of a recording ready for one picture's steps.
    pub(super) fn steps<'a>(
        &'a self,
        unet: &'a Unet,
        prepared: Prepared,
        count: usize,
        guidance_scale: Option<f64>,
        noise: &Tensor,
    ) -> Result<Steps<'a>> {
        let (images, channels, height, width) = noise.dims4()?;
        let first = prepared.prompts.iter().flatten().flatten().next();
        let tokens = first.map(|keys| Ok::<_, Error>(keys.gpu()?.dims()[1])).transpose()?.unwrap_or(0);
        let key = StepKey { images, channels, height, width, guided: guidance_scale.is_some(), tokens };
        let mut steps = lock(&self.steps);
        if steps.get(&key).is_none_or(|record| record.room < count) {
            if steps.len() >= MOST {
                steps.clear();
            }
            steps.insert(key, StepRecord::new(&self.gpu, key, &prepared, count)?);
        }
        let record = steps.get(&key).ok_or_else(|| Error::Msg("a recording is gone".into()).bt())?;
        record.begin(&prepared, count, guidance_scale.unwrap_or(1.0))?;
        Ok(Steps { recorded: self, unet, key })
    }

    /// Pixels of one picture's latents as bytes, with height and width. Not recorded: one call of it keeps the GPU busy as it is.
    pub(super) fn pixels(&self, vae: &VaeDecoder, latents: &Tensor, factor: f64) -> Result<(Vec<u8>, usize, usize)> {
        let (images, channels, height, width) = latents.dims4()?;
        let source = Array::from_tensor(&self.gpu, latents, Dtype::F32)?;
        let xs = self.gpu.scratch(&[images, height, width, channels.next_multiple_of(LANES)], self.dtype)?;
        enter(&source, &xs, 1, 1.0 / factor)?;
        let pixels = vae.decode(&ops::Array::Gpu(xs)).map_err(|error| Error::Msg(error.to_string()))?;
        let (pixels, (height, width)) = (pixels.gpu()?, pixels.size()?);
        let bytes = self.gpu.scratch(&[height * width * 3 / 4], Dtype::F32)?;
        let args = [Arg::At(pixels.address()), Arg::At(bytes.address()), Arg::Long(height * width)];
        let name = format!("leave_pixels_{}", self.dtype.name());
        self.gpu.launch(Launch { name, grid: [(height * width).div_ceil(256), 1, 1], block: 256, shared: 0 }, &args)?;
        Ok((bytes.read()?, height, width))
    }
}

impl StepRecord {
    fn new(gpu: &Gpu, key: StepKey, like: &Prepared, count: usize) -> Result<Self> {
        let latents = [key.images, key.channels, key.height, key.width];
        let room = count.max(STEPS);
        let table = |shifts: &ops::Array| Ok(ops::Array::Gpu(shifts.gpu()?.resident_like(Some(room))?));
        let keys = |keys: &ops::Array| Ok(ops::Array::Gpu(keys.gpu()?.resident_like(None)?));
        let prompts = |prompts: &Vec<Vec<ops::Array>>| {
            prompts.iter().map(|prompt| prompt.iter().map(keys).collect()).collect::<Result<_>>()
        };
        let prepared = Prepared {
            shifts: like.shifts.iter().map(table).collect::<Result<_>>()?,
            prompts: like.prompts.iter().map(prompts).collect::<Result<_>>()?,
        };
        let latents = gpu.resident(&latents, Dtype::F32)?;
        Ok(Self {
            key,
            noise: gpu.resident(latents.dims(), Dtype::F32)?,
            guidance: gpu.resident(&[1], Dtype::F32)?,
            step: gpu.resident(&[1], Dtype::F32)?,
            pinned: Pinned::new(latents.bytes())?,
            latents,
            prepared,
            room,
            graph: None,
        })
    }

    /// Fills what the steps share, from step 0 on.
    fn begin(&self, fresh: &Prepared, count: usize, guidance_scale: f64) -> Result<()> {
        let gpu = self.latents.gpu();
        for (table, shifts) in self.prepared.shifts.iter().zip(&fresh.shifts) {
            gpu.copy(shifts.gpu()?, &table.gpu()?.part(0, count))?;
        }
        let ours = self.prepared.prompts.iter().flatten().flatten();
        for (keys, fresh) in ours.zip(fresh.prompts.iter().flatten().flatten()) {
            gpu.copy(fresh.gpu()?, keys.gpu()?)?;
        }
        gpu.clear(&self.step)?;
        Ok(self.guidance.write(&(guidance_scale as f32).to_le_bytes())?)
    }

    /// From latents to noise, once.
    fn run(&self, unet: &Unet, dtype: Dtype) -> Result<()> {
        let (gpu, key) = (self.latents.gpu(), self.key);
        let copies = if key.guided { 2 } else { 1 };
        let dims = [copies * key.images, key.height, key.width, key.channels.next_multiple_of(LANES)];
        let xs = gpu.scratch(&dims, dtype)?;
        enter(&self.latents, &xs, copies, 1.0)?;
        let step = Step::Counter(self.step.clone());
        let output = unet.forward(&ops::Array::Gpu(xs), &step, &self.prepared);
        let output = output.map_err(|error| Error::Msg(error.to_string()))?;
        let arrays = [output.gpu()?, &self.noise, &self.guidance].map(|array| Arg::At(array.address()));
        let area = key.height * key.width;
        let sizes = [key.images, key.channels, area, copies].map(Arg::Int);
        let args = [&arrays[..], &sizes, &[Arg::At(self.step.address())]].concat();
        let blocks = (key.images * key.channels * area).div_ceil(256);
        let name = format!("leave_noise_{}", dtype.name());
        Ok(gpu.launch(Launch { name, grid: [blocks, 1, 1], block: 256, shared: 0 }, &args)?)
    }
}

impl Steps<'_> {
    /// See [`super::networks::Steps::predict`].
    pub(super) fn predict(&mut self, latents: &Tensor) -> Result<Tensor> {
        let mut steps = lock(&self.recorded.steps);
        let record = steps.get_mut(&self.key).ok_or_else(|| Error::Msg("a recording is gone".into()).bt())?;
        let dtype = self.recorded.dtype;
        record.latents.write_through(&mut record.pinned, &latents.flatten_all()?.to_vec1::<f32>()?)?;
        match &record.graph {
            Some(graph) => graph.launch()?,
            None => record.run(self.unet, dtype)?,
        }
        let noise = record.noise.read_through(&mut record.pinned)?;
        let noise = Tensor::from_vec(noise, latents.dims(), &Device::Cpu)?;
        if record.graph.is_none() {
            // Everything that is made on first use is there now.
            let (graph, ()) = Graph::record(&self.recorded.gpu, || record.run(self.unet, dtype))?;
            record.graph = Some(graph);
        }
        Ok(noise)
    }
}

/// The CPU's latents as a map, `copies` times over.
fn enter(latents: &Array, xs: &Array, copies: usize, scale: f64) -> Result<()> {
    let &[images, channels, height, width] = latents.dims() else { return Err(Error::Msg("no latents".into()).bt()) };
    let sizes = [images, channels, height * width, copies].map(Arg::Int);
    let arrays = [latents, xs].map(|array| Arg::At(array.address()));
    let args = [&arrays[..], &sizes, &[Arg::Float(scale as f32)]].concat();
    let name = format!("enter_{}", xs.dtype().name());
    let blocks = (copies * images * height * width).div_ceil(256);
    Ok(xs.gpu().launch(Launch { name, grid: [blocks, 1, 1], block: 256, shared: 0 }, &args)?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
