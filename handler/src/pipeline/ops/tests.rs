//! Each fast form against candle's plain one.

use super::*;
use candle_core::{Device, IndexOp};
use candle_nn::VarMap;

fn draw(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap()
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
        (1, 300, 4, 1, 1, 0, 40, 50),
    ];
    for (batch, channels_in, channels_out, side, stride, padding, height, width) in cases {
        let conv = Conv {
            weight: draw(&[channels_out, channels_in, side, side]),
            bias: draw(&[channels_out]),
            window: Window { stride, padding },
        };
        let xs = draw(&[batch, channels_in, height, width]);
        let plain = xs.conv2d(&conv.weight, padding, stride, 1, 1).unwrap();
        let plain = plain.broadcast_add(&conv.bias.reshape((1, (), 1, 1)).unwrap()).unwrap();
        let error = difference(&conv.forward(&xs).unwrap(), &plain);
        assert!(error < 2e-6, "{channels_in}x{side}x{side} stride {stride} on {height}x{width}: {error}");
    }
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
