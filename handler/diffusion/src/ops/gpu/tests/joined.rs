//! Two maps that are read as one: what was measured of each before is merged, or both are measured. Needs a GPU.

use super::*;

/// Operations whose outputs are joined, and those that read both: a norm in 32 groups and a 1x1 convolution.
struct Joining {
    first: Conv,
    second: Conv,
    norm: GroupNorm,
    shortcut: Conv,
}

impl Joining {
    /// The first map is measured in so many groups, the second in 32.
    fn new([inner, first, second]: [usize; 3], groups: usize, params: Params) -> Result<Self> {
        let all = first + second;
        Ok(Self {
            first: Conv::pointwise(inner, first, params.pp("first"))?.measured_in(Some(groups)),
            second: Conv::same3x3(inner, second, params.pp("second"))?,
            norm: GroupNorm::new(32, all, 1e-5, params.pp("norm"))?,
            shortcut: Conv::pointwise(all, first, params.pp("shortcut"))?,
        })
    }

    fn tensors([inner, first, second]: [usize; 3], dtype: Dtype) -> Vec<(&'static str, Tensor)> {
        let all = first + second;
        let weight = |outer: usize, inner: usize, side: usize| {
            let gain = ((inner * side * side) as f64).powf(-0.5);
            rounded(&(draw(&[outer, inner, side, side], dtype) * gain).unwrap(), dtype)
        };
        // A mean far from zero, and another in each map.
        let bias = |outer: usize, mean: f64| rounded(&(draw(&[outer], dtype) + mean).unwrap(), dtype);
        vec![
            ("first.weight", weight(first, inner, 1)),
            ("first.bias", bias(first, 3.0)),
            ("second.weight", weight(second, inner, 3)),
            ("second.bias", bias(second, -1.0)),
            ("norm.weight", draw(&[all], dtype)),
            ("norm.bias", draw(&[all], dtype)),
            ("shortcut.weight", weight(first, all, 1)),
            ("shortcut.bias", bias(first, 0.0)),
        ]
    }

    /// Both maps, with what was measured of them.
    fn maps(&self, xs: &Array) -> [Array; 2] {
        [self.first.forward(xs).unwrap(), self.second.forward(xs).unwrap()]
    }

    /// Whether the norm takes what was measured of these maps before.
    fn knows(&self, maps: [&Array; 2]) -> bool {
        let [first, second] = maps.map(|map| map.gpu().unwrap().clone());
        let Form::Gpu(norm) = &self.norm.0 else { panic!("a norm on the CPU") };
        norm.known(&super::super::Maps::joined(first, second).unwrap()).is_some()
    }
}

fn joined([first, second]: [&Array; 2]) -> Maps {
    Maps::joined(first.clone(), second.clone()).unwrap()
}

/// The same numbers, of which nothing was measured.
fn unmeasured(map: &Array, dtype: Dtype) -> Array {
    to_gpu(&map.to_tensor().unwrap(), dtype)
}

#[test]
fn gpu_joined_maps_are_the_cpus() {
    in_each_dtype(|dtype| {
        // Channels of both, groups in which the first is measured, height, width, and whether the groups of both then fit. What Stable
        // Diffusion 1.5 joins, groups that do not fit, and odd maps, of which no kernel takes moments along.
        let cases = [
            ([1280, 1280], 32, 8, 8, true),
            ([1280, 1280], 32, 16, 16, true),
            ([1280, 640], 64, 16, 16, true),
            ([1280, 640], 64, 32, 32, true),
            ([640, 640], 32, 32, 32, true),
            ([640, 320], 64, 32, 32, true),
            ([640, 320], 64, 64, 64, true),
            ([320, 320], 32, 64, 64, true),
            ([1280, 640], 32, 16, 16, false),
            ([640, 320], 32, 64, 48, false),
            ([640, 320], 64, 9, 7, false),
            ([96, 32], 32, 11, 5, false),
        ];
        for (channels, groups, height, width, fits) in cases {
            let ([first, second], inner) = (channels, 64);
            let sizes = [inner, first, second];
            let (cpu, gpu) = both(dtype, &Joining::tensors(sizes, dtype), |params| Joining::new(sizes, groups, params));
            let xs = draw(&[2, inner, height, width], dtype);
            let [a, b] = gpu.maps(&map_to_gpu(&xs, dtype));
            let name = format!("{first} and {second} at {height}x{width}");
            if GPU.with(|gpu| gpu.is_hopper()) && dtype != Dtype::F32 {
                assert_eq!(gpu.knows([&a, &b]), fits, "{name} {}", dtype.name());
            }
            // From the same numbers: the maps themselves were rounded.
            let theirs = [(&a, first), (&b, second)].map(|(map, channels)| Array::Cpu(map_to_cpu(map, channels)));
            let plain = cpu.norm.forward_silu(joined(theirs.each_ref())).unwrap().to_tensor().unwrap();
            let [c, d] = [&a, &b].map(|map| unmeasured(map, dtype));
            for (what, maps) in [("measured", [&a, &b]), ("half measured", [&a, &d]), ("unmeasured", [&c, &d])] {
                let ours = gpu.norm.forward_silu(joined(maps)).unwrap();
                check(&format!("norm of {name}, {what}"), dtype, &map_to_cpu(&ours, first + second), &plain);
            }
            let ours = gpu.shortcut.forward_joined(&joined([&a, &b])).unwrap();
            let plain = cpu.shortcut.forward_joined(&joined(theirs.each_ref())).unwrap().to_tensor().unwrap();
            check(&format!("shortcut of {name}"), dtype, &map_to_cpu(&ours, first), &plain);
            // To the bit that of one map with the channels of both: they are added in the same order, as a step of k never has some of
            // either.
            if [first, second].iter().all(|channels| channels.is_multiple_of(64)) {
                let whole = Tensor::cat(&[&a, &b].map(|map| map.to_tensor().unwrap()), 3).unwrap();
                let whole = gpu.shortcut.forward(&to_gpu(&whole, dtype)).unwrap();
                let bytes = |map: &Array| map.gpu().unwrap().read().unwrap();
                assert!(bytes(&whole) == bytes(&ours), "shortcut of {name} {}", dtype.name());
            }
        }
    });
}

/// A resized map is measured in parts of the groups, too, and so is one that is split along k.
#[test]
fn gpu_finer_moments_are_those_of_a_norms_groups() {
    in_each_dtype(|dtype| {
        for (channels, side, finer) in [(640, 32, 64), (1280, 16, 64), (1280, 8, 64), (320, 64, 160)] {
            let gain = (channels as f64 * 9.0).powf(-0.5);
            let tensors = [
                ("conv.weight", rounded(&(draw(&[channels, channels, 3, 3], dtype) * gain).unwrap(), dtype)),
                ("conv.bias", rounded(&(draw(&[channels], dtype) + 3.0).unwrap(), dtype)),
                ("norm.weight", draw(&[channels], dtype)),
                ("norm.bias", draw(&[channels], dtype)),
            ];
            let (cpu, gpu) = both(dtype, &tensors, |params| {
                let conv = UpsampledConv::new(channels, channels, params.pp("conv"))?.measured_in(Some(finer));
                Ok((conv, GroupNorm::new(32, channels, 1e-5, params.pp("norm"))?))
            });
            let xs = draw(&[2, channels, side / 2, side / 2], dtype);
            let map = gpu.0.forward(&map_to_gpu(&xs, dtype), side, side).unwrap();
            let theirs = Array::Cpu(map_to_cpu(&map, channels));
            let plain = cpu.1.forward_silu(theirs.clone()).unwrap().to_tensor().unwrap();
            let ours = map_to_cpu(&gpu.1.forward_silu(map.clone()).unwrap(), channels);
            check(&format!("{finer} groups of {channels} at {side}x{side}"), dtype, &ours, &plain);
        }
    });
}

/// A map that nobody else has is written over; one that somebody has is not. To the bit the same.
#[test]
fn gpu_norms_take_the_place_of_maps_that_nobody_needs() {
    in_each_dtype(|dtype| {
        let tensors = [("norm.weight", draw(&[64], dtype)), ("norm.bias", draw(&[64], dtype))];
        let (_, norm) = both(dtype, &tensors, |params| GroupNorm::new(32, 64, 1e-5, params.pp("norm")));
        let numbers = draw(&[3, 64, 33, 17], dtype);
        let at = |map: &Array| map.gpu().unwrap().address();
        let map = map_to_gpu(&numbers, dtype);
        let plain = norm.forward_silu(map.clone()).unwrap().gpu().unwrap().read().unwrap();
        let beside = norm.forward_silu(map.clone()).unwrap();
        assert_ne!(at(&beside), at(&map), "{}", dtype.name());
        assert!(map.gpu().unwrap().read().unwrap() == map_to_gpu(&numbers, dtype).gpu().unwrap().read().unwrap());
        let place = at(&map);
        let over = norm.forward_silu(map).unwrap();
        assert_eq!((at(&over), over.gpu().unwrap().moments().is_none()), (place, true), "{}", dtype.name());
        for normed in [beside, over] {
            assert!(normed.gpu().unwrap().read().unwrap() == plain, "{}", dtype.name());
        }
    });
}

/// A repeated map's norm is that of the map for each copy, to the bit, whether it was measured along or not.
#[test]
fn gpu_repeated_maps_are_copies_and_measured_as_they_were() {
    in_each_dtype(|dtype| {
        let tensors = [
            ("conv.weight", draw(&[64, 16, 3, 3], dtype)),
            ("conv.bias", draw(&[64], dtype)),
            ("norm.weight", draw(&[64], dtype)),
            ("norm.bias", draw(&[64], dtype)),
        ];
        let (_, (conv, norm)) = both(dtype, &tensors, |params| {
            let conv = Conv::same3x3(16, 64, params.pp("conv"))?;
            Ok((conv, GroupNorm::new(32, 64, 1e-5, params.pp("norm"))?))
        });
        let bytes = |map: &Array| map.gpu().unwrap().read().unwrap();
        let map = conv.forward(&map_to_gpu(&draw(&[3, 16, 16, 16], dtype), dtype)).unwrap();
        for map in [map.clone(), unmeasured(&map, dtype)] {
            let copies = repeated(&map, 2).unwrap();
            assert_eq!(copies.gpu().unwrap().moments().is_some(), map.gpu().unwrap().moments().is_some());
            let normed = bytes(&norm.forward_silu(map.clone()).unwrap());
            assert!(bytes(&copies) == bytes(&map).repeat(2), "{}", dtype.name());
            assert!(bytes(&norm.forward_silu(copies.clone()).unwrap()) == normed.repeat(2), "{}", dtype.name());
            assert!(bytes(&repeated(&map, 1).unwrap()) == bytes(&map));
        }
    });
}

#[test]
fn gpu_maps_that_do_not_fit_are_refused() {
    let map = |dims: [usize; 4], dtype| map_to_gpu(&draw(&dims, dtype), dtype);
    let good = || map([2, 64, 8, 8], Dtype::F16);
    for (why, other) in [
        ("a height", map([2, 64, 4, 8], Dtype::F16)),
        ("places in another order", map([2, 64, 4, 16], Dtype::F16)),
        ("an image less", map([1, 64, 8, 8], Dtype::F16)),
        ("a dtype", map([2, 64, 8, 8], Dtype::F32)),
        ("a device", Array::Cpu(draw(&[2, 64, 8, 8], Dtype::F16))),
    ] {
        assert!(Maps::joined(good(), other).is_err(), "{why}");
    }
    let tensors = [
        ("norm.weight", draw(&[192], Dtype::F16)),
        ("norm.bias", draw(&[192], Dtype::F16)),
        ("one.weight", draw(&[64, 192, 1, 1], Dtype::F16)),
        ("one.bias", draw(&[64], Dtype::F16)),
        ("three.weight", draw(&[64, 128, 3, 3], Dtype::F16)),
        ("three.bias", draw(&[64], Dtype::F16)),
    ];
    let (_, (norm, one, three)) = both(Dtype::F16, &tensors, |params| {
        let norm = GroupNorm::new(32, 192, 1e-5, params.pp("norm"))?;
        let three = Conv::same3x3(128, 64, params.pp("three"))?;
        Ok((norm, Conv::pointwise(192, 64, params.pp("one"))?, three))
    });
    // Of 128 channels in all.
    let maps = Maps::joined(good(), good()).unwrap();
    assert!(one.forward_joined(&maps).is_err(), "a convolution of more channels");
    assert!(three.forward_joined(&maps).is_err(), "a convolution whose windows have nine places");
    assert!(maps.one().is_err(), "two maps as one");
    assert!(norm.forward_silu(maps).is_err(), "a norm of more channels");
}
