//! `handler bench`: what something costs here, measured. Each figure is the median of its repeats.

use crate::{
    config::BenchLoraConfig,
    lora::{AppliedLora, Lora},
    studio::Studio,
};
use anyhow::Context;
use serde_json::json;
use std::{
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
    let mut studio = Studio::open(&config.model)?;
    let applied = [AppliedLora { lora: Arc::new(lora), scale: 1.0 }];
    let first = studio.swap(&applied)?;
    studio.swap(&[])?;
    let (mut swap_in, mut swap_out) = (Vec::new(), Vec::new());
    for _ in 0..config.repeat {
        swap_in.push(studio.swap(&applied)?);
        swap_out.push(studio.swap(&[])?);
    }
    let device = studio.device_name();
    let figures = [
        ("read", median(read)),
        ("first_swap_in", first),
        ("swap_in", median(swap_in)),
        ("swap_out", median(swap_out)),
    ];
    if config.json {
        let mut report = json!({ "device": device, "modules": modules, "repeat": config.repeat });
        for (name, duration) in figures {
            report[format!("{name}_ms")] = json!(millis(duration));
        }
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{modules} modules, {device}, median of {}", config.repeat);
        for (name, duration) in figures {
            println!("{:<13}  {:>9.2} ms", name.replace('_', " "), millis(duration));
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
