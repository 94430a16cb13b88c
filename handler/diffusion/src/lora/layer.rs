//! From the tensors a file has for one module to what they do to its weight and bias. Every part must be of use.

use super::{
    arena::Matrix,
    change::{Change, Kind},
    error::Misfit,
    half::Half,
    keys::{Component, Factor, Part},
    settings::Settings,
    vector::{Magnitude, Side, Vector},
};
use std::collections::HashMap;

/// What a key holds.
#[derive(Debug, Clone)]
pub(super) enum Held {
    /// A matrix in the arena.
    Matrix(Matrix),
    /// One number: alpha, scalar, on_input.
    Number(f64),
}

/// What one module's weight and bias go through.
#[derive(Debug)]
pub(super) struct Layer {
    pub component: Component,
    /// The module's path with `_` for `.`.
    pub module: String,
    pub weight: Option<Change>,
    pub bias: Option<Change>,
    /// Alpha as a key of the file names it.
    pub alpha: Option<f64>,
}

/// What the file has for one module, each part with its key.
pub(super) struct Parts {
    pub component: Component,
    pub module: String,
    /// The path with its dots, where the layout keeps them.
    pub path: String,
    pub held: HashMap<Part, (String, Held)>,
}

impl Parts {
    /// Makes a layer of them.
    ///
    /// # Errors
    /// All parts that are missing, left over, or don't fit the others.
    pub(super) fn layer(mut self, settings: &Settings) -> Result<Layer, Vec<Misfit>> {
        let weight = self.weight().map_err(|misfit| vec![misfit])?;
        let (weight, alpha) = match weight {
            Some(change) if change.rank().is_some() || matches!(change.kind, Kind::Kronecker(..)) => {
                let alpha = self.number(Part::Alpha);
                let factor = self.scale(&change, alpha, settings) * self.number(Part::Scalar).unwrap_or(1.0);
                let magnitude = self.magnitude();
                (Some(Change { factor, magnitude, ..change }), alpha)
            }
            other => (other, None),
        };
        let bias = self.bias(weight.as_ref());
        let mut left: Vec<_> = self.held.into_values().map(|(key, _)| key).collect();
        left.sort();
        if left.is_empty() {
            return Ok(Layer { component: self.component, module: self.module, weight, bias, alpha });
        }
        let alone = weight.is_none() && bias.is_none();
        let reason =
            if alone { "the matrices it belongs to are missing" } else { "the rest of its module has no use for it" };
        Err(left.into_iter().map(|key| Misfit::new(key, reason)).collect())
    }

    fn weight(&mut self) -> Result<Option<Change>, Misfit> {
        let lora = self.half(None, (Part::Up, "up (lora_B)"), (Part::Down, "down (lora_A)"), Some(Part::Mid), true)?;
        if let Some((key, half)) = lora {
            return Ok(Some(Change::new(key, Kind::LowRank(half))));
        }
        let part = |half, factor| Part::Hada(half, factor);
        let mut hada = |half, a, b| {
            let (a, b) = ((part(half, Factor::A), a), (part(half, Factor::B), b));
            self.half(None, a, b, Some(part(half, Factor::Core)), false)
        };
        let halves = (hada(0, "hada_w1_a", "hada_w1_b")?, hada(1, "hada_w2_a", "hada_w2_b")?);
        if let Some(change) = pair(halves, "hada_w1", "hada_w2", Kind::Hadamard)? {
            let Kind::Hadamard(first, second) = &change.kind else { return Ok(Some(change)) };
            let shapes = ((first.rows(), first.tail()), (second.rows(), second.tail()));
            if shapes.0 == shapes.1 {
                return Ok(Some(change));
            }
            return Err(Misfit::new(change.key, format!("its halves make {:?} and {:?}", shapes.0, shapes.1)));
        }
        let part = |half, factor| Part::Lokr(half, factor);
        let mut lokr = |half, a, b| {
            let (a, b) = ((part(half, Factor::A), a), (part(half, Factor::B), b));
            self.half(Some(part(half, Factor::Whole)), a, b, Some(part(half, Factor::Core)), false)
        };
        let halves = (lokr(0, "lokr_w1_a", "lokr_w1_b")?, lokr(1, "lokr_w2_a", "lokr_w2_b")?);
        if let Some(change) = pair(halves, "lokr_w1", "lokr_w2", Kind::Kronecker)? {
            return Ok(Some(change));
        }
        if let Some(change) = self.vector()? {
            return Ok(Some(change));
        }
        let difference = self.matrix(Part::Diff).or_else(|| self.matrix(Part::NormWeight));
        Ok(difference.map(|(key, matrix)| Change::new(key, Kind::Difference(matrix))))
    }

    /// A matrix that is there whole or as `a`, `b` and perhaps a core; none if nothing of it is there.
    fn half(
        &mut self,
        whole: Option<Part>,
        (a, a_name): (Part, &str),
        (b, b_name): (Part, &str),
        core: Option<Part>,
        upright: bool,
    ) -> Result<Option<(String, Half)>, Misfit> {
        if let Some((key, matrix)) = whole.and_then(|whole| self.matrix(whole)) {
            if matrix.dims.len() < 2 || matrix.count() == 0 {
                return Err(Misfit::new(key, format!("its {:?} is no matrix", matrix.dims)));
            }
            return Ok(Some((key, Half::Whole(matrix))));
        }
        let core = core.and_then(|core| self.matrix(core));
        match (self.matrix(a), self.matrix(b)) {
            (Some((_, a)), Some((key, b))) => {
                let half = Half::product(&key, a, b, core.map(|(_, core)| core), upright)?;
                Ok(Some((key, half)))
            }
            (Some((key, _)), None) => Err(Misfit::new(key, format!("its `{b_name}` is missing"))),
            (None, Some((key, _))) => Err(Misfit::new(key, format!("its `{a_name}` is missing"))),
            (None, None) => match core {
                Some((key, _)) => Err(Misfit::new(key, format!("its `{a_name}` and `{b_name}` are missing"))),
                None => Ok(None),
            },
        }
    }

    fn vector(&mut self) -> Result<Option<Change>, Misfit> {
        let vector = if let Some((key, numbers)) = self.matrix(Part::Ia3Factor) {
            // A linear layer's is `[1, in]` or `[out, 1]`, a convolution's `[1, n, 1, 1]` for both.
            let side = if numbers.dims.len() == 2 { Side::ByShape } else { Side::ByCount };
            (key, Vector { numbers, side, neutral: 1.0 })
        } else if let Some((key, numbers)) = self.matrix(Part::Ia3Weight) {
            let Some(on_input) = self.number(Part::Ia3OnInput) else {
                return Err(Misfit::new(key, "a whole weight; if it is IA3, its `on_input` is missing"));
            };
            let side = if on_input != 0.0 { Side::Input } else { Side::Output };
            (key, Vector { numbers, side, neutral: 0.0 })
        } else {
            return Ok(None);
        };
        Ok(Some(Change::new(vector.0, Kind::Scaled(vector.1))))
    }

    /// What becomes of the bias. peft's IA3 on the outputs scales it with them, LyCORIS' does not.
    fn bias(&mut self, weight: Option<&Change>) -> Option<Change> {
        if let Some(Change { key, kind: Kind::Scaled(vector), .. }) = weight
            && vector.neutral == 1.0
        {
            let vector = Vector { side: Side::Output, ..vector.clone() };
            return Some(Change { optional: true, ..Change::new(key, Kind::Scaled(vector)) });
        }
        let factor = weight.map_or(1.0, |change| change.factor);
        if let Some((key, matrix)) = weight.and_then(|_| self.matrix(Part::UpBias)) {
            return Some(Change { factor, ..Change::new(key, Kind::Difference(matrix)) });
        }
        let difference = self.matrix(Part::DiffBias).or_else(|| self.matrix(Part::NormBias));
        difference.map(|(key, matrix)| Change::new(key, Kind::Difference(matrix)))
    }

    fn magnitude(&mut self) -> Option<Magnitude> {
        let found = self.matrix(Part::DoraScale).map(|found| (found, Side::ByShape, true));
        let found = found.or_else(|| Some((self.matrix(Part::MagnitudeVector)?, Side::Output, false)));
        found.map(|((key, numbers), side, dropped)| Magnitude { key, numbers, side, dropped_by_diffusers: dropped })
    }

    /// `alpha / rank`; 1 where neither key nor metadata names an alpha, where it is 0 (kohya and LyCORIS read that as
    /// "the rank"), and where nothing has a rank: LoKr with both factors whole.
    fn scale(&self, change: &Change, alpha: Option<f64>, settings: &Settings) -> f64 {
        match (change.rank(), alpha) {
            (None, _) | (_, Some(0.0)) => 1.0,
            (Some(rank), Some(alpha)) => alpha / rank as f64,
            (Some(rank), None) => settings.scale(self.component, &self.path, rank).unwrap_or(1.0),
        }
    }

    fn matrix(&mut self, part: Part) -> Option<(String, Matrix)> {
        match self.held.remove(&part)? {
            (key, Held::Matrix(matrix)) => Some((key, matrix)),
            (_, Held::Number(_)) => None,
        }
    }

    fn number(&mut self, part: Part) -> Option<f64> {
        match self.held.remove(&part)? {
            (_, Held::Number(number)) => Some(number),
            (_, Held::Matrix(_)) => None,
        }
    }
}

/// A half with a key of the file.
type Keyed = (String, Half);

/// Both halves of a change, or none.
fn pair(
    halves: (Option<Keyed>, Option<Keyed>),
    first_name: &str,
    second_name: &str,
    kind: impl Fn(Half, Half) -> Kind,
) -> Result<Option<Change>, Misfit> {
    match halves {
        (Some((key, first)), Some((_, second))) => Ok(Some(Change::new(key, kind(first, second)))),
        (Some((key, _)), None) => Err(Misfit::new(key, format!("its `{second_name}` is missing"))),
        (None, Some((key, _))) => Err(Misfit::new(key, format!("its `{first_name}` is missing"))),
        (None, None) => Ok(None),
    }
}
