//! `handler bench`: measures on this machine. Each figure is the median of its repeats.

mod file;
mod products;
mod safety;

pub use file::file;
pub use products::products;
pub use safety::safety;

use crate::{
    cli::picture_size::PictureSize,
    engine::{Engine, GenerationRequest, options::ModelConfig},
    picture::options::CredentialFiles,
    task,
};
use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use diffusion::{
    gpu::{Generation, Gpu},
    lora::{AppliedLora, Lora},
    noise::Source,
    pipeline::{Footprint, Request},
    prompt::Weighting,
    schedulers::Kind,
};
use serde_json::{Value, json};
use std::{
    fs,
    ops::ControlFlow,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// After so many tasks, everything that is made on first use exists.
const SETTLED: usize = 5;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// What reading a LoRA and swapping it in and out costs.
    Lora(BenchLoraConfig),
    /// What a picture costs, stage by stage.
    Picture(BenchPictureConfig),
    /// What it costs to sign a picture, to encode it and to write its metadata. Needs no model.
    File(BenchFileConfig),
    /// What it costs to look at a picture with the model's safety checker.
    Safety(BenchSafetyConfig),
    /// What each product and each convolution of the UNet costs by itself. Needs a GPU and no model.
    Products(BenchProductsConfig),
    /// Whether many tasks in a row cost the same and leave nothing behind.
    Soak(BenchSoakConfig),
}

/// Settings of `handler bench lora`.
#[derive(Debug, Clone, Args)]
pub struct BenchLoraConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// The LoRA.
    #[arg(long, value_name = "FILE")]
    pub lora: PathBuf,
    /// How often each part is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `handler bench picture`.
#[derive(Debug, Clone, Args)]
pub struct BenchPictureConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// What the picture shows.
    #[arg(long, default_value = "lighthouse sunset sea")]
    pub prompt: String,
    /// Its size.
    #[command(flatten)]
    pub size: PictureSize,
    /// Denoising steps.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub steps: u16,
    /// Classifier-free guidance; none at 1 and below.
    #[arg(long, default_value_t = 7.5)]
    pub guidance_scale: f64,
    /// How many pictures at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub num_images: u8,
    /// How often, after a first time that is shown by itself.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `handler bench file`.
#[derive(Debug, Clone, Args)]
pub struct BenchFileConfig {
    /// A picture, JPEG or PNG, cropped to the size [default: soft waves]
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// The name to sign with.
    #[arg(long, value_name = "NAME", default_value = "Ada Kowalska")]
    pub signature: String,
    /// What signs the file.
    #[command(flatten)]
    pub credential: CredentialFiles,
    /// 1:1 is 512x512, 2:2 is 768x768, 1:2 is 512x1024.
    #[arg(long, default_value = "1:1", value_parser = ["1:1", "2:2", "1:2"])]
    pub aspect_ratio: String,
    /// How often each part is measured.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub repeat: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `handler bench safety`.
#[derive(Debug, Clone, Args)]
pub struct BenchSafetyConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// 1:1 is 512x512, 2:2 is 768x768, 1:2 is 512x1024.
    #[arg(long, default_value = "1:1", value_parser = ["1:1", "2:2", "1:2"])]
    pub aspect_ratio: String,
    /// How often it is measured.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub repeat: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `handler bench products`.
#[derive(Debug, Clone, Args)]
pub struct BenchProductsConfig {
    /// f16, bf16 or f32.
    #[arg(long, default_value = "f16", value_parser = ["f16", "bf16", "f32"])]
    pub dtype: String,
    /// 1:1 is 512x512, 2:2 is 768x768, 1:2 is 512x1024.
    #[arg(long, default_value = "1:1", value_parser = ["1:1", "2:2", "1:2"])]
    pub aspect_ratio: String,
    /// How many pictures a step makes at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub at_once: u8,
    /// Use the GPU's kernels of this compute capability: 7.5, 8.0 or 9.0, never more than it has [default: its own]
    #[arg(long, env = "EASEL_KERNELS_OF", value_name = "CAPABILITY")]
    pub kernels_of: Option<Generation>,
    /// How often each is measured.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub repeat: u16,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `handler bench soak`.
#[derive(Debug, Clone, Args)]
pub struct BenchSoakConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// LoRA files; the tasks use them in turns, and now and then none.
    #[arg(long = "lora", value_name = "FILE")]
    pub loras: Vec<PathBuf>,
    /// How many tasks. Their sizes take turns, too.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(12..=100_000))]
    pub tasks: u32,
    /// Denoising steps of each.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub steps: u16,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Measures reading a LoRA, swapping it in over the resident base, and swapping it out again.
///
/// The first swap is shown by itself: it warms up allocators and kernels.
///
/// # Errors
/// The model or the LoRA cannot be used.
pub fn lora(config: &BenchLoraConfig) -> anyhow::Result<()> {
    let named = || format!("--lora {}", config.lora.display());
    let mut read = Vec::new();
    let mut lora = Lora::read(&config.lora).with_context(named)?;
    for _ in 0..config.repeat {
        let clock = Instant::now();
        lora = Lora::read(&config.lora).with_context(named)?;
        read.push(clock.elapsed());
    }
    let modules = lora.modules();
    let mut engine = Engine::open(&config.model, task::size(None))?;
    let applied = [AppliedLora::new(Arc::new(lora), 1.0)];
    let first = engine.swap(&applied)?;
    engine.swap(&[])?;
    let (mut swap_in, mut swap_out) = (Vec::new(), Vec::new());
    for _ in 0..config.repeat {
        swap_in.push(engine.swap(&applied)?);
        swap_out.push(engine.swap(&[])?);
    }
    let device = engine.device_name().to_string();
    let figures = [
        ("read", median(read)),
        ("first_swap_in", first),
        ("swap_in", median(swap_in)),
        ("swap_out", median(swap_out)),
    ];
    let about = json!({ "device": device, "modules": modules, "repeat": config.repeat });
    print(config.json, about, &format!("{modules} modules, {device}, median of {}", config.repeat), &figures)
}

/// Measures loading the model and painting pictures with it, stage by stage, from the prompt's text to the encoded file.
///
/// The first painting is shown by itself: it warms up allocators and kernels.
///
/// # Errors
/// The model or an option cannot be used.
pub fn picture(config: &BenchPictureConfig) -> anyhow::Result<()> {
    ensure!(config.guidance_scale.is_finite(), "--guidance-scale must be a finite number");
    let clock = Instant::now();
    let (width, height) = config.size.pixels();
    let mut engine = Engine::open(&config.model, (width, height))?;
    let load = clock.elapsed();
    let inputs = inputs(&config.prompt, (width, height), config.steps, config.guidance_scale);
    let request = GenerationRequest::new(inputs, usize::from(config.num_images));
    let mut paint = || -> anyhow::Result<_> {
        let clock = Instant::now();
        let output = engine.paint(&request, &mut |_, _| ControlFlow::Continue(()))?;
        Ok((clock.elapsed(), output.stages))
    };
    let (first, _) = paint()?;
    let runs = (0..config.repeat).map(|_| paint()).collect::<anyhow::Result<Vec<_>>>()?;
    let mut figures: Vec<(&str, Duration)> = engine.gpu().map(Gpu::opening).unwrap_or_default();
    figures.extend([("load", load), ("first_picture", first)]);
    figures.push(("picture", median(runs.iter().map(|(whole, _)| *whole).collect())));
    for (index, (name, _)) in runs[0].1.iter().enumerate() {
        figures.push((name, median(runs.iter().map(|(_, stages)| stages[index].1).collect())));
    }
    let device = engine.device_name().to_string();
    let gpu_memory_mib = engine.gpu().map(|gpu| gpu.peak_bytes() >> 20);
    let footprint = engine.footprint();
    let about = json!({
        "offload": footprint.map(|footprint| footprint.offload.name()),
        "streamed_mib": footprint.map(|footprint| footprint.streamed >> 20),
        "lent_mib": footprint.map(|footprint| footprint.lent >> 20),
        "needed_mib": footprint.map(|footprint| footprint.needed >> 20),
        "free_mib": footprint.map(|footprint| footprint.free >> 20),
        "device": device, "width": width, "height": height, "steps": config.steps, "images": config.num_images,
        "repeat": config.repeat, "peak_memory_mib": peak_memory_mib(), "gpu_memory_mib": gpu_memory_mib,
    });
    let title = format!(
        "{} x {width}x{height}, {} steps, {device}, median of {}, peak memory {} MiB{}",
        config.num_images,
        config.steps,
        config.repeat,
        peak_memory_mib().unwrap_or_default(),
        match (gpu_memory_mib, footprint) {
            (Some(mib), Some(Footprint { offload, streamed, lent, .. })) => format!(
                ", of the GPU {mib} MiB (--offload {}: {} MiB copied a step, {} MiB a picture)",
                offload.name(),
                streamed >> 20,
                lent >> 20
            ),
            _ => String::new(),
        },
    );
    print(config.json, about, &title, &figures)
}

/// Paints many tasks, with LoRAs and sizes in turns, and compares the last third with the first: time of each, and memory.
///
/// # Errors
/// The model or a LoRA cannot be used.
pub fn soak(config: &BenchSoakConfig) -> anyhow::Result<()> {
    let loras = config.loras.iter().map(|path| {
        let lora = Lora::read(path).with_context(|| format!("--lora {}", path.display()))?;
        Ok(vec![AppliedLora::new(Arc::new(lora), 1.0)])
    });
    let mut loras = loras.collect::<anyhow::Result<Vec<_>>>()?;
    loras.push(Vec::new());
    let sizes = ["1:1", "2:2", "1:2"].map(|ratio| task::size(Some(ratio)));
    let mut engine = Engine::open(&config.model, sizes[0])?;
    let mut times = Vec::new();
    let mut memory = [(0, 0); 2];
    for task in 0..config.tasks as usize {
        let size = sizes[task % sizes.len()];
        let loras = loras[task / sizes.len() % loras.len()].clone();
        let inputs = inputs("lighthouse sunset sea", size, config.steps, 7.5);
        let request = GenerationRequest { loras, ..GenerationRequest::new(inputs, 1) };
        let clock = Instant::now();
        engine.paint(&request, &mut |_, _| ControlFlow::Continue(()))?;
        times.push(clock.elapsed());
        let held = (engine.gpu().map_or(0, Gpu::bytes) >> 20, memory_mib("VmRSS:").unwrap_or_default());
        if task + 1 == SETTLED {
            memory[0] = held;
        }
        memory[1] = held;
    }
    let rest = &times[SETTLED..];
    // Whole turns of sizes and LoRAs, so that both thirds do the same work; halves if there are too few tasks.
    let turn = sizes.len() * loras.len();
    let whole = rest.len() / 3 / turn * turn;
    let third = if whole > 0 { whole } else { rest.len() / 2 };
    let device = engine.device_name().to_string();
    let [(gpu_before, host_before), (gpu_after, host_after)] = memory;
    let about = json!({
        "device": device, "tasks": config.tasks, "steps": config.steps,
        "gpu_memory_mib": [gpu_before, gpu_after], "memory_mib": [host_before, host_after],
    });
    let title = format!(
        "{} tasks of {} steps, {device}; after {SETTLED} tasks and at the end: GPU {gpu_before} and {gpu_after} MiB, host {host_before} and {host_after} MiB",
        config.tasks, config.steps
    );
    let rest = &times[SETTLED..];
    let figures =
        [("first_third", median(rest[..third].to_vec())), ("last_third", median(rest[rest.len() - third..].to_vec()))];
    print(config.json, about, &title, &figures)
}

fn inputs(prompt: &str, (width, height): (usize, usize), steps: u16, guidance_scale: f64) -> Request {
    Request {
        prompt: prompt.to_string(),
        negative_prompt: String::new(),
        prompt_weighting: Weighting::None,
        long_prompt: false,
        clip_skip: 0,
        width,
        height,
        seed: 42,
        steps: usize::from(steps),
        guidance_scale,
        scheduler: Kind::default(),
        karras_sigmas: None,
        noise_source: Source::default(),
        start: None,
    }
}

/// The peak memory of this process on the host.
fn peak_memory_mib() -> Option<u64> {
    memory_mib("VmHWM:")
}

fn memory_mib(field: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
}

fn print(as_json: bool, mut about: Value, title: &str, figures: &[(&str, Duration)]) -> anyhow::Result<()> {
    if as_json {
        for (name, duration) in figures {
            about[format!("{name}_ms")] = json!(millis(*duration));
        }
        println!("{}", serde_json::to_string_pretty(&about)?);
    } else {
        println!("{title}");
        for (name, duration) in figures {
            println!("{:<13}  {:>9.2} ms", name.replace('_', " "), millis(*duration));
        }
    }
    Ok(())
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort();
    durations.get(durations.len() / 2).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
