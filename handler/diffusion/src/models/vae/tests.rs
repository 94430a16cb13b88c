//! The decoder in bands against the whole one, on random weights.

use super::{
    DecodeMemory, VaeDecoder,
    encoder::VaeEncoder,
    memory::{Form, Levels},
};
use crate::{
    gpu::Dtype,
    loading::{config::VaeConfig, weights::Weights},
    noise::Noise,
    ops::{
        Array,
        params::{Params, ShapeRecorder},
    },
};
use candle_core::{Device, Tensor};
use serde_json::json;

fn config(channels: &[usize], groups: usize) -> VaeConfig {
    let content = json!({
        "block_out_channels": channels,
        "up_block_types": vec!["UpDecoderBlock2D"; channels.len()],
        "down_block_types": vec!["DownEncoderBlock2D"; channels.len()],
        "layers_per_block": 1,
        "norm_num_groups": groups,
    });
    VaeConfig::from_object(content.as_object().unwrap()).unwrap()
}

/// SD1.5's.
fn large() -> VaeConfig {
    VaeConfig { layers_per_block: 2, ..config(&[128, 256, 512, 512], 32) }
}

/// Random weights that keep the size of what goes through them.
fn weights(config: &VaeConfig) -> Weights {
    let shapes = ShapeRecorder::default();
    VaeDecoder::new(config, Params::recording(&shapes)).unwrap();
    drawn(&shapes)
}

/// The same for an encoder.
fn encoder_weights(config: &VaeConfig) -> Weights {
    let shapes = ShapeRecorder::default();
    VaeEncoder::new(config, Params::recording(&shapes)).unwrap();
    drawn(&shapes)
}

fn drawn(shapes: &ShapeRecorder) -> Weights {
    let mut noise = Noise::cpu(1);
    let shapes = shapes.lock().unwrap().clone();
    let draw = |(name, dims): (String, Vec<usize>)| {
        let inner: usize = dims[1..].iter().product();
        let tensor = noise.draw(dims.as_slice(), &Device::Cpu).unwrap();
        let tensor = match dims.len() {
            1 if name.contains("norm") && name.ends_with("weight") => ((tensor * 0.1).unwrap() + 1.0).unwrap(),
            1 => (tensor * 0.1).unwrap(),
            _ => (tensor * (inner as f64).powf(-0.5)).unwrap(),
        };
        (name, tensor)
    };
    Weights::new(shapes.into_iter().map(draw).collect())
}

fn latents(config: &VaeConfig, height: usize, width: usize) -> Tensor {
    Noise::cpu(2).draw((1, config.latent_channels, height, width), &Device::Cpu).unwrap()
}

/// The bands, one below the other, `[1, 3, height, width]`.
fn in_bands(vae: &VaeDecoder, latents: &Array, rows: usize) -> Tensor {
    let mut bands = Vec::new();
    vae.decode_in_bands(latents, rows, &mut |band| {
        bands.push(band.to_map(3)?);
        Ok(())
    })
    .unwrap();
    assert!(rows == 0 || bands[..bands.len() - 1].iter().all(|band| band.dim(2).unwrap() == rows));
    Tensor::cat(&bands, 2).unwrap()
}

/// The largest difference, and the largest number.
fn difference(ours: &Tensor, theirs: &Tensor) -> (f32, f32) {
    assert_eq!(ours.dims(), theirs.dims());
    let most =
        |tensor: &Tensor| tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    (most(&(ours - theirs).unwrap()), most(theirs))
}

#[test]
fn bands_are_the_whole_picture() {
    let cases = [
        // Each form of a level, with and without a shortcut.
        (config(&[32, 64, 128, 128], 32), vec![Form::Whole, Form::Whole, Form::Whole, Form::Anew]),
        (config(&[32, 96, 128], 32), vec![Form::Whole, Form::Held, Form::Anew]),
        (config(&[16, 24, 40], 8), vec![Form::Whole, Form::Whole, Form::Anew]),
        (config(&[16, 16], 4), vec![Form::Whole, Form::Held]),
        (config(&[48, 16, 16], 8), vec![Form::Whole, Form::Whole, Form::Held]),
        (config(&[16], 4), vec![Form::Held]),
    ];
    for (config, forms) in cases {
        assert_eq!(Levels::of(&config).forms(), forms, "{:?}", config.block_out_channels);
        let vae = VaeDecoder::new(&config, Params::on_cpu(&weights(&config))).unwrap();
        for (height, width) in [(8, 8), (5, 7)] {
            let latents = Array::Cpu(latents(&config, height, width));
            let whole = vae.decode(&latents).unwrap().to_map(3).unwrap();
            // 0 counts as 1. No band of 3, 7 or 10 rows fits the height; the last is higher than the picture.
            for rows in [0, 1, 2, 3, 7, 8, 10, 16, 1000] {
                if rows < 3 && width == 8 {
                    continue;
                }
                let bands = in_bands(&vae, &latents, rows.min(whole.dim(2).unwrap()));
                let (error, most) = difference(&bands, &whole);
                let case = format!("{:?} at {height}x{width} in {rows}", config.block_out_channels);
                println!("{case}: {error:e} of {most}");
                assert!(most > 0.3 && error < 1e-5 * most.max(1.0), "{case}: {error:e} of {most}");
            }
        }
    }
}

#[test]
fn an_encoder_halves_as_often_as_a_decoder_doubles() {
    for channels in [&[16, 24, 40][..], &[16], &[48, 16, 16, 8]] {
        let config = config(channels, 8);
        let encoder = VaeEncoder::new(&config, Params::on_cpu(&encoder_weights(&config))).unwrap();
        let factor = config.factor();
        let pixels = Noise::cpu(3).draw((2, 3, 5 * factor, 3 * factor), &Device::Cpu).unwrap();
        let moments = encoder.encode(&Array::Cpu(pixels)).unwrap().to_map(8).unwrap();
        assert_eq!(moments.dims(), [2, 8, 5, 3], "{channels:?}");
    }
}

#[test]
fn an_encoder_that_is_another_is_refused_by_the_setting() {
    let usual = config(&[16, 24], 8);
    let other = |change: fn(&mut VaeConfig)| {
        let mut config = usual.clone();
        change(&mut config);
        VaeEncoder::new(&config, Params::on_cpu(&encoder_weights(&usual))).err().unwrap().to_string()
    };
    let refused = [
        (other(|config| config.in_channels = 4), "`in_channels` is 4"),
        (other(|config| config.down_block_types.truncate(1)), "`down_block_types` is a list of 1"),
        (other(|config| config.down_block_types[1] = "AttnDownEncoderBlock2D".into()), "`down_block_types` is Attn"),
    ];
    for (error, said) in refused {
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn one_latent_gives_one_picture_in_bands() {
    let config = config(&[16, 24, 40], 8);
    let vae = VaeDecoder::new(&config, Params::on_cpu(&weights(&config))).unwrap();
    let latents = Array::Cpu(latents(&config, 6, 5));
    let (one, other) = (in_bands(&vae, &latents, 7), in_bands(&vae, &latents, 7));
    assert_eq!(difference(&one, &other).0, 0.0);
}

#[test]
fn the_forms_of_stable_diffusion() {
    assert_eq!(Levels::of(&large()).forms(), [Form::Whole, Form::Whole, Form::Whole, Form::Anew]);
}

#[test]
fn predicted_memory_keeps_the_goals() {
    let mib = |memory: DecodeMemory, width, height| memory.bytes(&large(), (width, height), Dtype::F16) >> 20;
    let bands = |width, height| mib(DecodeMemory::bands(width), width, height);
    assert!(bands(768, 768) <= 400, "{}", bands(768, 768));
    assert!(bands(512, 512) <= 200, "{}", bands(512, 512));
    for (width, height) in [(512, 512), (768, 768), (512, 1024), (1024, 512), (1024, 1024), (640, 896), (256, 256)] {
        let (whole, bands) = (mib(DecodeMemory::Whole, width, height), bands(width, height));
        println!("{width}x{height}: whole {whole}, bands {bands} MiB");
        assert!(bands <= whole);
        let fitting = |free| DecodeMemory::fitting(&large(), (width, height), Dtype::F16, free);
        assert_eq!(fitting(whole << 20), DecodeMemory::Whole);
        assert_eq!(fitting((whole << 20) - 1), DecodeMemory::bands(width));
        let double = DecodeMemory::Whole.bytes(&large(), (width, height), Dtype::F32);
        assert!(double > whole << 20);
    }
    let rows = [64, 512, 768, 1024, 4096].map(|width| match DecodeMemory::bands(width) {
        DecodeMemory::Bands { rows } => rows,
        DecodeMemory::Whole => 0,
    });
    assert_eq!(rows, [64, 32, 32, 16, 8]);
}

/// On a GPU, with the shapes of Stable Diffusion 1.5.
#[cfg(feature = "cuda")]
mod on_gpu {
    use super::*;
    use crate::{
        gpu::{Gpu, Placed},
        ops::{LANES, steps},
    };

    /// The decoder, and the GPU, of which the weights and nothing else hold memory.
    fn vae(config: &VaeConfig, weights: &Weights, dtype: Dtype) -> (VaeDecoder, Gpu) {
        let gpu = Gpu::for_tests();
        let placed = Placed::new(&gpu, dtype, 2 << 20).unwrap();
        let vae = VaeDecoder::new(config, Params::on_gpu(weights, &placed)).unwrap();
        gpu.synchronize().unwrap();
        placed.keep().unwrap();
        placed.clear_padding().unwrap();
        gpu.synchronize().unwrap();
        placed.fill(weights, None).unwrap();
        gpu.trim(0).unwrap();
        (vae, gpu)
    }

    /// The pixels, and the most scratch memory, in bytes.
    fn decoded(vae: &VaeDecoder, gpu: &Gpu, dtype: Dtype, latents: &Tensor, memory: DecodeMemory) -> (Tensor, usize) {
        let before = gpu.bytes();
        let (_, channels, height, width) = latents.dims4().unwrap();
        let source = crate::gpu::Array::from_tensor(gpu, latents, Dtype::F32).unwrap();
        let map = gpu.scratch(&[1, height, width, channels.next_multiple_of(LANES)], dtype).unwrap();
        steps::enter(&source, &map, 1.0).unwrap();
        let pixels = match memory {
            DecodeMemory::Whole => vae.decode(&Array::Gpu(map)).unwrap().to_map(3).unwrap(),
            DecodeMemory::Bands { rows } => in_bands(vae, &Array::Gpu(map), rows),
        };
        (pixels, gpu.peak_bytes() - before)
    }

    /// The root of the mean square.
    fn rms(tensor: &Tensor) -> f32 {
        tensor.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap()
    }

    #[test]
    fn gpu_bands_are_the_whole_picture_in_the_memory_predicted() {
        let config = large();
        let weights = weights(&config);
        // Relative to the picture by the root of the mean square. In f16 both forms round, at other places.
        for (dtype, limit) in [(Dtype::F16, 2e-3), (Dtype::F32, 2e-5)] {
            // Width and height; the last is not a multiple of any band.
            for (width, height) in
                [(512, 512), (768, 768), (512, 1024), (1024, 512), (264, 328), (1024, 1024), (520, 712)]
            {
                let latents = latents(&config, height / 8, width / 8);
                let bands = DecodeMemory::bands(width);
                let (ours, most) = {
                    let (vae, gpu) = vae(&config, &weights, dtype);
                    decoded(&vae, &gpu, dtype, &latents, bands)
                };
                let (vae, gpu) = vae(&config, &weights, dtype);
                let (whole, most_whole) = decoded(&vae, &gpu, dtype, &latents, DecodeMemory::Whole);
                let (again, _) = decoded(&vae, &gpu, dtype, &latents, bands);
                let error = rms(&(&ours - &whole).unwrap()) / rms(&whole);
                let mib = |bytes: usize| bytes >> 20;
                let predicted = [bands, DecodeMemory::Whole].map(|form| form.bytes(&config, (width, height), dtype));
                let case = format!("{width}x{height} {}", dtype.name());
                println!(
                    "{case}: error {error:.1e} of {limit:.1e}; bands {} of {} MiB, whole {} of {} MiB",
                    mib(most),
                    mib(predicted[0]),
                    mib(most_whole),
                    mib(predicted[1])
                );
                assert!(error < limit, "{case}: {error:e}");
                assert_eq!(difference(&ours, &again).0, 0.0, "{case}: one latent gives one picture");
                assert!(most <= predicted[0] && most_whole <= predicted[1], "{case}: more than predicted");
                if (width, height, dtype) == (768, 768, Dtype::F16) {
                    assert!(mib(most) <= 400, "{case}: {} MiB", mib(most));
                }
            }
        }
    }

    #[test]
    fn gpu_encoder_is_the_cpus() {
        let small = config(&[16, 24, 40], 8);
        for (config, width, height) in
            [(large(), 256, 192), (large(), 264, 328), (small.clone(), 64, 40), (small, 20, 12)]
        {
            let weights = encoder_weights(&config);
            let pixels = Noise::cpu(3).draw((1, 3, height, width), &Device::Cpu).unwrap();
            let cpu = VaeEncoder::new(&config, Params::on_cpu(&weights)).unwrap();
            let theirs = cpu.encode(&Array::Cpu(pixels.clone())).unwrap().to_map(8).unwrap();
            for (dtype, limit) in [(Dtype::F32, 2e-5), (Dtype::F16, 1e-2), (Dtype::BF16, 1e-1)] {
                let gpu = Gpu::for_tests();
                let placed = Placed::new(&gpu, dtype, 2 << 20).unwrap();
                let params = Params::on_gpu(&weights, &placed);
                let encoder = VaeEncoder::new(&config, params.clone()).unwrap();
                gpu.synchronize().unwrap();
                placed.keep().unwrap();
                placed.clear_padding().unwrap();
                gpu.synchronize().unwrap();
                placed.fill(&weights, None).unwrap();
                let before = gpu.bytes();
                let ours = encoder.encode(&params.map_on_device(&pixels).unwrap()).unwrap().to_map(8).unwrap();
                let (error, most) = (rms(&(&ours - &theirs).unwrap()) / rms(&theirs), gpu.peak_bytes() - before);
                let case = format!("{:?} of {width}x{height} {}", config.block_out_channels, dtype.name());
                println!("{case}: error {error:.1e} of {limit:.1e}, {} MiB", most >> 20);
                assert!(error < limit, "{case}: {error:e}");
            }
        }
    }

    #[test]
    fn gpu_bands_of_other_groups_are_the_cpus() {
        let config = config(&[16, 24, 40], 8);
        let (weights, latents) = (weights(&config), latents(&config, 9, 7));
        let cpu = VaeDecoder::new(&config, Params::on_cpu(&weights)).unwrap();
        let plain = cpu.decode(&Array::Cpu(latents.clone())).unwrap().to_map(3).unwrap();
        let (vae, gpu) = vae(&config, &weights, Dtype::F32);
        for rows in [1, 3, 8, 36] {
            let (ours, _) = decoded(&vae, &gpu, Dtype::F32, &latents, DecodeMemory::Bands { rows });
            let error = rms(&(&ours - &plain).unwrap()) / rms(&plain);
            println!("bands of {rows}: {error:.1e} of 2e-5");
            assert!(error < 2e-5, "bands of {rows}: {error:e}");
        }
    }
}
