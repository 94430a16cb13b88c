//! Each operation on the GPU against the same one on the CPU, on random numbers, in every dtype. Needs a GPU.

use super::super::{params::Params, *};
use crate::{
    gpu::{Dtype, Gpu, Placed},
    loading::weights::Weights,
    noise::Noise,
};
use candle_core::{DType, Device, Tensor};
use std::cell::{Cell, LazyCell};

mod attention;
mod joined;
mod norm;
mod pictures;
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
            // Of more chunks than a norm should read.
            (32, 128, 256, 256),
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
            if dtype == Dtype::F16 && height * width >= 256 * 256 {
                let map = gpu.0.forward(&map_to_gpu(&xs, dtype)).unwrap();
                let chunks = map.gpu().unwrap().moments().map(|moments| moments.array.dims()[2]);
                assert!(chunks.is_some_and(|chunks| chunks <= 64), "{chunks:?} chunks of {height}x{width}");
            }
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
