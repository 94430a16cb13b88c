//! An engine on a GPU: several at once, too little memory, a GPU that is lost. Needs a GPU.

use super::{Engine, GenerationRequest, Order, Painted, Step};
use crate::engine::options::{DeviceKind, Dora, ModelConfig, Offload, Precision};
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
    };
    Engine::open(&config, (256, 256)).unwrap()
}

fn generation_request(prompt: &str, seed: u64, images: usize, size: usize) -> GenerationRequest {
    let request = Request {
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
    GenerationRequest::new(request, images)
}

fn paint(engine: &mut Engine, wanted: &GenerationRequest) -> Vec<RgbImage> {
    engine.paint_alone(wanted, &mut |_| ControlFlow::Continue(())).unwrap().pictures
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
        let alone = all.each_ref().map(|wanted| paint(&mut engine, wanted));
        let mut callbacks = all.each_ref().map(|_| |_: Step| ControlFlow::Continue(()));
        let mut orders: Vec<Order> =
            all.iter().zip(&mut callbacks).map(|(each, callback)| (each, callback as _)).collect();
        let together = engine.try_together(&mut orders).unwrap();
        for (index, (alone, together)) in alone.iter().zip(together).enumerate() {
            let Painted { pictures, .. } = together.unwrap();
            let likeness = likeness(&pictures, alone);
            println!("together {dtype:?} {index}: {likeness:.1} dB");
            assert!(likeness > least, "picture {index}, {dtype:?}: {likeness:.1} dB");
        }
        assert_eq!(paint(&mut engine, &all[0]), alone[0], "{dtype:?}: painting several leaves nothing behind");
    }
}

/// With ever more memory: first nothing goes, then with less, then all at once. Whatever failed, the next one is right.
/// How many times it was told, and made.
fn with_ever_more_memory(wanted: &GenerationRequest, at_once: usize) -> (usize, usize) {
    let whole = paint(&mut engine(Precision::F16), wanted);
    let (mut told, mut made) = (0, 0);
    for free in (1..).map(|step| 8 * step * MIB) {
        let mut engine = engine(Precision::F16);
        let gpu = engine.gpu().unwrap().clone();
        let shortage = Shortage::leaving(&gpu, free).unwrap();
        let mut began = 0;
        let painted = engine.paint_alone(wanted, &mut |step| {
            began += usize::from(step.finished == 0);
            ControlFlow::Continue(())
        });
        let (enough, free) = (engine.pipeline.is_fully_resident(), free / MIB);
        match &painted {
            Err(error) => {
                assert!(error.is_out_of_memory() && !error.is_permanent(), "{free} MiB: {error}");
                told += 1;
            }
            Ok(painted) => {
                let likeness = likeness(&painted.pictures, &whole);
                println!("{free} MiB free: began {began} times, {likeness:.1} dB, at ease: {enough}");
                assert!(likeness > 35.0, "{free} MiB: {likeness:.1} dB");
                made += usize::from(!enough && began >= at_once);
            }
        }
        drop(shortage);
        assert!(!engine.is_lost(), "{free} MiB");
        assert_eq!(paint(&mut engine, wanted), whole, "{free} MiB: what failed has left something behind");
        if painted.is_ok() && enough {
            break;
        }
    }
    println!("told {told} times, made {made} times");
    (told, made)
}

#[test]
fn gpu_memory_that_does_not_suffice_for_the_pixels_is_made_or_told() {
    let style = Lora::read(&Path::new(MODEL).with_file_name("styles/halftone.safetensors")).unwrap();
    let loras = vec![AppliedLora { lora: Arc::new(style), scale: 0.9 }];
    let (told, made) =
        with_ever_more_memory(&GenerationRequest { loras, ..generation_request("red circle", 7, 1, 768) }, 1);
    assert!(told > 0 && made > 0);
}

#[test]
fn gpu_memory_that_does_not_suffice_for_all_at_once_is_made() {
    let many = generation_request("red circle", 7, 24, 256);
    let (_, made) = with_ever_more_memory(&many, many.images);
    assert!(made > 0);
}

#[test]
fn gpu_that_is_lost_is_told_from_one_that_has_too_little_memory() {
    const BREAK: &str = "EASEL_TEST_BREAK_GPU";
    if env::var_os(BREAK).is_none() {
        // In a process of its own: it is good for nothing afterwards.
        let module = module_path!().split_once("::").unwrap().1;
        let name = format!("{module}::gpu_that_is_lost_is_told_from_one_that_has_too_little_memory");
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
