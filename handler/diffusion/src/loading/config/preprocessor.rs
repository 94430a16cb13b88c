//! `feature_extractor/preprocessor_config.json` of a `CLIPImageProcessor`: how a picture is prepared for the safety checker.

use super::{
    fields::{self, Field, only, unneeded, used},
    require,
};
use crate::error::Result;
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub(super) const FILE: &str = "feature_extractor/preprocessor_config.json";
/// The classes that prepare pictures alike.
const CLASSES: &str = "null, CLIPImageProcessor, CLIPImageProcessorFast, CLIPImageProcessorPil, CLIPFeatureExtractor";

/// `feature_extractor/preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessorConfig {
    /// The size that the picture gets.
    pub size: Resized,
    /// The size of the part from its middle.
    pub crop_size: Cropped,
    /// What a level of 0 to 255 is multiplied with.
    pub rescale_factor: f64,
    /// The mean of each colour, which is subtracted then.
    pub image_mean: [f32; 3],
    /// The standard deviation of each colour, by which the difference is divided.
    pub image_std: [f32; 3],
}

/// The size of a picture in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Resized {
    /// The shorter edge; the other one keeps the picture's proportions. Files of older versions have the number alone.
    Short(usize),
    /// The same.
    ShortestEdge(ShortestEdge),
    /// Both edges, whatever the picture's proportions.
    Exact(Size),
}

/// A part of a picture in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Cropped {
    /// Both edges. Files of older versions have the number alone.
    Square(usize),
    /// Each edge.
    Exact(Size),
}

/// The shorter edge of a picture in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShortestEdge {
    /// The shorter edge in pixels.
    pub shortest_edge: usize,
}

/// Height and width in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

impl Resized {
    /// Width and height that a picture of that width and height gets.
    pub fn of(self, (width, height): (usize, usize)) -> (usize, usize) {
        match self {
            Self::Short(edge) | Self::ShortestEdge(ShortestEdge { shortest_edge: edge }) => {
                // As Python computes it: the product is exact, the quotient is rounded, the result is cut off.
                let long = |long: usize, short: usize| ((edge * long) as f64 / short.max(1) as f64) as usize;
                if width <= height { (edge, long(height, width)) } else { (long(width, height), edge) }
            }
            Self::Exact(Size { height, width }) => (width, height),
        }
    }

    /// The shorter edge.
    fn shorter(self) -> usize {
        match self {
            Self::Short(edge) | Self::ShortestEdge(ShortestEdge { shortest_edge: edge }) => edge,
            Self::Exact(Size { height, width }) => height.min(width),
        }
    }
}

impl Cropped {
    /// Width and height.
    pub fn edges(self) -> (usize, usize) {
        match self {
            Self::Square(edge) => (edge, edge),
            Self::Exact(Size { height, width }) => (width, height),
        }
    }
}

impl PreprocessorConfig {
    /// Makes a config of the content of `feature_extractor/preprocessor_config.json`. A setting that is null has its default.
    ///
    /// # Errors
    /// A setting is not supported.
    pub fn from_object(content: &Map<String, Value>) -> Result<Self> {
        let given = content.iter().filter(|(_, value)| !value.is_null());
        let given: Map<String, Value> = given.map(|(name, value)| (name.clone(), value.clone())).collect();
        let config: Self = fields::read(FILE, &given, &table())?;
        let (width, height) = config.crop_size.edges();
        let edge = config.size.shorter();
        let fits = width == height && (1..=edge).contains(&width);
        let shown = given.get("crop_size").map_or_else(|| width.to_string(), fields::shown);
        require(FILE, "crop_size", shown, fits, "as wide as high, and not larger than `size`")?;
        let divides = config.image_std.iter().all(|deviation| deviation.is_finite() && *deviation != 0.0);
        require(FILE, "image_std", format!("{:?}", config.image_std), divides, "three numbers other than 0")?;
        Ok(config)
    }

    /// Checks that the prepared picture is as large as the network expects.
    ///
    /// # Errors
    /// It is not.
    pub fn check_size(&self, image_size: usize) -> Result<()> {
        let (width, _) = self.crop_size.edges();
        require(FILE, "crop_size", width, width == image_size, "the `image_size` of safety_checker/config.json")
    }
}

/// The parameters of transformers' `CLIPImageProcessor` with their defaults, and what else a file may have.
pub(super) fn table() -> Vec<Field> {
    let python = "the form of a result in Python";
    vec![
        unneeded("do_convert_rgb", json!(true), "pictures are RGB"),
        only("do_resize", json!(true), "true"),
        used("size", json!({ "shortest_edge": 224 }), "a whole number, `shortest_edge`, or `height` and `width`"),
        only("default_to_square", json!(false), "false"),
        used("crop_size", json!({ "height": 224, "width": 224 }), "a whole number, or `height` and `width`"),
        only("resample", json!(3), "3 (bicubic)"),
        only("do_rescale", json!(true), "true"),
        used("rescale_factor", json!(1.0 / 255.0), "a number"),
        only("do_normalize", json!(true), "true"),
        used("image_mean", json!([0.48145466, 0.4578275, 0.40821073]), "three numbers"),
        used("image_std", json!([0.26862954, 0.26130258, 0.27577711]), "three numbers"),
        only("do_pad", json!(null), "null, false"),
        only("pad_size", json!(null), "null"),
        only("do_center_crop", json!(true), "true"),
        only("data_format", json!(null), "null, channels_first"),
        only("input_data_format", json!(null), "null"),
        unneeded("device", json!(null), python),
        unneeded("return_tensors", json!(null), python),
        unneeded("disable_grouping", json!(null), python),
        unneeded("image_seq_length", json!(null), python),
        // Not among the parameters, but in files.
        only("image_processor_type", json!(null), CLASSES),
        only("feature_extractor_type", json!(null), CLASSES),
        only("use_square_size", json!(null), "null, false"),
        unneeded("processor_class", json!(null), "the class is in model_index.json"),
    ]
}
