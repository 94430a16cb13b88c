//! Each fast form against candle's plain one.

use super::*;
use crate::pipeline::noise::Noise;
use candle_core::{Device, IndexOp};
use candle_nn::VarMap;
use std::cell::Cell;

thread_local! {
    static DRAWS: Cell<u64> = const { Cell::new(0) };
}

/// The same in every run: each test has a thread of its own.
fn draw(shape: &[usize]) -> Tensor {
    let seed = DRAWS.get();
    DRAWS.set(seed + 1);
    Noise::cpu(seed).randn(shape, DType::F32, &Device::Cpu).unwrap()
}

/// The largest difference over the largest value.
fn difference(ours: &Tensor, plain: &Tensor) -> f32 {
    assert_eq!(ours.dims(), plain.dims());
    let most = |xs: &Tensor| xs.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    most(&(ours - plain).unwrap()) / most(plain)
}

#[test]
fn convolution_is_candles() {
    // Batch, channels in and out, side, stride, padding, height, width. Odd sizes, and a case of several pieces.
    let cases = [
        (1, 3, 5, 3, 1, 1, 7, 9),
        (2, 4, 6, 3, 2, 1, 9, 7),
        (2, 4, 6, 3, 2, 1, 8, 8),
        (2, 5, 4, 1, 1, 0, 6, 10),
        (1, 1, 1, 3, 1, 1, 1, 1),
        (2, 48, 8, 3, 1, 1, 64, 64),
        // Transformed, whole tiles and not.
        (1, 3, 2, 3, 1, 1, 5, 33),
        (2, 20, 30, 3, 1, 1, 50, 70),
        (1, 288, 200, 3, 1, 1, 32, 32),
        // Too many channels for that.
        (1, 288, 288, 3, 1, 1, 32, 32),
        (1, 300, 4, 1, 1, 0, 40, 50),
    ];
    for (batch, channels_in, channels_out, side, stride, padding, height, width) in cases {
        let weight = draw(&[channels_out, channels_in, side, side]);
        let conv = Conv::of(weight, draw(&[channels_out]), Window { stride, padding }).unwrap();
        let xs = draw(&[batch, channels_in, height, width]);
        let plain = xs.conv2d(&conv.weight, padding, stride, 1, 1).unwrap();
        let plain = plain.broadcast_add(&conv.bias.reshape((1, (), 1, 1)).unwrap()).unwrap();
        // Transformed windows lose a digit or more, the more so with many channels.
        let limit = if conv.kernels.is_some() && width >= 32 { 4e-5 } else { 2e-6 };
        let name = format!("{channels_in}x{side}x{side} stride {stride} on {height}x{width}");
        let check = |ours: Tensor, plain: &Tensor| {
            let error = difference(&ours, plain);
            println!("{name}: {error:e} of {limit:e}");
            assert!(error < limit, "{name}: {error}");
        };
        check(conv.forward(&xs).unwrap(), &plain);
        let (shift, onto) = (draw(&[batch, channels_out]), draw(plain.dims()));
        let moved = plain.broadcast_add(&shift.reshape((batch, channels_out, 1, 1)).unwrap()).unwrap();
        check(conv.forward_shifted(&xs, &shift).unwrap(), &moved);
        check(conv.forward_onto(&xs, &onto).unwrap(), &(&plain + &onto).unwrap());
    }
}

#[test]
fn linear_and_layer_norm_are_candles() {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    for (rows, channels_in, channels_out) in [(1, 20, 5), (77, 128, 96), (1024, 96, 768)] {
        let bias = draw(&[channels_out]);
        for bias in [None, Some(bias)] {
            let linear = Linear(candle_nn::Linear::new(draw(&[channels_out, channels_in]), bias));
            let (xs, onto) = (draw(&[2, rows, channels_in]), draw(&[2, rows, channels_out]));
            let plain = linear.0.forward(&xs).unwrap();
            assert!(difference(&linear.forward(&xs).unwrap(), &plain) < 1e-6);
            assert!(difference(&linear.forward_onto(&xs, &onto).unwrap(), &(plain + &onto).unwrap()) < 1e-6);
        }
        let norm = LayerNorm::new(channels_in, 1e-5, vb.pp(rows)).unwrap();
        let norm =
            LayerNorm { plain: candle_nn::LayerNorm::new(draw(&[channels_in]), draw(&[channels_in]), 1e-5), ..norm };
        let xs = (draw(&[2, rows, channels_in]) + 1.0).unwrap();
        assert!(difference(&norm.forward(&xs).unwrap(), &exact_layer_norm(&xs, &norm)) < 1e-5);
    }
}

/// In f64: candle's own takes the variance from the mean of squares, which loses digits where the mean is not zero.
fn exact_layer_norm(xs: &Tensor, norm: &LayerNorm) -> Tensor {
    let wide = |xs: &Tensor| xs.to_dtype(DType::F64).unwrap();
    let xs = wide(xs);
    let centred = xs.broadcast_sub(&xs.mean_keepdim(2).unwrap()).unwrap();
    let variance = centred.sqr().unwrap().mean_keepdim(2).unwrap();
    let unit = centred.broadcast_div(&(variance + norm.eps).unwrap().sqrt().unwrap()).unwrap();
    let scaled = unit.broadcast_mul(&wide(norm.plain.weight())).unwrap();
    scaled.broadcast_add(&wide(norm.plain.bias().unwrap())).unwrap().to_dtype(DType::F32).unwrap()
}

#[test]
fn group_norm_is_candles() {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let norm = GroupNorm::new(4, 12, 1e-5, vb).unwrap();
    let norm = GroupNorm { weight: draw(&[12]), bias: draw(&[12]), ..norm };
    let plain = candle_nn::GroupNorm::new(norm.weight.clone(), norm.bias.clone(), 12, 4, 1e-5).unwrap();
    // A mean far from zero, which is what a careless variance gets wrong.
    let xs = (draw(&[2, 12, 21, 17]) + 30.0).unwrap();
    assert!(difference(&norm.forward(&xs).unwrap(), &plain.forward(&xs).unwrap()) < 1e-5);
    let silu = plain.forward(&xs).unwrap().silu().unwrap();
    assert!(difference(&norm.forward_silu(&xs).unwrap(), &silu) < 1e-5);
}

#[test]
fn geglu_is_candles() {
    let xs = (draw(&[2, 5, 26]) * 3.0).unwrap();
    let (kept, gate) = (xs.i((.., .., ..13)).unwrap(), xs.i((.., .., 13..)).unwrap());
    let plain = (kept * gate.contiguous().unwrap().gelu_erf().unwrap()).unwrap();
    assert!(difference(&geglu(&xs).unwrap(), &plain) < 1e-6);
}

#[test]
fn attention_is_candles() {
    // Tokens, others, heads, channels; the last needs slices and blocks.
    for (tokens, others, heads, channels) in [(5, 77, 2, 16), (9, 9, 1, 4), (2100, 2100, 2, 8)] {
        let q = draw(&[2, tokens, channels]);
        let (k, v) = (draw(&[2, others, channels]), draw(&[2, others, channels]));
        let sliced = sliced_attention(&q, &k, &v, heads).unwrap();
        assert!(difference(&attention(&q, &k, &v, heads).unwrap(), &sliced) < 3e-6);
        let width = channels / heads;
        let one = |head: usize| {
            let part = |xs: &Tensor| xs.narrow(2, head * width, width).unwrap().contiguous().unwrap();
            let scores = part(&q).matmul(&part(&k).t().unwrap().contiguous().unwrap()).unwrap();
            let scores = (scores * (width as f64).powf(-0.5)).unwrap();
            candle_nn::ops::softmax(&scores, 2).unwrap().matmul(&part(&v)).unwrap()
        };
        let whole: Vec<Tensor> = (0..heads).map(one).collect();
        assert!(difference(&sliced, &Tensor::cat(&whole, 2).unwrap()) < 3e-6);
    }
}
