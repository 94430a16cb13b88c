//! [`Array`], the input and output of the operations.

use super::mixed;
use crate::gpu;
use candle_core::{Result, Tensor};

/// An activation. A feature map is `[batch, channels, height, width]` on the CPU. On a GPU it is `[batch, height, width, channels]`, with
/// channels padded with zeros to a multiple of 8. Tokens are `[batch, tokens, channels]` on both. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Array {
    /// Contiguous, f32. Operands of attention may be bf16.
    Cpu(Tensor),
    /// On a GPU.
    Gpu(gpu::Array),
}

impl Array {
    /// Length of the first dimension.
    pub(crate) fn batch(&self) -> usize {
        let dims = match self {
            Self::Cpu(tensor) => tensor.dims(),
            Self::Gpu(array) => array.dims(),
        };
        dims.first().copied().unwrap_or(1)
    }

    /// Height and width of a feature map.
    pub(crate) fn size(&self) -> Result<(usize, usize)> {
        match self {
            Self::Cpu(map) => map.dims4().map(|(_, _, height, width)| (height, width)),
            Self::Gpu(map) => match map.dims() {
                &[_, height, width, _] => Ok((height, width)),
                dims => Err(candle_core::Error::Msg(format!("{dims:?} is no map")).bt()),
            },
        }
    }

    pub(crate) fn cpu(&self) -> Result<&Tensor> {
        match self {
            Self::Cpu(tensor) => Ok(tensor),
            Self::Gpu(_) => Err(mixed()),
        }
    }

    pub(crate) fn gpu(&self) -> Result<&gpu::Array> {
        match self {
            Self::Gpu(array) => Ok(array),
            Self::Cpu(_) => Err(mixed()),
        }
    }

    /// A copy of a feature map on the CPU, `[batch, channels, height, width]` in f32, without padded channels.
    pub(crate) fn to_map(&self, channels: usize) -> Result<Tensor> {
        match self {
            Self::Cpu(map) => Ok(map.clone()),
            Self::Gpu(map) => map.to_tensor()?.permute((0, 3, 1, 2))?.narrow(1, 0, channels)?.contiguous(),
        }
    }

    /// A copy on the CPU, in f32.
    pub(crate) fn to_tensor(&self) -> Result<Tensor> {
        match self {
            Self::Cpu(tensor) => Ok(tensor.clone()),
            Self::Gpu(array) => Ok(array.to_tensor()?),
        }
    }

    /// The first token of one sequence: `[1, channels]` of `[1, tokens, channels]`.
    pub(crate) fn first_token(&self) -> Result<Self> {
        match self {
            Self::Cpu(xs) => match xs.dims() {
                &[1, _, channels] => Ok(Self::Cpu(xs.narrow(1, 0, 1)?.reshape((1, channels))?)),
                dims => Err(candle_core::Error::Msg(format!("{dims:?} is not one sequence")).bt()),
            },
            Self::Gpu(xs) => match xs.dims() {
                &[1, tokens, channels] if tokens > 0 => Ok(Self::Gpu(xs.reshaped(&[tokens, channels]).part(0, 1))),
                dims => Err(candle_core::Error::Msg(format!("{dims:?} is not one sequence")).bt()),
            },
        }
    }

    /// Sequences and tokens of `[sequences, tokens, channels]`.
    pub(crate) fn sequences(&self) -> Result<[usize; 2]> {
        let dims = match self {
            Self::Cpu(xs) => xs.dims(),
            Self::Gpu(xs) => xs.dims(),
        };
        match dims {
            &[sequences, tokens, _] => Ok([sequences, tokens]),
            dims => Err(candle_core::Error::Msg(format!("{dims:?} are no sequences")).bt()),
        }
    }

    /// Each element of the first dimension `times` times in a row. diffusers pairs prompts and images in this order.
    pub(crate) fn repeat_rows(&self, times: usize) -> Result<Self> {
        if times == 1 {
            return Ok(self.clone());
        }
        Ok(match self {
            Self::Cpu(rows) => {
                let (count, tokens, width) = rows.dims3()?;
                let rows = rows.unsqueeze(1)?.repeat((1, times, 1, 1))?.reshape((count * times, tokens, width))?;
                Self::Cpu(rows.contiguous()?)
            }
            Self::Gpu(rows) => {
                let mut dims = rows.dims().to_vec();
                let count = dims[0];
                dims[0] *= times;
                let (gpu, all) = (rows.gpu(), rows.gpu().scratch(&dims, rows.dtype())?);
                for index in 0..count * times {
                    gpu.copy(&rows.part(index / times, 1), &all.part(index, 1))?;
                }
                Self::Gpu(all)
            }
        })
    }

    /// Sequences that follow one another as one: `[sequences / parts, parts * tokens, channels]`.
    pub(crate) fn joined(&self, parts: usize) -> Result<Self> {
        let uneven = |dims: &[usize]| candle_core::Error::Msg(format!("{dims:?} in parts of {parts}")).bt();
        let dims = |dims: &[usize]| match dims {
            &[count, tokens, channels] if parts > 0 && count.is_multiple_of(parts) => {
                Ok([count / parts, parts * tokens, channels])
            }
            dims => Err(uneven(dims)),
        };
        Ok(match self {
            Self::Cpu(xs) => Self::Cpu(xs.reshape(&dims(xs.dims())?[..])?),
            Self::Gpu(xs) => Self::Gpu(xs.reshaped(&dims(xs.dims())?)),
        })
    }

    /// The rows of both, those of `other` behind.
    pub(crate) fn followed_by(&self, other: &Self) -> Result<Self> {
        Ok(match (self, other) {
            (Self::Cpu(first), Self::Cpu(second)) => Self::Cpu(Tensor::cat(&[first, second], 0)?),
            (Self::Gpu(first), Self::Gpu(second)) => {
                let mut dims = first.dims().to_vec();
                let (count, more) = (first.dims()[0], second.dims()[0]);
                dims[0] += more;
                let (gpu, all) = (first.gpu(), first.gpu().scratch(&dims, first.dtype())?);
                gpu.copy(first, &all.part(0, count))?;
                gpu.copy(second, &all.part(count, more))?;
                Self::Gpu(all)
            }
            _ => return Err(mixed()),
        })
    }

    /// A copy of a CPU tensor, on the device of `like` and in its dtype.
    pub(crate) fn like(tensor: &Tensor, like: &Self) -> Result<Self> {
        Ok(match like {
            Self::Cpu(_) => Self::Cpu(tensor.contiguous()?),
            Self::Gpu(array) => Self::Gpu(gpu::Array::from_tensor(array.gpu(), tensor, array.dtype())?),
        })
    }
}

/// The current step, which selects a row of a table `[steps, columns]`.
pub(crate) enum Step {
    /// The index of the step.
    Index(usize),
    /// The index as a number in GPU memory, so that one recorded graph works for every step.
    Counter(gpu::Array),
}

impl Step {
    /// The row `[1, columns]` of a table on the CPU.
    pub(super) fn row_of(&self, table: &Tensor) -> Result<Tensor> {
        match self {
            Self::Index(step) => table.narrow(0, *step, 1),
            Self::Counter(_) => Err(mixed()),
        }
    }

    pub(super) fn counter(&self) -> Result<&gpu::Array> {
        match self {
            Self::Counter(array) => Ok(array),
            Self::Index(_) => Err(mixed()),
        }
    }
}
