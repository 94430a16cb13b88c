//! The blocks of a rotation: their shapes in LyCORIS' and peft's files, the Cayley transform, and the order of a butterfly's rows.

use crate::lora::{
    matrices::{Matrices, Matrix},
    settings::Oft,
};
use candle_core::{Device, Result, Tensor};

/// The largest block. No layer of SD1.5 has more channels but those of the feed-forward networks; the work grows with its cube.
const MAX_BLOCK: usize = 1280;
/// The most factors of a butterfly: 2^16 times a block is longer than any side of a layer.
const MAX_FACTORS: usize = 16;

/// Blocks on the diagonal of one matrix, or of several factors whose rows are taken in turns.
#[derive(Debug)]
pub(in crate::lora) struct Blocks {
    matrix: Matrix,
    form: Form,
    /// Factors of a butterfly, else 1.
    factors: usize,
    /// Blocks of a factor.
    count: usize,
    /// Rows of a block.
    size: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// LyCORIS: the transposed rotation. The norm of all skew matrices together is at most this times the number of outputs, if it is
    /// more than 0.
    Diagonal(f64),
    /// LyCORIS' BOFT, with the same limit.
    Butterfly(f64),
    /// peft: the upper triangles alone.
    PeftOft(Oft),
    PeftBoft,
}

/// Which side of a weight is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Outputs,
    Inputs,
}

impl Blocks {
    /// `oft_blocks`: `[blocks, size, size]`, or for BOFT `[factors, blocks, size, size]`.
    ///
    /// # Errors
    /// Another shape, as of the other functions.
    pub(in crate::lora) fn of_lycoris(matrix: Matrix, constraint: f64) -> std::result::Result<Self, String> {
        match *matrix.dims.as_slice() {
            [count, size, other] if size == other => Self::new(matrix, Form::Diagonal(constraint), 1, count, size),
            [factors, count, size, other] if size == other => {
                Self::new(matrix, Form::Butterfly(constraint), factors, count, size)
            }
            _ => Err(format!("its {:?} are no blocks", matrix.dims)),
        }
    }

    /// `boft_R`: `[factors, blocks, size, size]`.
    pub(in crate::lora) fn of_peft_boft(matrix: Matrix) -> std::result::Result<Self, String> {
        match *matrix.dims.as_slice() {
            [factors, count, size, other] if size == other => Self::new(matrix, Form::PeftBoft, factors, count, size),
            _ => Err(format!("its {:?} are no blocks", matrix.dims)),
        }
    }

    /// `oft_R`: `[blocks, size * (size - 1) / 2]`. One block alone may stand for all.
    pub(in crate::lora) fn of_peft_oft(matrix: Matrix, settings: Oft) -> std::result::Result<Self, String> {
        let [count, above] = *matrix.dims.as_slice() else {
            return Err(format!("its {:?} are no upper triangles", matrix.dims));
        };
        let size = (1 + 8 * above).isqrt().div_ceil(2);
        if size * (size - 1) / 2 != above {
            return Err(format!("its {:?} are no upper triangles", matrix.dims));
        }
        Self::new(matrix, Form::PeftOft(settings), 1, count, size)
    }

    fn new(matrix: Matrix, form: Form, factors: usize, count: usize, size: usize) -> std::result::Result<Self, String> {
        if size > MAX_BLOCK || factors > MAX_FACTORS {
            return Err(format!(
                "its {:?} have blocks of {size} and {factors} factors; the limits are {MAX_BLOCK} and {MAX_FACTORS}",
                matrix.dims
            ));
        }
        Ok(Self { matrix, form, factors, count, size })
    }

    pub(super) fn side(&self) -> Side {
        match self.form {
            Form::Diagonal(_) | Form::Butterfly(_) => Side::Outputs,
            Form::PeftOft(_) | Form::PeftBoft => Side::Inputs,
        }
    }

    pub(super) fn is_butterfly(&self) -> bool {
        matches!(self.form, Form::Butterfly(_) | Form::PeftBoft)
    }

    /// The shape in the file.
    pub(in crate::lora) fn dims(&self) -> &[usize] {
        &self.matrix.dims
    }

    /// The length of the inputs that it rotates, if the file shows it.
    pub(in crate::lora) fn inputs(&self) -> Option<usize> {
        (self.side() == Side::Inputs && self.count > 1).then_some(self.count * self.size)
    }

    /// Checks them against a side of `length`.
    ///
    /// # Errors
    /// They do not make it up.
    pub(super) fn fits(&self, length: usize) -> std::result::Result<(), String> {
        let shared = matches!(self.form, Form::PeftOft(_)) && self.count == 1 && length.is_multiple_of(self.size);
        let refused = |why: &str| Err(format!("its {:?} {why} the model's {length} channels", self.matrix.dims));
        if self.count * self.size != length && !shared {
            return refused("do not rotate");
        }
        // A factor exchanges half blocks at a distance that doubles from one to the next.
        let last = self.size << (self.factors - 1);
        let halves = self.factors == 1 && self.form == Form::PeftBoft;
        if self.is_butterfly() && !halves && (!self.size.is_multiple_of(2) || !length.is_multiple_of(last)) {
            return refused("are no butterfly of");
        }
        Ok(())
    }

    /// The rows of `matrix`, `[length, …]`, rotated. At another scale than 1, each block lies so far from the identity to its own.
    pub(super) fn apply(&self, matrices: &Matrices, matrix: &Tensor, length: usize, scale: f64) -> Result<Tensor> {
        let (size, count, width) = (self.size, length / self.size, matrix.dim(1)?);
        let all = self.rotations(matrices, length)?;
        let mut rows = matrix.clone();
        for (factor, blocks) in all.chunks(self.count * size * size).enumerate() {
            let scaled: Vec<f32> = blocks
                .iter()
                .enumerate()
                .map(|(place, &number)| {
                    let (row, column) = (place / size % size, place % size);
                    (number * scale + if row == column { 1.0 - scale } else { 0.0 }) as f32
                })
                .collect();
            let mut blocks = Tensor::from_vec(scaled, (self.count, size, size), &Device::Cpu)?;
            if matches!(self.form, Form::Diagonal(_)) {
                blocks = blocks.t()?.contiguous()?;
            }
            let order = self.order(factor, length);
            if let Some((order, _)) = &order {
                rows = rows.index_select(order, 0)?;
            }
            rows = blocks.broadcast_matmul(&rows.reshape((count, size, width))?)?.reshape((length, width))?;
            if let Some((_, back)) = &order {
                rows = rows.index_select(back, 0)?;
            }
        }
        Ok(rows)
    }

    /// Whether all skew-symmetric matrices are zero.
    pub(super) fn are_identities(&self, matrices: &Matrices) -> Result<bool> {
        Ok(self.skew(matrices)?.iter().all(|&number| number == 0.0))
    }

    /// The skew-symmetric matrices, one after another.
    fn skew(&self, matrices: &Matrices) -> Result<Vec<f64>> {
        let (size, numbers) = (self.size, matrices.get(&self.matrix)?.flatten_all()?.to_vec1::<f32>()?);
        let mut all = vec![0.0; self.factors * self.count * size * size];
        let mut above = numbers.iter();
        for (index, block) in all.chunks_mut(size * size).enumerate() {
            let own = &numbers[if matches!(self.form, Form::PeftOft(_)) { 0 } else { index * size * size }..];
            for (row, column) in (0..size).flat_map(|row| (row + 1..size).map(move |column| (row, column))) {
                let number = match self.form {
                    Form::PeftOft(_) => f64::from(*above.next().unwrap_or(&0.0)),
                    _ => f64::from(own[row * size + column]) - f64::from(own[column * size + row]),
                };
                let number = if self.form == Form::PeftBoft { number / 2.0 } else { number };
                (block[row * size + column], block[column * size + row]) = (number, -number);
            }
        }
        Ok(all)
    }

    /// The rotations, block by block.
    fn rotations(&self, matrices: &Matrices, length: usize) -> Result<Vec<f64>> {
        let (size, mut all) = (self.size, self.skew(matrices)?);
        let norm = |numbers: &[f64]| numbers.iter().map(|number| number * number).sum::<f64>().sqrt();
        match self.form {
            Form::Diagonal(constraint) | Form::Butterfly(constraint) if constraint > 0.0 => {
                let (most, norm) = (constraint * length as f64, norm(&all) + 1e-8);
                if norm > most {
                    all.iter_mut().for_each(|number| *number *= most / norm);
                }
            }
            Form::PeftOft(Oft { most: Some(most), .. }) => {
                let most = most / (self.count as f64).sqrt();
                for block in all.chunks_mut(size * size) {
                    let norm = norm(block);
                    if norm > most {
                        block.iter_mut().for_each(|number| *number *= most / norm);
                    }
                }
            }
            _ => {}
        }
        for block in all.chunks_mut(size * size) {
            match self.form {
                Form::Diagonal(_) | Form::Butterfly(_) => cayley(block, size),
                Form::PeftOft(Oft { terms: Some(terms), .. }) => series(block, size, terms),
                Form::PeftOft(_) | Form::PeftBoft => {
                    block.iter_mut().for_each(|number| *number = -*number);
                    cayley(block, size);
                }
            }
        }
        Ok(all)
    }

    /// The order in which a factor of a butterfly takes the rows, and the way back. None: as they are.
    fn order(&self, factor: usize, length: usize) -> Option<(Tensor, Tensor)> {
        let half = self.size / 2;
        let mut from: Vec<u32> = (0..length as u32).collect();
        match self.form {
            Form::Butterfly(_) => {
                let apart = half << factor;
                for (place, from) in from.iter_mut().enumerate() {
                    let (group, rest) = (place / (2 * apart), place % (2 * apart));
                    *from = (group * 2 * apart + rest % 2 * apart + rest / 2) as u32;
                }
            }
            Form::PeftBoft if self.factors > 1 => {
                // Half blocks with even numbers come first, then those with odd ones, in groups that double with each factor.
                let group = self.size << factor;
                let halves = group / half;
                for (place, sorted) in (0..length).map(|place| {
                    let (start, rest) = (place / group * group, place % group);
                    let (index, inside) = (rest / half, rest % half);
                    let evens = halves.div_ceil(2);
                    let taken = if index < evens { 2 * index } else { 2 * (index - evens) + 1 };
                    (place, start + taken * half + inside)
                }) {
                    // The way back of a permutation matrix is its transpose.
                    from[sorted] = place as u32;
                }
            }
            _ => return None,
        }
        let mut back = vec![0; length];
        for (place, &from) in from.iter().enumerate() {
            back[from as usize] = place as u32;
        }
        let tensor = |order: Vec<u32>| Tensor::from_vec(order, length, &Device::Cpu).ok();
        Some((tensor(from)?, tensor(back)?))
    }
}

/// The product of two square matrices.
fn product(a: &[f64], b: &[f64], size: usize) -> Vec<f64> {
    let mut all = vec![0.0; size * size];
    for (row, into) in all.chunks_mut(size).enumerate() {
        for (&factor, from) in a[row * size..].iter().zip(b.chunks(size)) {
            into.iter_mut().zip(from).for_each(|(into, from)| *into += factor * from);
        }
    }
    all
}

/// Makes of a skew-symmetric matrix Q peft's Neumann series of that many terms: I + 2Q + 2Q² + … + Qⁿ.
fn series(block: &mut [f64], size: usize, terms: usize) {
    let skew = block.to_vec();
    let mut add = |matrix: &[f64], times: f64| {
        block.iter_mut().zip(matrix).for_each(|(into, number)| *into += times * number);
    };
    add(&skew, -1.0);
    let identity: Vec<f64> =
        (0..size * size).map(|place| f64::from(u8::from(place.is_multiple_of(size + 1)))).collect();
    add(&identity, 1.0);
    if terms > 1 {
        add(&skew, 2.0);
    }
    if terms > 2 {
        let mut power = product(&skew, &skew, size);
        add(&power, 2.0);
        for _ in 3..terms - 1 {
            power = product(&power, &skew, size);
            add(&power, 2.0);
        }
        add(&product(&power, &skew, size), 1.0);
    }
}

/// Makes of a skew-symmetric matrix Q the rotation (I + Q)(I - Q)⁻¹, by elimination with pivots. I - Q always has an inverse.
fn cayley(block: &mut [f64], size: usize) {
    // Both factors are polynomials of Q, so their order does not matter: (I - Q) R = I + Q is solved.
    let one = |place: usize| f64::from(u8::from(place.is_multiple_of(size + 1)));
    let mut left: Vec<f64> = block.iter().enumerate().map(|(place, number)| one(place) - number).collect();
    block.iter_mut().enumerate().for_each(|(place, number)| *number += one(place));
    for column in 0..size {
        let largest =
            (column..size).max_by(|&a, &b| left[a * size + column].abs().total_cmp(&left[b * size + column].abs()));
        let largest = largest.unwrap_or(column);
        if largest != column {
            for place in 0..size {
                left.swap(column * size + place, largest * size + place);
                block.swap(column * size + place, largest * size + place);
            }
        }
        let pivot = left[column * size + column];
        for matrix in [&mut left[..], &mut *block] {
            matrix[column * size..(column + 1) * size].iter_mut().for_each(|number| *number /= pivot);
        }
        let (own_left, own) =
            (left[column * size..(column + 1) * size].to_vec(), block[column * size..(column + 1) * size].to_vec());
        for row in (0..size).filter(|&row| row != column) {
            let factor = left[row * size + column];
            if factor == 0.0 {
                continue;
            }
            let less = |into: &mut [f64], from: &[f64]| {
                into.iter_mut().zip(from).for_each(|(into, from)| *into -= factor * from);
            };
            less(&mut left[row * size + column..(row + 1) * size], &own_left[column..]);
            less(&mut block[row * size..(row + 1) * size], &own);
        }
    }
}
