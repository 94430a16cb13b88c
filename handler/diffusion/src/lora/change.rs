//! What a LoRA adds to one tensor, as arithmetic on the tensor's own device, in f32.
//!
//! LoRA: Hu et al., 2021. LoHa and LoKr: Yeh et al., "Navigating text-to-image customization", 2023. IA3: Liu et al., 2022.
//! DoRA: Liu et al., 2024.

use super::{
    arena::{Arena, Matrix},
    base_model::BaseModel,
    error::Misfit,
    half::Half,
    vector::{Magnitude, Vector},
};
use candle_core::{Result, Tensor};

/// Added to DoRA's norms, as LyCORIS does: a row of zeros stays zero.
const NORM_EPS: f64 = f32::EPSILON as f64;
/// Larger products than any layer of SD (1280 x 2560 x 3 x 3) are not formed to see whether they are zero: they fit nothing
/// anyway, and a small file can ask for them.
const LARGEST_LAYER: usize = 1 << 25;

/// What becomes of one tensor of the model.
#[derive(Debug)]
pub(super) struct Change {
    /// A key of the file, for errors.
    pub key: String,
    pub kind: Kind,
    /// `alpha / rank`, times what else the file scales with.
    pub factor: f64,
    pub magnitude: Option<Magnitude>,
    /// Whether the model may lack the tensor.
    pub optional: bool,
}

/// How the file keeps it.
#[derive(Debug)]
pub(super) enum Kind {
    /// LoRA and LoCon.
    LowRank(Half),
    /// LoHa: the product element by element.
    Hadamard(Half, Half),
    /// LoKr: the Kronecker product.
    Kronecker(Half, Half),
    /// IA3: every output or input channel times a number.
    Scaled(Vector),
    /// The difference itself.
    Difference(Matrix),
}

impl Change {
    /// A change with nothing but its kind.
    pub(super) fn new(key: impl Into<String>, kind: Kind) -> Self {
        Self { key: key.into(), kind, factor: 1.0, magnitude: None, optional: false }
    }

    /// Shape of what it adds, with height and width where the file has them; of the vector for IA3.
    pub(super) fn shape(&self) -> Vec<usize> {
        match &self.kind {
            Kind::LowRank(half) | Kind::Hadamard(half, _) => [&[half.rows()], half.tail().as_slice()].concat(),
            Kind::Kronecker(first, second) => {
                let (columns, tail) = (first.tail().iter().product::<usize>(), second.tail());
                let sides = [first.rows().saturating_mul(second.rows()), columns.saturating_mul(tail[0])];
                [&sides, &tail[1..]].concat()
            }
            Kind::Scaled(Vector { numbers, .. }) | Kind::Difference(numbers) => numbers.dims.clone(),
        }
    }

    /// Rank of its products; none for what is no product.
    pub(super) fn rank(&self) -> Option<usize> {
        match &self.kind {
            Kind::LowRank(half) => half.rank(),
            Kind::Hadamard(first, second) | Kind::Kronecker(first, second) => first.rank().max(second.rank()),
            Kind::Scaled(_) | Kind::Difference(_) => None,
        }
    }

    /// Checks every shape against that of the model's tensor.
    ///
    /// # Errors
    /// The key that does not fit, both shapes, and the base model that its width gives away.
    pub(super) fn fits(&self, module: &str, base: &[usize]) -> std::result::Result<(), Misfit> {
        let refused = |key: &str, reason: String| Misfit::new(key, reason);
        if let Kind::Scaled(vector) = &self.kind {
            vector.side.dimension(&vector.numbers.dims, base).map_err(|reason| refused(&self.key, reason))?;
        } else if !same_layer(&self.shape(), base) {
            let mut reason = format!("it makes {:?}, which does not fit the model's {base:?}", self.shape());
            if let Some(other) = self.shape().get(1).and_then(|&width| BaseModel::of_input(module, width)) {
                reason.push_str(&format!(": it was made for {other}"));
            }
            return Err(refused(&self.key, reason));
        }
        if let Some(Magnitude { key, numbers, side, .. }) = &self.magnitude {
            side.dimension(&numbers.dims, base).map_err(|reason| refused(key, reason))?;
        }
        Ok(())
    }

    /// What is to be added to `base` (f32) at that scale. DoRA is the way from the base to the decomposed weight, so that
    /// the scale goes evenly from none of it to all of it; peft and LyCORIS agree at 1 and nowhere else.
    pub(super) fn contribution(&self, arena: &Arena, base: &Tensor, scale: f64, dora: bool) -> Result<Tensor> {
        let Some(magnitude) = self.magnitude.as_ref().filter(|magnitude| dora || !magnitude.dropped_by_diffusers)
        else {
            return self.delta(arena, base, self.factor * scale);
        };
        let moved = (base + self.delta(arena, base, self.factor)?)?;
        let along = magnitude.side.dimension(&magnitude.numbers.dims, base.dims()).map_err(candle_core::Error::msg)?;
        let rows = moved.transpose(0, along)?.contiguous()?.flatten_from(1)?;
        let norms = (rows.sqr()?.sum(1)?.sqrt()? + NORM_EPS)?;
        let gains = (arena.get(&magnitude.numbers)?.flatten_all()? / norms)?;
        let decomposed = moved.broadcast_mul(&broadcastable(&gains, along, base)?)?;
        (decomposed - base)? * scale
    }

    /// Whether it is one product of two matrices, whatever the base.
    pub(super) fn is_product(&self, dora: bool) -> bool {
        let decomposed = self.magnitude.as_ref().is_some_and(|magnitude| dora || !magnitude.dropped_by_diffusers);
        matches!(self.kind, Kind::LowRank(Half::Product { .. })) && !decomposed
    }

    /// The two matrices of a product, `[rows, rank]` and `[rank, columns]`.
    pub(super) fn product_of(&self) -> Option<(&Matrix, &Matrix)> {
        match &self.kind {
            Kind::LowRank(Half::Product { a, b }) => Some((a, b)),
            _ => None,
        }
    }

    /// The change at `gain`, in the shape of `base`.
    fn delta(&self, arena: &Arena, base: &Tensor, gain: f64) -> Result<Tensor> {
        match &self.kind {
            Kind::Scaled(vector) => {
                let along = vector.side.dimension(&vector.numbers.dims, base.dims());
                let along = along.map_err(candle_core::Error::msg)?;
                let gains = ((arena.get(&vector.numbers)?.flatten_all()? - vector.neutral)? * gain)?;
                base.broadcast_mul(&broadcastable(&gains, along, base)?)
            }
            _ => self.product(arena, gain)?.reshape(base.dims()),
        }
    }

    /// The change at `gain` where it does not depend on the base, flattened to any shape.
    fn product(&self, arena: &Arena, gain: f64) -> Result<Tensor> {
        match &self.kind {
            Kind::LowRank(half) => half.tensor(arena, gain),
            Kind::Hadamard(first, second) => first.tensor(arena, gain)? * second.tensor(arena, 1.0)?,
            Kind::Kronecker(first, second) => {
                let (first, second) = (first.tensor(arena, gain)?, second.tensor(arena, 1.0)?);
                let ((a, c), (b, d)) = (first.dims2()?, second.dims2()?);
                first.reshape((a, 1, c, 1))?.broadcast_mul(&second.reshape((1, b, 1, d))?)
            }
            Kind::Scaled(vector) => (arena.get(&vector.numbers)? - vector.neutral)? * gain,
            Kind::Difference(matrix) => arena.get(matrix)? * gain,
        }
    }

    /// Whether it adds exactly nothing to any base, but for DoRA's lengths. `arena` is on the CPU.
    pub(super) fn is_idle(&self, arena: &Arena) -> Result<bool> {
        let size = self.shape().iter().fold(1u128, |size, &side| size.saturating_mul(side as u128));
        if size == 0 {
            return Ok(true);
        }
        if size > LARGEST_LAYER as u128 {
            return Ok(false);
        }
        Ok(self.product(arena, self.factor)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? == 0.0)
    }
}

/// Whether a change of shape `ours` is one of a tensor of shape `base`: equal, but that a height and width of 1 may be
/// missing on either side, and that LoHa flattens columns, height and width into one.
fn same_layer(ours: &[usize], base: &[usize]) -> bool {
    let trimmed = |dims: &[usize]| {
        let ones = dims.iter().skip(2).rev().take_while(|&&side| side == 1).count();
        dims[..dims.len() - ones].to_vec()
    };
    let flat =
        ours.len() == 2 && base.len() > 2 && ours[0] == base[0] && ours[1] == base[1..].iter().product::<usize>();
    trimmed(ours) == trimmed(base) || flat
}

/// A vector in a shape that broadcasts along one dimension of `base`.
fn broadcastable(vector: &Tensor, along: usize, base: &Tensor) -> Result<Tensor> {
    let shape: Vec<usize> = base.dims().iter().enumerate().map(|(i, &n)| if i == along { n } else { 1 }).collect();
    vector.reshape(shape)
}
