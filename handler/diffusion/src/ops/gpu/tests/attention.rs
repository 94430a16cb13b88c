//! Attention against the same on the CPU. Needs a GPU.

use super::*;

#[test]
fn gpu_attention_is_the_cpus() {
    in_each_dtype(|dtype| {
        let cases = [
            (4096, 4096, 8, 320),
            (4096, 77, 8, 320),
            (1000, 1000, 8, 640),
            (1024, 77, 8, 640),
            (256, 256, 8, 1280),
            (64, 77, 8, 1280),
            (4096, 154, 8, 320),
            (4096, 308, 8, 320),
            (1000, 616, 8, 640),
            (64, 231, 8, 1280),
            (64, 385, 8, 1280),
            (100, 300, 4, 256),
            (257, 257, 16, 1024),
            (1353, 1353, 8, 320),
            (1353, 77, 8, 320),
            (357, 357, 8, 640),
            (99, 99, 8, 1280),
            (30, 77, 8, 1280),
            (1024, 1024, 1, 512),
            (33, 50, 2, 48),
        ];
        for (tokens, others, heads, channels) in cases {
            let [q, k, v] = [tokens, others, others].map(|length| draw(&[2, length, channels], dtype));
            let plain =
                attention(&Array::Cpu(q.clone()), &Array::Cpu(k.clone()), &Array::Cpu(v.clone()), heads).unwrap();
            let [q, k, v] = [q, k, v].map(|tensor| to_gpu(&tensor, dtype));
            let ours = attention(&q, &k, &v, heads).unwrap().to_tensor().unwrap();
            let name = format!("attention {tokens} x {others} of {channels} in {heads}");
            check(&name, dtype, &ours, plain.cpu().unwrap());
        }
        // CLIP's heads of 64, and others.
        for (tokens, width) in [(77, 64), (1, 64), (300, 64), (77, 72)] {
            let [q, k, v] = [0; 3].map(|_| draw(&[2, tokens, 12 * width], dtype));
            let on_cpu = [&q, &k, &v].map(|tensor| Array::Cpu(tensor.clone()));
            let plain = causal_attention(&on_cpu[0], &on_cpu[1], &on_cpu[2], 12).unwrap();
            let [q, k, v] = [q, k, v].map(|tensor| to_gpu(&tensor, dtype));
            let ours = causal_attention(&q, &k, &v, 12).unwrap().to_tensor().unwrap();
            check(&format!("causal attention of {tokens} tokens, {width} wide"), dtype, &ours, plain.cpu().unwrap());
        }
    });
}

/// Queries, keys and values of one product, and their attention: pictures of 512x512, of 256x256, and of odd sizes, one and two at once.
#[test]
fn gpu_self_attention_is_the_cpus() {
    in_each_dtype(|dtype| {
        for (batch, tokens, channels, bias) in [
            (1, 4096, 320, false),
            (2, 4096, 320, false),
            (2, 1024, 320, false),
            (2, 1353, 320, false),
            (2, 100, 320, false),
            (2, 1024, 320, true),
            (1, 300, 160, false),
            (2, 1024, 640, false),
            (2, 64, 1280, false),
        ] {
            let heads = if channels == 160 { 4 } else { 8 };
            let weight =
                || rounded(&(draw(&[channels, channels], dtype) * (channels as f64).powf(-0.5)).unwrap(), dtype);
            let mut tensors = ["q.weight", "k.weight", "v.weight"].map(|name| (name, weight())).to_vec();
            if bias {
                tensors.extend(["q.bias", "k.bias", "v.bias"].map(|name| (name, draw(&[channels], dtype))));
            }
            let layers =
                |params: Params| Linear::packed(channels, channels, bias, &["q", "k", "v"].map(|part| params.pp(part)));
            let (cpu, gpu) = both(dtype, &tensors, layers);
            let xs = draw(&[batch, tokens, channels], dtype);
            let plain = self_attention(&cpu, &Array::Cpu(xs.clone()), heads).unwrap().to_tensor().unwrap();
            let ours = self_attention(&gpu, &to_gpu(&xs, dtype), heads).unwrap().to_tensor().unwrap();
            check(&format!("self-attention of {batch} x {tokens} x {channels}, bias {bias}"), dtype, &ours, &plain);
        }
    });
}

/// In one channel of each head keys grow from group to group, so far that the exponential of a score above the largest so far has no
/// number. Rows whose query is negative there see the first group alone, their neighbours the last one, and some all of them.
/// In f32, whose scores are held in memory, numbers so large would leave too few bits for the rest.
#[test]
fn gpu_attention_follows_scores_that_rise() {
    for dtype in [Dtype::F16, Dtype::BF16] {
        for (width, tokens, others) in
            [(40, 300, 700), (40, 1500, 1400), (64, 300, 700), (80, 300, 700), (160, 70, 300)]
        {
            let (heads, group) = (3, 250);
            let [q, k, v] = [tokens, others, others].map(|length| draw(&[1, length, heads, width], dtype));
            let signs = (0..tokens).map(|row| [1f32, -1.0, 0.0][row % 3]).collect::<Vec<_>>();
            let steps = (0..others).map(|row| (row / group) as f32 * 1024.0).collect::<Vec<_>>();
            let with_first = |tensor: &Tensor, first: Vec<f32>| {
                let rows = first.len();
                let first = Tensor::from_vec(first, (1, rows, 1, 1), &Device::Cpu).unwrap();
                let first = first.broadcast_as((1, rows, heads, 1)).unwrap();
                let rest = tensor.narrow(3, 1, width - 1).unwrap();
                Tensor::cat(&[&first, &rest], 3).unwrap().reshape((1, rows, heads * width)).unwrap()
            };
            let (q, k) = (with_first(&q, signs), with_first(&k, steps));
            let v = v.reshape((1, others, heads * width)).unwrap();
            let [plain_q, plain_k, plain_v] = [&q, &k, &v].map(|tensor| Array::Cpu(tensor.clone()));
            let plain = attention(&plain_q, &plain_k, &plain_v, heads).unwrap().to_tensor().unwrap();
            let [q, k, v] = [&q, &k, &v].map(|tensor| to_gpu(tensor, dtype));
            let ours = attention(&q, &k, &v, heads).unwrap().to_tensor().unwrap();
            check(&format!("rising scores of {tokens} x {others} in heads of {width}"), dtype, &ours, &plain);
        }
    }
}
