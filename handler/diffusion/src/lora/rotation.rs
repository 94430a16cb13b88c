//! OFT and BOFT: rotations of the base weight, as LyCORIS and peft write them, computed in f64 and applied in f32.
//!
//! OFT: Qiu et al., "Controlling text-to-image diffusion by orthogonal finetuning", 2023. BOFT: Liu et al., "Parameter-efficient
//! orthogonal finetuning via butterfly factorization", 2024. A block is the Cayley transform of a skew-symmetric matrix.

mod blocks;

use super::{
    matrices::{Matrices, Matrix},
    settings::Method,
};
pub(in crate::lora) use blocks::Blocks;
use blocks::Side;
use candle_core::{Result, Tensor};

/// A rotation of the outputs (LyCORIS) or inputs (peft) of a layer, and a gain for each output.
#[derive(Debug)]
pub(super) struct Rotation {
    pub blocks: Blocks,
    /// With their key.
    pub gains: Option<(String, Matrix)>,
}

impl Rotation {
    /// The method in peft's words. None for LyCORIS.
    pub(super) fn method(&self) -> Option<Method> {
        match self.blocks.side() {
            Side::Outputs => None,
            Side::Inputs if self.blocks.is_butterfly() => Some(Method::Boft),
            Side::Inputs => Some(Method::Oft),
        }
    }

    /// Whether it is a BOFT.
    pub(super) fn is_butterfly(&self) -> bool {
        self.blocks.is_butterfly()
    }

    /// The key that does not fit a weight of shape `base`, none for the blocks' own, and why.
    ///
    /// # Errors
    /// The blocks do not make up a side of the weight, or there is not one gain for each output.
    pub(super) fn fits(&self, base: &[usize]) -> std::result::Result<(), (Option<&str>, String)> {
        if base.len() < 2 {
            return Err((None, format!("it rotates a matrix, and the model has {base:?}")));
        }
        self.blocks.fits(self.length(base)).map_err(|reason| (None, reason))?;
        match &self.gains {
            Some((key, gains)) if gains.count() != base[0] => {
                Err((Some(key), format!("its {:?} are not the outputs of the model's {base:?}", gains.dims)))
            }
            _ => Ok(()),
        }
    }

    /// The length of the side that is rotated.
    fn length(&self, base: &[usize]) -> usize {
        match self.blocks.side() {
            Side::Outputs => base[0],
            Side::Inputs => base[1..].iter().product(),
        }
    }

    /// What it adds to `base`. As in LyCORIS, the scale lies between each of LyCORIS' blocks and the identity; peft has no scale other
    /// than 1, and there it is the share of the way.
    pub(super) fn delta(&self, matrices: &Matrices, base: &Tensor, scale: f64) -> Result<Tensor> {
        let matrix = base.flatten_from(1)?;
        let gains = self.gains.as_ref().map(|(_, gains)| matrices.get(gains)?.flatten_all()?.reshape(((), 1)));
        let gains = gains.transpose()?;
        let length = self.length(base.dims());
        let (rotated, share) = match self.blocks.side() {
            Side::Outputs => (self.blocks.apply(matrices, &matrix, length, scale)?, 1.0),
            Side::Inputs => {
                let rotated = self.blocks.apply(matrices, &matrix.t()?.contiguous()?, length, 1.0)?;
                (rotated.t()?.contiguous()?, scale)
            }
        };
        let changed = match gains {
            Some(gains) if self.blocks.side() == Side::Outputs => {
                rotated.broadcast_mul(&(((gains - 1.0)? * scale)? + 1.0)?)?
            }
            Some(gains) => rotated.broadcast_mul(&gains)?,
            None => rotated,
        };
        ((changed - matrix)? * share)?.reshape(base.dims())
    }

    /// Whether it leaves every weight as it is.
    pub(super) fn is_noop(&self, matrices: &Matrices) -> Result<bool> {
        let Some((_, gains)) = &self.gains else { return self.blocks.are_identities(matrices) };
        let gains = matrices.get(gains)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(gains.iter().all(|&gain| gain == 1.0) && self.blocks.are_identities(matrices)?)
    }
}
