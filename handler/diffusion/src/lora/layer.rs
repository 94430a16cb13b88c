//! Turns the tensors that a file has for one module into the changes of its weight and bias. A tensor without a use is an error.

mod scale;

use super::{
    change::{Change, Kind, Side, Vector},
    error::Misfit,
    factorized::Factorized,
    keys::{Component, Factor, Part},
    matrices::Matrix,
    rotation::{Blocks, Rotation},
    settings::{Adapter, Settings, Start},
    sparse::Sparse,
};
use std::collections::HashMap;

/// The content of a tensor.
#[derive(Debug, Clone)]
pub(super) enum TensorData {
    /// A matrix or a vector.
    Matrix(Matrix),
    /// One number: alpha, scalar or on_input. It may be NaN or infinite as long as nobody uses it.
    Number(f64),
    /// Whole numbers: where the numbers of a sparse matrix are.
    Integers(Vec<i64>),
}

/// The changes of one module's weight and bias.
#[derive(Debug)]
pub(super) struct Layer {
    pub component: Component,
    /// The module's path with `_` for `.`.
    pub module: String,
    pub weight: Option<Change>,
    pub bias: Option<Change>,
    /// The alpha that scales it, of its tensors or of the settings. None: the rank is taken.
    pub alpha: Option<f64>,
    /// Keys of numbers that change nothing.
    pub unused: Vec<String>,
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
        let none = Adapter::default();
        let adapter = settings.of(self.component).unwrap_or(&none);
        let (weight, bias, alpha) = self.changes(adapter).map_err(|misfit| vec![misfit])?;
        let alone = weight.is_none() && bias.is_none();
        let (mut unused, mut left) = (Vec::new(), Vec::new());
        for (part, (key, _)) in self.tensors {
            if matches!(part, Part::Alpha | Part::Scalar) { unused.push(key) } else { left.push(key) }
        }
        unused.sort();
        left.sort();
        if left.is_empty() {
            return Ok(Layer { component: self.component, module: self.module, weight, bias, alpha, unused });
        }
        let reason =
            if alone { "the matrices it belongs to are missing" } else { "the rest of its module has no use for it" };
        Err(left.into_iter().map(|key| Misfit::new(key, reason)).collect())
    }

    fn changes(&mut self, adapter: &Adapter) -> Result<Changes, Misfit> {
        let mut alpha = None;
        let mut weight = self.weight(adapter)?;
        if let Some(change) = &mut weight {
            if let Some(method) = change.kind.method() {
                adapter.expects(method).map_err(|reason| Misfit::new(&change.key, reason))?;
            }
            if change.kind.has_scale() {
                let scale;
                (scale, alpha) = self.scale(change, adapter)?;
                change.factor = scale * self.number(Part::Scalar)?.unwrap_or(1.0);
            }
            if change.kind.may_be_decomposed() {
                change.magnitude = self.magnitude(change, adapter)?;
            }
        }
        let bias = self.bias(weight.as_ref())?;
        Ok((weight, bias, alpha))
    }

    fn weight(&mut self, adapter: &Adapter) -> Result<Option<Change>, Misfit> {
        let (up, down) = ((Part::Up, "up (lora_B)"), (Part::Down, "down (lora_A)"));
        if let Some((key, product)) = self.factorized(None, up, down, Some(Part::Mid), true)? {
            return self.low_rank(key, product, adapter).map(Some);
        }
        let mut glora = |index, a, b, core| {
            let (a, b) = ((Part::Glora(index, Factor::A), a), (Part::Glora(index, Factor::B), b));
            self.factorized(None, a, b, core, true)
        };
        let core = Some(Part::Glora(1, Factor::Core));
        let factors = (glora(0, "a1", "a2", None)?, glora(1, "b1", "b2", core)?);
        if let Some(change) = pair(factors, "a1", "b1", Kind::Glora)? {
            return Ok(Some(change));
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
        if let Some(change) = self.rotation(adapter)? {
            return Ok(Some(change));
        }
        if let Some(change) = self.vector(adapter)? {
            return Ok(Some(change));
        }
        let difference = match self.matrix(Part::Diff)? {
            None => self.matrix(Part::NormWeight)?,
            found => found,
        };
        Ok(difference.map(|(key, matrix)| Change::new(key, Kind::Difference(matrix))))
    }

    /// A product, with the numbers beside it if there are any.
    fn low_rank(&mut self, key: String, product: Factorized, adapter: &Adapter) -> Result<Change, Misfit> {
        let (indices, size) = (self.integers(Part::SparseIndices), self.integers(Part::SparseSize));
        let values = self.matrix(Part::SparseValues)?;
        let kind = match (indices, values, size) {
            (None, None, None) => match (adapter.start, &product) {
                (Start::Base, _) => Kind::LowRank(product),
                (Start::Olora, Factorized::Product { .. }) => Kind::Olora(product),
                (Start::Olora, _) => return Err(Misfit::new(key, "OLoRA has no middle tensor")),
            },
            (Some((_, indices)), Some((values_key, values)), Some((_, size))) => {
                if let Factorized::Tucker { .. } = product {
                    let reason = "LyCORIS' extraction takes it from the wrong weight where there is a middle tensor, so the \
                                  two do not belong together";
                    return Err(Misfit::new(values_key, reason));
                }
                let sparse = Sparse::new(&indices, values, &size, &product);
                Kind::Residual(product, sparse.map_err(|reason| Misfit::new(values_key, reason))?)
            }
            (indices, values, size) => {
                let keys = [indices.map(|found| found.0), values.map(|found| found.0), size.map(|found| found.0)];
                let key = keys.into_iter().flatten().next().unwrap_or(key);
                return Err(Misfit::new(key, "`bias_indices`, `bias_values` and `bias_size` belong together"));
            }
        };
        Ok(Change::new(key, kind))
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
        if let Some(whole) = whole
            && let Some((key, matrix)) = self.matrix(whole)?
        {
            if matrix.dims.len() < 2 || matrix.count() == 0 {
                return Err(Misfit::new(key, format!("its {:?} is no matrix", matrix.dims)));
            }
            return Ok(Some((key, Factorized::Whole(matrix))));
        }
        let core = core.map(|core| self.matrix(core)).transpose()?.flatten();
        match (self.matrix(a)?, self.matrix(b)?) {
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

    /// OFT and BOFT, as LyCORIS and peft write them.
    fn rotation(&mut self, adapter: &Adapter) -> Result<Option<Change>, Misfit> {
        let (key, blocks, gains) = if let Some((key, matrix)) = self.matrix(Part::OftBlocks)? {
            // LyCORIS stores the constraint as alpha.
            let constraint = self.number(Part::Alpha)?.unwrap_or(0.0);
            (key, Blocks::of_lycoris(matrix, constraint), self.matrix(Part::Rescale)?)
        } else if let Some((key, matrix)) = self.matrix(Part::BoftBlocks)? {
            (key, Blocks::of_peft_boft(matrix), self.matrix(Part::BoftScale)?)
        } else if let Some((key, matrix)) = self.matrix(Part::OftVector)? {
            (key, Blocks::of_peft_oft(matrix, adapter.oft.unwrap_or_default()), None)
        } else {
            return Ok(None);
        };
        let blocks = blocks.map_err(|reason| Misfit::new(&key, reason))?;
        Ok(Some(Change::new(key, Kind::Rotated(Rotation { blocks, gains }))))
    }

    fn vector(&mut self, adapter: &Adapter) -> Result<Option<Change>, Misfit> {
        let vector = if let Some((key, numbers)) = self.matrix(Part::Ia3Factor)? {
            // For a linear layer the shape is `[1, in]` or `[out, 1]`. For a convolution it is `[1, n, 1, 1]` on both sides.
            let side = match adapter.scales_inputs(&self.path) {
                _ if numbers.dims.len() == 2 => Side::ByShape,
                Some(true) => Side::Input,
                Some(false) => Side::Output,
                None => Side::ByCount,
            };
            (key, Vector { numbers, side, neutral: 1.0 })
        } else if let Some((key, numbers)) = self.matrix(Part::Ia3Weight)? {
            let Some(on_input) = self.number(Part::Ia3OnInput)? else {
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
    fn bias(&mut self, weight: Option<&Change>) -> Result<Option<Change>, Misfit> {
        if let Some(Change { key, kind: Kind::Scaled(vector), .. }) = weight
            && vector.neutral == 1.0
        {
            let vector = Vector { side: Side::Output, ..vector.clone() };
            return Ok(Some(Change { optional: true, ..Change::new(key, Kind::Scaled(vector)) }));
        }
        let factor = weight.map_or(1.0, |change| change.factor);
        if weight.is_some()
            && let Some((key, matrix)) = self.matrix(Part::UpBias)?
        {
            return Ok(Some(Change { factor, ..Change::new(key, Kind::Difference(matrix)) }));
        }
        let difference = match self.matrix(Part::DiffBias)? {
            None => self.matrix(Part::NormBias)?,
            found => found,
        };
        Ok(difference.map(|(key, matrix)| Change::new(key, Kind::Difference(matrix))))
    }

    /// A matrix of finite numbers.
    fn matrix(&mut self, part: Part) -> Result<Option<(String, Matrix)>, Misfit> {
        match self.any_matrix(part) {
            Some((key, matrix)) if !matrix.finite => Err(Misfit::new(key, "it holds NaN or infinity")),
            found => Ok(found),
        }
    }

    fn any_matrix(&mut self, part: Part) -> Option<(String, Matrix)> {
        match self.tensors.remove(&part)? {
            (key, TensorData::Matrix(matrix)) => Some((key, matrix)),
            _ => None,
        }
    }

    fn number(&mut self, part: Part) -> Result<Option<f64>, Misfit> {
        match self.tensors.remove(&part) {
            Some((key, TensorData::Number(number))) if !number.is_finite() => {
                Err(Misfit::new(key, "it is NaN or infinite"))
            }
            Some((_, TensorData::Number(number))) => Ok(Some(number)),
            _ => Ok(None),
        }
    }

    fn integers(&mut self, part: Part) -> Option<(String, Vec<i64>)> {
        match self.tensors.remove(&part)? {
            (key, TensorData::Integers(numbers)) => Some((key, numbers)),
            _ => None,
        }
    }
}

/// The changes of weight and bias, and the alpha that scales them.
type Changes = (Option<Change>, Option<Change>, Option<f64>);

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
