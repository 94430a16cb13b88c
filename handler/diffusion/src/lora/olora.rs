//! What OLoRA takes out of the base (Büyükakyüz, "OLoRA: orthonormal low-rank adaptation of large language models", 2024).

use candle_core::{Result, Tensor};

/// Q_r Q_rᵀ `base`, where Q_r is an orthonormal basis of the first `rank` columns. That is the product of the first columns of Q and rows
/// of R of a QR decomposition, whatever their signs. By Gram and Schmidt's method in f64, each column twice.
pub(super) fn first_columns_share(base: &Tensor, rank: usize) -> Result<Tensor> {
    let (rows, columns) = base.dims2()?;
    let rank = rank.min(rows).min(columns);
    let numbers = base.flatten_all()?.to_vec1::<f32>()?;
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(rank);
    for column in 0..rank {
        let mut vector: Vec<f64> = (0..rows).map(|row| f64::from(numbers[row * columns + column])).collect();
        for known in basis.iter().chain(&basis) {
            let share: f64 = vector.iter().zip(known).map(|(a, b)| a * b).sum();
            vector.iter_mut().zip(known).for_each(|(number, known)| *number -= share * known);
        }
        let norm = vector.iter().map(|number| number * number).sum::<f64>().sqrt();
        if norm > 0.0 {
            vector.iter_mut().for_each(|number| *number /= norm);
        }
        basis.push(vector);
    }
    let basis: Vec<f32> = basis.into_iter().flatten().map(|number| number as f32).collect();
    let basis = Tensor::from_vec(basis, (rank, rows), base.device())?;
    basis.t()?.contiguous()?.matmul(&basis.matmul(base)?)
}
