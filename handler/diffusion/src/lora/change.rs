//! What a LoRA adds to one tensor, computed in f32 on the tensor's own device.
//!
//! LoRA: Hu et al., 2021. LoHa and LoKr: Yeh et al., "Navigating text-to-image customization", 2023. IA3: Liu et al., 2022.
//! DoRA: Liu et al., 2024. GLoRA: Chavan et al., 2023. OLoRA: Büyükakyüz, 2024.

use super::{
    base_model::BaseModel,
    error::Misfit,
    factorized::Factorized,
    matrices::{Matrices, Matrix},
    olora::first_columns_share,
    rotation::Rotation,
    settings::Method,
    sparse::Sparse,
};
use candle_core::{Result, Tensor};

/// Added to DoRA's norms, as LyCORIS does: a row of zeros stays zero.
const NORM_EPS: f64 = f32::EPSILON as f64;
/// More elements than any layer of SD has (1280 x 2560 x 3 x 3). A larger product is not computed to see whether it is zero: it fits
/// no model, and a small file can ask for a huge one.
const LARGEST_LAYER: usize = 1 << 25;

/// What happens to one tensor of the model.
#[derive(Debug)]
pub(super) struct Change {
    /// A key of the file, for errors.
    pub key: String,
    pub kind: Kind,
    /// `alpha / rank`, times LyCORIS' `scalar`.
    pub factor: f64,
    pub magnitude: Option<Magnitude>,
    /// Whether it is no error if the model lacks the tensor.
    pub optional: bool,
}

/// The kind of a change, with its numbers.
#[derive(Debug)]
pub(super) enum Kind {
    /// LoRA and LoCon.
    LowRank(Factorized),
    /// A product, and single numbers beside it.
    Residual(Factorized, Sparse),
    /// A product relative to the base without its first columns' share of it: what a QR decomposition gives in the product's rank.
    Olora(Factorized),
    /// GLoRA: the base times the first product, over its inputs, and the second product.
    Glora(Factorized, Factorized),
    /// OFT and BOFT.
    Rotated(Rotation),
    /// LoHa: the element-wise product.
    Hadamard(Factorized, Factorized),
    /// LoKr: the Kronecker product.
    Kronecker(Factorized, Factorized),
    /// IA3: a factor for every output or input channel.
    Scaled(Vector),
    /// The difference itself.
    Difference(Matrix),
}

/// One number per channel of a weight, as IA3 has them.
#[derive(Debug, Clone)]
pub(super) struct Vector {
    pub numbers: Matrix,
    pub side: Side,
    /// The number that leaves a channel as it is: 0 in LyCORIS, 1 in peft.
    pub neutral: f64,
}

/// DoRA's magnitude vector: the norm of each row or column after the change.
#[derive(Debug)]
pub(super) struct Magnitude {
    pub key: String,
    pub numbers: Matrix,
    /// [`Side::ByShape`] in LyCORIS, [`Side::Output`] in peft and ai-toolkit.
    pub side: Side,
    /// Whether diffusers drops it. It drops LyCORIS' `dora_scale` and ai-toolkit's `magnitude`.
    pub dropped_by_diffusers: bool,
}

/// Which channels of a weight a vector has numbers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Output,
    Input,
    /// The inputs for `[1, n]` and `[1, n, 1, 1]`, the outputs for any other shape.
    ByShape,
    /// The side with as many channels as the vector has numbers.
    ByCount,
}

impl Change {
    /// A change of that kind with factor 1 and no magnitude.
    pub(super) fn new(key: impl Into<String>, kind: Kind) -> Self {
        Self { key: key.into(), kind, factor: 1.0, magnitude: None, optional: false }
    }

    /// The shape of what it adds, with height and width if the file has them. For IA3, the shape of the vector.
    pub(super) fn shape(&self) -> Vec<usize> {
        match &self.kind {
            Kind::LowRank(product)
            | Kind::Residual(product, _)
            | Kind::Olora(product)
            | Kind::Glora(_, product)
            | Kind::Hadamard(product, _) => [&[product.rows()], product.tail().as_slice()].concat(),
            Kind::Rotated(rotation) => rotation.blocks.dims().to_vec(),
            Kind::Kronecker(first, second) => {
                let (columns, tail) = (first.tail().iter().product::<usize>(), second.tail());
                let sides = [first.rows().saturating_mul(second.rows()), columns.saturating_mul(tail[0])];
                [&sides, &tail[1..]].concat()
            }
            Kind::Scaled(Vector { numbers, .. }) | Kind::Difference(numbers) => numbers.dims.clone(),
        }
    }

    /// The rank of its products. None if it has no products.
    pub(super) fn rank(&self) -> Option<usize> {
        match &self.kind {
            Kind::LowRank(product) | Kind::Residual(product, _) | Kind::Olora(product) => product.rank(),
            Kind::Hadamard(first, second) | Kind::Kronecker(first, second) | Kind::Glora(first, second) => {
                first.rank().max(second.rank())
            }
            Kind::Scaled(_) | Kind::Difference(_) | Kind::Rotated(_) => None,
        }
    }

    /// The number of the layer's inputs, if the file shows it.
    pub(super) fn input_width(&self) -> Option<usize> {
        match &self.kind {
            Kind::Rotated(rotation) => rotation.blocks.inputs(),
            _ => self.shape().get(1).copied(),
        }
    }

    /// Checks every shape against the shape of the model's tensor.
    ///
    /// # Errors
    /// The key that does not fit, with both shapes and the base model that its width shows.
    pub(super) fn fits(&self, module: &str, base: &[usize]) -> std::result::Result<(), Misfit> {
        let refused = |key: &str, reason: String| Misfit::new(key, reason);
        if let Kind::Scaled(vector) = &self.kind {
            vector.side.dimension(&vector.numbers.dims, base).map_err(|reason| refused(&self.key, reason))?;
        } else if let Kind::Rotated(rotation) = &self.kind {
            rotation.fits(base).map_err(|(key, reason)| refused(key.unwrap_or(&self.key), reason))?;
        } else if !same_layer(&self.shape(), base) {
            let mut reason = format!("it makes {:?}, which does not fit the model's {base:?}", self.shape());
            if let Some(other) = self.input_width().and_then(|width| BaseModel::of_input(module, width)) {
                reason.push_str(&format!(": it was made for {other}"));
            }
            return Err(refused(&self.key, reason));
        }
        match &self.kind {
            Kind::Glora(first, _) if [first.rows(), first.tail().iter().product()] != [base[1]; 2] => {
                let (rows, tail) = (first.rows(), first.tail());
                let reason = format!("`a1` and `a2` make {rows} and {tail:?}, not the inputs of the model's {base:?}");
                return Err(refused(&self.key, reason));
            }
            Kind::Olora(_) if base.len() != 2 => {
                return Err(refused(&self.key, format!("OLoRA has no decomposition of the model's {base:?}")));
            }
            _ => {}
        }
        if let Some(Magnitude { key, numbers, side, .. }) = &self.magnitude {
            side.dimension(&numbers.dims, base).map_err(|reason| refused(key, reason))?;
        }
        Ok(())
    }

    /// What to add to `base` (f32) at that scale. With DoRA it is the difference between the decomposed weight and the base, times the
    /// scale. peft and LyCORIS agree with each other at scale 1 only.
    pub(super) fn contribution(&self, matrices: &Matrices, base: &Tensor, scale: f64, dora: bool) -> Result<Tensor> {
        let Some(magnitude) = self.applied_magnitude(dora) else {
            return self.delta(matrices, base, self.factor * scale);
        };
        let changed = (base + self.delta(matrices, base, self.factor)?)?;
        let along = magnitude.side.dimension(&magnitude.numbers.dims, base.dims()).map_err(candle_core::Error::msg)?;
        let rows = changed.transpose(0, along)?.contiguous()?.flatten_from(1)?;
        let norms = (rows.sqr()?.sum(1)?.sqrt()? + NORM_EPS)?;
        let gains = (matrices.get(&magnitude.numbers)?.flatten_all()? / norms)?;
        let decomposed = changed.broadcast_mul(&broadcastable(&gains, along, base)?)?;
        (decomposed - base)? * scale
    }

    /// Whether it is a product of two matrices that does not depend on the base.
    pub(super) fn is_product(&self, dora: bool) -> bool {
        matches!(self.kind, Kind::LowRank(Factorized::Product { .. })) && self.applied_magnitude(dora).is_none()
    }

    /// The magnitudes, if they are applied.
    pub(super) fn applied_magnitude(&self, dora: bool) -> Option<&Magnitude> {
        self.magnitude.as_ref().filter(|magnitude| dora || !magnitude.dropped_by_diffusers)
    }

    /// The two matrices of a product, `[rows, rank]` and `[rank, columns]`.
    pub(super) fn product_of(&self) -> Option<(&Matrix, &Matrix)> {
        match &self.kind {
            Kind::LowRank(Factorized::Product { a, b }) => Some((a, b)),
            _ => None,
        }
    }

    /// The change times `gain`, in the shape of `base`.
    fn delta(&self, matrices: &Matrices, base: &Tensor, gain: f64) -> Result<Tensor> {
        match &self.kind {
            Kind::Scaled(vector) => {
                let along = vector.side.dimension(&vector.numbers.dims, base.dims());
                let along = along.map_err(candle_core::Error::msg)?;
                let gains = ((matrices.get(&vector.numbers)?.flatten_all()? - vector.neutral)? * gain)?;
                base.broadcast_mul(&broadcastable(&gains, along, base)?)
            }
            Kind::Rotated(rotation) => rotation.delta(matrices, base, gain),
            Kind::Glora(first, second) => {
                let Factorized::Product { a, b } = first else { return Err(candle_core::Error::msg("no product")) };
                // The inputs last, height and width before them.
                let inputs = base.flatten_from(2.min(base.rank() - 1))?;
                let inputs = if base.rank() > 2 { inputs.transpose(1, 2)?.contiguous()? } else { inputs };
                let rows = inputs.reshape(((), base.dim(1)?))?;
                let rows =
                    rows.matmul(&matrices.get(a)?.flatten_from(1)?)?.matmul(&matrices.get(b)?.flatten_from(1)?)?;
                let through = rows.reshape(inputs.shape())?;
                let through = if base.rank() > 2 { through.transpose(1, 2)?.contiguous()? } else { through };
                (through.reshape(base.dims())? * gain)? + second.tensor(matrices, gain)?.reshape(base.dims())?
            }
            Kind::Olora(product) => {
                let rank = product.rank().unwrap_or(0);
                let taken = (first_columns_share(base, rank)? * gain)?;
                product.tensor(matrices, gain)? - taken
            }
            _ => self.product(matrices, gain)?.reshape(base.dims()),
        }
    }

    /// The change times `gain`, if it does not depend on the base. Its dimensions may be flattened.
    fn product(&self, matrices: &Matrices, gain: f64) -> Result<Tensor> {
        match &self.kind {
            // What OLoRA and GLoRA do to a base without numbers.
            Kind::LowRank(product) | Kind::Olora(product) | Kind::Glora(_, product) => product.tensor(matrices, gain),
            Kind::Residual(product, sparse) => sparse.add_to(matrices, &product.tensor(matrices, gain)?, gain),
            Kind::Hadamard(first, second) => first.tensor(matrices, gain)? * second.tensor(matrices, 1.0)?,
            Kind::Kronecker(first, second) => {
                let (first, second) = (first.tensor(matrices, gain)?, second.tensor(matrices, 1.0)?);
                let ((a, c), (b, d)) = (first.dims2()?, second.dims2()?);
                first.reshape((a, 1, c, 1))?.broadcast_mul(&second.reshape((1, b, 1, d))?)
            }
            Kind::Scaled(vector) => (matrices.get(&vector.numbers)? - vector.neutral)? * gain,
            Kind::Difference(matrix) => matrices.get(matrix)? * gain,
            Kind::Rotated(_) => Err(candle_core::Error::msg("a rotation is no product")),
        }
    }

    /// Whether it adds exactly nothing to any base. DoRA's magnitudes do not count.
    pub(super) fn is_noop(&self, matrices: &Matrices) -> Result<bool> {
        let size = self.shape().iter().fold(1u128, |size, &side| size.saturating_mul(side as u128));
        if size == 0 {
            return Ok(true);
        }
        // OLoRA takes something out of the base even if its product is zero.
        if size > LARGEST_LAYER as u128 || matches!(self.kind, Kind::Olora(_)) {
            return Ok(false);
        }
        if let Kind::Rotated(rotation) = &self.kind {
            return rotation.is_noop(matrices);
        }
        if let Kind::Glora(Factorized::Product { a, b }, _) = &self.kind {
            // Their product could be huge. If one of them is zero, it is.
            let largest = |matrix| matrices.get(matrix)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
            if self.factor != 0.0 && largest(a)? != 0.0 && largest(b)? != 0.0 {
                return Ok(false);
            }
        }
        Ok(self.product(matrices, self.factor)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? == 0.0)
    }
}

impl Kind {
    /// The method of peft that has such changes. None if no settings of peft can be for it.
    pub(super) fn method(&self) -> Option<Method> {
        match self {
            Self::LowRank(_) | Self::Residual(..) | Self::Olora(_) => Some(Method::Lora),
            Self::Hadamard(..) => Some(Method::Loha),
            Self::Kronecker(..) => Some(Method::Lokr),
            Self::Scaled(_) => Some(Method::Ia3),
            Self::Rotated(rotation) => rotation.method(),
            Self::Glora(..) | Self::Difference(_) => None,
        }
    }

    /// Whether its file alone does not tell what it is.
    pub(super) fn needs_settings(&self) -> bool {
        self.method() == Some(Method::Oft)
    }

    /// Whether alpha and rank scale it.
    pub(super) fn has_scale(&self) -> bool {
        !matches!(self, Self::Scaled(_) | Self::Difference(_) | Self::Rotated(_))
    }

    /// Whether a DoRA can be made of it.
    pub(super) fn may_be_decomposed(&self) -> bool {
        matches!(self, Self::LowRank(_) | Self::Hadamard(..) | Self::Kronecker(..))
    }
}

/// Whether a change of shape `ours` fits a tensor of shape `base`. A height and width of 1 may be missing on either side, and LoHa
/// flattens columns, height and width into one dimension.
fn same_layer(ours: &[usize], base: &[usize]) -> bool {
    let trimmed = |dims: &[usize]| {
        let ones = dims.iter().skip(2).rev().take_while(|&&side| side == 1).count();
        dims[..dims.len() - ones].to_vec()
    };
    let flat =
        ours.len() == 2 && base.len() > 2 && ours[0] == base[0] && ours[1] == base[1..].iter().product::<usize>();
    trimmed(ours) == trimmed(base) || flat
}

/// The vector in a shape that broadcasts over all dimensions of `base` but `along`.
fn broadcastable(vector: &Tensor, along: usize, base: &Tensor) -> Result<Tensor> {
    let shape: Vec<usize> = base.dims().iter().enumerate().map(|(i, &n)| if i == along { n } else { 1 }).collect();
    vector.reshape(shape)
}

impl Side {
    /// The dimension of a weight of shape `base` that a vector of shape `dims` runs along.
    pub(super) fn dimension(self, dims: &[usize], base: &[usize]) -> std::result::Result<usize, String> {
        let count = dims.iter().product::<usize>();
        let (output, input) = (count == base[0], base.len() > 1 && count == base[1]);
        let first_alone = dims.len() > 1 && dims[0] == 1 && count > 1;
        match self {
            Self::Output if output => Ok(0),
            Self::Input if input => Ok(1),
            Self::ByShape if output && !first_alone => Ok(0),
            Self::ByShape if input && first_alone => Ok(1),
            Self::ByCount if output && input => Err(format!(
                "its {dims:?} may run along outputs or inputs of the model's {base:?}: peft keeps in another file which"
            )),
            Self::ByCount if output || input => Ok(usize::from(input)),
            _ => Err(format!("its {dims:?} runs along no side of the model's {base:?}")),
        }
    }
}
