//! `handler bench products`: what the UNet's products and convolutions cost, each by itself.

use super::BenchProductsConfig;
use crate::task;
use diffusion::{
    ShapeTime, StepSize,
    gpu::{Dtype, Gpu},
    time_shapes,
};
use serde_json::json;

/// Measures each shape of a step with guidance on the GPU, in recordings of many launches.
///
/// # Errors
/// There is no GPU, or it fails.
pub fn products(config: &BenchProductsConfig) -> anyhow::Result<()> {
    let gpu = Gpu::open_with(0, config.kernels_of)?;
    let dtype = match config.dtype.as_str() {
        "bf16" => Dtype::BF16,
        "f32" => Dtype::F32,
        _ => Dtype::F16,
    };
    let (width, height) = task::size(Some(&config.aspect_ratio));
    let size = StepSize { width, height, pictures: usize::from(config.at_once) };
    let times = time_shapes(&gpu, dtype, size, usize::from(config.repeat))?;
    let all: f64 = times.iter().map(|time| time.count as f64 * time.microseconds).sum();
    if config.json {
        let shapes = times.iter().map(|time| {
            json!({
                "kind": time.kind, "rows": time.rows, "inner": time.inner, "columns": time.columns,
                "stride": time.stride, "count": time.count, "us": time.microseconds,
            })
        });
        let shapes = shapes.collect::<Vec<_>>();
        let about = json!({ "device": gpu.name(), "dtype": config.dtype, "step_us": all, "shapes": shapes });
        println!("{}", serde_json::to_string_pretty(&about)?);
        return Ok(());
    }
    println!("{}, {}, median of {}; us of one, and how many a step has", gpu.name(), config.dtype, config.repeat);
    for time in &times {
        println!("{:<28} {:>9.2} x {}", name(time), time.microseconds, time.count);
    }
    println!("{:<28} {all:>9.0}", "a step");
    Ok(())
}

fn name(time: &ShapeTime) -> String {
    let ShapeTime { kind, rows, inner, columns, stride, .. } = time;
    let stride = if *stride > 1 { format!(" / {stride}") } else { String::new() };
    format!("{kind} {rows} {inner}-{columns}{stride}")
}
