//! Models whose files have other settings than Stable Diffusion 1.5's, as diffusers paints them: latent consistency models, whose UNet
//! takes the guidance scale as an input, and other epsilons.

use super::{LEAST_PSNR, NETWORK_TOLERANCE, goldens, psnr, relative_error, toy_model_with};
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use diffusion::{
    noise::{DEFAULT_THREADS, Source},
    pipeline::{Compute, DecodeMemory, Pipeline, Request, inspect},
    prompt::tokenizer::Tokenizer,
    schedulers::Kind,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
};

#[derive(Deserialize)]
struct About {
    inputs: Inputs,
}

#[derive(Deserialize)]
struct Inputs {
    prompt: String,
    seed: u64,
    side: usize,
    timesteps: Vec<f64>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    size: String,
    settings: Map<String, Value>,
    steps: usize,
    guidance_scales: Vec<f64>,
}

/// The parts of one model with their relative errors, and the PSNR of pictures in dB.
fn errors(
    name: &str,
    case: &Case,
    inputs: &Inputs,
    tensors: &HashMap<String, Tensor>,
) -> Result<Vec<(String, f64, Option<f64>)>> {
    let golden = |key: &str| tensors.get(&format!("{name}/{key}")).with_context(|| format!("no golden value {key}"));
    let model = toy_model_with(&case.size, &case.settings)?;
    inspect(model.path())?;
    let pipeline = Pipeline::load(model.path(), &Compute::Cpu, (inputs.side, inputs.side))?;
    let prompt = Tokenizer::load(model.path(), 77, 49408)?.encode(&inputs.prompt)?;
    let embedding = pipeline.embed(&[&prompt])?;
    let mut found = vec![("embedding".to_string(), relative_error(&embedding, golden("embedding")?)?, None)];
    let noise = tensors.get("noise").context("no noise")?;
    for scale in &case.guidance_scales {
        for timestep in &inputs.timesteps {
            let key = format!("{scale:?}/unet/{timestep}");
            let output = pipeline.unet_output_guided(noise, *timestep, *scale, golden("embedding")?)?;
            found.push((key.clone(), relative_error(&output, golden(&key)?)?, None));
        }
        let request = Request {
            width: inputs.side,
            height: inputs.side,
            seed: inputs.seed,
            steps: case.steps,
            guidance_scale: *scale,
            scheduler: Kind::Lcm,
            noise_source: Source::Cpu,
            ..Request::new(&inputs.prompt)
        };
        let mut stream = pipeline.noise(&request, DEFAULT_THREADS);
        let first = pipeline.first_noise(&request, 1, &mut stream)?;
        let latents = pipeline.denoise(&request, first, &mut stream, &mut |_| ControlFlow::Continue(()))?;
        let picture = pipeline.decode(&latents, DecodeMemory::Whole)?.swap_remove(0);
        let theirs = golden(&format!("{scale:?}/picture"))?.flatten_all()?.to_vec1::<u8>()?;
        let error = relative_error(&latents, golden(&format!("{scale:?}/latents"))?)?;
        found.push((format!("{scale:?}/picture"), error, Some(psnr(picture.as_raw(), &theirs))));
    }
    Ok(found)
}

#[test]
fn models_with_other_settings_are_painted_as_diffusers_paints_them() -> Result<()> {
    let (tensors, About { inputs }) = goldens("settings")?;
    for (name, case) in &inputs.cases {
        for (part, error, likeness) in errors(name, case, &inputs, &tensors)? {
            let likeness = likeness.unwrap_or(f64::INFINITY);
            println!("{name} {part}: relative error {error:.1e}, PSNR {likeness:.1} dB");
            let near = error <= NETWORK_TOLERANCE && likeness >= LEAST_PSNR;
            ensure!(near, "{name} {part}: {error:.1e}, {likeness:.1} dB");
        }
    }
    Ok(())
}

/// The guidance scale must reach the picture: without it, the golden pictures of two scales would not differ.
#[test]
fn the_guidance_scale_is_an_input_of_a_distilled_unet() -> Result<()> {
    let (tensors, About { .. }) = goldens("settings")?;
    let picture = |scale: &str| -> Result<Vec<u8>> {
        Ok(tensors.get(&format!("lcm/{scale}/picture")).context("no picture")?.flatten_all()?.to_vec1::<u8>()?)
    };
    let likeness = psnr(&picture("8.5")?, &picture("1.0")?);
    ensure!(likeness < LEAST_PSNR, "the scale changes too little for a comparison: {likeness:.1} dB");
    Ok(())
}

/// `handler doctor` calls `inspect`, and must refuse what loading refuses.
#[test]
fn models_of_other_kinds_are_refused_by_name_before_they_paint() -> Result<()> {
    for (setting, value, message) in [
        (
            "unet/config.json/in_channels",
            json!(9),
            "`in_channels` is 9, supported: the VAE's `latent_channels` (9 is an inpainting",
        ),
        ("unet/config.json/out_channels", json!(8), "`out_channels` is 8"),
        ("unet/config.json/cross_attention_dim", json!(64), "`cross_attention_dim` is 64"),
        ("vae/config.json/latent_channels", json!(16), "`latent_channels` is 16"),
        ("_class_name", json!("StableDiffusionInpaintPipeline"), "`_class_name` is StableDiffusionInpaintPipeline"),
        ("_class_name", json!("LatentConsistencyModelPipeline"), "`time_cond_proj_dim` is null"),
        ("vae", json!(["diffusers", "AutoencoderTiny"]), "`vae` is AutoencoderTiny"),
    ] {
        let settings = Map::from_iter([(setting.to_string(), value)]);
        let model = toy_model_with("tiny", &settings)?;
        let loaded = Pipeline::load(model.path(), &Compute::Cpu, (64, 64)).map(|_| ());
        for result in [inspect(model.path()).map(|_| ()), loaded] {
            let error = result.err().with_context(|| format!("{setting} is accepted"))?.to_string();
            ensure!(error.contains(message), "{setting}: {error}");
        }
    }
    Ok(())
}
