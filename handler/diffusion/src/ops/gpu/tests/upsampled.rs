//! Convolutions of resized maps: as phases, where the size is twice as large, and in rows. Needs a GPU.

use super::*;

fn tensors(inner: usize, outer: usize, dtype: Dtype) -> Vec<(&'static str, Tensor)> {
    let gain = (inner as f64 * 9.0).powf(-0.5);
    vec![
        ("conv.weight", rounded(&(draw(&[outer, inner, 3, 3], dtype) * gain).unwrap(), dtype)),
        ("conv.bias", rounded(&(draw(&[outer], dtype) + 3.0).unwrap(), dtype)),
        ("norm.weight", draw(&[outer], dtype)),
        ("norm.bias", draw(&[outer], dtype)),
    ]
}

/// The convolution, and a norm behind it where its groups fit.
fn module(inner: usize, outer: usize, params: Params) -> Result<(UpsampledConv, Option<GroupNorm>)> {
    let norm = || GroupNorm::new(32, outer, 1e-5, params.pp("norm"));
    let norm = outer.is_multiple_of(64).then(norm).transpose()?;
    Ok((UpsampledConv::new(inner, outer, params.pp("conv"))?, norm))
}

#[test]
fn gpu_convolutions_of_resized_maps_are_the_cpus() {
    in_each_dtype(|dtype| {
        // Images, channels in and out, height, width, and the same of the output. Stable Diffusion 1.5's; maps that fill no tile, of one
        // row or place, with few or odd channels; and sizes that are not twice as large, as those of skip connections may be.
        let cases = [
            (2, 640, 640, [32, 32], [64, 64]),
            (2, 1280, 1280, [16, 16], [32, 32]),
            (2, 1280, 1280, [8, 8], [16, 16]),
            (1, 1280, 1280, [8, 8], [16, 16]),
            (1, 256, 256, [64, 48], [128, 96]),
            (3, 320, 64, [9, 7], [18, 14]),
            (2, 64, 128, [1, 5], [2, 10]),
            (1, 64, 64, [1, 1], [2, 2]),
            (2, 12, 20, [11, 6], [22, 12]),
            (1, 40, 96, [17, 33], [34, 66]),
            (2, 1280, 1280, [9, 9], [17, 18]),
            (2, 1280, 640, [9, 16], [18, 31]),
            (2, 640, 640, [18, 23], [35, 45]),
            (1, 12, 20, [5, 4], [9, 7]),
            (1, 64, 64, [1, 1], [1, 1]),
            // Of so many tiles that two are made on a multiprocessor at once.
            (2, 1280, 1280, [32, 32], [64, 64]),
        ];
        for (batch, inner, outer, [height, width], [to_height, to_width]) in cases {
            let (cpu, gpu) = both(dtype, &tensors(inner, outer, dtype), |params| module(inner, outer, params));
            let xs = draw(&[batch, inner, height, width], dtype);
            let plain = cpu.0.forward(&Array::Cpu(xs.clone()), to_height, to_width).unwrap();
            let ours = gpu.0.forward(&map_to_gpu(&xs, dtype), to_height, to_width).unwrap();
            let name = format!("{inner} to {outer} at {height}x{width} as {to_height}x{to_width}");
            check(&format!("resized {name}"), dtype, &map_to_cpu(&ours, outer), plain.cpu().unwrap());
            // Of a few numbers in a group, a norm makes much of their rounding.
            let measures = to_height * to_width >= 8;
            if let (Some(theirs), Some(norm), true) = (&cpu.1, &gpu.1, measures) {
                let plain = theirs.forward_silu(plain.clone()).unwrap().to_tensor().unwrap();
                let normed = norm.forward_silu(ours.clone()).unwrap();
                // It divides by deviations, which are less than half as large as the numbers (`tensors`), and so doubles their errors.
                check_within(
                    &format!("norm after {name}"),
                    dtype,
                    &map_to_cpu(&normed, outer),
                    &plain,
                    2.0 * limit(dtype),
                );
            }
            let again = gpu.0.forward(&map_to_gpu(&xs, dtype), to_height, to_width).unwrap();
            let bytes = |map: &Array| map.gpu().unwrap().read().unwrap();
            assert!(bytes(&ours) == bytes(&again), "{name} {}", dtype.name());
        }
    });
}

#[test]
fn gpu_rows_of_resized_maps_are_those_of_the_whole() {
    in_each_dtype(|dtype| {
        for (channels, height, width) in [(128, 24, 40), (64, 5, 9), (24, 7, 6), (64, 1, 3)] {
            let tensors = tensors(channels, channels, dtype);
            let (cpu, gpu) = both(dtype, &tensors, |params| module(channels, channels, params));
            let xs = draw(&[1, channels, height, width], dtype);
            let plain = cpu.0.forward(&Array::Cpu(xs.clone()), 2 * height, 2 * width).unwrap().to_tensor().unwrap();
            let on_gpu = map_to_gpu(&xs, dtype);
            let end = 2 * height;
            for rows in [0..end, 0..1, 1..2, end - 1..end, 1..end, 0..end - 1, end / 2 - 1..end / 2 + 1] {
                let name = format!("rows {rows:?} of {channels} at {height}x{width}");
                let theirs = plain.narrow(2, rows.start, rows.len()).unwrap();
                let ours = gpu.0.forward_rows(&on_gpu, rows.clone()).unwrap();
                check(&name, dtype, &map_to_cpu(&ours, channels), &theirs);
                let theirs = cpu.0.forward_rows(&Array::Cpu(xs.clone()), rows).unwrap().to_tensor().unwrap();
                check(&format!("{name}, both in rows"), dtype, &map_to_cpu(&ours, channels), &theirs);
            }
            for rows in [0..end + 1, 1..1] {
                assert!(gpu.0.forward_rows(&on_gpu, rows.clone()).is_err(), "{rows:?}");
            }
        }
    });
}

/// A change comes to the tensor on the CPU, and the sum is laid out.
#[test]
fn gpu_changed_weights_of_resized_maps_are_the_cpus() {
    let dtype = Dtype::F16;
    let (channels, side) = (64, 12);
    let named = |tensors: &[(&str, Tensor)]| {
        Weights::new(tensors.iter().map(|(name, tensor)| (format!("m.{name}"), tensor.clone())).collect())
    };
    let (first, second) = (named(&tensors(channels, channels, dtype)), named(&tensors(channels, channels, dtype)));
    let placed = GPU.with(|gpu| Placed::new(gpu, dtype, 2 << 20)).unwrap();
    let (gpu, _) = module(channels, channels, Params::on_gpu(&first, &placed).pp("m")).unwrap();
    placed.keep().unwrap();
    placed.clear_padding().unwrap();
    GPU.with(|gpu| gpu.synchronize().unwrap());
    placed.fill(&first, None).unwrap();
    assert!(!placed.takes_products("m.conv.weight"), "phases are no plain matrix");
    placed.fill(&second, Some(&["m.conv.weight".into(), "m.conv.bias".into()])).unwrap();
    let (cpu, _) = module(channels, channels, Params::on_cpu(&second).pp("m")).unwrap();
    let xs = draw(&[2, channels, side, side], dtype);
    let plain = cpu.forward(&Array::Cpu(xs.clone()), 2 * side, 2 * side).unwrap();
    let ours = gpu.forward(&map_to_gpu(&xs, dtype), 2 * side, 2 * side).unwrap();
    check("changed weights", dtype, &map_to_cpu(&ours, channels), plain.cpu().unwrap());
}
