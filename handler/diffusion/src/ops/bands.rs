//! Operations on some rows of a feature map at a time, for maps of which the device's memory cannot hold several. All maps here have one
//! image.

use super::{Array, Conv, Form, GroupNorm, gpu, mixed};
use candle_core::{DType, Device, Result, Tensor};
use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    ops::Range,
};

/// How many numbers there are, their mean, and the sum of their squared deviations from it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spread {
    pub(super) count: f64,
    pub(super) mean: f64,
    pub(super) squares: f64,
}

impl Spread {
    /// That of both together: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    pub(super) fn merge(&mut self, other: Self) {
        let count = self.count + other.count;
        if count > 0.0 {
            let apart = other.mean - self.mean;
            self.mean += apart * other.count / count;
            self.squares += other.squares + apart * apart * self.count * other.count / count;
            self.count = count;
        }
    }

    /// The biased variance.
    pub(super) fn variance(&self) -> f64 {
        self.squares / self.count.max(1.0)
    }
}

/// What a group norm measures of a map, band by band. The bands are those of the whole map, each row once.
pub(crate) struct Measured(Form<Vec<Spread>, Vec<gpu::Part>>);

/// Mean and variance of each group of a map's channels.
pub(crate) struct Statistics {
    groups: Vec<Spread>,
    /// Their forms for bands on a GPU, by the places of a band.
    on_gpu: RefCell<HashMap<usize, crate::gpu::Array>>,
}

impl Measured {
    /// With another band of the same map.
    ///
    /// # Errors
    /// They were measured by different norms.
    pub(crate) fn and(mut self, other: Self) -> Result<Self> {
        match (&mut self.0, other.0) {
            (Form::Cpu(groups), Form::Cpu(others)) if groups.len() == others.len() => {
                groups.iter_mut().zip(others).for_each(|(group, other)| group.merge(other));
            }
            (Form::Gpu(parts), Form::Gpu(others)) => parts.extend(others),
            _ => return Err(mixed()),
        }
        Ok(self)
    }

    /// What was measured in all. On a GPU this waits for it.
    ///
    /// # Errors
    /// The device fails.
    pub(crate) fn statistics(self) -> Result<Statistics> {
        let groups = match self.0 {
            Form::Cpu(groups) => groups,
            Form::Gpu(parts) => gpu::merged(&parts)?,
        };
        Ok(Statistics { groups, on_gpu: RefCell::default() })
    }
}

impl GroupNorm {
    /// Measures a band, or a whole map.
    ///
    /// # Errors
    /// The map has other channels, or the device fails.
    pub(crate) fn measure(&self, band: &Array) -> Result<Measured> {
        Ok(Measured(match (&self.0, band) {
            (Form::Cpu(norm), Array::Cpu(band)) => Form::Cpu(norm.measure(band)?),
            (Form::Gpu(norm), Array::Gpu(band)) => Form::Gpu(vec![norm.measure(band)?]),
            _ => return Err(mixed()),
        }))
    }

    /// The norm of a band with SiLU after it, by the statistics of the whole map.
    ///
    /// # Errors
    /// The statistics are another norm's, or the device fails.
    pub(crate) fn forward_silu_by(&self, band: &Array, statistics: &Statistics) -> Result<Array> {
        match (&self.0, band) {
            (Form::Cpu(norm), Array::Cpu(band)) => norm.forward_by(band, true, &statistics.groups).map(Array::Cpu),
            (Form::Gpu(norm), Array::Gpu(band)) => {
                let moments = match statistics.on_gpu.borrow_mut().entry(band.rows()) {
                    Entry::Occupied(known) => known.get().clone(),
                    Entry::Vacant(room) => room.insert(gpu::moments_by(band, &statistics.groups)?).clone(),
                };
                norm.forward_by(band, true, &moments).map(Array::Gpu)
            }
            _ => Err(mixed()),
        }
    }
}

impl Conv {
    /// A 3x3 convolution of a band that has a row more above and below than the output, plus `residual`, which has the output's shape.
    ///
    /// # Errors
    /// The window is another, the shapes do not fit, or the device fails.
    pub(crate) fn forward_open(&self, xs: &Array, residual: Option<&Array>) -> Result<Array> {
        match (&self.0, xs) {
            (Form::Cpu(conv), Array::Cpu(xs)) => {
                conv.forward_open(xs, residual.map(Array::cpu).transpose()?).map(Array::Cpu)
            }
            (Form::Gpu(conv), Array::Gpu(xs)) => {
                conv.forward_open(xs, residual.map(Array::gpu).transpose()?).map(Array::Gpu)
            }
            _ => Err(mixed()),
        }
    }

    /// A map for the output at that height and width, with any content.
    ///
    /// # Errors
    /// The device has too little memory.
    pub(crate) fn room(&self, like: &Array, (height, width): (usize, usize)) -> Result<Array> {
        match (&self.0, like) {
            (Form::Cpu(conv), Array::Cpu(_)) => {
                let dims = (1, conv.channels_out()?, height, width);
                Tensor::zeros(dims, DType::F32, &Device::Cpu).map(Array::Cpu)
            }
            (Form::Gpu(conv), Array::Gpu(like)) => {
                Ok(Array::Gpu(like.gpu().scratch(&[1, height, width, conv.channels_out()], like.dtype())?))
            }
            _ => Err(mixed()),
        }
    }

    /// The same, away from `beside` by so much that when that is dropped, there is room for another such map. Arrays get the lowest
    /// address that is free, so a map that comes right after a smaller one would leave a place that none of its size can use.
    ///
    /// # Errors
    /// The device has too little memory.
    pub(crate) fn room_beside(&self, beside: &Array, size: (usize, usize)) -> Result<Array> {
        let gap = match (&self.0, beside) {
            (Form::Gpu(conv), Array::Gpu(beside)) => {
                let count = size.0 * size.1 * conv.channels_out();
                Some(beside.gpu().scratch(&[count.saturating_sub(beside.count())], beside.dtype())?)
            }
            _ => None,
        };
        let room = self.room(beside, size);
        drop(gap);
        room
    }
}

impl Array {
    /// Some rows of the map: a view on a GPU, a copy on the CPU.
    ///
    /// # Errors
    /// There are no such rows, or there is more than one image.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Result<Self> {
        match self {
            Self::Cpu(map) => map.narrow(2, rows.start, rows.len())?.contiguous().map(Self::Cpu),
            Self::Gpu(map) => gpu::rows(map, rows).map(Self::Gpu),
        }
    }

    /// Overwrites the rows from `from` on with those of `band`.
    ///
    /// Every clone of the map changes: it must be one of [`Conv::room`] or [`Array::to_overwrite`].
    ///
    /// # Errors
    /// They do not fit, or the device fails.
    pub(crate) fn write_rows(&self, from: usize, band: &Self) -> Result<()> {
        match (self, band) {
            (Self::Cpu(map), Self::Cpu(band)) => map.slice_set(band, 2, from),
            (Self::Gpu(map), Self::Gpu(band)) => {
                let (height, _) = Self::Gpu(band.clone()).size()?;
                Ok(map.gpu().copy(band, &gpu::rows(map, from..from + height)?)?)
            }
            _ => Err(mixed()),
        }
    }

    /// The same map in the same memory, without what was measured of it.
    ///
    /// # Errors
    /// There is more than one image.
    pub(crate) fn to_overwrite(&self) -> Result<Self> {
        let (height, _) = self.size()?;
        self.rows(0..height)
    }
}

/// The band with a row of zeros above it, below it, or both.
///
/// # Errors
/// The device fails or has too little memory.
pub(crate) fn pad_rows(band: Array, above: bool, below: bool) -> Result<Array> {
    let (above, below) = (usize::from(above), usize::from(below));
    match &band {
        _ if above + below == 0 => Ok(band),
        Array::Cpu(map) => map.pad_with_zeros(2, above, below).map(Array::Cpu),
        Array::Gpu(map) => gpu::pad_rows(map, above, below).map(Array::Gpu),
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn parts_merge_to_the_spread_of_all() {
        let numbers: Vec<f64> = (0..100).map(|index| 1000.0 + f64::from(index * index % 37)).collect();
        let of = |numbers: &[f64]| {
            let count = numbers.len() as f64;
            let mean = numbers.iter().sum::<f64>() / count;
            Spread { count, mean, squares: numbers.iter().map(|number| (number - mean).powi(2)).sum() }
        };
        let mut merged = Spread::default();
        for part in [&numbers[..0], &numbers[..7], &numbers[7..80], &numbers[80..]] {
            merged.merge(if part.is_empty() { Spread::default() } else { of(part) });
        }
        let all = of(&numbers);
        assert_eq!(merged.count, 100.0);
        assert!((merged.mean - all.mean).abs() < 1e-9 && (merged.variance() - all.variance()).abs() < 1e-9);
    }
}
