//! What an operation reads: a map, or two as one.

use super::{check_alike, refused, with_columns};
use crate::gpu::{Arg, Array, Gpu};
use candle_core::Result;

/// A map, or two whose channels follow one another: of one GPU, dtype and size, each dense.
pub(in crate::ops) struct Maps {
    first: Array,
    second: Option<Array>,
}

impl From<Array> for Maps {
    fn from(map: Array) -> Self {
        Self { first: map, second: None }
    }
}

impl Maps {
    pub(in crate::ops) fn joined(first: Array, second: Array) -> Result<Self> {
        check_alike("a joined map", &[&first, &second])?;
        if first.dims().len() < 2 || with_columns(first.dims(), second.columns()) != second.dims() {
            return refused(format!("{:?} joined with {:?}", first.dims(), second.dims()));
        }
        Ok(Self { first, second: Some(second) })
    }

    /// The only one, or both.
    pub(super) fn parts(&self) -> (&Array, Option<&Array>) {
        (&self.first, self.second.as_ref())
    }

    /// The map, if it is one.
    pub(in crate::ops) fn one(&self) -> Result<&Array> {
        match self.parts() {
            (map, None) => Ok(map),
            (first, Some(second)) => {
                refused(format!("{:?} and {:?} where one map is read", first.dims(), second.dims()))
            }
        }
    }

    pub(super) fn each(&self) -> impl Iterator<Item = &Array> {
        [&self.first].into_iter().chain(&self.second)
    }

    pub(super) fn gpu(&self) -> &Gpu {
        self.first.gpu()
    }

    /// Channels of all.
    pub(super) fn channels(&self) -> usize {
        self.each().map(Array::columns).sum()
    }

    /// Of a map with the channels of all.
    pub(super) fn dims(&self) -> Vec<usize> {
        with_columns(self.first.dims(), self.channels())
    }

    /// Images, and rows of each.
    pub(super) fn images(&self) -> [usize; 2] {
        let batch = self.first.dims()[0];
        [batch, self.first.rows() / batch.max(1)]
    }

    /// Both addresses, of which the second may be null.
    pub(super) fn addresses(&self) -> [Arg; 2] {
        [Arg::At(self.first.address()), super::address_or_null(self.second.as_ref())]
    }
}
