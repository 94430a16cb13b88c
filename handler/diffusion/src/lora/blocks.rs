//! How strongly each block of a model takes a LoRA: the weights that diffusers' `set_adapters` takes, in its meaning.

use super::{keys::Component, target::Target};
use std::{collections::BTreeMap, fmt};

/// Weights of a LoRA by place, each 1 where no place is named. They multiply the scale of the whole LoRA.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BlockWeights(BTreeMap<Place, f64>);

/// What a weight is for. Of the places that a module is in, the narrowest that is named counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The part of the model.
    pub part: Part,
    /// One block of a side of the UNet, by its number in diffusers' names: `down_blocks.1` is 1. None: every block with attention.
    pub block: Option<usize>,
    /// One layer of each block, by the number of its attention. None: all of them.
    pub layer: Option<usize>,
}

/// A part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The text encoder.
    TextEncoder,
    /// The whole UNet.
    Unet,
    /// Its blocks from the picture to the middle.
    Down,
    /// The attention in the middle.
    Mid,
    /// Its blocks from the middle to the picture.
    Up,
}

/// Weights that do not fit a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlaceError {
    /// No such block, or one without attention.
    #[error("{place} is no block with attention of this model, which has {known}")]
    Unknown {
        /// The place.
        place: Place,
        /// The places that there are.
        known: String,
    },
    /// Another number of weights than there are layers.
    #[error("{place} is given {given} numbers and has {layers} layers with attention: give {layers}, or one for all")]
    Layers {
        /// The block.
        place: Place,
        /// How many weights there are.
        given: usize,
        /// How many layers there are.
        layers: usize,
    },
}

impl BlockWeights {
    /// Sets the weight of a place.
    pub fn set(&mut self, place: Place, weight: f64) {
        self.0.insert(place, weight);
    }

    /// Whether no place is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The places that are named, with their weights, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Place, f64)> {
        self.0.iter().map(|(place, weight)| (place, *weight))
    }

    /// The weights for the modules of a model.
    ///
    /// # Errors
    /// A place that the model does not have.
    pub(super) fn of_model<'a>(&'a self, target: &Target) -> Result<ModelWeights<'a>, PlaceError> {
        let layers = if self.is_empty() { BTreeMap::new() } else { layers(target.paths()) };
        let known = || layers.keys().map(Place::to_string).collect::<Vec<_>>().join(", ");
        for place in self.0.keys().filter(|place| !matches!(place.part, Part::TextEncoder | Part::Unet)) {
            let whole = Place { layer: None, ..*place };
            let meant =
                |block: &&Place| block.part == place.part && (place.block.is_none() || block.block == place.block);
            let mut meant = layers.keys().filter(meant).peekable();
            if meant.peek().is_none() {
                return Err(PlaceError::Unknown { place: whole, known: known() });
            }
            let given = self
                .0
                .keys()
                .filter(|other| other.layer.is_some() && Place { layer: None, ..**other } == whole)
                .count();
            let misfit = meant.find(|block| place.layer.is_some() && layers[*block] != given);
            if let Some(block) = misfit {
                return Err(PlaceError::Layers { place: *block, given, layers: layers[block] });
            }
        }
        Ok(ModelWeights { weights: self, layers })
    }
}

/// Weights by the modules of a model.
pub(super) struct ModelWeights<'a> {
    weights: &'a BlockWeights,
    /// How many layers with attention each block has.
    layers: BTreeMap<Place, usize>,
}

impl ModelWeights<'_> {
    /// The weight of a module, by its path in diffusers' names. As there, ResNets and what resizes have the weight of the attention of
    /// their number in their block; those in the middle, those of blocks without attention and what is in no block have 1.
    pub(super) fn of(&self, component: Component, path: &str) -> f64 {
        let named = |part, block, layer| self.weights.0.get(&Place { part, block, layer }).copied();
        if component == Component::TextEncoder {
            return named(Part::TextEncoder, None, None).unwrap_or(1.0);
        }
        let inside = Module::of(path).filter(|module| self.layers.contains_key(&module.place)).and_then(|module| {
            let Place { part, block, .. } = module.place;
            let layer = Some(module.layer);
            let places = [(block, layer), (block, None), (None, layer), (None, None)];
            places.into_iter().find_map(|(block, layer)| named(part, block, layer))
        });
        inside.or_else(|| named(Part::Unet, None, None)).unwrap_or(1.0)
    }
}

/// Where a module of the UNet is.
struct Module {
    /// Its block.
    place: Place,
    layer: usize,
    is_attention: bool,
}

impl Module {
    /// None if it is in no block, or in the middle and no attention.
    fn of(path: &str) -> Option<Self> {
        let mut words = path.split('.');
        let part = match words.next()? {
            "down_blocks" => Part::Down,
            "mid_block" => Part::Mid,
            "up_blocks" => Part::Up,
            _ => return None,
        };
        let block = if part == Part::Mid { None } else { Some(words.next()?.parse().ok()?) };
        let is_attention = words.next()? == "attentions";
        let layer = words.next()?.parse().ok()?;
        let place = Place { part, block, layer: None };
        (is_attention || part != Part::Mid).then_some(Self { place, layer, is_attention })
    }
}

/// How many layers with attention each block has that has any.
fn layers<'a>(paths: impl Iterator<Item = &'a str>) -> BTreeMap<Place, usize> {
    let mut found = BTreeMap::new();
    for module in paths.filter_map(Module::of).filter(|module| module.is_attention) {
        let layers = found.entry(module.place).or_insert(0);
        *layers = (*layers).max(module.layer + 1);
    }
    found
}

/// As in a task: `unet.down.block_1[0]`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.part {
            Part::TextEncoder => "text_encoder",
            Part::Unet => "unet",
            Part::Down => "unet.down",
            Part::Mid => "unet.mid",
            Part::Up => "unet.up",
        })?;
        if let Some(block) = self.block {
            write!(f, ".block_{block}")?;
        }
        self.layer.map_or(Ok(()), |layer| write!(f, "[{layer}]"))
    }
}

/// All places with their weights: `unet.down.block_1[0]: 0.5, unet.mid: 2`.
impl fmt::Display for BlockWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (place, weight)) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{place}: {weight}")?;
        }
        Ok(())
    }
}
