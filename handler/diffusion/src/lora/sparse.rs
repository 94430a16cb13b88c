//! Single numbers of a matrix, as LyCORIS' extraction writes them beside a product: the largest of what the product leaves over.

use super::{
    factorized::Factorized,
    matrices::{Matrices, Matrix},
};
use candle_core::{Device, Result, Tensor};

/// Numbers of a matrix and their places in it.
#[derive(Debug)]
pub(super) struct Sparse {
    /// Places in the flat matrix, row by row.
    places: Vec<usize>,
    values: Matrix,
}

impl Sparse {
    /// `indices` are all rows, then all columns; `size` is `[rows, columns]`, which must be those of the product.
    ///
    /// # Errors
    /// The counts do not agree, or a place is outside the matrix.
    pub(super) fn new(
        indices: &[i64],
        values: Matrix,
        size: &[i64],
        product: &Factorized,
    ) -> std::result::Result<Self, String> {
        let ours = [product.rows(), product.tail().iter().product::<usize>()];
        let sides: Vec<usize> = size.iter().filter_map(|&side| usize::try_from(side).ok()).collect();
        if sides != ours {
            return Err(format!("its `bias_size` is {size:?}, and its product makes {ours:?}"));
        }
        if indices.len() != 2 * values.count() {
            return Err(format!("it has {} values and {} indices, not two for each", values.count(), indices.len()));
        }
        let (rows, columns) = indices.split_at(values.count());
        let place = |(&row, &column): (&i64, &i64)| {
            let inside = (0..ours[0] as i64).contains(&row) && (0..ours[1] as i64).contains(&column);
            inside
                .then(|| row as usize * ours[1] + column as usize)
                .ok_or_else(|| format!("`bias_indices` names the place [{row}, {column}] of {ours:?}"))
        };
        Ok(Self { places: rows.iter().zip(columns).map(place).collect::<std::result::Result<_, _>>()?, values })
    }

    /// Adds the numbers times `gain` to a matrix in f32.
    pub(super) fn add_to(&self, matrices: &Matrices, matrix: &Tensor, gain: f64) -> Result<Tensor> {
        let mut all = matrix.flatten_all()?.to_vec1::<f32>()?;
        let values = matrices.get(&self.values)?.flatten_all()?.to_vec1::<f32>()?;
        for (&place, value) in self.places.iter().zip(values) {
            all[place] += value * gain as f32;
        }
        Tensor::from_vec(all, matrix.shape(), &Device::Cpu)
    }
}
