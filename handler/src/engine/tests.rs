//! The engine on a GPU: batches, too little memory, a lost GPU. Needs a GPU.

use super::{BatchItem, Engine, GenerationRequest, Pictures, Preview, Step};
use crate::engine::{
    options::{CpuVectors, DeviceKind, Dora, ModelConfig, Offload, Precision},
    safety::CheckerConfig,
};
use candle_core::{DType, Device, Tensor};
use diffusion::{
    error::PipelineError,
    gpu::{Generation, Gpu, Shortage},
    lora::{AppliedLora, Lora},
    noise::{DEFAULT_THREADS, Noise, Source},
    pipeline::{DecodeMemory, Request},
    prompt::Weighting,
    schedulers::Kind,
};
use image::RgbImage;
use std::{env, ops::ControlFlow, path::Path, process::Command, sync::Arc};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/model/easel-tiny");
const MIB: usize = 1 << 20;

fn engine(dtype: Precision) -> Engine {
    open(dtype, Offload::Never).unwrap()
}

fn open(dtype: Precision, offload: Offload) -> Result<Engine, PipelineError> {
    Engine::open(&config(dtype, offload), (256, 256))
}

fn config(dtype: Precision, offload: Offload) -> ModelConfig {
    ModelConfig {
        dir: MODEL.into(),
        device: DeviceKind::Cuda,
        dtype,
        offload,
        kernels_of: kernels_of(),
        cpu_vectors: CpuVectors::Auto,
        noise_threads: DEFAULT_THREADS,
        dora: Dora::Apply,
        checker: CheckerConfig::default(),
    }
}

/// Whose kernels the tests run with, as the option's variable says.
fn kernels_of() -> Option<Generation> {
    env::var("EASEL_KERNELS_OF").ok().map(|name| name.parse().unwrap())
}

fn halftone() -> Vec<AppliedLora> {
    let style = Lora::read(&Path::new(MODEL).with_file_name("styles/halftone.safetensors")).unwrap();
    vec![AppliedLora::new(Arc::new(style), 0.9)]
}

fn generation_request(prompt: &str, seed: u64, images: usize, size: usize) -> GenerationRequest {
    let inputs = Request {
        prompt: prompt.into(),
        negative_prompt: "blue".into(),
        prompt_weighting: Weighting::None,
        long_prompt: false,
        clip_skip: 0,
        width: size,
        height: size,
        seed,
        steps: 8,
        guidance_scale: 7.5,
        scheduler: Kind::DpmSolverPlusPlus,
        karras_sigmas: None,
        noise_source: Source::Cuda,
        start: None,
    };
    GenerationRequest::new(inputs, images)
}

fn paint(engine: &mut Engine, request: &GenerationRequest) -> Vec<RgbImage> {
    engine.paint_alone(request, &mut |_, _| ControlFlow::Continue(())).unwrap().pictures
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
        let mut callbacks = all.each_ref().map(|_| |_: Step, _: &mut Preview<'_>| ControlFlow::Continue(()));
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

/// The second part goes on with what was computed of the prompts for the first, and the last is of another size.
#[test]
fn gpu_pictures_painted_in_parts_are_those_painted_alone() {
    let mut engine = engine(Precision::F16);
    let request = generation_request("red circle", 7, 5, 256);
    let mut run = |at_once| {
        let painted = engine.try_alone(&request, at_once, &mut |_, _| ControlFlow::Continue(()));
        painted.unwrap().pictures
    };
    let [alone, parts, again] = [1, 2, 2].map(&mut run);
    let likeness = likeness(&parts, &alone);
    println!("in parts: {likeness:.1} dB");
    assert!(likeness > 35.0, "{likeness:.1} dB");
    assert_eq!(parts, again);
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
        let painted = engine.paint_alone(request, &mut |step, _| {
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

/// A backend may ask for another size each time: what is kept of the old ones must not fill the GPU.
#[test]
fn gpu_memory_does_not_grow_with_the_number_of_sizes() {
    let mut engine = engine(Precision::F16);
    let gpu = Gpu::clone(engine.gpu().unwrap());
    let sized = |index: usize| {
        // 200 sizes, the larger ones first.
        let (width, height) = (64 + 8 * (19 - index % 20), 64 + 8 * (9 - index / 20));
        let mut request = generation_request("red circle", 7, 1, 64);
        (request.inputs.width, request.inputs.height, request.inputs.steps) = (width, height, 2);
        request
    };
    let usual = generation_request("red circle", 7, 1, 256);
    let first = paint(&mut engine, &usual);
    let mut held = Vec::new();
    for index in 0..200 {
        paint(&mut engine, &sized(index));
        held.push(gpu.bytes());
    }
    println!("held after 50, 100 and 200 sizes: {:?} bytes", [held[49], held[99], held[199]]);
    // A few pages may lie between what is kept.
    assert!(held[199] <= held[49] + 8 * MIB, "{} bytes after 50 sizes, {} after 200", held[49], held[199]);
    assert_eq!(paint(&mut engine, &usual), first);
}

#[test]
fn gpu_pictures_are_the_same_whatever_leaves_the_gpu() {
    for dtype in [Precision::F16, Precision::Bf16, Precision::F32] {
        let plain = generation_request("red circle", 7, 2, 256);
        let styled = || GenerationRequest { loras: halftone(), ..generation_request("red circle", 7, 1, 256) };
        let larger = generation_request("blue square", 8, 1, 512);
        let (mut whole, mut peaks) = (None, Vec::new());
        for offload in [Offload::Never, Offload::Model, Offload::Sequential] {
            let mut engine = open(dtype, offload).unwrap();
            let footprint = engine.footprint().unwrap();
            assert_eq!(footprint.offload, offload.into(), "{footprint:?}");
            let gpu = Gpu::clone(engine.gpu().unwrap());
            gpu.forget_peak();
            // Twice, so that the base comes back after the LoRA.
            let painted: Vec<_> =
                [&plain, &styled(), &larger, &styled(), &plain].map(|request| paint(&mut engine, request)).into();
            let held = gpu.bytes();
            assert!(painted[0] == painted[4] && painted[1] == painted[3], "{dtype:?} {offload:?}");
            assert!(painted[0][0] != painted[1][0], "the LoRA changes the picture");
            assert!(painted == *whole.get_or_insert_with(|| painted.clone()), "{dtype:?} {offload:?}: other pictures");
            println!("{dtype:?} {offload:?}: {} MiB at most, {held} bytes held, {footprint:?}", gpu.peak_bytes() / MIB);
            peaks.push(gpu.peak_bytes());
            for _ in 0..5 {
                paint(&mut engine, &styled());
                paint(&mut engine, &plain);
            }
            assert_eq!(gpu.bytes(), held, "{dtype:?} {offload:?}: memory grows");
        }
        // The window is a large part of so small a UNet, so `sequential` may take more than `model`.
        assert!(peaks[1] < peaks[0] && peaks[2] < peaks[0], "{dtype:?}: {peaks:?}");
    }
}

fn long_request(chunks: usize, seed: u64) -> GenerationRequest {
    let plain = generation_request(&"red circle on blue, ".repeat(chunks * 15), seed, 1, 256);
    let inputs = Request { long_prompt: true, clip_skip: 1, ..plain.inputs.clone() };
    GenerationRequest { inputs, ..plain }
}

/// Chunks and skipped layers, in turn with prompts of one chunk, so that recordings of both are used again; and more kinds of long
/// prompts than recordings are kept of.
#[test]
fn gpu_long_prompts_paint_what_the_cpu_paints_whatever_leaves_the_gpu() {
    let requests = [1, 2, 3, 2, 4, 5, 6, 2].map(|chunks| long_request(chunks, 7));
    let plain = generation_request("red circle", 7, 1, 256);
    let latents = |engine: &Engine, request: &GenerationRequest| {
        let mut stream = Noise::cpu(7);
        let noise = engine.pipeline.first_noise(&request.inputs, 1, &mut stream).unwrap();
        engine.pipeline.denoise(&request.inputs, noise, &mut stream, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let cpu = ModelConfig { device: DeviceKind::Cpu, ..config(Precision::F32, Offload::Auto) };
    let cpu = Engine::open(&cpu, (256, 256)).unwrap();
    let wanted: Vec<_> = requests.iter().map(|request| latents(&cpu, request)).collect();
    for (dtype, limit) in [(Precision::F32, 2e-4), (Precision::F16, 5e-2)] {
        let mut before = None;
        for offload in [Offload::Never, Offload::Model, Offload::Sequential] {
            let mut engine = open(dtype, offload).unwrap();
            let first = paint(&mut engine, &plain);
            for (request, wanted) in requests.iter().zip(&wanted) {
                let chunks = engine.pipeline.chunks(&request.inputs, &[]).unwrap();
                let rms =
                    |tensor: &Tensor| tensor.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
                let error = rms(&(&latents(&engine, request) - wanted).unwrap()) / rms(wanted);
                println!("{chunks} chunks, {dtype:?} {offload:?}: {error:.1e} of {limit:.1e}");
                assert!(error < limit, "{chunks} chunks, {dtype:?} {offload:?}: {error:e}");
                assert_eq!(paint(&mut engine, &plain), first, "{dtype:?} {offload:?}: after {chunks} chunks");
            }
            let painted = paint(&mut engine, &requests[2]);
            assert!(
                painted == *before.get_or_insert_with(|| painted.clone()),
                "{dtype:?} {offload:?}: another picture"
            );
        }
    }
}

#[test]
fn gpu_long_prompts_fit_the_memory_that_is_there_or_fail_one_task() {
    let long = long_request(6, 7);
    let inputs = Request { width: 768, height: 768, ..long.inputs.clone() };
    let (failed, freed) = with_ever_more_memory(&GenerationRequest { inputs, ..long }, 1);
    assert!(failed > 0 && freed > 0);
}

#[test]
fn gpu_memory_too_small_for_the_way_that_was_asked_for_is_told_before_loading() {
    let gpu = Gpu::open_with(0, kernels_of()).unwrap();
    for (free, offload, fits) in
        [(0, Offload::Auto, "larger one"), (0, Offload::Never, "larger one"), (64, Offload::Never, "--offload")]
    {
        let enough = engine(Precision::F16).footprint().unwrap().needed;
        // The least that would do, and a little less.
        let shortage = Shortage::leaving(&gpu, if free == 0 { 32 * MIB } else { enough - free * MIB }).unwrap();
        let refused = open(Precision::F16, offload).err().map(|error| error.to_string());
        drop(shortage);
        let refused = refused.unwrap_or_else(|| panic!("{free} {offload:?} was opened"));
        assert!(refused.contains("MiB are free") && refused.contains(fits), "{refused}");
    }
    let mut engine = engine(Precision::F16);
    paint(&mut engine, &generation_request("red circle", 7, 1, 256));
}

#[test]
fn gpu_memory_that_another_takes_meanwhile_fails_one_task_and_the_next_paints() {
    let request = generation_request("red circle", 7, 1, 768);
    for offload in [Offload::Model, Offload::Sequential] {
        let mut engine = open(Precision::F16, offload).unwrap();
        let whole = paint(&mut engine, &request);
        let gpu = Gpu::clone(engine.gpu().unwrap());
        let shortage = Shortage::leaving(&gpu, 0).unwrap();
        let failed = engine.paint_alone(&request, &mut |_, _| ControlFlow::Continue(()));
        drop(shortage);
        match failed {
            Err(error) => {
                assert!(error.is_out_of_memory() && !error.is_permanent(), "{error}");
                assert!(error.to_string().contains("MiB"), "{error}");
            }
            // What comes and leaves in this way fits into what stays.
            Ok(_) => assert_eq!(offload, Offload::Sequential, "it was painted in no memory"),
        }
        assert!(paint(&mut engine, &request) == whole, "{offload:?}: what failed has left something behind");
    }
}

#[test]
fn gpu_memory_too_small_to_decode_is_freed_or_an_error() {
    let loras = halftone();
    let (failed, freed) =
        with_ever_more_memory(&GenerationRequest { loras, ..generation_request("red circle", 7, 1, 768) }, 1);
    assert!(failed > 0 && freed > 0);
}

/// Memory for a picture's bands, but not for its whole maps: nothing has to leave the GPU for it.
#[test]
fn gpu_memory_too_small_for_whole_maps_is_enough_for_bands() {
    let latents = Noise::cpu(7).randn((1, 4, 96, 96), DType::F32, &Device::Cpu).unwrap();
    let bands = engine(Precision::F16).pipeline.bands(&latents).unwrap();
    let decode = |memory| {
        let engine = engine(Precision::F16);
        let before = engine.gpu().unwrap().bytes();
        let pictures = engine.pipeline.decode(&latents, memory).unwrap();
        (pictures, engine.gpu().unwrap().bytes() - before)
    };
    let ((whole, most), (_, least)) = (decode(DecodeMemory::Whole), decode(bands));
    println!("whole maps took {} MiB more, bands {} MiB", most / MIB, least / MIB);
    assert!(least < most);
    let mut engine = engine(Precision::F16);
    let shortage = Shortage::leaving(engine.gpu().unwrap(), (least + most) / 2).unwrap();
    let pictures = engine.decode(&latents).unwrap();
    assert!(engine.pipeline.is_fully_resident());
    let likeness = likeness(&pictures, &whole);
    println!("bands and whole maps: {likeness:.1} dB");
    assert!(likeness > 45.0, "{likeness:.1} dB");
    drop(shortage);
    assert_eq!(engine.decode(&latents).unwrap(), whole, "bands leave nothing behind");
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
    let painted =
        engine.paint_alone(&generation_request("red circle", 1, 1, 256), &mut |_, _| ControlFlow::Continue(()));
    assert!(painted.is_err_and(|error| !error.is_out_of_memory() && !error.is_permanent()));
    assert!(engine.is_lost());
}
