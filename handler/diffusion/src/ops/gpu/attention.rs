//! Attention: our own fused kernels for the head sizes of Stable Diffusion, matrix products and a softmax for others.

use super::{addresses, linear::Linear, refused};
use crate::gpu::{
    Arg, Array, Boxes, Dtype, Launch,
    constants::SOFTMAX_THREADS,
    matmul::{MatmulShape, Operands},
};
use candle_core::Result;
use std::f32::consts::LOG2_E;

/// A fused kernel: the ending of its name, head size, threads, queries of a block, and dynamic shared memory.
type Tile = (&'static str, usize, usize, usize, usize);

/// The table in `kernels/attention.cu`; for each head size the one for many tokens comes first.
const TILES: &[Tile] = include!(concat!(env!("OUT_DIR"), "/attention_tiles.rs"));
/// The same where a token sees only itself and those before it.
const CAUSAL_TILES: &[Tile] = include!(concat!(env!("OUT_DIR"), "/causal_tiles.rs"));
/// As for the others, keys of a tile, and whether a block makes one item after the other.
type HopperTile = (&'static str, usize, usize, usize, usize, usize, usize);
/// The table in `kernels/attention_hopper.cu`.
const HOPPER_TILES: &[HopperTile] = include!(concat!(env!("OUT_DIR"), "/attention_hopper_tiles.rs"));

/// Scores held at once where they are held at all, in bytes of f32.
pub(crate) const SCORES: usize = 64 << 20;
/// With fewer keys, Hopper's own kernels take longer to fill their pipeline than the others to finish (measured on an H100).
const MANY_KEYS: usize = 256;
/// Columns, and queries, of what Hopper's copy engine copies at once.
const BOX: usize = 64;
/// Inside a tile of keys, the kernels count elements in `int`.
const LONGEST_ROW: usize = 1 << 24;

/// How long a block of Hopper's kernels takes for so many queries, in some unit: 128, of which each is computed in two halves of the keys,
/// take more than half as long as 256 (measured on an H200).
const fn cost(queries: usize) -> usize {
    if queries < 256 { 9 * queries } else { 8 * queries }
}

pub(in crate::ops) fn attention(q: &Array, k: &Array, v: &Array, heads: usize) -> Result<Array> {
    attention_of(Shape::of(q, k, v, heads)?, q, k, v)
}

/// Attention of each token to all, by layers for queries, keys and values. Where a kernel would multiply the queries by the scale of the
/// scores, and round them again, the product that makes them does it.
pub(in crate::ops) fn self_attention(to_qkv: &Linear, xs: &Array, heads: usize) -> Result<Array> {
    let (gpu, each) = (xs.gpu(), Some(to_qkv.each()).filter(|each| each.is_multiple_of(heads)));
    let factor = each
        .map(|each| each / heads)
        .filter(|&width| subtracts(width) && gpu.is_hopper() && gpu.fuses(xs.dtype()))
        .map(factor);
    match to_qkv.forward_scaled(xs, factor)?.as_slice() {
        [q, k, v] => {
            let shape = Shape::of(q, k, v, heads)?;
            attention_of(Shape { factor: if factor.is_some() { 1.0 } else { shape.factor }, ..shape }, q, k, v)
        }
        parts => refused(format!("self-attention of {} parts", parts.len())),
    }
}

/// What makes of products of queries and keys scores in base 2, divided by the root of a head's channels.
fn factor(width: usize) -> f32 {
    LOG2_E * (width as f32).powf(-0.5)
}

/// Whether Hopper's kernel has room behind a head's channels, in which the product subtracts the largest score so far.
fn subtracts(width: usize) -> bool {
    !width.is_multiple_of(16)
}

fn attention_of(shape: Shape, q: &Array, k: &Array, v: &Array) -> Result<Array> {
    let gpu = q.gpu();
    if !gpu.fuses(q.dtype()) {
        return shape.whole(q, k, v, false);
    }
    let items = |queries: usize| shape.tokens.div_ceil(queries) * shape.heads * shape.batch;
    if gpu.is_hopper() && shape.others >= MANY_KEYS {
        // The one that leaves the busiest processor the least work.
        let tiles = HOPPER_TILES.iter().filter(|tile| tile.1 == shape.width);
        let best = tiles.min_by_key(|tile| items(tile.3).div_ceil(gpu.multiprocessors()) * cost(tile.3));
        if let Some(tile) = best {
            return shape.fused_on_hopper(tile, items(tile.3), q, k, v);
        }
    }
    // The first that gives three processors of four work, else the one with the most blocks.
    let mut tiles = TILES.iter().filter(|tile| tile.1 == shape.width);
    let busy = tiles.clone().find(|tile| 4 * items(tile.3) >= 3 * gpu.multiprocessors());
    match busy.or(tiles.next_back()) {
        Some(tile) => shape.fused(tile, q, k, v),
        None => shape.whole(q, k, v, false),
    }
}

pub(in crate::ops) fn causal_attention(q: &Array, k: &Array, v: &Array, heads: usize) -> Result<Array> {
    let shape = Shape::of(q, k, v, heads)?;
    let tile = CAUSAL_TILES.iter().find(|tile| tile.1 == shape.width && shape.tokens == shape.others);
    match tile.filter(|_| q.gpu().fuses(q.dtype())) {
        Some(tile) => shape.fused(tile, q, k, v),
        None => shape.whole(q, k, v, true),
    }
}

#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    tokens: usize,
    others: usize,
    heads: usize,
    /// Channels of a head.
    width: usize,
    /// What scores are multiplied by for a softmax in base 2.
    factor: f32,
}

impl Shape {
    /// Of arrays of one GPU and dtype, which may be columns of others.
    fn of(q: &Array, k: &Array, v: &Array, heads: usize) -> Result<Self> {
        if [k, v].iter().any(|array| !array.gpu().is(q.gpu()) || array.dtype() != q.dtype()) {
            return refused(format!("attention of {:?}, {:?} and {:?}", q.dtype(), k.dtype(), v.dtype()));
        }
        match (q.dims(), k.dims(), v.dims()) {
            (&[batch, tokens, channels], &[same, others, _], third)
                if same == batch
                    && third == k.dims()
                    && k.columns() == channels
                    && batch * tokens * others * channels > 0
                    && heads > 0
                    && channels.is_multiple_of(heads) =>
            {
                let width = channels / heads;
                Ok(Self { batch, tokens, others, heads, width, factor: factor(width) })
            }
            dims => refused(format!("attention of {dims:?} in {heads} heads")),
        }
    }

    fn out(&self, q: &Array) -> Result<Array> {
        Ok(q.gpu().scratch(&[self.batch, self.tokens, self.heads * self.width], q.dtype())?)
    }

    /// What the fused kernels ask for.
    fn check(&self, q: &Array, k: &Array, v: &Array) -> Result<()> {
        if k.row() != v.row() {
            return refused("keys and values with rows of two lengths".into());
        }
        let aligned = |array: &&Array| array.address().is_multiple_of(16) && (array.row() * 2).is_multiple_of(16);
        if ![q, k, v].iter().all(aligned) || k.row() > LONGEST_ROW {
            return refused(format!("attention with rows of {} and {}", q.row(), k.row()));
        }
        Ok(())
    }

    fn fused(&self, tile: &Tile, q: &Array, k: &Array, v: &Array) -> Result<Array> {
        let &(ending, _, block, queries, shared) = tile;
        self.check(q, k, v)?;
        let out = self.out(q)?;
        let sizes = [self.tokens, self.others, self.heads, q.row(), k.row(), out.row()].map(Arg::Int);
        let strides = [self.tokens * q.row(), self.others * k.row(), self.tokens * out.row()].map(Arg::Long);
        let args = [&addresses([q, k, v, &out])[..], &sizes, &strides, &[Arg::Float(self.factor)]].concat();
        let launch = Launch {
            name: format!("attention_{}_{ending}", q.dtype().name()),
            grid: [self.tokens.div_ceil(queries), self.heads, self.batch],
            block,
            shared: if q.gpu().copies_ahead() { shared } else { 0 },
        };
        // SAFETY: `Shape::of` has compared q, k and v, whose rows are as far apart as the strides say; `out` was made by the same
        // shape. Both dtypes that are fused have 2 bytes, and the tile is one of the kernel's table, for this head size.
        unsafe { q.gpu().launch(launch, &args)? };
        Ok(out)
    }

    fn fused_on_hopper(&self, tile: &HopperTile, items: usize, q: &Array, k: &Array, v: &Array) -> Result<Array> {
        let &(ending, _, block, _, shared, keys, endless) = tile;
        self.check(q, k, v)?;
        let (gpu, out) = (q.gpu(), self.out(q)?);
        let map = |array: &Array, tokens: usize, at_once: usize| {
            let boxes = Boxes {
                address: array.address(),
                sizes: [self.width, tokens, self.heads, self.batch],
                row: array.row(),
                lengths: [BOX, at_once, 1, 1],
                step: 1,
            };
            boxes.encode_with(array.dtype(), [array.row(), self.width, tokens * array.row()])
        };
        let maps = [map(q, self.tokens, BOX)?, map(k, self.others, keys)?, map(v, self.others, keys)?];
        let sizes = [self.tokens, self.others, self.heads, items, out.row()].map(Arg::Int);
        let fields =
            [&addresses([&out])[..], &[Arg::Long(self.tokens * out.row())], &sizes, &[Arg::Float(self.factor)]];
        let Some(words) = Arg::packed(&fields.concat()) else {
            return refused(format!("attention of {:?}, which is too large for a kernel", q.dims()));
        };
        let blocks = if endless == 1 { items.min(gpu.multiprocessors()) } else { items };
        let name = format!("attention_hopper_{}_{ending}", q.dtype().name());
        let launch = Launch { name, grid: [blocks, 1, 1], block, shared };
        // SAFETY: as for the other kernels: three maps, of which each has the array's own rows and columns, and the problem.
        unsafe { gpu.launch_words(launch, 1, &[&maps[0], &maps[1], &maps[2], &words])? };
        Ok(out)
    }

    /// With the scores in memory, some queries at a time.
    fn whole(&self, q: &Array, k: &Array, v: &Array, causal: bool) -> Result<Array> {
        let (gpu, dtype, out) = (q.gpu(), q.dtype(), self.out(q)?);
        let at_once = (SCORES / 4 / (self.heads * self.others)).clamp(1, self.tokens);
        let at_once = if causal { self.tokens } else { at_once };
        for image in 0..self.batch {
            let [q, k, v, out] = [q, k, v, &out].map(|array| array.part(image, 1));
            for from in (0..self.tokens).step_by(at_once) {
                let tokens = at_once.min(self.tokens - from);
                let scores = gpu.scratch(&[self.heads, tokens, self.others], Dtype::F32)?;
                let shares = gpu.scratch(scores.dims(), dtype)?;
                let size = dtype.bytes();
                let products = MatmulShape {
                    out: Dtype::F32,
                    batch: self.heads,
                    a_row: q.row(),
                    w_row: k.row(),
                    a_stride: self.width,
                    w_stride: self.width,
                    out_stride: tokens * self.others,
                    alpha_bits: (self.factor / LOG2_E).to_bits(),
                    ..MatmulShape::linear(dtype, tokens, self.others, self.width)
                };
                let mixed = MatmulShape {
                    batch: self.heads,
                    w_row: v.row(),
                    out_row: out.row(),
                    a_stride: tokens * self.others,
                    w_stride: self.width,
                    out_stride: self.width,
                    w_transposed: true,
                    ..MatmulShape::linear(dtype, tokens, self.width, self.others)
                };
                let q_at = q.address() + (from * q.row() * size) as u64;
                let out_at = out.address() + (from * out.row() * size) as u64;
                // SAFETY: `tokens` rows of q, from one that it has, and all of k, in heads of `width` columns next to each other;
                // `Shape::of` has compared them. `scores` was made for the result.
                unsafe { gpu.multiply(&products, &Operands::product(q_at, k.address(), scores.address()))? };
                let sizes = [self.others, usize::from(causal), tokens].map(Arg::Int);
                let (name, grid) = (format!("softmax_{}", dtype.name()), [self.heads * tokens, 1, 1]);
                let launch = Launch { name, grid, block: SOFTMAX_THREADS, shared: 0 };
                // SAFETY: a block for each row of both, which have the same dims.
                unsafe { gpu.launch(launch, &[&addresses([&scores, &shares])[..], &sizes].concat())? };
                // SAFETY: as for the scores; v has the dims of k, and `out` those of q.
                unsafe { gpu.multiply(&mixed, &Operands::product(shares.address(), v.address(), out_at))? };
            }
        }
        Ok(out)
    }
}
