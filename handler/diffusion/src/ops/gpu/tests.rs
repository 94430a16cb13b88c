//! Each operation on the GPU against the same one on the CPU, on random numbers, in every dtype. Needs a GPU.

use super::super::{params::Params, *};
use crate::{
    gpu::{Dtype, Gpu, Placed},
    loading::weights::Weights,
    lora::{AppliedLora, Lora},
    noise::{DEFAULT_THREADS, Noise, Source},
    pipeline::{Compute, DecodeMemory, Pipeline, Request, StartImage},
    prompt::Weighting,
    schedulers::Kind,
};
use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage};
use std::{
    cell::{Cell, LazyCell},
    fs,
    ops::ControlFlow,
    path::Path,
    sync::Arc,
};

mod attention;
mod joined;
mod prompt;
mod upsampled;

thread_local! {
    static DRAWS: Cell<u64> = const { Cell::new(1000) };
    static GPU: LazyCell<Gpu> = LazyCell::new(Gpu::for_tests);
}

/// The largest relative error allowed, of the whole by Frobenius' norm.
fn limit(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => 2e-3,
        Dtype::BF16 => 1.5e-2,
        Dtype::F32 => 5e-6,
    }
}

fn rounded(tensor: &Tensor, dtype: Dtype) -> Tensor {
    let to = match dtype {
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
    };
    tensor.to_dtype(to).unwrap().to_dtype(DType::F32).unwrap()
}

fn draw(dims: &[usize], dtype: Dtype) -> Tensor {
    let seed = DRAWS.get();
    DRAWS.set(seed + 1);
    rounded(&Noise::cpu(seed).randn(dims, DType::F32, &Device::Cpu).unwrap(), dtype)
}

/// A map in the GPU's layout, channels filled up.
fn map_to_gpu(map: &Tensor, dtype: Dtype) -> Array {
    let channels = map.dim(1).unwrap();
    let map = map.pad_with_zeros(1, 0, channels.next_multiple_of(LANES) - channels).unwrap();
    to_gpu(&map.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap(), dtype)
}

fn to_gpu(tensor: &Tensor, dtype: Dtype) -> Array {
    GPU.with(|gpu| Array::Gpu(crate::gpu::Array::from_tensor(gpu, tensor, dtype).unwrap()))
}

fn map_to_cpu(map: &Array, channels: usize) -> Tensor {
    map.to_tensor().unwrap().permute((0, 3, 1, 2)).unwrap().narrow(1, 0, channels).unwrap().contiguous().unwrap()
}

fn check(what: &str, dtype: Dtype, gpu: &Tensor, cpu: &Tensor) {
    check_within(what, dtype, gpu, cpu, limit(dtype));
}

fn check_within(what: &str, dtype: Dtype, gpu: &Tensor, cpu: &Tensor, limit: f64) {
    assert_eq!(gpu.dims(), cpu.dims(), "{what}");
    let norm = |tensor: &Tensor| {
        let wide = tensor.to_dtype(DType::F64).unwrap();
        wide.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    };
    let error = norm(&(gpu - cpu).unwrap()) / norm(cpu);
    println!("{what} {}: {error:.1e} of {limit:.1e}", dtype.name());
    assert!(error < limit, "{what} {}: {error:e}", dtype.name());
}

/// Parameters by name, and a module of them on either side.
fn both<M>(dtype: Dtype, tensors: &[(&str, Tensor)], make: impl Fn(Params) -> Result<M>) -> (M, M) {
    let named = tensors.iter().map(|(name, tensor)| (format!("m.{name}"), tensor.clone()));
    let weights = Weights::new(named.collect());
    let cpu = make(Params::on_cpu(&weights).pp("m")).unwrap();
    let placed = GPU.with(|gpu| Placed::new(gpu, dtype, 2 << 20)).unwrap();
    // As in a network: what steps do not use lies elsewhere.
    let ahead = placed.section().unwrap();
    let gpu = make(Params::on_gpu(&weights, &placed).with_section(&ahead).pp("m")).unwrap();
    placed.keep().unwrap();
    ahead.keep().unwrap();
    placed.clear_padding().unwrap();
    GPU.with(|gpu| gpu.synchronize().unwrap());
    placed.fill(&weights, None).unwrap();
    (cpu, gpu)
}

fn in_each_dtype(test: impl Fn(Dtype)) {
    [Dtype::F16, Dtype::BF16, Dtype::F32].into_iter().for_each(test);
}

#[test]
fn gpu_convolution_with_zeros_past_the_map_alone_is_the_cpus() {
    in_each_dtype(|dtype| {
        // The encoder's levels of 512x512, and of a picture whose sides are not multiples of anything.
        for (channels, height, width) in
            [(128, 512, 512), (256, 256, 256), (512, 128, 128), (128, 328, 264), (512, 82, 66), (24, 8, 6)]
        {
            let gain = (channels as f64 * 9.0).powf(-0.5);
            let weight = rounded(&(draw(&[channels, channels, 3, 3], dtype) * gain).unwrap(), dtype);
            let (xs, bias) = (draw(&[1, channels, height, width], dtype), draw(&[channels], dtype));
            let (cpu, gpu) =
                both(dtype, &[("weight", weight), ("bias", bias)], |p| Conv::half3x3_past(channels, channels, p));
            let plain = cpu.forward(&Array::Cpu(xs.clone())).unwrap().to_tensor().unwrap();
            let ours = map_to_cpu(&gpu.forward(&map_to_gpu(&xs, dtype)).unwrap(), channels);
            check(&format!("3x3 halving, {channels} at {height}x{width}"), dtype, &ours, &plain);
        }
    });
}

#[test]
fn gpu_convolution_is_the_cpus() {
    in_each_dtype(|dtype| {
        // Batch, channels in and out, height, width; the last are narrow on purpose.
        let cases = [
            (2, 320, 320, 64, 64),
            (2, 1280, 640, 16, 24),
            (1, 4, 320, 64, 64),
            (2, 320, 4, 32, 32),
            (1, 64, 96, 9, 7),
            // The levels of a picture of 264x328: its latents are 33x41.
            (2, 320, 320, 41, 33),
            (2, 640, 640, 21, 17),
            (2, 1280, 1280, 11, 9),
            (2, 1280, 1280, 6, 5),
            // Of so many tiles that two are made on a multiprocessor at once.
            (2, 64, 320, 96, 96),
            (2, 128, 1280, 48, 48),
            (2, 320, 1280, 64, 64),
            (2, 64, 4, 96, 96),
        ];
        for (batch, inner, outer, height, width) in cases {
            let gain = (inner as f64 * 9.0).powf(-0.5);
            let weight = |side: usize| rounded(&(draw(&[outer, inner, side, side], dtype) * gain).unwrap(), dtype);
            let xs = draw(&[batch, inner, height, width], dtype);
            let on_gpu = map_to_gpu(&xs, dtype);
            let bias = draw(&[outer], dtype);
            let name = format!("{inner} to {outer} at {height}x{width}");
            let (cpu, gpu) =
                both(dtype, &[("weight", weight(3)), ("bias", bias.clone())], |p| Conv::same3x3(inner, outer, p));
            let plain = cpu.forward(&Array::Cpu(xs.clone())).unwrap().to_tensor().unwrap();
            check(&format!("3x3 {name}"), dtype, &map_to_cpu(&gpu.forward(&on_gpu).unwrap(), outer), &plain);
            let onto = draw(plain.dims(), dtype);
            let sum = gpu.forward_adding(&on_gpu, &map_to_gpu(&onto, dtype)).unwrap();
            check(&format!("3x3 onto {name}"), dtype, &map_to_cpu(&sum, outer), &(&plain + &onto).unwrap());
            if outer % LANES == 0 {
                let table = draw(&[3, outer], dtype);
                let counter = GPU.with(|gpu| gpu.resident(&[1], Dtype::F32).unwrap());
                counter.write(&2i32.to_le_bytes()).unwrap();
                let shifted = gpu.forward_shifted(&on_gpu, &to_gpu(&table, dtype), &Step::Counter(counter)).unwrap();
                let row = table.narrow(0, 2, 1).unwrap().reshape((1, outer, 1, 1)).unwrap();
                check(
                    &format!("3x3 shifted {name}"),
                    dtype,
                    &map_to_cpu(&shifted, outer),
                    &plain.broadcast_add(&row).unwrap(),
                );
            }
            let (cpu, gpu) =
                both(dtype, &[("weight", weight(3)), ("bias", bias.clone())], |p| Conv::half3x3(inner, outer, p));
            let plain = cpu.forward(&Array::Cpu(xs.clone())).unwrap().to_tensor().unwrap();
            check(&format!("half {name}"), dtype, &map_to_cpu(&gpu.forward(&on_gpu).unwrap(), outer), &plain);
            let (cpu, gpu) =
                both(dtype, &[("weight", weight(1)), ("bias", bias)], |p| Conv::pointwise(inner, outer, p));
            let plain = cpu.forward(&Array::Cpu(xs)).unwrap().to_tensor().unwrap();
            let onto = draw(plain.dims(), dtype);
            let sum = gpu.forward_adding(&on_gpu, &map_to_gpu(&onto, dtype)).unwrap();
            check(&format!("1x1 onto {name}"), dtype, &map_to_cpu(&sum, outer), &(plain + onto).unwrap());
        }
    });
}

/// What a group norm after a convolution or a product needs comes with it.
#[test]
fn gpu_norms_after_convolutions_are_the_cpus() {
    in_each_dtype(|dtype| {
        // Small maps are split along k. The rows of the last ones are no whole chunks.
        let cases = [
            (320, 320, 32, 32),
            (64, 640, 32, 32),
            (1280, 1280, 8, 8),
            (256, 256, 64, 48),
            (64, 320, 9, 7),
            (320, 320, 41, 33),
            (640, 640, 21, 17),
            (1280, 1280, 11, 9),
            // As in the test of convolutions.
            (64, 320, 96, 96),
            (64, 1280, 32, 32),
            (320, 1280, 64, 64),
        ];
        for (inner, outer, height, width) in cases {
            let xs = draw(&[2, inner, height, width], dtype);
            let scale = (inner as f64 * 9.0).powf(-0.5);
            let tensors = [
                ("conv.weight", rounded(&(draw(&[outer, inner, 3, 3], dtype) * scale).unwrap(), dtype)),
                ("conv.bias", rounded(&(draw(&[outer], dtype) + 3.0).unwrap(), dtype)),
                ("norm.weight", draw(&[outer], dtype)),
                ("norm.bias", draw(&[outer], dtype)),
            ];
            let (cpu, gpu) = both(dtype, &tensors, |p| {
                Ok((Conv::same3x3(inner, outer, p.pp("conv"))?, GroupNorm::new(32, outer, 1e-5, p.pp("norm"))?))
            });
            let run = |(conv, norm): &(Conv, GroupNorm), xs: &Array| norm.forward_silu(conv.forward(xs)?);
            let plain = run(&cpu, &Array::Cpu(xs.clone())).unwrap().to_tensor().unwrap();
            let ours = map_to_cpu(&run(&gpu, &map_to_gpu(&xs, dtype)).unwrap(), outer);
            check(&format!("norm after {inner} to {outer} at {height}x{width}"), dtype, &ours, &plain);
        }
    });
}

/// One and the same picture every time: sums have a fixed order, also where they are split.
#[test]
fn gpu_products_repeat_to_the_bit() {
    in_each_dtype(|dtype| {
        for (inner, outer, side) in [(1280, 1280, 8), (320, 320, 64)] {
            let tensors = [("weight", draw(&[outer, inner, 3, 3], dtype)), ("bias", draw(&[outer], dtype))];
            let (_, conv) = both(dtype, &tensors, |p| Conv::same3x3(inner, outer, p));
            let xs = map_to_gpu(&draw(&[2, inner, side, side], dtype), dtype);
            let bytes = || conv.forward(&xs).unwrap().gpu().unwrap().read().unwrap();
            let first = bytes();
            for _ in 0..3 {
                assert!(first == bytes(), "{inner} to {outer} at {side} {}", dtype.name());
            }
        }
    });
}

#[test]
fn gpu_linear_layers_are_the_cpus() {
    in_each_dtype(|dtype| {
        for (rows, inner, outer) in [
            (4096, 320, 960),
            (77, 768, 640),
            (5, 64, 8),
            (256, 1280, 10_240),
            (1353, 320, 960),
            (357, 640, 640),
            (18_432, 320, 320),
        ] {
            let weight = (draw(&[outer, inner], dtype) * (inner as f64).powf(-0.5)).unwrap();
            let tensors = [("weight", rounded(&weight, dtype)), ("bias", draw(&[outer], dtype))];
            let (xs, onto) = (draw(&[2, rows, inner], dtype), draw(&[2, rows, outer], dtype));
            let (cpu, gpu) = both(dtype, &tensors, |p| Linear::new(inner, outer, p));
            let plain =
                cpu.forward_adding(&Array::Cpu(xs.clone()), &Array::Cpu(onto.clone())).unwrap().to_tensor().unwrap();
            let ours = gpu.forward_adding(&to_gpu(&xs, dtype), &to_gpu(&onto, dtype)).unwrap().to_tensor().unwrap();
            check(&format!("linear {rows} x {inner} to {outer}"), dtype, &ours, &plain);
        }
        for (rows, inner, outer) in
            [(4096, 320, 1280), (500, 640, 2560), (333, 1280, 5120), (20, 320, 1280), (300, 40, 64), (2706, 320, 1280)]
        {
            let weight = (draw(&[2 * outer, inner], dtype) * (inner as f64).powf(-0.5)).unwrap();
            let tensors = [("weight", rounded(&weight, dtype)), ("bias", draw(&[2 * outer], dtype))];
            let xs = draw(&[1, rows, inner], dtype);
            let (cpu, gpu) = both(dtype, &tensors, |p| Linear::new(inner, 2 * outer, p));
            let plain = cpu.forward_geglu(&Array::Cpu(xs.clone())).unwrap().to_tensor().unwrap();
            let ours = gpu.forward_geglu(&to_gpu(&xs, dtype)).unwrap().to_tensor().unwrap();
            check(&format!("linear geglu {rows} x {inner} to {outer}"), dtype, &ours, &plain);
        }
        let parts = ["a.weight", "b.weight", "c.weight"].map(|name| (name, draw(&[64, 40], dtype)));
        let (cpu, gpu) =
            both(dtype, &parts, |p| Linear::packed(40, 64, false, &["a", "b", "c"].map(|part| p.pp(part))));
        let xs = draw(&[2, 9, 40], dtype);
        let plain = cpu.forward_each(&Array::Cpu(xs.clone())).unwrap();
        for (index, (ours, plain)) in gpu.forward_each(&to_gpu(&xs, dtype)).unwrap().iter().zip(&plain).enumerate() {
            let tight = GPU.with(|gpu| gpu.scratch(&[2, 9, 64], dtype).unwrap());
            GPU.with(|gpu| gpu.copy(ours.gpu().unwrap(), &tight).unwrap());
            check(&format!("packed {index}"), dtype, &tight.to_tensor().unwrap(), plain.cpu().unwrap());
        }
    });
}

#[test]
fn gpu_norms_are_the_cpus() {
    in_each_dtype(|dtype| {
        for (channels, height, width) in
            [(320, 64, 64), (2560, 8, 8), (960, 33, 5), (960, 41, 33), (64, 16, 16), (128, 256, 256)]
        {
            let xs = rounded(&(draw(&[2, channels, height, width], dtype) + 2.0).unwrap(), dtype);
            let tensors = [("weight", draw(&[channels], dtype)), ("bias", draw(&[channels], dtype))];
            let (cpu, gpu) = both(dtype, &tensors, |p| GroupNorm::new(32, channels, 1e-5, p));
            let (plain, ours) = (Array::Cpu(xs.clone()), map_to_gpu(&xs, dtype));
            let name = format!("{channels} at {height}x{width}");
            let both = [
                (cpu.forward(&plain), gpu.forward(&ours)),
                (cpu.forward_silu(plain.clone()), gpu.forward_silu(ours.clone())),
            ];
            for (index, (plain, ours)) in both.into_iter().enumerate() {
                let ours = map_to_cpu(&ours.unwrap(), channels);
                check(&format!("group norm {index} {name}"), dtype, &ours, &plain.unwrap().to_tensor().unwrap());
            }
            // As two maps of which nothing was measured.
            let halves = xs.chunk(2, 1).unwrap();
            let [first, second] = [&halves[0], &halves[1]].map(|half| map_to_gpu(half, dtype));
            let ours = gpu.forward_silu(Maps::joined(first, second).unwrap()).unwrap();
            let plain = cpu.forward_silu(plain.clone()).unwrap().to_tensor().unwrap();
            check(&format!("joined norm {name}"), dtype, &map_to_cpu(&ours, channels), &plain);
        }
        // Of the first, a block normalises several rows one after another.
        for (rows, channels) in [(20_000, 320), (4096, 320), (77, 768), (64, 1280), (3, 64)] {
            let xs = rounded(&(draw(&[2, rows, channels], dtype) + 1.0).unwrap(), dtype);
            let tensors = [("weight", draw(&[channels], dtype)), ("bias", draw(&[channels], dtype))];
            let (cpu, gpu) = both(dtype, &tensors, |p| LayerNorm::new(channels, 1e-5, p));
            let ours = gpu.forward(&to_gpu(&xs, dtype)).unwrap().to_tensor().unwrap();
            check(
                &format!("layer norm {rows} x {channels}"),
                dtype,
                &ours,
                cpu.forward(&Array::Cpu(xs)).unwrap().cpu().unwrap(),
            );
        }
    });
}

/// The filters of a vision transformer: a row of 588 numbers is no whole number of vectors.
#[test]
fn gpu_windows_are_the_cpus() {
    in_each_dtype(|dtype| {
        let weight = (draw(&[64, 3, 14, 14], dtype) * 0.04).unwrap();
        let (cpu, ours) =
            both(dtype, &[("weight", rounded(&weight, dtype))], |params| Linear::of_windows(3, 14, 64, params));
        let (windows, onto) = (draw(&[2, 17, 588], dtype), draw(&[2, 17, 64], dtype));
        let plain = cpu.forward_adding(&Array::Cpu(windows.clone()), &Array::Cpu(onto.clone())).unwrap();
        let filled = windows.pad_with_zeros(2, 0, 4).unwrap();
        let ours = ours.forward_adding(&to_gpu(&filled, dtype), &to_gpu(&onto, dtype)).unwrap();
        check("windows", dtype, &ours.to_tensor().unwrap(), plain.cpu().unwrap());
    });
}

#[test]
fn gpu_pointwise_operations_are_the_cpus() {
    in_each_dtype(|dtype| {
        let (xs, ys) = (draw(&[2, 100, 640], dtype), draw(&[2, 100, 640], dtype));
        let (on_cpu, on_gpu) = (Array::Cpu(xs.clone()), to_gpu(&xs, dtype));
        let forms = [("silu", silu as fn(&Array) -> Result<Array>), ("quick gelu", quick_gelu)];
        for (name, form) in forms {
            check(name, dtype, &form(&on_gpu).unwrap().to_tensor().unwrap(), form(&on_cpu).unwrap().cpu().unwrap());
        }
        let halves = xs.chunk(2, 2).unwrap();
        let gated = (&halves[0] * halves[1].gelu_erf().unwrap()).unwrap();
        check("geglu", dtype, &gpu::geglu(on_gpu.gpu().unwrap()).unwrap().to_tensor().unwrap(), &gated);
        let sum = add(&on_gpu, &to_gpu(&ys, dtype)).unwrap().to_tensor().unwrap();
        check("add", dtype, &sum, &(xs + ys).unwrap());
        for (height, width) in [(18, 14), (17, 13)] {
            let map = draw(&[2, 16, 9, 7], dtype);
            let ours = upsample(&map_to_gpu(&map, dtype), height, width).unwrap();
            check(
                "upsample",
                dtype,
                &map_to_cpu(&ours, 16),
                upsample(&Array::Cpu(map), height, width).unwrap().cpu().unwrap(),
            );
        }
    });
}

/// Whole pictures of the model in the repository: the text encoder, both ways through the steps, a LoRA in and out, the pixels.
#[test]
fn gpu_pictures_are_the_cpus() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model"));
    let (model, size) = (folder.join("easel-tiny"), (256, 320));
    let style = Lora::read(&folder.join("styles/halftone.safetensors")).unwrap();
    let style = [AppliedLora::new(Arc::new(style), 0.9)];
    let mut cpu = Pipeline::load(&model, &Compute::Cpu, size).unwrap();
    for (dtype, limit) in [(Dtype::F32, 2e-4), (Dtype::F16, 5e-2), (Dtype::BF16, 4e-1)] {
        let compute = GPU.with(|gpu| Compute::Gpu(Gpu::clone(gpu), dtype));
        let mut ours = Pipeline::load(&model, &compute, size).unwrap();
        let runs: [(Kind, &[AppliedLora], f64); 4] = [
            (Kind::DpmSolverPlusPlus, &[], 7.5),
            (Kind::Euler, &[], 1.0),
            (Kind::DpmSolverPlusPlus, &style, 7.5),
            (Kind::DpmSolverPlusPlus, &[], 7.5),
        ];
        let mut first = None;
        for (index, (scheduler, loras, guidance_scale)) in runs.into_iter().enumerate() {
            let request = Request {
                prompt: "red circle".into(),
                negative_prompt: "blue".into(),
                prompt_weighting: Weighting::None,
                long_prompt: false,
                clip_skip: 0,
                width: size.0,
                height: size.1,
                seed: 7,
                steps: 4,
                guidance_scale,
                scheduler,
                karras_sigmas: None,
                noise_source: Source::Cuda,
                start: None,
            };
            let paint = |pipeline: &mut Pipeline| {
                pipeline.set_loras(loras).unwrap();
                let mut stream = Noise::cuda(7, DEFAULT_THREADS);
                let noise = pipeline.first_noise(&request, 2, &mut stream).unwrap();
                let latents =
                    pipeline.denoise(&request, noise, &mut stream, &mut |_| ControlFlow::Continue(())).unwrap();
                let pictures = pipeline.decode(&latents, DecodeMemory::Whole).unwrap();
                (latents, pictures)
            };
            let (theirs, ours) = (paint(&mut cpu), paint(&mut ours));
            // Root of the mean square: guidance makes much of half a digit at a few places, and a maximum shows only those.
            let rms =
                |tensor: &Tensor| tensor.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
            let error = rms(&(&theirs.0 - &ours.0).unwrap()) / rms(&theirs.0);
            println!("picture {index} {}: {error:.1e} of {limit:.1e}", dtype.name());
            assert!(error < limit, "picture {index} {}: {error:e}", dtype.name());
            for (theirs, ours) in theirs.1.iter().zip(&ours.1) {
                let off = theirs.as_raw().iter().zip(ours.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)));
                let mean = off.sum::<f64>() / theirs.as_raw().len() as f64;
                assert!(mean < 40.0 * f64::from(limit), "picture {index} {}: {mean} levels", dtype.name());
            }
            match &first {
                None => first = Some(ours.1),
                Some(first) if index == 3 => assert_eq!(first, &ours.1, "a LoRA leaves nothing behind"),
                Some(_) => {}
            }
        }
    }
}

/// Runs that begin from a picture, recorded and not: the encoder comes and leaves, and steps begin later than at the first.
#[test]
fn gpu_pictures_from_pictures_are_the_cpus() {
    let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model/easel-tiny"));
    let (width, height) = (264, 328);
    let picture = RgbImage::from_fn(200, 150, |x, y| Rgb([x as u8, y as u8, if x > y { 200 } else { 40 }]));
    let picture = Arc::new(picture);
    let mut cpu = Pipeline::load(model, &Compute::Cpu, (width, height)).unwrap();
    for (dtype, limit) in [(Dtype::F32, 2e-4), (Dtype::F16, 5e-2), (Dtype::BF16, 4e-1)] {
        let compute = GPU.with(|gpu| Compute::Gpu(Gpu::clone(gpu), dtype));
        let mut ours = Pipeline::load(model, &compute, (width, height)).unwrap();
        let mut plain = None;
        for (scheduler, strength) in [
            (Kind::DpmSolverPlusPlus, None),
            (Kind::DpmSolverPlusPlus, Some(0.5)),
            (Kind::Euler, Some(0.5)),
            (Kind::Pndm, Some(0.75)),
            (Kind::DpmSolverPlusPlus, Some(1.0)),
            (Kind::DpmSolverPlusPlus, None),
        ] {
            let start = strength.map(|strength| StartImage { picture: picture.clone(), strength });
            let request = Request { width, height, steps: 4, seed: 7, scheduler, start, ..Request::new("red circle") };
            let paint = |pipeline: &mut Pipeline| {
                let mut stream = Noise::cuda(7, DEFAULT_THREADS);
                let begun = pipeline.begin(&request, 2, &mut stream).unwrap();
                pipeline.denoise(&request, begun, &mut stream, &mut |_| ControlFlow::Continue(())).unwrap()
            };
            let (theirs, ours) = (paint(&mut cpu), paint(&mut ours));
            let rms =
                |tensor: &Tensor| tensor.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
            let error = rms(&(&theirs - &ours).unwrap()) / rms(&theirs);
            println!("{scheduler} from a picture at {strength:?} {}: {error:.1e} of {limit:.1e}", dtype.name());
            assert!(error < limit, "{scheduler} at {strength:?} {}: {error:e}", dtype.name());
            match (strength, &plain) {
                (None, None) => plain = Some(ours),
                (None, Some(before)) => {
                    assert_eq!(rms(&(before - &ours).unwrap()), 0.0, "an encoder leaves nothing behind")
                }
                (Some(_), _) => {}
            }
        }
    }
}

/// Latents with odd sides at some levels or at all: maps are halved upwards and resized to the skip connections, and no tile is full. With
/// a LoRA, the weights of resized maps are made anew.
#[test]
fn gpu_pictures_of_odd_sizes_are_the_cpus() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model"));
    let model = folder.join("easel-tiny");
    let style = Lora::read(&folder.join("styles/halftone.safetensors")).unwrap();
    let style = [AppliedLora::new(Arc::new(style), 0.9)];
    let sizes = [(264, 328), (280, 296), (256, 360), (1000, 264), (344, 376), (72, 64)];
    let mut cpu = Pipeline::load(&model, &Compute::Cpu, (512, 512)).unwrap();
    let rms = |tensor: &Tensor| tensor.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
    for (dtype, limit) in [(Dtype::F32, 2e-4), (Dtype::F16, 5e-2), (Dtype::BF16, 4e-1)] {
        let compute = GPU.with(|gpu| Compute::Gpu(Gpu::clone(gpu), dtype));
        let mut ours = Pipeline::load(&model, &compute, (512, 512)).unwrap();
        let mut paint = |(width, height): (usize, usize), loras: &[AppliedLora], images: usize| {
            let request = Request { width, height, steps: 3, seed: 7, ..Request::new("red circle") };
            let latents = [&mut cpu, &mut ours].map(|pipeline| {
                pipeline.set_loras(loras).unwrap();
                let mut stream = Noise::cuda(7, DEFAULT_THREADS);
                let noise = pipeline.first_noise(&request, images, &mut stream).unwrap();
                pipeline.denoise(&request, noise, &mut stream, &mut |_| ControlFlow::Continue(())).unwrap()
            });
            let error = rms(&(&latents[0] - &latents[1]).unwrap()) / rms(&latents[0]);
            println!("{width}x{height} {}: {error:.1e} of {limit:.1e}", dtype.name());
            assert!(error < limit, "{width}x{height} {}: {error:e}", dtype.name());
            for memory in [DecodeMemory::Whole, DecodeMemory::bands(width)] {
                // From the same latents.
                let [theirs, ours] = [(&cpu, DecodeMemory::Whole), (&ours, memory)]
                    .map(|(each, memory)| each.decode(&latents[0], memory).unwrap());
                for (theirs, ours) in theirs.iter().zip(&ours) {
                    assert_eq!(ours.dimensions(), (width as u32, height as u32));
                    let off = theirs.as_raw().iter().zip(ours.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)));
                    let mean = off.sum::<f64>() / theirs.as_raw().len() as f64;
                    assert!(mean < 40.0 * f64::from(limit), "{width}x{height} {}: {mean} levels", dtype.name());
                }
            }
            latents[1].flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let first = paint(sizes[0], &[], 1);
        for size in &sizes[1..] {
            paint(*size, &[], 1);
        }
        paint(sizes[0], &style, 2);
        assert!(first == paint(sizes[0], &[], 1), "{}: other sizes and a LoRA leave nothing behind", dtype.name());
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A UNet that takes the guidance scale as an input, and a text encoder with another epsilon. A recorded step must follow the scale.
#[test]
fn gpu_pictures_of_a_distilled_model_are_the_cpus() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model/easel-tiny")), folder.path());
    let settings = [("unet", "time_cond_proj_dim", 64.0), ("text_encoder", "layer_norm_eps", 0.1)];
    for (part, setting, value) in settings {
        let path = folder.path().join(part).join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[setting] = if setting == "layer_norm_eps" { value.into() } else { (value as usize).into() };
        fs::write(path, config.to_string()).unwrap();
    }
    let path = folder.path().join("unet/diffusion_pytorch_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let channels = tensors["time_embedding.linear_1.weight"].dim(1).unwrap();
    let weight = (draw(&[channels, 64], Dtype::F32) * 0.1).unwrap();
    tensors.insert("time_embedding.cond_proj.weight".into(), weight);
    candle_core::safetensors::save(&tensors, path).unwrap();

    let size = (256, 192);
    let latents = |pipeline: &Pipeline, scheduler, guidance_scale| {
        let (width, height) = size;
        let request = Request { width, height, steps: 4, scheduler, guidance_scale, ..Request::new("red circle") };
        let mut stream = Noise::cuda(7, DEFAULT_THREADS);
        let noise = pipeline.first_noise(&request, 2, &mut stream).unwrap();
        pipeline.denoise(&request, noise, &mut stream, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let rms = |tensor: &Tensor| tensor.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
    let cpu = Pipeline::load(folder.path(), &Compute::Cpu, size).unwrap();
    for (dtype, limit) in [(Dtype::F32, 2e-4), (Dtype::F16, 5e-2), (Dtype::BF16, 4e-1)] {
        let compute = GPU.with(|gpu| Compute::Gpu(Gpu::clone(gpu), dtype));
        let ours = Pipeline::load(folder.path(), &compute, size).unwrap();
        for (kind, scale) in [(Kind::Lcm, 8.5), (Kind::DpmSolverPlusPlus, 8.5), (Kind::DpmSolverPlusPlus, 0.5)] {
            let (theirs, ours) = (latents(&cpu, kind, scale), latents(&ours, kind, scale));
            let error = rms(&(&theirs - &ours).unwrap()) / rms(&theirs);
            println!("distilled {kind} {scale} {}: {error:.1e} of {limit:.1e}", dtype.name());
            assert!(error < limit, "distilled {kind} {scale} {}: {error:e}", dtype.name());
        }
    }
    let [one, other] = [8.5, 0.5].map(|scale| latents(&cpu, Kind::DpmSolverPlusPlus, scale));
    let change = rms(&(&one - &other).unwrap()) / rms(&one);
    assert!(change > 1e-2, "the scale changes too little for a comparison: {change:e}");
}
