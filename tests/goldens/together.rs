//! Pictures painted as one batch equal those painted alone; a cancelled one does not affect the others.

use super::{LEAST_PSNR, psnr, toy_model};
use anyhow::{Context, Result, ensure};
use diffusion::{
    noise::{DEFAULT_THREADS, Source},
    pipeline::{Request, StartImage},
    prompt::Weighting,
    schedulers::Kind,
};
use handler::engine::{
    BatchItem, Engine, GenerationRequest, Pictures, Preview, Step,
    options::{CpuVectors, DeviceKind, Dora, ModelConfig, Offload, Precision},
    safety::CheckerConfig,
};
use image::{Rgb, RgbImage};
use std::{ops::ControlFlow, path::Path, sync::Arc};

fn engine(model: &Path) -> Result<Engine> {
    let config = ModelConfig {
        dir: model.into(),
        device: DeviceKind::Cpu,
        dtype: Precision::Auto,
        offload: Offload::Auto,
        kernels_of: None,
        cpu_vectors: CpuVectors::Auto,
        noise_threads: DEFAULT_THREADS,
        dora: Dora::Apply,
        checker: CheckerConfig::default(),
    };
    Ok(Engine::open(&config, (512, 512))?)
}

fn generation_request(prompt: &str, seed: u64, images: usize, scheduler: Kind) -> GenerationRequest {
    let request = Request {
        prompt: prompt.into(),
        negative_prompt: format!("not {prompt}"),
        prompt_weighting: Weighting::None,
        long_prompt: false,
        clip_skip: 0,
        width: 64,
        height: 64,
        seed,
        steps: 4,
        guidance_scale: 7.5,
        scheduler,
        karras_sigmas: None,
        noise_source: Source::Cuda,
        start: None,
    };
    GenerationRequest::new(request, images)
}

fn alike(alone: &Pictures, together: &Pictures) -> Result<()> {
    ensure!(alone.pictures.len() == together.pictures.len(), "another number of pictures");
    for (ours, theirs) in together.pictures.iter().zip(&alone.pictures) {
        let likeness = psnr(ours.as_raw(), theirs.as_raw());
        ensure!(likeness >= LEAST_PSNR, "{likeness:.1} dB");
    }
    Ok(())
}

/// Paints all as one batch, each until it has finished its number of steps.
fn together(engine: &mut Engine, all: &[(&GenerationRequest, usize)]) -> Vec<Option<Pictures>> {
    let mut callbacks: Vec<_> = all
        .iter()
        .map(|(_, last)| {
            move |step: Step, _: &mut Preview<'_>| {
                if step.finished > *last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
        })
        .collect();
    let items = all.iter().zip(&mut callbacks).map(|((wanted, _), callback)| (*wanted, callback as _));
    engine.paint_together(&mut items.collect::<Vec<BatchItem>>()).into_iter().map(Result::ok).collect()
}

#[test]
fn pictures_painted_together_are_those_painted_alone() -> Result<()> {
    let model = toy_model("tiny")?;
    let mut engine = engine(model.path())?;
    for images in [1, 2] {
        let kind = Kind::DpmSolverPlusPlus;
        let wanted = [("a fox", 1), ("b lighthouse by the sea", 2), ("c", 1)];
        let wanted = wanted.map(|(prompt, seed)| generation_request(prompt, seed, images, kind));
        let alone: Vec<Pictures> = wanted
            .iter()
            .map(|wanted| together(&mut engine, &[(wanted, 4)]).pop().flatten().context("not painted"))
            .collect::<Result<_>>()?;
        ensure!(alone[0].pictures != alone[2].pictures, "the prompt changes nothing: the test would show nothing");
        let all: Vec<_> = wanted.iter().map(|wanted| (wanted, 4)).collect();
        for (alone, together) in alone.iter().zip(together(&mut engine, &all)) {
            alike(alone, &together.context("not painted")?)?;
        }
        // The second is cancelled in the middle.
        let some = together(&mut engine, &[(&wanted[0], 4), (&wanted[1], 1), (&wanted[2], 4)]);
        ensure!(some[1].is_none(), "painted to the end");
        for index in [0, 2] {
            alike(&alone[index], some[index].as_ref().context("not painted")?)?;
        }
    }
    Ok(())
}

/// Prompts of other lengths would have chunks without text in a batch, which change the picture.
#[test]
fn long_prompts_go_together_if_they_have_as_many_chunks() -> Result<()> {
    let model = toy_model("tiny")?;
    let mut engine = engine(model.path())?;
    let long = |prompt: String, seed: u64| {
        let plain = generation_request(&prompt, seed, 1, Kind::DpmSolverPlusPlus);
        let inputs = Request { long_prompt: true, negative_prompt: "not".into(), ..plain.inputs.clone() };
        GenerationRequest { inputs, ..plain }
    };
    let [short, two, others, three] =
        [long("a".into(), 1), long("a".repeat(76), 1), long("b".repeat(150), 2), long("c".repeat(151), 3)];
    let plain = generation_request("a", 5, 1, Kind::DpmSolverPlusPlus);
    ensure!(engine.joins(&two, &others) && engine.joins(&short, &plain) && engine.joins(&plain, &short));
    ensure!(!engine.joins(&short, &two) && !engine.joins(&two, &three) && !engine.joins(&plain, &two));
    let mut alone = Vec::new();
    for request in [&two, &others, &three] {
        alone.push(together(&mut engine, &[(request, 4)]).pop().flatten().context("not painted")?);
    }
    ensure!(alone[0].pictures != alone[1].pictures, "the prompt changes nothing: the test would show nothing");
    let both = together(&mut engine, &[(&two, 4), (&others, 4)]);
    // Also what should not be together is painted as alone.
    let mixed = together(&mut engine, &[(&two, 4), (&three, 4)]);
    for (index, painted) in [(0, &both[0]), (1, &both[1]), (0, &mixed[0]), (2, &mixed[1])] {
        alike(&alone[index], painted.as_ref().context("not painted")?)?;
    }
    Ok(())
}

/// A picture of one colour to begin from.
fn start(strength: f64) -> Option<StartImage> {
    let picture = RgbImage::from_pixel(64, 64, Rgb([200, 100, 50]));
    Some(StartImage { picture: Arc::new(picture), strength })
}

#[test]
fn pictures_from_pictures_painted_together_are_those_painted_alone() -> Result<()> {
    let mut engine = engine(&Path::new(env!("CARGO_MANIFEST_DIR")).join("model/easel-tiny"))?;
    let wanted = [("house", 1, [200, 100, 50]), ("lake", 2, [20, 200, 90])].map(|(prompt, seed, colour)| {
        let mut wanted = generation_request(prompt, seed, 1, Kind::DpmSolverPlusPlus);
        let picture = RgbImage::from_pixel(64, 64, Rgb(colour));
        wanted.inputs.start = Some(StartImage { picture: Arc::new(picture), strength: 0.5 });
        wanted
    });
    let alone: Vec<Pictures> = wanted
        .iter()
        .map(|wanted| together(&mut engine, &[(wanted, 4)]).pop().flatten().context("not painted"))
        .collect::<Result<_>>()?;
    for (ours, theirs) in together(&mut engine, &[(&wanted[0], 4), (&wanted[1], 4)]).iter().zip(&alone) {
        alike(theirs, ours.as_ref().context("not painted")?)?;
    }
    ensure!(psnr(alone[0].pictures[0].as_raw(), alone[1].pictures[0].as_raw()) < 30.0, "both are the same");
    Ok(())
}

#[test]
fn only_what_differs_in_prompt_and_seed_alone_goes_together() {
    let plain = || generation_request("a", 1, 1, Kind::DpmSolverPlusPlus);
    let with = |change: fn(&mut Request)| {
        let mut wanted = plain();
        change(&mut wanted.inputs);
        wanted
    };
    assert!(plain().goes_with(&generation_request("b", 2, 1, Kind::DpmSolverPlusPlus)));
    assert!(plain().goes_with(&with(|request| request.noise_source = Source::Cpu)));
    for other in [
        generation_request("a", 1, 2, Kind::DpmSolverPlusPlus),
        generation_request("a", 1, 1, Kind::Euler),
        with(|request| request.width = 128),
        with(|request| request.height = 128),
        with(|request| request.steps = 5),
        with(|request| request.guidance_scale = 7.0),
        with(|request| request.karras_sigmas = Some(true)),
        with(|request| request.clip_skip = 1),
        with(|request| request.start = start(0.5)),
    ] {
        assert!(!plain().goes_with(&other), "{:?}", other.inputs);
    }
    // From whatever picture, as many steps are painted.
    let from = |strength| {
        let mut wanted = plain();
        wanted.inputs.start = start(strength);
        wanted
    };
    assert!(from(0.5).goes_with(&from(0.5)) && !from(0.5).goes_with(&from(0.75)) && !from(0.5).goes_with(&plain()));
    let drawing = || generation_request("a", 1, 1, Kind::EulerAncestral);
    assert!(!drawing().goes_with(&drawing()), "its noise comes from one stream");
}
