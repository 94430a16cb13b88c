//! Turns the tensors that a file has for one module into the changes of its weight and bias. A tensor without a use is an error.

use super::{
    change::{Change, Kind, Magnitude, Side, Vector},
    error::Misfit,
    factorized::Factorized,
    keys::{Component, Factor, Part},
    matrices::Matrix,
    settings::Settings,
};
use std::collections::HashMap;

/// The content of a tensor.
#[derive(Debug, Clone)]
pub(super) enum TensorData {
    /// A matrix or a vector.
    Matrix(Matrix),
    /// One number: alpha, scalar or on_input.
    Number(f64),
}

/// The changes of one module's weight and bias.
#[derive(Debug)]
pub(super) struct Layer {
    pub component: Component,
    /// The module's path with `_` for `.`.
    pub module: String,
    pub weight: Option<Change>,
    pub bias: Option<Change>,
    /// The alpha among the file's tensors.
    pub alpha: Option<f64>,
}

/// The tensors that a file has for one module, each with its key.
pub(super) struct ModuleTensors {
    pub component: Component,
    pub module: String,
    /// The path, with dots if the layout has them.
    pub path: String,
    pub tensors: HashMap<Part, (String, TensorData)>,
}

impl ModuleTensors {
    /// Makes a layer of them.
    ///
    /// # Errors
    /// All tensors that are left over, do not fit the others, or need another one that is missing.
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
        let mut left: Vec<_> = self.tensors.into_values().map(|(key, _)| key).collect();
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
        let (up, down) = ((Part::Up, "up (lora_B)"), (Part::Down, "down (lora_A)"));
        if let Some((key, product)) = self.factorized(None, up, down, Some(Part::Mid), true)? {
            return Ok(Some(Change::new(key, Kind::LowRank(product))));
        }
        let mut hada = |index, a, b| {
            let (a, b) = ((Part::Hada(index, Factor::A), a), (Part::Hada(index, Factor::B), b));
            self.factorized(None, a, b, Some(Part::Hada(index, Factor::Core)), false)
        };
        let factors = (hada(0, "hada_w1_a", "hada_w1_b")?, hada(1, "hada_w2_a", "hada_w2_b")?);
        if let Some(change) = pair(factors, "hada_w1", "hada_w2", Kind::Hadamard)? {
            let Kind::Hadamard(first, second) = &change.kind else { return Ok(Some(change)) };
            let shapes = ((first.rows(), first.tail()), (second.rows(), second.tail()));
            if shapes.0 == shapes.1 {
                return Ok(Some(change));
            }
            return Err(Misfit::new(change.key, format!("its halves make {:?} and {:?}", shapes.0, shapes.1)));
        }
        let mut lokr = |index, a, b| {
            let part = |factor| Part::Lokr(index, factor);
            let (a, b) = ((part(Factor::A), a), (part(Factor::B), b));
            self.factorized(Some(part(Factor::Whole)), a, b, Some(part(Factor::Core)), false)
        };
        let factors = (lokr(0, "lokr_w1_a", "lokr_w1_b")?, lokr(1, "lokr_w2_a", "lokr_w2_b")?);
        if let Some(change) = pair(factors, "lokr_w1", "lokr_w2", Kind::Kronecker)? {
            return Ok(Some(change));
        }
        if let Some(change) = self.vector()? {
            return Ok(Some(change));
        }
        let difference = self.matrix(Part::Diff).or_else(|| self.matrix(Part::NormWeight));
        Ok(difference.map(|(key, matrix)| Change::new(key, Kind::Difference(matrix))))
    }

    /// A matrix that the file stores whole, or as `a`, `b` and perhaps a core. None if it has nothing of it.
    fn factorized(
        &mut self,
        whole: Option<Part>,
        (a, a_name): (Part, &str),
        (b, b_name): (Part, &str),
        core: Option<Part>,
        upright: bool,
    ) -> Result<Option<(String, Factorized)>, Misfit> {
        if let Some((key, matrix)) = whole.and_then(|whole| self.matrix(whole)) {
            if matrix.dims.len() < 2 || matrix.count() == 0 {
                return Err(Misfit::new(key, format!("its {:?} is no matrix", matrix.dims)));
            }
            return Ok(Some((key, Factorized::Whole(matrix))));
        }
        let core = core.and_then(|core| self.matrix(core));
        match (self.matrix(a), self.matrix(b)) {
            (Some((_, a)), Some((key, b))) => {
                let product = Factorized::product(&key, a, b, core.map(|(_, core)| core), upright)?;
                Ok(Some((key, product)))
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
            // For a linear layer the shape is `[1, in]` or `[out, 1]`. For a convolution it is `[1, n, 1, 1]` on both sides.
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

    /// The change of the bias. peft's IA3 on the outputs scales the bias as well, LyCORIS' does not.
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

    /// `alpha / rank`. It is 1 without an alpha in tensors and metadata, for alpha 0 (kohya and LyCORIS read that as the rank), and
    /// without a rank: LoKr with both factors whole.
    fn scale(&self, change: &Change, alpha: Option<f64>, settings: &Settings) -> f64 {
        match (change.rank(), alpha) {
            (None, _) | (_, Some(0.0)) => 1.0,
            (Some(rank), Some(alpha)) => alpha / rank as f64,
            (Some(rank), None) => settings.scale(self.component, &self.path, rank).unwrap_or(1.0),
        }
    }

    fn matrix(&mut self, part: Part) -> Option<(String, Matrix)> {
        match self.tensors.remove(&part)? {
            (key, TensorData::Matrix(matrix)) => Some((key, matrix)),
            (_, TensorData::Number(_)) => None,
        }
    }

    fn number(&mut self, part: Part) -> Option<f64> {
        match self.tensors.remove(&part)? {
            (_, TensorData::Number(number)) => Some(number),
            (_, TensorData::Matrix(_)) => None,
        }
    }
}

/// A factor with one of its keys.
type Keyed = (String, Factorized);

/// The change that two factors make. None if the file has neither.
fn pair(
    factors: (Option<Keyed>, Option<Keyed>),
    first_name: &str,
    second_name: &str,
    kind: impl Fn(Factorized, Factorized) -> Kind,
) -> Result<Option<Change>, Misfit> {
    match factors {
        (Some((key, first)), Some((_, second))) => Ok(Some(Change::new(key, kind(first, second)))),
        (Some((key, _)), None) => Err(Misfit::new(key, format!("its `{second_name}` is missing"))),
        (None, Some((key, _))) => Err(Misfit::new(key, format!("its `{first_name}` is missing"))),
        (None, None) => Ok(None),
    }
}
