//! Layers behind layer norms, against the norm and the layer on the CPU. Needs a GPU.

use super::*;
use crate::gpu::Product;

const EPS: f64 = 1e-5;

/// A layer, and those that a norm separates from it.
struct Layers {
    ahead: Linear,
    to_qkv: Linear,
    gate: Linear,
}

impl Layers {
    fn new(channels: usize, params: Params) -> Result<Self> {
        let (norm, norm2) = (params.pp("norm"), params.pp("norm2"));
        let parts = ["q", "k", "v"].map(|part| params.pp(part));
        Ok(Self {
            ahead: Linear::new(channels, channels, params.pp("ahead"))?.ahead_of_norm(),
            to_qkv: Linear::behind_norm((EPS, &norm), channels, channels, false, &parts)?,
            gate: Linear::behind_norm((EPS, &norm2), channels, 8 * channels, true, &[params.pp("gate")])?,
        })
    }

    /// Queries, keys and values, and the gated output, behind the first layer or of `xs` itself.
    fn outputs(&self, xs: &Array, residual: &Array, with_first: bool) -> Vec<Tensor> {
        let xs = if with_first { self.ahead.forward_adding(xs, residual).unwrap() } else { xs.clone() };
        let mut outputs = self.to_qkv.forward_each(&xs).unwrap();
        outputs.push(self.gate.forward_geglu(&xs).unwrap());
        outputs.iter().map(to_cpu).collect()
    }
}

/// Also of a view of some columns.
fn to_cpu(array: &Array) -> Tensor {
    let Array::Gpu(view) = array else { return array.to_tensor().unwrap() };
    let whole = view.gpu().scratch(view.dims(), view.dtype()).unwrap();
    view.gpu().copy(view, &whole).unwrap();
    whole.to_tensor().unwrap()
}

fn tensors(channels: usize, dtype: Dtype) -> Vec<(&'static str, Tensor)> {
    let weight =
        |rows: usize| rounded(&(draw(&[rows, channels], dtype) * (channels as f64).powf(-0.5)).unwrap(), dtype);
    let around = |middle: f64| rounded(&draw(&[channels], dtype).affine(0.3, middle).unwrap(), dtype);
    vec![
        ("ahead.weight", weight(channels)),
        ("ahead.bias", around(0.0)),
        ("norm.weight", around(1.0)),
        ("norm.bias", around(0.0)),
        ("norm2.weight", around(0.5)),
        ("norm2.bias", around(0.1)),
        ("q.weight", weight(channels)),
        ("k.weight", weight(channels)),
        ("v.weight", weight(channels)),
        ("gate.weight", weight(8 * channels)),
        ("gate.bias", draw(&[8 * channels], dtype)),
    ]
}

#[test]
fn gpu_layers_behind_norms_are_the_cpus() {
    in_each_dtype(|dtype| {
        // Batch, rows and channels: of the UNet, of odd pictures, and of the small model in the repository.
        let cases =
            [(2, 4096, 320), (2, 1024, 640), (2, 256, 1280), (2, 64, 1280), (3, 357, 640), (1, 33, 320), (2, 77, 96)];
        for (batch, rows, channels) in cases {
            let (cpu, gpu) = both(dtype, &tensors(channels, dtype), |params| Layers::new(channels, params));
            // The mean of a row is as large as its deviation.
            let xs = rounded(&(draw(&[batch, rows, channels], dtype) + 1.0).unwrap(), dtype);
            let residual = rounded(&(draw(&[batch, rows, channels], dtype) + 1.0).unwrap(), dtype);
            for with_first in [true, false] {
                let wanted = cpu.outputs(&Array::Cpu(xs.clone()), &Array::Cpu(residual.clone()), with_first);
                let [got, again] =
                    [(); 2].map(|()| gpu.outputs(&to_gpu(&xs, dtype), &to_gpu(&residual, dtype), with_first));
                for ((part, wanted), (got, again)) in
                    ["q", "k", "v", "gated"].iter().zip(&wanted).zip(got.iter().zip(&again))
                {
                    check(&format!("{part} of {rows} x {channels}, sums {with_first}"), dtype, got, wanted);
                    let bits = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    assert!(bits(got) == bits(again), "{part} differs from run to run");
                }
            }
            let first = gpu.ahead.forward_adding(&to_gpu(&xs, dtype), &to_gpu(&residual, dtype)).unwrap();
            // When it is read, the GPU is done with the weights.
            check(
                "the first layer",
                dtype,
                &to_cpu(&first),
                &cpu.ahead.forward_adding(&Array::Cpu(xs), &Array::Cpu(residual)).unwrap().to_tensor().unwrap(),
            );
            let sums_up = GPU.with(|gpu| gpu.is_hopper()) && dtype != Dtype::F32 && batch * rows >= 64;
            assert!(first.gpu().unwrap().row_sums().is_some() || !sums_up, "no sums of {rows} x {channels}");
        }
    });
}

#[test]
fn gpu_layers_behind_norms_change_with_every_tensor_that_they_are_made_of() {
    let channels = 320;
    for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
        let base: Vec<_> =
            tensors(channels, dtype).into_iter().map(|(name, tensor)| (format!("m.{name}"), tensor)).collect();
        let weights = Weights::new(base.iter().cloned().collect());
        let placed = GPU.with(|gpu| Placed::new(gpu, dtype, 2 << 20)).unwrap();
        let ours = Layers::new(channels, Params::on_gpu(&weights, &placed).pp("m")).unwrap();
        placed.keep().unwrap();
        placed.fill(&weights, None).unwrap();
        let xs = draw(&[1, 100, channels], dtype);
        let same = |what: &str, weights: &Weights| {
            let cpu = Layers::new(channels, Params::on_cpu(weights).pp("m")).unwrap();
            let wanted = cpu.outputs(&Array::Cpu(xs.clone()), &Array::Cpu(xs.clone()), true);
            let got = ours.outputs(&to_gpu(&xs, dtype), &to_gpu(&xs, dtype), true);
            wanted.iter().zip(&got).for_each(|(wanted, got)| check(what, dtype, got, wanted));
        };
        same("the base", &weights);

        // A product for the keys' weight, and other numbers for one tensor of each kind.
        let (left, right) = (draw(&[channels, 4], Dtype::F32), (draw(&[4, channels], Dtype::F32) * 0.05).unwrap());
        let product = left.matmul(&right).unwrap();
        let changed = |name: &str, tensor: &Tensor| match name {
            "m.k.weight" => rounded(&(tensor + &product).unwrap(), dtype),
            "m.norm.bias" | "m.norm2.weight" | "m.gate.bias" => rounded(&(tensor + 0.25).unwrap(), dtype),
            _ => tensor.clone(),
        };
        let after: Vec<_> = base.iter().map(|(name, tensor)| (name.clone(), changed(name, tensor))).collect();
        let after = Weights::new(after.into_iter().collect());
        let key = "m.k.weight".to_string();
        let added = weights.with_overlay(
            ["m.norm.bias", "m.norm2.weight", "m.gate.bias"]
                .iter()
                .map(|name| (name.to_string(), after.tensor(name).unwrap()))
                .collect(),
        );
        let others = ["m.norm.bias", "m.norm2.weight", "m.gate.bias"].map(String::from);
        let products = [Product { name: key.clone(), rows: channels, columns: channels, rank: 4 }];
        let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let write = |_: usize, to_left: &mut [f32], to_right: &mut [f32]| {
            to_left.copy_from_slice(&numbers(&left));
            to_right.copy_from_slice(&numbers(&right));
            Ok(())
        };
        placed.rewrite(&added, &others, &products, &write).unwrap();
        same("changed", &after);
        // And back.
        placed.rewrite(&weights, &[&others[..], &[key]].concat(), &[], &write).unwrap();
        same("restored", &weights);
    }
}
