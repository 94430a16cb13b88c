//! Vectors over the channels of a weight: IA3's factors and DoRA's lengths.

use super::arena::Matrix;

/// The numbers of an IA3 layer.
#[derive(Debug, Clone)]
pub(super) struct Vector {
    pub numbers: Matrix,
    pub side: Side,
    /// What leaves a channel as it is: 0 in LyCORIS, 1 in peft.
    pub neutral: f64,
}

/// Length of each row or column after the change (DoRA).
#[derive(Debug)]
pub(super) struct Magnitude {
    pub key: String,
    pub numbers: Matrix,
    /// By the shape in LyCORIS; by output in peft.
    pub side: Side,
    /// Whether diffusers drops it: LyCORIS' `dora_scale`.
    pub dropped_by_diffusers: bool,
}

/// Which channels a vector has numbers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Output,
    Input,
    /// `[1, n]` and `[1, n, 1, 1]` run along the inputs, all others along the outputs.
    ByShape,
    /// The one that has as many channels as the vector numbers.
    ByCount,
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
