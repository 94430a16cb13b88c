//! What stands for the instructions where there are none for bf16.

use super::super::vectors::Vectors;

pub(super) const SIDE: usize = 16;
pub(super) const DEPTH: usize = 2 * SIDE;
pub(super) const BLOCK: usize = 2 * SIDE;

#[derive(Clone, Copy)]
pub(super) struct Tile(pub(super) [[u32; SIDE]; SIDE]);

impl Tile {
    pub(super) const ZERO: Self = Self([[0; SIDE]; SIDE]);
}

pub(super) fn flat(tiles: &[Tile]) -> &[u32] {
    let _ = tiles;
    &[]
}

pub(super) fn flat_mut(tiles: &mut [Tile]) -> &mut [u32] {
    let _ = tiles;
    &mut []
}

pub(super) struct Block(pub(super) [[f32; BLOCK]; BLOCK]);

impl Block {
    pub(super) const ZERO: Self = Self([[0.0; BLOCK]; BLOCK]);
}

pub(super) struct Columns;

impl Columns {
    pub(super) fn new(_: &[u32], _: &[usize], _: usize, _: usize) -> Option<Self> {
        None
    }
}

/// There is none of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {}

impl Instructions {
    /// # Errors
    /// Always.
    pub fn detect(_: Vectors) -> Result<Self, &'static str> {
        Err("bf16 needs a CPU of x86-64 with AVX512-BF16")
    }

    /// Their name.
    pub fn name(self) -> &'static str {
        match self {}
    }

    pub(super) fn session(self) -> Session {
        match self {}
    }

    pub(super) fn interleave(self, _: &[f32], _: &[f32], _: &mut [u32]) {
        match self {}
    }

    pub(super) fn round(self, _: &[f32], _: &mut [u32]) {
        match self {}
    }
}

pub(super) enum Session {}

impl Session {
    pub(super) fn multiply(&self, _: [&[Tile]; 2], _: &Columns, _: usize, _: &mut Block) {
        match *self {}
    }
}
