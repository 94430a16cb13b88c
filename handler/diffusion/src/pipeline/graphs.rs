//! Steps on a GPU, recorded once for each size and replayed: what a step costs the CPU is one call. And the way to pixels.
//!
//! What is recorded reads and writes arrays that keep their place: latents, the step's number, guidance, what the steps share,
//! and the weights. A LoRA changes weights in place, so recordings outlive it.

use crate::gpu::{Array, Dtype, Gpu, Graph, Pinned};
use crate::{
    models::unet::{Prepared, Unet},
    models::vae::VaeDecoder,
    ops::{self, LANES, Step, steps},
    schedulers::Sums,
};
use candle_core::{Device, Error, Result, Tensor};
use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// More recordings than this are forgotten, all at once.
const MOST: usize = 24;
/// Tables hold at least so many steps.
const STEPS: usize = 128;

/// Recordings by what they are for.
pub(crate) struct Recorded {
    gpu: Gpu,
    dtype: Dtype,
    steps: Mutex<HashMap<StepKey, StepRecord>>,
    /// After the recordings, which use its weights.
    unet: Arc<Unet>,
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
    /// Whether the scheduler's arithmetic is part of it.
    advances: bool,
}

/// One size's step.
struct StepRecord {
    /// First, so that it is dropped before the arrays that it uses.
    graph: Option<Graph>,
    key: StepKey,
    /// f32, as the CPU has them.
    latents: Array,
    noise: Array,
    guidance: Array,
    /// Number of the step, an `int`.
    step: Array,
    /// The clean picture of the step before, and what each step's sums are made of.
    before: Array,
    sums: Array,
    prepared: Prepared,
    /// Steps that the tables hold.
    room: usize,
    pinned: Pinned,
}

/// The steps of one picture.
pub(crate) struct Steps<'a> {
    recorded: &'a Recorded,
    key: StepKey,
}

impl Recorded {
    pub(crate) fn new(gpu: &Gpu, dtype: Dtype, unet: Arc<Unet>) -> Self {
        Self { gpu: gpu.clone(), dtype, steps: Mutex::default(), unet }
    }

    /// Gives the memory of all recordings back.
    pub(crate) fn forget(&self) -> Result<()> {
        lock(&self.steps).clear();
        Ok(self.gpu.trim()?)
    }

    /// Gets the arrays of a recording ready for one picture's steps.
    pub(crate) fn steps<'a>(
        &'a self,
        prepared: Prepared,
        count: usize,
        guidance_scale: Option<f64>,
        noise: &Tensor,
        sums: Option<&[Sums]>,
    ) -> Result<Steps<'a>> {
        let (images, channels, height, width) = noise.dims4()?;
        let first = prepared.prompts.iter().flatten().flatten().next();
        let tokens = first.map(|keys| Ok::<_, Error>(keys.gpu()?.dims()[1])).transpose()?.unwrap_or(0);
        let (guided, advances) = (guidance_scale.is_some(), sums.is_some());
        let key = StepKey { images, channels, height, width, guided, tokens, advances };
        let mut steps = lock(&self.steps);
        if steps.get(&key).is_none_or(|record| record.room < count) {
            if steps.len() >= MOST {
                steps.clear();
                self.gpu.trim()?;
            }
            steps.insert(key, StepRecord::new(&self.gpu, key, &prepared, count)?);
        }
        let record = steps.get(&key).ok_or_else(|| Error::Msg("a recording is gone".into()).bt())?;
        record.begin(&prepared, count, guidance_scale.unwrap_or(1.0), sums.unwrap_or_default())?;
        Ok(Steps { recorded: self, key })
    }

    /// Pixels of one picture's latents as bytes, with height and width. Not recorded: one call of it keeps the GPU busy as it is.
    pub(crate) fn pixels(&self, vae: &VaeDecoder, latents: &Tensor, factor: f64) -> Result<(Vec<u8>, usize, usize)> {
        let (images, channels, height, width) = latents.dims4()?;
        let source = Array::from_tensor(&self.gpu, latents, Dtype::F32)?;
        let xs = self.gpu.scratch(&[images, height, width, channels.next_multiple_of(LANES)], self.dtype)?;
        steps::enter(&source, &xs, 1.0 / factor)?;
        let pixels = vae.decode(&ops::Array::Gpu(xs)).map_err(|error| Error::Msg(error.to_string()))?;
        let (pixels, (height, width)) = (pixels.gpu()?, pixels.size()?);
        Ok((steps::leave_pixels(pixels)?, height, width))
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
            before: gpu.resident(latents.dims(), Dtype::F32)?,
            sums: gpu.resident(&[room, 5], Dtype::F32)?,
            guidance: gpu.resident(&[1], Dtype::F32)?,
            step: gpu.resident(&[1], Dtype::F32)?,
            pinned: Pinned::new(gpu, latents.bytes())?,
            latents,
            prepared,
            room,
            graph: None,
        })
    }

    /// Fills what the steps share, from step 0 on.
    fn begin(&self, fresh: &Prepared, count: usize, guidance_scale: f64, sums: &[Sums]) -> Result<()> {
        let gpu = self.latents.gpu();
        for (table, shifts) in self.prepared.shifts.iter().zip(&fresh.shifts) {
            gpu.copy(shifts.gpu()?, &table.gpu()?.part(0, count))?;
        }
        let ours = self.prepared.prompts.iter().flatten().flatten();
        for (keys, fresh) in ours.zip(fresh.prompts.iter().flatten().flatten()) {
            gpu.copy(fresh.gpu()?, keys.gpu()?)?;
        }
        // The first step adds one and gets to 0.
        gpu.fill(&self.step, 0xFF)?;
        gpu.clear(&self.before)?;
        let numbers = sums
            .iter()
            .flat_map(|sums| [sums.clean_by_sample, sums.clean_by_output, sums.sample, sums.clean, sums.clean_before]);
        let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
        if !sums.is_empty() {
            self.sums.part(0, sums.len()).write(&bytes)?;
        }
        Ok(self.guidance.write(&(guidance_scale as f32).to_le_bytes())?)
    }

    /// One step: from latents to noise, or to the next latents.
    fn run(&self, unet: &Unet, dtype: Dtype) -> Result<()> {
        let (gpu, key) = (self.latents.gpu(), self.key);
        let copies = if key.guided { 2 } else { 1 };
        let dims = [copies * key.images, key.height, key.width, key.channels.next_multiple_of(LANES)];
        let xs = gpu.scratch(&dims, dtype)?;
        steps::begin_step(&self.latents, &xs, &self.step)?;
        let counter = Step::Counter(self.step.clone());
        let output = unet.forward(&ops::Array::Gpu(xs), &counter, &self.prepared);
        let output = output.map_err(|error| Error::Msg(error.to_string()))?;
        let output = output.gpu()?;
        if key.advances {
            steps::advance(output, &self.latents, &self.before, &self.sums, &self.guidance, &self.step)
        } else {
            steps::leave_noise(output, &self.noise, &self.guidance)
        }
    }

    /// Runs a step, and records it if that has not been done.
    fn go(&mut self, unet: &Arc<Unet>, dtype: Dtype) -> Result<()> {
        if let Some(graph) = self.graph.as_mut().filter(|graph| !graph.is_stale()) {
            return Ok(graph.launch()?);
        }
        self.run(unet, dtype)?;
        // Everything that is made on first use is there now.
        let gpu = self.latents.gpu().clone();
        // SAFETY: the step's arrays are fields of this record, and its weights those of the UNet that `Recorded` keeps until all records
        // are dropped. The one thread that paints records, and it holds no scratch array from one step to the next.
        #[allow(unsafe_code)]
        let (graph, ()) = unsafe { Graph::record(&gpu, || self.run(unet, dtype))? };
        self.graph = Some(graph);
        Ok(gpu.keep_tuned()?)
    }
}

impl Steps<'_> {
    /// See [`crate::pipeline::networks::Steps::predict`].
    pub(crate) fn predict(&mut self, latents: &Tensor) -> Result<Tensor> {
        let mut steps = lock(&self.recorded.steps);
        let record = steps.get_mut(&self.key).ok_or_else(|| Error::Msg("a recording is gone".into()).bt())?;
        record.latents.write_through(&mut record.pinned, &latents.flatten_all()?.to_vec1::<f32>()?)?;
        record.go(&self.recorded.unet, self.recorded.dtype)?;
        let noise = record.noise.read_through(&mut record.pinned)?;
        Tensor::from_vec(noise, latents.dims(), &Device::Cpu)
    }

    /// All steps, from the first latents to the last. `on_step` is called with the number of finished steps, before the first (0)
    /// and after each but the last, and may stop the run: then the number is given instead. The GPU is one step ahead of it.
    pub(crate) fn run(
        &mut self,
        latents: &Tensor,
        count: usize,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<std::result::Result<Tensor, usize>> {
        let mut steps = lock(&self.recorded.steps);
        let record = steps.get_mut(&self.key).ok_or_else(|| Error::Msg("a recording is gone".into()).bt())?;
        let gpu = &self.recorded.gpu;
        record.latents.write_through(&mut record.pinned, &latents.flatten_all()?.to_vec1::<f32>()?)?;
        let mut marks = [gpu.event()?, gpu.event()?];
        for step in 0..count {
            if step > 0 {
                record.go(&self.recorded.unet, self.recorded.dtype)?;
                gpu.record(&marks[1])?;
                gpu.wait_for(&marks[0])?;
                marks.swap(0, 1);
            }
            if on_step(step).is_break() {
                gpu.synchronize()?;
                return Ok(Err(step));
            }
            if step == 0 {
                record.go(&self.recorded.unet, self.recorded.dtype)?;
                gpu.record(&marks[0])?;
            }
        }
        let latents = Tensor::from_vec(record.latents.read_through(&mut record.pinned)?, latents.dims(), &Device::Cpu)?;
        Ok(Ok(latents))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
