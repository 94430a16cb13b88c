//! Products in bf16 against products of the same rounded numbers in f64.

use super::{super::vectors::Vectors, *};
use crate::{
    noise::Noise,
    ops::{
        Window,
        cpu::{Conv, Linear, conv, flash::Sizes, linear::Weight, view, view_of},
    },
};
use candle_core::{DType, Device, Tensor};
use half::bf16;

/// Every kind of instructions that this CPU has. Prints if there is none: then products in bf16 are refused, which a test of the handler
/// looks at.
fn all() -> Vec<Instructions> {
    let mut all: Vec<_> = [Vectors::Widest, Vectors::Avx512].into_iter().flat_map(Instructions::detect).collect();
    all.dedup();
    println!("{:?}", all.iter().map(|one| one.name()).collect::<Vec<_>>());
    all
}

fn draw(dims: &[usize]) -> Tensor {
    let seed = dims.iter().fold(7, |seed, &dim| seed * 31 + dim as u64);
    Noise::cpu(seed).randn(dims, DType::F32, &Device::Cpu).unwrap()
}

/// The same numbers rounded to bf16, in f64.
fn rounded(xs: &Tensor) -> Tensor {
    xs.to_dtype(DType::BF16).unwrap().to_dtype(DType::F64).unwrap()
}

fn wide(xs: &Tensor) -> Tensor {
    xs.to_dtype(DType::F64).unwrap()
}

/// The largest difference, relative to the largest value.
fn difference(ours: &Tensor, exact: &Tensor) -> f64 {
    assert_eq!(ours.dims(), exact.dims());
    let most = |xs: &Tensor| xs.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    most(&(wide(ours) - exact).unwrap()) / most(exact)
}

#[test]
fn a_cpu_without_the_instructions_says_what_it_lacks() {
    let lack = Instructions::detect(Vectors::Avx2).unwrap_err();
    assert!(lack.contains("AVX512-BF16"), "{lack}");
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // Linux names them, so that none of both is silently left out.
    assert_eq!(Instructions::detect(Vectors::Avx512).is_ok(), flags.contains("avx512_bf16"));
    if let Ok(widest) = Instructions::detect(Vectors::Widest) {
        let tiles = flags.contains("amx_bf16") && flags.contains("amx_tile");
        assert_eq!(widest.name(), if tiles { "AMX-BF16" } else { "AVX512-BF16" });
    }
}

#[test]
fn rounding_is_to_the_nearest_even_and_keeps_what_is_no_number() {
    let numbers =
        [1.0, -1.003_906_2, 1.011_718_8, 3.4e38, f32::INFINITY, f32::NAN, f32::from_bits(0x7F80_0001), 1e-30, 0.1];
    for instructions in all() {
        for count in [1, 2, 9, 16, 31, 32, 40] {
            let row: Vec<f32> = numbers.iter().copied().cycle().take(count).collect();
            let expected: Vec<bf16> = row.iter().map(|number| bf16::from_f32(*number)).collect();
            let same = |ours: u16, expected: bf16| {
                let ours = bf16::from_bits(ours);
                assert!(ours == expected || ours.is_nan() && expected.is_nan(), "{ours} for {expected}");
            };
            let mut pairs = vec![u32::MAX; count.div_ceil(2) + 1];
            instructions.round(&row, &mut pairs);
            let halves: Vec<u16> = pairs.iter().flat_map(|pair| [*pair as u16, (pair >> 16) as u16]).collect();
            halves.iter().zip(&expected).for_each(|(ours, expected)| same(*ours, *expected));
            assert!(halves[count..].iter().all(|zero| *zero == 0));
            let mut pairs = vec![u32::MAX; count];
            instructions.interleave(&row, &[], &mut pairs);
            pairs.iter().zip(&expected).for_each(|(pair, expected)| same(*pair as u16, *expected));
            instructions.interleave(&[], &row, &mut pairs);
            pairs.iter().zip(&expected).for_each(|(pair, expected)| same((pair >> 16) as u16, *expected));
        }
    }
}

#[test]
fn linear_layers_are_products_of_rounded_numbers() {
    for instructions in all() {
        // No multiples of tiles, one row, and enough for several pieces and panels.
        for (rows, depth, out) in
            [(1, 20, 5), (7, 33, 17), (77, 128, 96), (300, 96, 768), (3000, 40, 48), (33, 1300, 70)]
        {
            let weight = draw(&[out, depth]);
            let matrix = Matrix::new(instructions, &view(&weight).unwrap(), out, depth);
            let (xs, onto, bias) = (draw(&[rows, depth]), draw(&[rows, out]), draw(&[out]));
            let exact = rounded(&xs).matmul(&rounded(&weight).t().unwrap()).unwrap();
            let (plain, exact) = (exact.clone(), exact.broadcast_add(&wide(&bias)).unwrap());
            let layer = |bias| Linear { weight: Weight::Bf16(matrix.into()), bias };
            let layer = layer(Some(bias));
            let name = format!("{} {rows}x{depth}x{out}", instructions.name());
            let error = difference(&layer.forward(&xs, None).unwrap(), &exact);
            println!("{name}: {error:e}");
            assert!(error < 1e-6, "{name}: {error:e}");
            let error = difference(&layer.forward(&xs, Some(&onto)).unwrap(), &(exact + wide(&onto)).unwrap());
            assert!(error < 1e-6, "{name} with residual: {error:e}");
            let layer = Linear { bias: None, ..layer };
            let error = difference(&layer.forward(&xs, None).unwrap(), &plain);
            assert!(error < 1e-6, "{name} without bias: {error:e}");
        }
    }
}

#[test]
fn a_convolution_with_zeros_past_the_map_alone_is_a_product_of_rounded_numbers() {
    for instructions in all() {
        for (channels, out, height, width) in [(3, 5, 8, 6), (37, 20, 16, 24), (4, 4, 7, 9), (4, 4, 2, 2)] {
            let window = Window { side: 3, stride: 2, padding: 0, past: 1 };
            let (weight, bias) = (draw(&[out, channels, 3, 3]), draw(&[out]));
            let filters = Filters::new(instructions, &view(&weight).unwrap(), (out, channels), window);
            let conv = Conv { filters: conv::Filters::Bf16(filters.into()), bias, window };
            let xs = draw(&[2, channels, height, width]);
            let padded = rounded(&xs).pad_with_zeros(2, 0, 1).unwrap().pad_with_zeros(3, 0, 1).unwrap();
            let exact = padded.conv2d(&rounded(&weight), 0, 2, 1, 1).unwrap();
            let exact = exact.broadcast_add(&wide(&conv.bias).reshape((1, (), 1, 1)).unwrap()).unwrap();
            let error = difference(&conv.forward(&xs, None, None).unwrap(), &exact);
            println!("{} {channels} to {out} on {height}x{width}: {error:e}", instructions.name());
            assert!(error < 4e-6, "{} {channels} to {out} on {height}x{width}: {error:e}", instructions.name());
        }
    }
}

#[test]
fn convolutions_are_products_of_rounded_numbers() {
    // Of sums of up to 2,880 products in f32.
    const LIMIT: f64 = 4e-6;
    // Batch, channels in and out, side, stride, padding, height, width.
    let cases = [
        (1, 1, 1, 3, 1, 1, 1, 1),
        (1, 3, 5, 3, 1, 1, 7, 9),
        (2, 4, 6, 3, 2, 1, 9, 7),
        (2, 37, 20, 3, 2, 1, 8, 8),
        (2, 5, 4, 1, 1, 0, 6, 10),
        (1, 300, 4, 1, 1, 0, 40, 50),
        (2, 48, 70, 3, 1, 1, 64, 33),
        (1, 288, 200, 3, 1, 1, 5, 4),
        (3, 33, 48, 3, 1, 1, 16, 16),
        // More weights than are near a core.
        (1, 320, 96, 3, 1, 1, 12, 12),
    ];
    for instructions in all() {
        for (batch, channels, out, side, stride, padding, height, width) in cases {
            let (weight, bias, window) =
                (draw(&[out, channels, side, side]), draw(&[out]), Window { side, stride, padding, past: 0 });
            let filters = Filters::new(instructions, &view(&weight).unwrap(), (out, channels), window);
            let conv = Conv { filters: conv::Filters::Bf16(filters.into()), bias, window };
            let xs = draw(&[batch, channels, height, width]);
            let exact = rounded(&xs).conv2d(&rounded(&weight), padding, stride, 1, 1).unwrap();
            let exact = exact.broadcast_add(&wide(&conv.bias).reshape((1, (), 1, 1)).unwrap()).unwrap();
            let name = format!("{} {batch}x{channels}x{side}x{side} to {out} on {height}x{width}", instructions.name());
            let error = difference(&conv.forward(&xs, None, None).unwrap(), &exact);
            println!("{name}: {error:e}");
            assert!(error < LIMIT, "{name}: {error:e}");
            let (shift, onto) = (draw(&[batch, out]), draw(exact.dims()));
            let moved = exact.broadcast_add(&wide(&shift).reshape((batch, out, 1, 1)).unwrap()).unwrap();
            let moved = (moved + wide(&onto)).unwrap();
            let error = difference(&conv.forward(&xs, Some(&shift), Some(&onto)).unwrap(), &moved);
            assert!(error < LIMIT, "{name}, moved: {error:e}");
        }
    }
}

#[test]
fn weights_in_use_are_found_by_their_names_and_networks() {
    for instructions in all() {
        let packed = Packed::new(instructions);
        let find = |packed: &Packed, name: Option<&str>| {
            let new = || Ok::<_, ()>(Matrix::new(instructions, &[0.0; 4], 2, 2));
            packed.matrix(name.map(str::to_string), new).unwrap()
        };
        let (unet, text) = (packed.of("unet"), packed.of("text_encoder"));
        let first = find(&unet, Some("a"));
        assert!(std::sync::Arc::ptr_eq(&first, &find(&unet.clone(), Some("a"))));
        for other in [find(&unet, Some("b")), find(&text, Some("a")), find(&unet, None)] {
            assert!(!std::sync::Arc::ptr_eq(&first, &other));
        }
        let address = std::sync::Arc::downgrade(&first);
        drop(first);
        assert!(address.upgrade().is_none(), "what nobody uses goes");
    }
}

#[test]
fn attention_is_that_of_rounded_numbers() {
    // Tokens, others, heads, channels. No multiples of tiles, several tiles of keys, and heads wider than a tile.
    for (tokens, others, heads, channels) in
        [(5, 77, 2, 16), (40, 9, 1, 5), (300, 700, 3, 72), (33, 300, 1, 160), (70, 256, 2, 80)]
    {
        let (items, width) = (2, channels / heads);
        let [q, k, v] = [tokens, others, others].map(|count| draw(&[items, count, channels]));
        let v = (v + 0.5).unwrap();
        let part = |xs: &Tensor, head: usize| rounded(xs).narrow(2, head * width, width).unwrap().contiguous().unwrap();
        let exact = |head: usize| {
            let scores = part(&q, head).matmul(&part(&k, head).t().unwrap().contiguous().unwrap()).unwrap();
            let shares = candle_nn::ops::softmax((scores * (width as f64).powf(-0.5)).unwrap().as_ref(), 2).unwrap();
            shares.matmul(&part(&v, head)).unwrap()
        };
        let exact = Tensor::cat(&(0..heads).map(exact).collect::<Vec<_>>(), 2).unwrap();
        let narrow = |xs: &Tensor| xs.to_dtype(DType::BF16).unwrap();
        let (k, v, narrow_q) = (narrow(&k), narrow(&v), narrow(&q));
        let sizes = Sizes { items, tokens, others, channels, heads };
        for instructions in all() {
            let (k, v, narrow_q) = (view_of(&k).unwrap(), view_of(&v).unwrap(), view_of(&narrow_q).unwrap());
            for queries in [Queries::F32(&view(&q).unwrap()), Queries::Bf16(&narrow_q)] {
                let mut out = vec![0.0; items * tokens * channels];
                attention(instructions, &mut out, queries, [&k, &v], sizes).unwrap();
                let ours = Tensor::from_vec(out, (items, tokens, channels), &Device::Cpu).unwrap();
                let error = difference(&ours, &exact);
                println!("{} {tokens} of {others}, {heads} x {width}: {error:e}", instructions.name());
                // The shares are rounded as well, to 9 bits.
                assert!(error < 4e-3, "{error:e}");
            }
        }
    }
}
