//! Generations of GPUs, as far as there are kernels of their own for them.

use std::{fmt, str::FromStr};

/// A generation of kernels. Newer GPUs run those of older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Generation {
    /// Compute capability 7.5: tensor cores for f16, and plain copies.
    Turing,
    /// 8.0 and newer: tensor cores for bf16, too, and copies to shared memory beside the arithmetic.
    Ampere,
    /// 9.0 alone: its own instructions for tensor cores.
    Hopper,
}

impl Generation {
    /// All, the oldest first.
    pub const ALL: [Self; 3] = [Self::Turing, Self::Ampere, Self::Hopper];

    /// The newest whose kernels run on a GPU of that compute capability, if it is not too old for any.
    pub(super) fn of((major, minor): (usize, usize)) -> Option<Self> {
        match (major, minor) {
            (9, 0) => Some(Self::Hopper),
            (8.., _) => Some(Self::Ampere),
            (7, 5..) => Some(Self::Turing),
            _ => None,
        }
    }

    /// The newest whose machine code is used on a GPU of that compute capability, in a build for `architectures`, such as `75,80`:
    /// that of the GPU's own major number, or else what the driver makes of the last one's intermediate code.
    pub(super) fn of_code((major, minor): (usize, usize), architectures: &str) -> Option<Self> {
        let mut built =
            architectures.split(',').filter_map(|name| name.parse::<usize>().ok()).map(|name| (name / 10, name % 10));
        let own = built.clone().any(|(of, least)| of == major && least <= minor);
        if own { Self::of((major, minor)) } else { built.next_back().and_then(Self::of) }
    }

    /// The least compute capability, such as `8.0`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Turing => "7.5",
            Self::Ampere => "8.0",
            Self::Hopper => "9.0",
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Generation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|generation| generation.name() == text);
        found.ok_or_else(|| format!("must be one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gpu_has_the_kernels_of_the_newest_generation_that_it_runs() {
        let cases = [
            ((7, 0), None),
            ((7, 5), Some(Generation::Turing)),
            ((8, 0), Some(Generation::Ampere)),
            ((8, 9), Some(Generation::Ampere)),
            ((9, 0), Some(Generation::Hopper)),
            ((10, 0), Some(Generation::Ampere)),
            ((12, 0), Some(Generation::Ampere)),
        ];
        for (capability, generation) in cases {
            assert_eq!(Generation::of(capability), generation, "{capability:?}");
        }
    }

    #[test]
    fn machine_code_is_that_of_the_gpu_or_of_what_the_driver_translates() {
        let cases = [
            ((9, 0), "75,80,86,89,90,100,120", Some(Generation::Hopper)),
            ((8, 9), "75,80,86,89,90,100,120", Some(Generation::Ampere)),
            ((8, 7), "75,80,89", Some(Generation::Ampere)),
            ((7, 5), "75,80", Some(Generation::Turing)),
            // Only what is made from the last one's intermediate code runs there.
            ((9, 0), "75", Some(Generation::Turing)),
            ((9, 0), "75,80", Some(Generation::Ampere)),
            ((9, 0), "none", None),
        ];
        for (capability, architectures, generation) in cases {
            assert_eq!(Generation::of_code(capability, architectures), generation, "{capability:?} {architectures}");
        }
    }

    #[test]
    fn a_name_is_read_and_anything_else_refused_with_all_names() {
        for generation in Generation::ALL {
            assert_eq!(generation.to_string().parse(), Ok(generation));
        }
        assert_eq!("9".parse::<Generation>(), Err("must be one of 7.5, 8.0, 9.0".into()));
    }
}
