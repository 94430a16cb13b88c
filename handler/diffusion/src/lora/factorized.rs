//! A matrix that a file stores whole, as a product of two, or as a Tucker decomposition.

use super::{
    error::Misfit,
    matrices::{Matrices, Matrix},
};
use candle_core::{Result, Tensor};

/// The highest rank. No layer of SD1.5 is wider, so a higher rank would add nothing.
const MAX_RANK: usize = 10_240;

/// A matrix `[rows, columns, height, width]`, or `[rows, columns]`.
#[derive(Debug)]
pub(super) enum Factorized {
    /// The matrix itself.
    Whole(Matrix),
    /// `a @ b`: `a` is `[rows, rank]`, `b` is `[rank, columns, height, width]` or flattened.
    Product { a: Matrix, b: Matrix },
    /// `sum over i, j of a[.., i] core[i, j, height, width] b[j, ..]` (LyCORIS; Yeh et al., 2023, section 4).
    Tucker {
        /// `[rank, rank, height, width]`.
        core: Matrix,
        /// `[rows, rank]`, or `[rank, rows]` as in LoHa and LoKr if `upright` is false.
        a: Matrix,
        /// `[rank, columns]`.
        b: Matrix,
        upright: bool,
    },
}

impl Factorized {
    /// A product or Tucker decomposition whose ranks agree and are within the limit.
    ///
    /// # Errors
    /// A misfit of `key` with the shapes.
    pub(super) fn product(
        key: &str,
        a: Matrix,
        b: Matrix,
        core: Option<Matrix>,
        upright: bool,
    ) -> std::result::Result<Self, Misfit> {
        let refused = |reason: String| Err(Misfit::new(key, reason));
        if a.dims.len() < 2 || b.dims.len() < 2 {
            return refused(format!("{:?} and {:?} are no pair of matrices", a.dims, b.dims));
        }
        let (outer, inner) = (if upright || core.is_none() { a.width() } else { a.dims[0] }, b.dims[0]);
        let agree = match &core {
            Some(core) => {
                core.dims.len() >= 3
                    && core.dims[..2] == [outer, inner]
                    && (b.width() == b.dims[1] && (!upright || a.width() == a.dims[1]))
            }
            None => outer == inner && a.width() == a.dims[1],
        };
        if outer == 0 || inner == 0 {
            return refused(format!("{:?} and {:?} have rank 0", b.dims, a.dims));
        }
        if outer.max(inner) > MAX_RANK {
            return refused(format!("rank {}, the limit is {MAX_RANK}", outer.max(inner)));
        }
        if !agree {
            let core = core.map_or(String::new(), |core| format!(" around {:?}", core.dims));
            return refused(format!("{:?} and {:?}{core} share no rank", b.dims, a.dims));
        }
        Ok(match core {
            Some(core) => Self::Tucker { core, a, b, upright },
            None => Self::Product { a, b },
        })
    }

    /// The first dimension.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Whole(matrix) | Self::Product { a: matrix, .. } => matrix.dims[0],
            Self::Tucker { a, upright, .. } => {
                if *upright {
                    a.dims[0]
                } else {
                    a.width()
                }
            }
        }
    }

    /// The other dimensions. Columns alone if height and width are 1 or flattened into them.
    pub(super) fn tail(&self) -> Vec<usize> {
        match self {
            Self::Whole(matrix) | Self::Product { b: matrix, .. } => matrix.dims[1..].to_vec(),
            Self::Tucker { core, b, .. } => [&[b.width()], &core.dims[2..]].concat(),
        }
    }

    /// The rank of a product.
    pub(super) fn rank(&self) -> Option<usize> {
        match self {
            Self::Whole(_) => None,
            Self::Product { b, .. } | Self::Tucker { b, .. } => Some(b.dims[0]),
        }
    }

    /// The matrix in f32, `[rows, everything else]`, times `gain`.
    pub(super) fn tensor(&self, matrices: &Matrices, gain: f64) -> Result<Tensor> {
        match self {
            Self::Whole(matrix) => (matrices.get(matrix)? * gain)?.flatten_from(1),
            Self::Product { a, b } => {
                // `a` has fewer elements to multiply with the gain.
                let a = (matrices.get(a)?.flatten_from(1)? * gain)?;
                a.matmul(&matrices.get(b)?.flatten_from(1)?)
            }
            Self::Tucker { core, a, b, upright } => {
                let a = (matrices.get(a)?.flatten_from(1)? * gain)?;
                let a = if *upright { a } else { a.t()?.contiguous()? };
                let (rows, rank) = (a.dim(0)?, b.dims[0]);
                let left = a.matmul(&matrices.get(core)?.flatten_from(1)?)?.reshape((rows, rank, ()))?;
                let area = left.dim(2)?;
                let left = left.transpose(1, 2)?.contiguous()?.reshape((rows * area, rank))?;
                let all = left.matmul(&matrices.get(b)?.flatten_from(1)?)?.reshape((rows, area, ()))?;
                all.transpose(1, 2)?.contiguous()?.flatten_from(1)
            }
        }
    }
}
