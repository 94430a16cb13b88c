//! The engine on a GPU: batches, too little memory, a lost GPU. Needs a GPU.

use super::{BatchItem, Engine, GenerationRequest, Pictures, Step};
use crate::engine::{
    options::{DeviceKind, Dora, ModelConfig, Offload, Precision},
    safety::CheckerConfig,
};
use diffusion::{
    gpu::{Gpu, Shortage},
    lora::{AppliedLora, Lora},
    noise::{DEFAULT_THREADS, Source},
    pipeline::Request,
    prompt::Weighting,
    schedulers::Kind,
};
use image::RgbImage;
use std::{env, ops::ControlFlow, path::Path, process::Command, sync::Arc};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/model/easel-tiny");
const MIB: usize = 1 << 20;

fn engine(dtype: Precision) -> Engine {
    let config = ModelConfig {
        dir: MODEL.into(),
        device: DeviceKind::Cuda,
        dtype,
        offload: Offload::Never,
        noise_threads: DEFAULT_THREADS,
        dora: Dora::Apply,
        checker: CheckerConfig::default(),
    };
    Engine::open(&config, (256, 256)).unwrap()
}

fn generation_request(prompt: &str, seed: u64, images: usize, size: usize) -> GenerationRequest {
    let inputs = Request {
        prompt: prompt.into(),
        negative_prompt: "blue".into(),
        prompt_weighting: Weighting::None,
        width: size,
        height: size,
        seed,
        steps: 8,
        guidance_scale: 7.5,
        scheduler: Kind::DpmSolverPlusPlus,
        karras_sigmas: None,
        noise_source: Source::Cuda,
    };
    GenerationRequest::new(inputs, images)
}

fn paint(engine: &mut Engine, request: &GenerationRequest) -> Vec<RgbImage> {
    engine.paint_alone(request, &mut |_| ControlFlow::Continue(())).unwrap().pictures
}

/// Peak signal-to-noise ratio in dB; infinite for the same pictures.
fn likeness(ours: &[RgbImage], theirs: &[RgbImage]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let pairs = ours.iter().zip(theirs).flat_map(|(ours, theirs)| ours.as_raw().iter().zip(theirs.as_raw()));
    let (sum, count) =
        pairs.fold((0.0, 0.0), |(sum, count), (a, b)| (sum + f64::from(a.abs_diff(*b)).powi(2), count + 1.0));
    10.0 * (255.0f64.powi(2) * count / sum).log10()
}

#[test]
fn gpu_pictures_painted_together_are_those_painted_alone() {
    for (dtype, least) in [(Precision::F32, 60.0), (Precision::F16, 35.0), (Precision::Bf16, 20.0)] {
        let mut engine = engine(dtype);
        let all = [("red circle", 1), ("yellow star,green background", 2), ("blue square", 3), ("white heart", 4)];
        let all = all.map(|(prompt, seed)| generation_request(prompt, seed, 1, 256));
        let alone = all.each_ref().map(|request| paint(&mut engine, request));
        let mut callbacks = all.each_ref().map(|_| |_: Step| ControlFlow::Continue(()));
        let mut items: Vec<BatchItem> =
            all.iter().zip(&mut callbacks).map(|(each, callback)| (each, callback as _)).collect();
        let together = engine.try_together(&mut items).unwrap();
        for (index, (alone, together)) in alone.iter().zip(together).enumerate() {
            let Pictures { pictures, .. } = together.unwrap();
            let likeness = likeness(&pictures, alone);
            println!("together {dtype:?} {index}: {likeness:.1} dB");
            assert!(likeness > least, "picture {index}, {dtype:?}: {likeness:.1} dB");
        }
        assert_eq!(paint(&mut engine, &all[0]), alone[0], "{dtype:?}: painting several leaves nothing behind");
    }
}

/// Paints with ever more memory: first it fails, then it works with less at once, then with all at once. After each failure the next
/// picture is right. Returns how often memory ran out for good, and how often it was freed.
fn with_ever_more_memory(request: &GenerationRequest, at_once: usize) -> (usize, usize) {
    let whole = paint(&mut engine(Precision::F16), request);
    let (mut failed, mut freed) = (0, 0);
    for free in (1..).map(|step| 8 * step * MIB) {
        let mut engine = engine(Precision::F16);
        let gpu = engine.gpu().unwrap().clone();
        let shortage = Shortage::leaving(&gpu, free).unwrap();
        let mut began = 0;
        let painted = engine.paint_alone(request, &mut |step| {
            began += usize::from(step.finished == 0);
            ControlFlow::Continue(())
        });
        let (enough, free) = (engine.pipeline.is_fully_resident(), free / MIB);
        match &painted {
            Err(error) => {
                assert!(error.is_out_of_memory() && !error.is_permanent(), "{free} MiB: {error}");
                failed += 1;
            }
            Ok(painted) => {
                let likeness = likeness(&painted.pictures, &whole);
                println!("{free} MiB free: began {began} times, {likeness:.1} dB, at ease: {enough}");
                assert!(likeness > 35.0, "{free} MiB: {likeness:.1} dB");
                freed += usize::from(!enough && began >= at_once);
            }
        }
        drop(shortage);
        assert!(!engine.is_lost(), "{free} MiB");
        assert_eq!(paint(&mut engine, request), whole, "{free} MiB: what failed has left something behind");
        if painted.is_ok() && enough {
            break;
        }
    }
    println!("failed {failed} times, freed {freed} times");
    (failed, freed)
}

#[test]
fn gpu_memory_too_small_to_decode_is_freed_or_an_error() {
    let style = Lora::read(&Path::new(MODEL).with_file_name("styles/halftone.safetensors")).unwrap();
    let loras = vec![AppliedLora { lora: Arc::new(style), scale: 0.9 }];
    let (failed, freed) =
        with_ever_more_memory(&GenerationRequest { loras, ..generation_request("red circle", 7, 1, 768) }, 1);
    assert!(failed > 0 && freed > 0);
}

#[test]
fn gpu_memory_too_small_for_all_pictures_is_freed() {
    let many = generation_request("red circle", 7, 24, 256);
    let (_, freed) = with_ever_more_memory(&many, many.images);
    assert!(freed > 0);
}

#[test]
fn gpu_that_is_lost_is_another_error_than_out_of_memory() {
    const BREAK: &str = "EASEL_TEST_BREAK_GPU";
    if env::var_os(BREAK).is_none() {
        // In a child process: the GPU cannot be used in it afterwards.
        let module = module_path!().split_once("::").unwrap().1;
        let name = format!("{module}::gpu_that_is_lost_is_another_error_than_out_of_memory");
        let child =
            Command::new(env::current_exe().unwrap()).args(["--exact", &name]).env(BREAK, "1").output().unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let mut engine = engine(Precision::F16);
    let gpu = Gpu::clone(engine.gpu().unwrap());
    assert!(Shortage::holding(&gpu, 1 << 42).is_err_and(|error| error.is_out_of_memory()));
    assert!(!engine.is_lost());
    let _ = gpu.break_it();
    let painted = engine.paint_alone(&generation_request("red circle", 1, 1, 256), &mut |_| ControlFlow::Continue(()));
    assert!(painted.is_err_and(|error| !error.is_out_of_memory() && !error.is_permanent()));
    assert!(engine.is_lost());
}
