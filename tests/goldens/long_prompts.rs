//! Prompts in chunks against compel, and skipped layers of the text encoder against diffusers.

use super::{LEAST_PSNR, NETWORK_TOLERANCE, goldens, psnr, relative_error, toy_model, toy_model_with};
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use diffusion::{
    noise::{DEFAULT_THREADS, Source},
    pipeline::{Compute, DecodeMemory, Pipeline, Request},
    prompt::{
        Weighting,
        inversion::{AppliedInversion, TextualInversion},
    },
    schedulers::Kind,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{collections::HashMap, ops::ControlFlow, path::Path, sync::Arc};

type Tensors = HashMap<String, Tensor>;

#[derive(Deserialize)]
struct About {
    inputs: Inputs,
}

#[derive(Deserialize)]
struct Inputs {
    /// Prompt and negative prompt of each.
    prompts: Vec<(String, String)>,
    weighted: Vec<String>,
    inversion: String,
    inverted: String,
    skips: Vec<usize>,
    settings: Map<String, Value>,
    skipped: (String, String),
    channels: usize,
    side: usize,
    steps: usize,
    seed: u64,
    guidance_scale: f64,
}

impl Inputs {
    fn request(&self, prompt: &str, negative_prompt: &str) -> Request {
        Request {
            negative_prompt: negative_prompt.into(),
            long_prompt: true,
            width: self.side,
            height: self.side,
            seed: self.seed,
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            scheduler: Kind::Pndm,
            noise_source: Source::Cpu,
            ..Request::new(prompt)
        }
    }

    /// Compares the embeddings of a request's prompts.
    fn same(&self, pipeline: &Pipeline, request: &Request, tensors: &Tensors, name: &str) -> Result<()> {
        let ours = pipeline.embed_prompts(request)?.narrow(2, 0, self.channels)?;
        let theirs = tensors.get(name).with_context(|| format!("no golden value {name}"))?;
        ensure!(ours.dims() == theirs.dims(), "{name}: {:?}, not {:?}", ours.dims(), theirs.dims());
        let error = relative_error(&ours, theirs)?;
        println!("{name}: relative error {error:.1e}");
        ensure!(error <= NETWORK_TOLERANCE, "{name}: relative error {error:.1e}");
        Ok(())
    }

    /// Compares the final latents and the picture.
    fn same_picture(&self, pipeline: &Pipeline, request: &Request, tensors: &Tensors, name: &str) -> Result<()> {
        let golden = |part: &str| tensors.get(&format!("{name}/{part}")).with_context(|| format!("no {name}/{part}"));
        let mut stream = pipeline.noise(request, DEFAULT_THREADS);
        let noise = pipeline.first_noise(request, 1, &mut stream)?;
        let latents = pipeline.denoise(request, noise, &mut stream, &mut |_| ControlFlow::Continue(()))?;
        let error = relative_error(&latents, golden("latents")?)?;
        let picture = pipeline.decode(&latents, DecodeMemory::Whole)?.swap_remove(0);
        let likeness = psnr(picture.as_raw(), &golden("picture")?.flatten_all()?.to_vec1::<u8>()?);
        println!("{name}: latents' relative error {error:.1e}, PSNR {likeness:.1} dB");
        ensure!(error <= NETWORK_TOLERANCE && likeness >= LEAST_PSNR, "{name}: {error:.1e}, {likeness:.1} dB");
        Ok(())
    }
}

#[test]
fn long_prompts_are_embedded_and_painted_as_with_compel() -> Result<()> {
    let (tensors, About { inputs }) = goldens("long-prompts-tiny")?;
    let model = toy_model("tiny")?;
    let mut pipeline = Pipeline::load(model.path(), &Compute::Cpu, (inputs.side, inputs.side))?;
    for (index, (prompt, negative)) in inputs.prompts.iter().enumerate() {
        let request = inputs.request(prompt, negative);
        inputs.same(&pipeline, &request, &tensors, &format!("prompt/{index}"))?;
        // Chunks of 77 rows.
        let rows = pipeline.embed_prompts(&request)?.dim(1)?;
        ensure!(pipeline.chunks(&request, &[]) == Some(rows / 77), "{prompt}: {rows} rows");
        let cut = pipeline.embed_prompts(&Request { long_prompt: false, ..request.clone() })?;
        ensure!(cut.dim(1)? == 77, "{prompt}: not cut off");
        // A prompt that fits is what it is without the option.
        ensure!(rows > 77 || relative_error(&cut, &pipeline.embed_prompts(&request)?)? == 0.0, "{prompt}");
    }
    for (index, prompt) in inputs.weighted.iter().enumerate() {
        let plain = inputs.request(prompt, "");
        let request = Request { prompt_weighting: Weighting::A1111, guidance_scale: 1.0, ..plain };
        inputs.same(&pipeline, &request, &tensors, &format!("weighted/{index}"))?;
    }
    let (prompt, negative) = &inputs.prompts[4];
    inputs.same_picture(&pipeline, &inputs.request(prompt, negative), &tensors, "long")?;
    let file = format!("goldens/inversions/{}.safetensors", inputs.inversion);
    let inversion = TextualInversion::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file))?;
    let applied = [AppliedInversion { inversion: Arc::new(inversion), token: None }];
    let request = inputs.request(&inputs.inverted, "grey");
    // Also before they are applied.
    let chunks = pipeline.chunks(&request, &applied);
    ensure!(chunks == Some(2), "{chunks:?} chunks");
    pipeline.set_inversions(&applied)?;
    inputs.same(&pipeline, &request, &tensors, "inversion")?;
    ensure!(pipeline.chunks(&request, &applied) == Some(2), "other chunks when they are applied");
    Ok(())
}

#[test]
fn layers_that_are_skipped_are_those_that_diffusers_skips() -> Result<()> {
    let (tensors, About { inputs }) = goldens("long-prompts-tiny")?;
    let model = toy_model_with("tiny", &inputs.settings)?;
    let pipeline = Pipeline::load(model.path(), &Compute::Cpu, (inputs.side, inputs.side))?;
    let (prompt, negative) = &inputs.skipped;
    let request = |clip_skip| Request { clip_skip, long_prompt: false, ..inputs.request(prompt, negative) };
    for &skip in &inputs.skips {
        inputs.same(&pipeline, &request(skip), &tensors, &format!("skip/{skip}"))?;
    }
    inputs.same_picture(&pipeline, &request(2), &tensors, "skipped")?;
    let refused = pipeline.embed_prompts(&request(12)).err().context("twelve of twelve layers were skipped")?;
    let said = refused.to_string();
    ensure!(said == "`clip_skip` is 12, the text encoder has 12 layers: at most 11 can be skipped", "{said}");
    Ok(())
}

#[test]
fn a_prompt_of_too_many_chunks_is_refused_by_name() -> Result<()> {
    let model = toy_model("tiny")?;
    let pipeline = Pipeline::load(model.path(), &Compute::Cpu, (64, 64))?;
    let request = |prompt: String, negative_prompt: String| Request {
        negative_prompt,
        long_prompt: true,
        ..Request::new(prompt)
    };
    let (most, more) = ("x".repeat(600), "x".repeat(601));
    ensure!(pipeline.chunks(&request(most.clone(), most.clone()), &[]) == Some(8));
    for (request, field) in
        [(request(more.clone(), most.clone()), "prompt_tags"), (request(most, more), "negative_prompt")]
    {
        ensure!(pipeline.chunks(&request, &[]).is_none(), "{field}");
        let said = pipeline.embed_prompts(&request).err().context(field)?.to_string();
        let limit = "a long prompt has at most 600 tokens: 8 chunks of 75";
        ensure!(said == format!("`{field}` is a text of 601 tokens, {limit}"), "{said}");
    }
    Ok(())
}
