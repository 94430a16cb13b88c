//! Each operation against candle's plain one.

use super::{conv::Filters, gated::geglu, linear::Weight, *};
use crate::{noise::Noise, ops::Window};
use candle_core::{D, DType, IndexOp};
use candle_nn::{Module, ops::softmax_last_dim};
use std::cell::Cell;

thread_local! {
    static DRAWS: Cell<u64> = const { Cell::new(0) };
}

/// Normal numbers that are the same in every run, because each test has its own thread.
fn draw(shape: &[usize]) -> Tensor {
    let seed = DRAWS.get();
    DRAWS.set(seed + 1);
    Noise::cpu(seed).randn(shape, DType::F32, &Device::Cpu).unwrap()
}

/// The largest difference, relative to the largest value.
fn difference(ours: &Tensor, plain: &Tensor) -> f32 {
    assert_eq!(ours.dims(), plain.dims());
    let most = |xs: &Tensor| xs.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    most(&(ours - plain).unwrap()) / most(plain)
}

#[test]
fn convolution_matches_candle() {
    // Batch, channels in and out, side, stride, padding, height, width. Odd sizes, and a case of several pieces.
    let cases = [
        (1, 3, 5, 3, 1, 1, 7, 9),
        (2, 4, 6, 3, 2, 1, 9, 7),
        (2, 4, 6, 3, 2, 1, 8, 8),
        (2, 5, 4, 1, 1, 0, 6, 10),
        (1, 1, 1, 3, 1, 1, 1, 1),
        (2, 48, 8, 3, 1, 1, 64, 64),
        // Winograd, with whole tiles and without.
        (1, 3, 2, 3, 1, 1, 5, 33),
        (2, 20, 30, 3, 1, 1, 50, 70),
        (1, 288, 200, 3, 1, 1, 32, 32),
        // Too many channels for Winograd.
        (1, 288, 288, 3, 1, 1, 32, 32),
        (1, 300, 4, 1, 1, 0, 40, 50),
    ];
    for (batch, channels_in, channels_out, side, stride, padding, height, width) in cases {
        let weight = draw(&[channels_out, channels_in, side, side]);
        let window = Window { side, stride, padding, past: 0 };
        let filters = Filters::f32(weight.clone(), window).unwrap();
        let conv = Conv { filters, bias: draw(&[channels_out]), window };
        let xs = draw(&[batch, channels_in, height, width]);
        let plain = xs.conv2d(&weight, padding, stride, 1, 1).unwrap();
        let plain = plain.broadcast_add(&conv.bias.reshape((1, (), 1, 1)).unwrap()).unwrap();
        // Winograd loses a digit or more, and more with many channels.
        let winograd = matches!(&conv.filters, Filters::F32 { kernels: Some(_), .. }) && width >= 32;
        let limit = if winograd { 4e-5 } else { 2e-6 };
        let name = format!("{channels_in}x{side}x{side} stride {stride} on {height}x{width}");
        let check = |ours: Tensor, plain: &Tensor| {
            let error = difference(&ours, plain);
            println!("{name}: {error:e} of {limit:e}");
            assert!(error < limit, "{name}: {error}");
        };
        check(conv.forward(&xs, None, None).unwrap(), &plain);
        let (shift, onto) = (draw(&[batch, channels_out]), draw(plain.dims()));
        let moved = plain.broadcast_add(&shift.reshape((batch, channels_out, 1, 1)).unwrap()).unwrap();
        check(conv.forward(&xs, Some(&shift), None).unwrap(), &moved);
        let (first, rest) = (shift.narrow(0, 0, 1).unwrap(), moved.narrow(0, 0, 1).unwrap());
        check(conv.forward(&xs, Some(&first), None).unwrap().narrow(0, 0, 1).unwrap(), &rest);
        check(conv.forward(&xs, None, Some(&onto)).unwrap(), &(&plain + &onto).unwrap());
    }
}

#[test]
fn a_convolution_with_zeros_past_the_map_alone_matches_candle() {
    for (channels_in, channels_out, height, width) in [(3, 5, 8, 6), (128, 128, 64, 48), (40, 24, 7, 9), (4, 4, 2, 2)] {
        let weight = draw(&[channels_out, channels_in, 3, 3]);
        let window = Window { side: 3, stride: 2, padding: 0, past: 1 };
        let conv = Conv { filters: Filters::f32(weight.clone(), window).unwrap(), bias: draw(&[channels_out]), window };
        let xs = draw(&[2, channels_in, height, width]);
        let padded = xs.pad_with_zeros(2, 0, 1).unwrap().pad_with_zeros(3, 0, 1).unwrap();
        let plain = padded.conv2d(&weight, 0, 2, 1, 1).unwrap();
        let plain = plain.broadcast_add(&conv.bias.reshape((1, (), 1, 1)).unwrap()).unwrap();
        let error = difference(&conv.forward(&xs, None, None).unwrap(), &plain);
        println!("{channels_in} to {channels_out} on {height}x{width}: {error:e}");
        assert!(error < 2e-6, "{channels_in} to {channels_out} on {height}x{width}: {error:e}");
    }
}

#[test]
fn linear_matches_candle_and_layer_norm_is_exact() {
    for (rows, channels_in, channels_out) in [(1, 20, 5), (77, 128, 96), (1024, 96, 768)] {
        let bias = draw(&[channels_out]);
        for bias in [None, Some(bias)] {
            let weight = draw(&[channels_out, channels_in]);
            let linear = Linear { weight: Weight::F32(weight.clone()), bias: bias.clone() };
            let (xs, onto) = (draw(&[2, rows, channels_in]), draw(&[2, rows, channels_out]));
            let plain = candle_nn::Linear::new(weight.clone(), bias.clone()).forward(&xs).unwrap();
            assert!(difference(&linear.forward(&xs, None).unwrap(), &plain) < 1e-6);
            let others = [draw(&[channels_out, channels_in]), draw(&[channels_out, channels_in])];
            let others = others.map(|weight| Linear { weight: Weight::F32(weight), bias: None });
            let alone = others.each_ref().map(|layer| layer.forward(&xs, None).unwrap());
            let [first, second] = others;
            let together = Linear::forward_to_attention(&[first, linear, second], &xs).unwrap();
            for (ours, plain) in together.iter().zip([&alone[0], &plain, &alone[1]]) {
                assert!(difference(ours, plain) < 1e-6);
            }
            let linear = Linear { weight: Weight::F32(weight), bias };
            assert!(difference(&linear.forward(&xs, Some(&onto)).unwrap(), &(plain + &onto).unwrap()) < 1e-6);
        }
        let norm = LayerNorm { weight: draw(&[channels_in]), bias: draw(&[channels_in]), eps: 1e-5 };
        let xs = (draw(&[2, rows, channels_in]) + 1.0).unwrap();
        assert!(difference(&norm.forward(&xs).unwrap(), &exact_layer_norm(&xs, &norm)) < 1e-5);
    }
}

/// In f64, because candle's own computes the variance from the mean of squares, which loses digits if the mean is not zero.
fn exact_layer_norm(xs: &Tensor, norm: &LayerNorm) -> Tensor {
    let wide = |xs: &Tensor| xs.to_dtype(DType::F64).unwrap();
    let xs = wide(xs);
    let centred = xs.broadcast_sub(&xs.mean_keepdim(2).unwrap()).unwrap();
    let variance = centred.sqr().unwrap().mean_keepdim(2).unwrap();
    let unit = centred.broadcast_div(&(variance + norm.eps).unwrap().sqrt().unwrap()).unwrap();
    let scaled = unit.broadcast_mul(&wide(&norm.weight)).unwrap();
    scaled.broadcast_add(&wide(&norm.bias)).unwrap().to_dtype(DType::F32).unwrap()
}

#[test]
fn group_norm_matches_candle() {
    let norm = GroupNorm { weight: draw(&[12]), bias: draw(&[12]), groups: 4, eps: 1e-5 };
    let plain = candle_nn::GroupNorm::new(norm.weight.clone(), norm.bias.clone(), 12, 4, 1e-5).unwrap();
    // A mean far from zero, where a variance from the mean of squares would be wrong.
    let xs = (draw(&[2, 12, 21, 17]) + 30.0).unwrap();
    assert!(difference(&norm.forward(&xs, false).unwrap(), &plain.forward(&xs).unwrap()) < 1e-5);
    let silu = plain.forward(&xs).unwrap().silu().unwrap();
    assert!(difference(&norm.forward(&xs, true).unwrap(), &silu) < 1e-5);
}

#[test]
fn geglu_matches_candle() {
    let xs = (draw(&[2, 5, 26]) * 3.0).unwrap();
    let (kept, gate) = (xs.i((.., .., ..13)).unwrap(), xs.i((.., .., 13..)).unwrap());
    let plain = (kept * gate.contiguous().unwrap().gelu_erf().unwrap()).unwrap();
    assert!(difference(&geglu(&xs).unwrap(), &plain) < 1e-6);
}

#[test]
fn a_layer_with_the_gated_gelu_in_it_is_both_one_after_the_other() {
    // Fewer outputs than a panel has, whole panels, and several pieces; more inputs than are multiplied at once.
    for (rows, channels_in, half) in [(1, 20, 5), (77, 150, 96), (3000, 48, 130)] {
        for bias in [None, Some(draw(&[2 * half]))] {
            let layer = Linear { weight: Weight::F32(draw(&[2 * half, channels_in])), bias };
            let xs = draw(&[2, rows, channels_in]);
            let both = geglu(&layer.forward(&xs, None).unwrap()).unwrap();
            assert!(difference(&layer.forward_geglu(&xs).unwrap(), &both) < 1e-6, "{rows} rows of {channels_in}");
        }
    }
}

#[test]
fn attention_matches_candle() {
    // Tokens, others, heads, channels. The last case needs several blocks.
    for (tokens, others, heads, channels) in [(5, 77, 2, 16), (9, 9, 1, 4), (2100, 2100, 2, 8)] {
        let q = draw(&[2, tokens, channels]);
        let (k, v) = (draw(&[2, others, channels]), draw(&[2, others, channels]));
        let width = channels / heads;
        let part = |xs: &Tensor, head: usize| xs.narrow(2, head * width, width).unwrap().contiguous().unwrap();
        let scores = |head: usize| {
            let scores = part(&q, head).matmul(&part(&k, head).t().unwrap().contiguous().unwrap()).unwrap();
            (scores * (width as f64).powf(-0.5)).unwrap()
        };
        let all = |mixed: &dyn Fn(usize) -> Tensor| Tensor::cat(&(0..heads).map(mixed).collect::<Vec<_>>(), D::Minus1);
        let plain = all(&|head| softmax_last_dim(&scores(head)).unwrap().matmul(&part(&v, head)).unwrap());
        assert!(difference(&attention(&q, &k, &v, heads).unwrap(), &plain.unwrap()) < 3e-6);
        if tokens == others && tokens < 100 {
            let seen =
                Tensor::tril2(tokens, DType::U8, &Device::Cpu).unwrap().broadcast_as((2, tokens, tokens)).unwrap();
            let none = Tensor::full(f32::NEG_INFINITY, (2, tokens, tokens), &Device::Cpu).unwrap();
            let masked = |head| softmax_last_dim(&seen.where_cond(&scores(head), &none).unwrap()).unwrap();
            let plain = all(&|head| masked(head).matmul(&part(&v, head)).unwrap());
            assert!(difference(&causal_attention(&q, &k, &v, heads).unwrap(), &plain.unwrap()) < 3e-6);
        }
    }
}

#[test]
fn maps_are_moved_as_candle_moves_them() {
    let same = |ours: Tensor, plain: Tensor| {
        assert_eq!(ours.dims(), plain.dims());
        let numbers = |xs: Tensor| xs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(numbers(ours), numbers(plain));
    };
    for (channels, height, width) in [(5, 3, 7), (40, 33, 20), (16, 16, 16)] {
        let (a, b) = (draw(&[2, channels, height, width]), draw(&[2, 3, height, width]));
        let tokens = a.flatten_from(2).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
        same(to_tokens(&a).unwrap(), tokens.clone());
        same(to_map(&tokens, height, width).unwrap(), a.clone());
        same(join(&a, &b).unwrap(), Tensor::cat(&[&a, &b], 1).unwrap());
        for (height, width) in [(2 * height, 2 * width), (2 * height - 1, 2 * width - 1)] {
            same(upsample(&a, height, width).unwrap(), a.upsample_nearest2d(height, width).unwrap());
        }
    }
}
