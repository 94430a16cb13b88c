//! Denoising steps on a GPU as CUDA graphs: a step is recorded once for each size, and then replayed with one call. Also the run of the
//! VAE decoder.
//!
//! A graph reads and writes arrays at fixed addresses: latents, the step's index, guidance, what the steps share, and the weights. A
//! LoRA changes weights in place, so graphs stay valid.

use crate::gpu::{Array, Dtype, Gpu, Graph, Pinned, Placed};
use crate::{
    models::unet::{Prepared, Unet},
    models::vae::{DecodeMemory, VaeDecoder},
    ops::{self, Folded, LANES, PromptKeys, Prompts, Step, steps},
    pipeline::Watch,
    schedulers::StepCoefficients,
};
use candle_core::{Device, Error, Result, Tensor};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The most recordings, however many sizes are asked for. If there are so many, the one that was used longest ago is dropped before the
/// next one.
const MAX_RECORDINGS: usize = 24;
/// The most of them for long prompts, each of which has keys and values of its own: up to 62 MB for a picture.
const MAX_LONG: usize = 4;
/// The fewest steps in a table.
const MIN_CAPACITY: usize = 128;

/// The recorded steps of one GPU.
pub(crate) struct Recordings {
    gpu: Gpu,
    dtype: Dtype,
    steps: Mutex<HashMap<StepKey, StepRecording>>,
    /// What is folded of the prompts, which all recordings share: one run is under way at a time.
    prompts: Mutex<SharedPrompts>,
    /// After the recordings, so that it is dropped after them: they use its weights.
    unet: Arc<Unet>,
    /// Where these weights are: those of each step, and those that only steps for long prompts use.
    weights: Arc<Placed>,
    ahead: Arc<Placed>,
}

/// Room for what is folded of so many prompts, and which run filled it last.
#[derive(Default)]
struct SharedPrompts {
    room: Vec<Folded>,
    count: usize,
    run: usize,
}

impl SharedPrompts {
    fn forget(&mut self) {
        self.room = Vec::new();
        self.count = 0;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct StepKey {
    images: usize,
    /// Prompts, negative ones included.
    prompts: usize,
    channels: usize,
    height: usize,
    width: usize,
    guided: bool,
    /// Tokens of the prompt.
    tokens: usize,
    /// Whether the graph computes the scheduler's step as well.
    with_scheduler: bool,
}

/// The step for one key: its arrays, and the graph once it is recorded.
struct StepRecording {
    /// First, so that it is dropped before the arrays that it uses.
    graph: Option<Graph>,
    key: StepKey,
    /// The run that used it last.
    used: usize,
    /// `[images, channels, height, width]` in f32, as are `noise` and `clean_before`.
    latents: Array,
    noise: Array,
    guidance: Array,
    /// The index of the step, an `int`.
    step: Array,
    /// The clean picture of the previous step.
    clean_before: Array,
    /// The scheduler's coefficients, `[capacity, 5]`.
    coefficients: Array,
    prepared: Prepared,
    /// The number of steps that fit into the tables.
    capacity: usize,
    /// For latents, and for coefficients.
    pinned: Pinned,
    tables: Pinned,
}

/// The steps of one run.
pub(crate) struct RecordedDenoiser<'a> {
    recordings: &'a Recordings,
    key: StepKey,
    /// The prompts are its own until the next run begins.
    run: usize,
}

impl Recordings {
    pub(crate) fn new(gpu: &Gpu, dtype: Dtype, unet: Arc<Unet>, [weights, ahead]: [Arc<Placed>; 2]) -> Self {
        let (steps, prompts) = (Mutex::default(), Mutex::default());
        Self { gpu: gpu.clone(), dtype, steps, prompts, unet, weights, ahead }
    }

    /// Room for what is folded of so many prompts of so many tokens, for a run that begins: those before it cannot go on. Empty for long
    /// prompts, of which nothing is folded.
    ///
    /// # Errors
    /// There is too little memory.
    pub(crate) fn room(&self, prompts: usize, tokens: usize) -> crate::error::Result<Vec<Folded>> {
        let mut shared = lock(&self.prompts);
        shared.run += 1;
        if !Prompts::fold(tokens) {
            return Ok(Vec::new());
        }
        let folds = shared.count == 0 || !shared.room.is_empty();
        if folds && prompts > shared.count {
            // Recordings have the old room in them.
            lock(&self.steps).clear();
            shared.forget();
            shared.room = self.unet.room(&self.gpu, prompts)?;
            shared.count = prompts;
        }
        Ok(shared.room.iter().map(|folded| folded.first(prompts)).collect())
    }

    /// The end of the scratch memory that recordings use, in bytes from the start.
    pub(crate) fn scratch(&self) -> usize {
        Self::most_scratch(&lock(&self.steps))
    }

    fn most_scratch(steps: &HashMap<StepKey, StepRecording>) -> usize {
        steps.values().filter_map(|step| Some(step.graph.as_ref()?.scratch())).max().unwrap_or(0)
    }

    /// Drops all recordings and frees their memory.
    pub(crate) fn clear(&self) -> Result<()> {
        lock(&self.steps).clear();
        lock(&self.prompts).forget();
        Ok(self.gpu.trim(0)?)
    }

    /// Prepares a recording's arrays for the steps of one run.
    pub(crate) fn denoiser<'a>(
        &'a self,
        prepared: Prepared,
        count: usize,
        guidance_scale: Option<f64>,
        noise: &Tensor,
        coefficients: Option<&[StepCoefficients]>,
    ) -> Result<RecordedDenoiser<'a>> {
        let (images, channels, height, width) = noise.dims4()?;
        let [prompts, tokens] = prepared.size;
        let run = lock(&self.prompts).run;
        let (guided, with_scheduler) = (guidance_scale.is_some(), coefficients.is_some());
        let key = StepKey { images, prompts, channels, height, width, guided, tokens, with_scheduler };
        let mut steps = lock(&self.steps);
        if steps.get(&key).is_none_or(|recording| recording.capacity < count) {
            // Before the next one is made, which then finds the memory.
            let mut gone: Vec<_> = steps.remove(&key).into_iter().collect();
            let is_long = |key: &StepKey| !Prompts::fold(key.tokens);
            let used = |recording: &StepRecording| (recording.key, recording.used);
            let long = steps.values().filter(|recording| is_long(&recording.key)).map(used).collect::<Vec<_>>();
            let longest_ago = to_drop(long, if is_long(&key) { MAX_LONG } else { usize::MAX });
            gone.extend(longest_ago.and_then(|key| steps.remove(&key)));
            let longest_ago = to_drop(steps.values().map(used).collect(), MAX_RECORDINGS);
            gone.extend(longest_ago.and_then(|key| steps.remove(&key)));
            if !gone.is_empty() {
                // Nothing that uses them may be under way.
                self.gpu.synchronize()?;
                drop(gone);
            }
            steps.insert(key, StepRecording::new(&self.gpu, key, &prepared, count)?);
        }
        let recording = steps.get_mut(&key).ok_or_else(|| Error::Msg("a recording is gone".into()).bt())?;
        recording.used = run;
        recording.reset(&prepared, count, guidance_scale.unwrap_or(1.0), coefficients.unwrap_or_default())?;
        Ok(RecordedDenoiser { recordings: self, key, run })
    }

    /// The pixels of one picture's latents as bytes, with height and width. Not recorded, because its kernels are long enough to keep
    /// the GPU busy.
    pub(crate) fn pixels(
        &self,
        vae: &VaeDecoder,
        latents: &Tensor,
        factor: f64,
        memory: DecodeMemory,
    ) -> Result<(Vec<u8>, usize, usize)> {
        let (images, channels, height, width) = latents.dims4()?;
        let source = Array::from_tensor(&self.gpu, latents, Dtype::F32)?;
        let xs = self.gpu.scratch(&[images, height, width, channels.next_multiple_of(LANES)], self.dtype)?;
        steps::enter(&source, &xs, 1.0 / factor)?;
        let (mut bytes, mut height, mut width) = (Vec::new(), 0, 0);
        let mut take = |pixels: ops::Array| {
            let size = pixels.size()?;
            (height, width) = (height + size.0, size.1);
            bytes.append(&mut steps::leave_pixels(pixels.gpu()?)?);
            Ok(())
        };
        let xs = ops::Array::Gpu(xs);
        let decoded = match memory {
            DecodeMemory::Whole => vae.decode(&xs).and_then(|pixels| Ok(take(pixels)?)),
            DecodeMemory::Bands { rows } => vae.decode_in_bands(&xs, rows, &mut take),
        };
        decoded.map_err(|error| Error::Msg(error.to_string()))?;
        Ok((bytes, height, width))
    }
}

impl StepRecording {
    fn new(gpu: &Gpu, key: StepKey, like: &Prepared, count: usize) -> Result<Self> {
        let latents = [key.images, key.channels, key.height, key.width];
        let capacity = count.max(MIN_CAPACITY);
        let table = |shifts: &ops::Array| Ok(ops::Array::Gpu(shifts.gpu()?.resident_like(Some(capacity))?));
        let prompts = |prompts: &Vec<PromptKeys>| prompts.iter().map(PromptKeys::resident_like).collect::<Result<_>>();
        let prepared = Prepared {
            copies: like.copies,
            shifts: like.shifts.iter().map(table).collect::<Result<_>>()?,
            prompts: like.prompts.iter().map(prompts).collect::<Result<_>>()?,
            size: like.size,
        };
        let latents = gpu.resident(&latents, Dtype::F32)?;
        Ok(Self {
            key,
            used: 0,
            noise: gpu.resident(latents.dims(), Dtype::F32)?,
            clean_before: gpu.resident(latents.dims(), Dtype::F32)?,
            coefficients: gpu.resident(&[capacity, 5], Dtype::F32)?,
            guidance: gpu.resident(&[1], Dtype::F32)?,
            step: gpu.resident(&[1], Dtype::F32)?,
            pinned: Pinned::new(gpu, latents.bytes())?,
            tables: Pinned::new(gpu, 4 * 5 * capacity)?,
            latents,
            prepared,
            capacity,
            graph: None,
        })
    }

    /// Fills the arrays that the steps share, and goes back to step 0, all without a wait.
    fn reset(
        &mut self,
        fresh: &Prepared,
        count: usize,
        guidance_scale: f64,
        coefficients: &[StepCoefficients],
    ) -> Result<()> {
        let gpu = self.latents.gpu().clone();
        for (table, shifts) in self.prepared.shifts.iter().zip(&fresh.shifts) {
            gpu.copy(shifts.gpu()?, &table.gpu()?.part(0, count))?;
        }
        let ours = self.prepared.prompts.iter().flatten();
        for (keys, fresh) in ours.zip(fresh.prompts.iter().flatten()) {
            keys.take(fresh)?;
        }
        let numbers = coefficients
            .iter()
            .flat_map(|step| [step.clean_by_sample, step.clean_by_output, step.sample, step.clean, step.clean_before]);
        if !coefficients.is_empty() {
            let table = self.coefficients.part(0, coefficients.len());
            table.write_through(&mut self.tables, &numbers.collect::<Vec<f32>>())?;
        }
        gpu.fill_with(&self.guidance, guidance_scale as f32)?;
        self.rewind()
    }

    /// Goes back to step 0.
    fn rewind(&self) -> Result<()> {
        let gpu = self.latents.gpu();
        // -1, because each step starts by adding 1.
        gpu.fill(&self.step, 0xFF)?;
        Ok(gpu.clear(&self.clean_before)?)
    }

    /// Launches one step's kernels: from latents to noise, or to the next latents.
    fn launch(&self, unet: &Unet, dtype: Dtype) -> Result<()> {
        let (gpu, key) = (self.latents.gpu(), self.key);
        let dims = [key.images, key.height, key.width, key.channels.next_multiple_of(LANES)];
        let xs = gpu.scratch(&dims, dtype)?;
        steps::begin_step(&self.latents, &xs, &self.step)?;
        let counter = Step::Counter(self.step.clone());
        let output = unet.forward(&ops::Array::Gpu(xs), &counter, &self.prepared);
        let output = output.map_err(|error| Error::Msg(error.to_string()))?;
        let output = output.gpu()?;
        if key.with_scheduler {
            let (coefficients, guidance) = (&self.coefficients, &self.guidance);
            steps::advance(output, &self.latents, &self.clean_before, coefficients, guidance, &self.step)
        } else {
            steps::leave_noise(output, &self.noise, &self.guidance)
        }
    }

    /// Runs one step. The first time it is recorded as well.
    fn step(&mut self, Recordings { unet, weights, ahead, dtype, .. }: &Recordings) -> Result<()> {
        let dtype = *dtype;
        if !Prompts::fold(self.key.tokens) {
            // They are there already, unless another run ended meanwhile.
            ahead.come()?;
        }
        if let Some(graph) = self.graph.as_mut().filter(|graph| !graph.is_stale()) {
            // A pass begins and ends in the same state, so that each launch of the graph is one.
            weights.ready()?;
            return Ok(graph.launch()?);
        }
        weights.pass(|| self.launch(unet, dtype))?;
        // Now everything that is created on first use exists, so nothing is created during the recording.
        let gpu = self.latents.gpu().clone();
        // SAFETY: the step's arrays are fields of this recording, and its weights those of the UNet that `Recordings` keeps until all
        // recordings are dropped. The one thread that paints records, and it holds no scratch array from one step to the next.
        #[allow(unsafe_code)]
        let (graph, ()) = unsafe { Graph::record(&gpu, || weights.pass(|| self.launch(unet, dtype)))? };
        self.graph = Some(graph);
        Ok(())
    }
}

impl RecordedDenoiser<'_> {
    fn check_is_last(&self) -> Result<()> {
        let is_last = lock(&self.recordings.prompts).run == self.run;
        is_last.then_some(()).ok_or_else(|| Error::Msg("another run has begun: the prompts are its own".into()).bt())
    }

    /// See [`crate::pipeline::networks::Denoiser::rewind`].
    pub(crate) fn rewind(&self) -> Result<()> {
        self.check_is_last()?;
        let steps = lock(&self.recordings.steps);
        steps.get(&self.key).ok_or_else(|| Error::Msg("a recording is gone".into()).bt())?.rewind()
    }

    /// See [`crate::pipeline::networks::Denoiser::predict`].
    pub(crate) fn predict(&mut self, latents: &Tensor) -> Result<Tensor> {
        self.check_is_last()?;
        let mut steps = lock(&self.recordings.steps);
        let recording = steps.get_mut(&self.key).ok_or_else(|| Error::Msg("a recording is gone".into()).bt())?;
        recording.latents.write_through(&mut recording.pinned, &latents.flatten_all()?.to_vec1::<f32>()?)?;
        recording.step(self.recordings)?;
        let noise = recording.noise.read_through(&mut recording.pinned)?;
        Tensor::from_vec(noise, latents.dims(), &Device::Cpu)
    }

    /// Runs all steps, from the first latents to the last. `on_step` is called with the number of finished steps, before the first (0)
    /// and after each but the last, and may stop the run: then that number is the inner error. The GPU is one step ahead of the calls, so
    /// that latents that `on_step` asks for are those after the next step, if there is one under way.
    pub(crate) fn run(
        &mut self,
        latents: &Tensor,
        count: usize,
        on_step: &mut Watch<'_>,
    ) -> Result<std::result::Result<Tensor, usize>> {
        self.check_is_last()?;
        let mut steps = lock(&self.recordings.steps);
        let recording = steps.get_mut(&self.key).ok_or_else(|| Error::Msg("a recording is gone".into()).bt())?;
        let gpu = &self.recordings.gpu;
        recording.latents.write_through(&mut recording.pinned, &latents.flatten_all()?.to_vec1::<f32>()?)?;
        let mut events = [gpu.event()?, gpu.event()?];
        for step in 0..count {
            if step > 0 {
                recording.step(self.recordings)?;
                gpu.record(&events[1])?;
                gpu.wait_for(&events[0])?;
                events.swap(0, 1);
            }
            let mut read = || {
                let numbers = recording.latents.read_through(&mut recording.pinned)?;
                Ok(Tensor::from_vec(numbers, latents.dims(), &Device::Cpu)?)
            };
            if on_step(step, &mut read).is_break() {
                gpu.synchronize()?;
                return Ok(Err(step));
            }
            if step == 0 {
                recording.step(self.recordings)?;
                gpu.record(&events[0])?;
            }
        }
        let latents =
            Tensor::from_vec(recording.latents.read_through(&mut recording.pinned)?, latents.dims(), &Device::Cpu)?;
        Ok(Ok(latents))
    }
}

/// Which recording must go before another one is made: of `most` or more, the one that was used longest ago.
fn to_drop<K>(recordings: Vec<(K, usize)>, most: usize) -> Option<K> {
    if recordings.len() < most {
        return None;
    }
    recordings.into_iter().min_by_key(|(_, used)| *used).map(|(key, _)| key)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_recordings_the_one_goes_that_was_used_longest_ago() {
        let mut kept: Vec<(usize, usize)> = Vec::new();
        for run in 0..200 {
            if let Some(oldest) = to_drop(kept.clone(), MAX_RECORDINGS) {
                kept.retain(|(size, _)| *size != oldest);
            }
            kept.push((run, run));
            assert!(kept.len() <= MAX_RECORDINGS);
            // The first size is painted in between.
            kept.iter_mut().filter(|(size, _)| *size == 0).for_each(|(_, used)| *used = run);
        }
        let mut sizes: Vec<usize> = kept.into_iter().map(|(size, _)| size).collect();
        sizes.sort();
        assert_eq!((sizes.len(), sizes[0], sizes[1]), (MAX_RECORDINGS, 0, 200 - MAX_RECORDINGS + 1));
    }
}
