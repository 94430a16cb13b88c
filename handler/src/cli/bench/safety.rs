//! `handler bench safety`: what the model's safety checker costs.

use super::{BenchSafetyConfig, file::waves, median, peak_memory_mib, print};
use crate::{
    engine::options::{ChosenDevice, choose},
    task,
};
use anyhow::ensure;
use diffusion::{
    gpu::Gpu,
    pipeline::{LoadOptions, Pipeline},
};
use serde_json::json;
use std::time::Instant;

/// Measures loading the model with its safety checker, and looking at one picture with it. The first look is shown by itself.
///
/// # Errors
/// The model has no safety checker, or it or an option cannot be used.
pub fn safety(config: &BenchSafetyConfig) -> anyhow::Result<()> {
    let (width, height) = task::size(Some(&config.aspect_ratio));
    let model = &config.model;
    let ChosenDevice { compute, .. } = choose(model)?;
    let clock = Instant::now();
    let (offload, safety_checker) = (model.offload.into(), model.checker.source());
    let options = LoadOptions { offload, size: (width, height), safety_checker, ..LoadOptions::default() };
    let mut pipeline = Pipeline::load_with(&model.dir, &compute, &options)?;
    let load = clock.elapsed();
    ensure!(
        pipeline.has_safety_checker(),
        "--model {} has no safety checker; --safety-checker names the folder of one",
        model.dir.display()
    );
    let pictures = [waves(width as u32, height as u32)];
    let mut check = || -> anyhow::Result<_> {
        let clock = Instant::now();
        pipeline.check_safety(&pictures)?;
        Ok(clock.elapsed())
    };
    let first = check()?;
    let runs = (0..config.repeat).map(|_| check()).collect::<anyhow::Result<Vec<_>>>()?;
    let gpu = compute.gpu();
    let device = gpu.map_or("cpu", Gpu::name);
    let (memory, gpu_memory) = (peak_memory_mib(), gpu.map(|gpu| gpu.peak_bytes() >> 20));
    let place = pipeline.footprint().map_or("cpu", |footprint| footprint.checker.name());
    let about = json!({
        "device": device, "width": width, "height": height, "repeat": config.repeat,
        "peak_memory_mib": memory, "gpu_memory_mib": gpu_memory, "checker": place,
    });
    let title = format!(
        "{width}x{height}, {device}, the checker {place}, median of {}, peak memory {} MiB{}",
        config.repeat,
        memory.unwrap_or_default(),
        gpu_memory.map_or(String::new(), |mib| format!(", of the GPU {mib} MiB")),
    );
    let figures = [("load", load), ("first_check", first), ("check", median(runs))];
    print(config.json, about, &title, &figures)
}
