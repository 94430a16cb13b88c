//! Paints a picture: `cargo run --example paint -- MODEL "a lighthouse at sunset" picture.png [LORA]`.

use anyhow::Context;
use diffusion::{
    gpu::{Dtype, Gpu},
    lora::{AppliedLora, Lora},
    pipeline::{Compute, Pipeline, Request},
};
use std::{env, ops::ControlFlow, path::Path, sync::Arc};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [model, prompt, out, loras @ ..] = &arguments[..] else { anyhow::bail!("MODEL PROMPT OUT [LORA]") };
    let compute = Gpu::open(0).map_or(Compute::Cpu, |gpu| Compute::Gpu(gpu, Dtype::F16));
    let mut pipeline = Pipeline::load(Path::new(model), &compute, (512, 512))?;
    let mut applied = Vec::new();
    for path in loras {
        let lora = Lora::read(Path::new(path)).with_context(|| path.clone())?;
        applied.push(AppliedLora::new(Arc::new(lora), 1.0));
    }
    pipeline.set_loras(&applied)?;
    let request = Request::new(prompt);
    let picture = pipeline.paint(&request, &mut |finished| {
        eprint!("\r{finished} of {}", request.steps);
        ControlFlow::Continue(())
    })?;
    picture.save(out)?;
    Ok(())
}
