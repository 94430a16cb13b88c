//! Attention over a few queries at a time, so that their scores stay in the cache.

use super::{Strides, exp, matmul, slice};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};
use rayon::prelude::*;
use std::cell::RefCell;

/// Scores held at once by a thread, in elements: 512 KiB.
const SCORES: usize = 128 << 10;

thread_local! {
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Queries `[batch, tokens, channels]`, keys and values `[batch, others, channels]`.
pub(in super::super) struct Attention {
    pub(in super::super) heads: usize,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention-cpu"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, tokens, channels) = q_layout.shape().dims3()?;
        let others = k_layout.shape().dims3()?.1;
        let q = slice(q, q_layout, self.name())?;
        let k = slice(k, k_layout, self.name())?;
        let v = slice(v, v_layout, self.name())?;
        let at_once = (SCORES / others).clamp(1, tokens);
        let mut values = vec![0f32; batch * tokens * channels];
        for (item, values) in values.chunks_mut(tokens * channels).enumerate() {
            let (k, v) = (&k[item * others * channels..], &v[item * others * channels..]);
            let q = &q[item * tokens * channels..][..tokens * channels];
            let blocks = values.par_chunks_mut(at_once * channels).zip(q.par_chunks(at_once * channels));
            blocks.for_each(|(values, q)| self.block(values, q, k, v, others, channels));
        }
        Ok((CpuStorage::F32(values), q_layout.shape().clone()))
    }
}

impl Attention {
    /// All heads of some queries of one picture.
    fn block(&self, values: &mut [f32], q: &[f32], k: &[f32], v: &[f32], others: usize, channels: usize) {
        let width = channels / self.heads;
        let queries = q.len() / channels;
        let rows = Strides::rows(channels);
        let scale = (width as f32).powf(-0.5);
        ROOM.with_borrow_mut(|room| {
            room.resize(room.len().max(queries * others), 0.0);
            let scores = &mut room[..queries * others];
            for head in (0..channels).step_by(width) {
                let keys = (&k[head..], rows.transposed());
                matmul((queries, others, width), scores, Strides::rows(others), (&q[head..], rows), keys);
                scores.chunks_mut(others).for_each(|row| softmax(row, scale));
                let scores = (&*scores, Strides::rows(others));
                matmul((queries, width, others), &mut values[head..], rows, scores, (&v[head..], rows));
            }
        });
    }
}

/// Softmax of `scale * row`, in place.
fn softmax(row: &mut [f32], scale: f32) {
    let (eights, rest) = row.as_chunks::<8>();
    let mut most = [f32::NEG_INFINITY; 8];
    for eight in eights {
        most.iter_mut().zip(eight).for_each(|(most, &x)| *most = if x > *most { x } else { *most });
    }
    let most = most.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max) * scale;
    let (eights, rest) = row.as_chunks_mut::<8>();
    let mut sums = [0f32; 8];
    for eight in eights {
        eight.iter_mut().zip(&mut sums).for_each(|(x, sum)| {
            *x = exp(*x * scale - most);
            *sum += *x;
        });
    }
    rest.iter_mut().for_each(|x| {
        *x = exp(*x * scale - most);
        sums[0] += *x;
    });
    let whole = 1.0 / sums.iter().sum::<f32>();
    row.iter_mut().for_each(|x| *x *= whole);
}
