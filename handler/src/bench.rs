//! `handler bench`: what something costs here, measured. Each figure is the median of its repeats.

use crate::{
    gpu::Gpu,
    config::{BenchLoraConfig, BenchPictureConfig},
    lora::{AppliedLora, Lora},
    pipeline::{Request, noise::Source, prompt::Weighting, scheduler::Kind},
    studio::{Commission, Studio},
    task::{self, Format},
};
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

/// Measures reading a LoRA, swapping it in over the resident base, and swapping it out again.
///
/// The first swap in is told apart: it warms allocators and kernels up.
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
    let mut studio = Studio::open(&config.model, task::size(None))?;
    let applied = [AppliedLora { lora: Arc::new(lora), scale: 1.0 }];
    let first = studio.swap(&applied)?;
    studio.swap(&[])?;
    let (mut swap_in, mut swap_out) = (Vec::new(), Vec::new());
    for _ in 0..config.repeat {
        swap_in.push(studio.swap(&applied)?);
        swap_out.push(studio.swap(&[])?);
    }
    let device = studio.device_name().to_string();
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
/// The first painting is told apart: it warms allocators and kernels up.
///
/// # Errors
/// The model cannot be used, or an option is off.
pub fn picture(config: &BenchPictureConfig) -> anyhow::Result<()> {
    ensure!(config.guidance_scale.is_finite(), "--guidance-scale must be a finite number");
    let clock = Instant::now();
    let (width, height) = task::size(Some(&config.aspect_ratio));
    let mut studio = Studio::open(&config.model, (width, height))?;
    let load = clock.elapsed();
    let commission = Commission {
        request: Request {
            prompt: config.prompt.clone(),
            negative_prompt: String::new(),
            prompt_weighting: Weighting::None,
            width,
            height,
            seed: 42,
            steps: usize::from(config.steps),
            guidance_scale: config.guidance_scale,
            scheduler: Kind::default(),
            karras_sigmas: None,
            noise_source: Source::default(),
        },
        images: usize::from(config.num_images),
        loras: Vec::new(),
        signature: None,
        format: Format::Jpeg,
    };
    let mut paint = || -> anyhow::Result<_> {
        let clock = Instant::now();
        let delivery = studio.paint(&commission, &mut |_| ControlFlow::Continue(()))?;
        Ok((clock.elapsed(), delivery.stages))
    };
    let (first, _) = paint()?;
    let runs = (0..config.repeat).map(|_| paint()).collect::<anyhow::Result<Vec<_>>>()?;
    let mut figures: Vec<(&str, Duration)> = studio.gpu().map(Gpu::opening).unwrap_or_default();
    figures.extend([("load", load), ("first_picture", first)]);
    figures.push(("picture", median(runs.iter().map(|(whole, _)| *whole).collect())));
    for (index, (name, _)) in runs[0].1.iter().enumerate() {
        figures.push((name, median(runs.iter().map(|(_, stages)| stages[index].1).collect())));
    }
    let device = studio.device_name().to_string();
    let gpu_memory_mib = studio.gpu().map(|gpu| gpu.peak_bytes() >> 20);
    let about = json!({
        "device": device, "width": width, "height": height, "steps": config.steps, "images": config.num_images,
        "repeat": config.repeat, "peak_memory_mib": peak_memory_mib(), "gpu_memory_mib": gpu_memory_mib,
    });
    let title = format!(
        "{} x {width}x{height}, {} steps, {device}, median of {}, peak memory {} MiB{}",
        config.num_images,
        config.steps,
        config.repeat,
        peak_memory_mib().unwrap_or_default(),
        gpu_memory_mib.map_or(String::new(), |mib| format!(", of the GPU {mib} MiB")),
    );
    print(config.json, about, &title, &figures)
}

/// The most memory of the host that this process has held.
fn peak_memory_mib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
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
