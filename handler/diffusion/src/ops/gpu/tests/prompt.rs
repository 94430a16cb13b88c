//! Attention to a prompt as two products, against queries, attention and output on the CPU. Needs a GPU.

use super::*;

const HEADS: usize = 8;
const WIDTH: usize = 96;

fn tensors(channels: usize, dtype: Dtype) -> Vec<(&'static str, Tensor)> {
    let weight = |inner: usize| rounded(&(draw(&[channels, inner], dtype) * (inner as f64).powf(-0.5)).unwrap(), dtype);
    vec![
        // So that some tokens get most of the shares.
        ("to_q.weight", rounded(&(weight(channels) * 2.0).unwrap(), dtype)),
        ("to_k.weight", weight(WIDTH)),
        ("to_v.weight", weight(WIDTH)),
        ("to_out.0.weight", weight(channels)),
        ("to_out.0.bias", draw(&[channels], dtype)),
        ("norm.weight", rounded(&draw(&[channels], dtype).affine(0.2, 1.0).unwrap(), dtype)),
        ("norm.bias", rounded(&(draw(&[channels], dtype) * 0.2).unwrap(), dtype)),
    ]
}

fn attention(channels: usize, heads: usize, params: Params) -> Result<PromptAttention> {
    PromptAttention::new((1e-5, &params.pp("norm")), channels, WIDTH, heads, params)
}

/// The result on the CPU, for a prompt of each entry of the batch, and on the GPU.
fn run((cpu, gpu): (&PromptAttention, &PromptAttention), xs: &Tensor, prompts: &Tensor, dtype: Dtype) -> [Tensor; 2] {
    let residual = rounded(&(draw(xs.dims(), dtype) * 0.1).unwrap(), dtype);
    let times = xs.dim(0).unwrap() / prompts.dim(0).unwrap();
    [(cpu, false), (gpu, true)].map(|(attention, on_gpu)| {
        let array = |tensor: &Tensor| if on_gpu { to_gpu(tensor, dtype) } else { Array::Cpu(tensor.clone()) };
        let keys = Prompts::new(&array(prompts), times, attention.is_folded()).unwrap();
        let keys = attention.keys(&keys, None).unwrap();
        attention.forward_adding(&array(xs), &keys, &array(&residual)).unwrap().to_tensor().unwrap()
    })
}

#[test]
fn gpu_attention_to_prompts_as_two_products_is_the_cpus() {
    for dtype in [Dtype::F16, Dtype::BF16] {
        // Channels, prompts, pictures of each, rows of a picture and tokens. Of the UNet, with odd numbers of rows, and few tokens.
        let cases = [
            (320, 2, 1, 4096, 77),
            (320, 2, 1, 1024, 77),
            (320, 2, 2, 301, 5),
            (320, 1, 3, 77, 77),
            (640, 2, 1, 1024, 77),
            (640, 3, 1, 35, 80),
            (1280, 2, 1, 256, 77),
            (1280, 2, 1, 64, 77),
            (1280, 2, 2, 9, 1),
            (320, 2, 1, 1353, 77),
            (640, 2, 1, 357, 77),
            (1280, 2, 2, 99, 77),
        ];
        for (channels, prompts, times, rows, tokens) in cases {
            let make = |params: Params| attention(channels, HEADS, params.for_prompts_of(tokens));
            let (cpu, gpu) = both(dtype, &tensors(channels, dtype), make);
            let folds = GPU.with(|gpu| gpu.fuses(dtype) && (gpu.is_hopper() || channels > 320));
            assert!(!cpu.is_folded() && gpu.is_folded() == folds, "{channels} channels");
            let xs = draw(&[prompts * times, rows, channels], dtype);
            let embeddings = draw(&[prompts, tokens, WIDTH], dtype);
            let [wanted, got] = run((&cpu, &gpu), &xs, &embeddings, dtype);
            let name = format!("{rows} rows of {channels} to {prompts} prompts of {tokens} tokens");
            check(&name, dtype, &got, &wanted);
        }
    }
}

#[test]
fn gpu_attention_to_prompts_goes_the_plain_way_where_that_is_better() {
    // Channels, heads, tokens that are told, and the dtype.
    let cases = [
        (320, 8, Some(77), Dtype::F32),
        (320, 8, Some(81), Dtype::F16),
        (320, 8, None, Dtype::F16),
        (640, 10, Some(77), Dtype::F16),
        (96, 6, Some(77), Dtype::F16),
    ];
    for (channels, heads, told, dtype) in cases {
        let make = |params: Params| {
            let params = match told {
                Some(tokens) => params.for_prompts_of(tokens),
                None => params,
            };
            attention(channels, heads, params)
        };
        let (cpu, gpu) = both(dtype, &tensors(channels, dtype), make);
        assert!(!gpu.is_folded(), "{channels} channels in {heads} heads for {told:?} tokens");
        let (xs, embeddings) = (draw(&[2, 33, channels], dtype), draw(&[2, told.unwrap_or(77), WIDTH], dtype));
        let [wanted, got] = run((&cpu, &gpu), &xs, &embeddings, dtype);
        check(&format!("{channels} channels in {heads} heads"), dtype, &got, &wanted);
    }
}

#[test]
fn gpu_keys_of_prompts_are_folded_anew_into_the_same_memory_and_repeat_to_the_bit() {
    let (dtype, channels) = (Dtype::F16, 640);
    let make = |params: Params| attention(channels, HEADS, params.for_prompts_of(77));
    let (cpu, gpu) = both(dtype, &tensors(channels, dtype), make);
    let room = GPU.with(|on| gpu.room(on, 3)).unwrap().unwrap();
    let xs = draw(&[2, 64, channels], dtype);
    let residual = draw(xs.dims(), dtype);
    let first = draw(&[2, 77, WIDTH], dtype);
    let second = draw(&[2, 5, WIDTH], dtype);
    let paint = |embeddings: &Tensor| {
        let prompts = Prompts::new(&to_gpu(embeddings, dtype), 1, true).unwrap();
        let keys = gpu.keys(&prompts, Some(&room.first(2))).unwrap();
        let PromptKeys::Folded(folded) = &keys else { panic!("keys and values alone") };
        assert!(
            folded.size() == [2, embeddings.dim(1).unwrap()]
                && folded.is(&Folded { tokens: folded.tokens, ..room.first(2) })
        );
        gpu.forward_adding(&to_gpu(&xs, dtype), &keys, &to_gpu(&residual, dtype)).unwrap().to_tensor().unwrap()
    };
    let all = [&first, &second, &first].map(paint);
    let bits = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(bits(&all[0]) == bits(&all[2]) && bits(&all[0]) != bits(&all[1]));
    let prompts = Prompts::new(&Array::Cpu(second.clone()), 1, false).unwrap();
    let keys = cpu.keys(&prompts, None).unwrap();
    let wanted = cpu.forward_adding(&Array::Cpu(xs.clone()), &keys, &Array::Cpu(residual.clone())).unwrap();
    check("folded a second time", dtype, &all[1], &wanted.to_tensor().unwrap());
    // A prompt that does not fit into the slots has keys and values, and the room stays what it is.
    let keys = |embeddings: &Tensor| {
        let prompts = Prompts::new(&to_gpu(embeddings, dtype), 1, true).unwrap();
        gpu.keys(&prompts, Some(&room.first(2))).unwrap()
    };
    assert!(matches!(keys(&draw(&[2, 81, WIDTH], dtype)), PromptKeys::Plain(_)));
    assert!(matches!(keys(&draw(&[2, 80, WIDTH], dtype)), PromptKeys::Folded(_)));
}

/// Where prompts of one chunk are folded, and where they are not; numbers of keys that are whole tiles, and others.
#[test]
fn gpu_attention_to_long_prompts_is_the_cpus() {
    for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
        // Channels, heads, prompts, pictures of each, rows of a picture and chunks.
        let cases = [
            (320, 8, 2, 1, 1024, 2),
            (320, 8, 1, 3, 77, 8),
            (640, 8, 2, 1, 1024, 3),
            (640, 10, 2, 2, 35, 4),
            (1280, 8, 2, 1, 256, 2),
            (1280, 8, 2, 2, 9, 8),
            (96, 6, 2, 1, 64, 2),
        ];
        for (channels, heads, prompts, times, rows, chunks) in cases {
            let make = |params: Params| attention(channels, heads, params.for_prompts_of(77));
            let (cpu, gpu) = both(dtype, &tensors(channels, dtype), make);
            let xs = draw(&[prompts * times, rows, channels], dtype);
            let embeddings = draw(&[prompts, chunks * 77, WIDTH], dtype);
            let [wanted, got] = run((&cpu, &gpu), &xs, &embeddings, dtype);
            check(&format!("{rows} rows of {channels} to {prompts} prompts of {chunks} chunks"), dtype, &got, &wanted);
        }
    }
}
