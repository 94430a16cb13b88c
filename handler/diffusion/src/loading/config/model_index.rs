//! `model_index.json`: the pipeline's class, and those of its parts.

use super::{fields::shown, read_object};
use crate::error::{PipelineError, Result};
use serde_json::{Map, Value};
use std::path::Path;

const FILE: &str = "model_index.json";
/// The class that paints with latent consistency models whose UNet takes the guidance scale as an input.
const LATENT_CONSISTENCY: &str = "LatentConsistencyModelPipeline";
/// The parts that paint, each with the classes that it may have.
const PARTS: [(&str, &str); 4] = [
    ("text_encoder", "CLIPTextModel"),
    ("tokenizer", "CLIPTokenizer, CLIPTokenizerFast"),
    ("unet", "UNet2DConditionModel"),
    ("vae", "AutoencoderKL"),
];
/// The parts that look at finished pictures, each with the classes that it may have.
const CHECKER: [(&str, &str); 2] = [
    ("safety_checker", "StableDiffusionSafetyChecker"),
    ("feature_extractor", "CLIPImageProcessor, CLIPImageProcessorFast, CLIPImageProcessorPil, CLIPFeatureExtractor"),
];

/// `model_index.json`.
#[derive(Debug, Clone)]
pub struct ModelIndex {
    /// The pipeline's class: `StableDiffusionPipeline` or `LatentConsistencyModelPipeline`, which paints the same if the UNet is the same.
    pub class_name: String,
    /// The class of the safety checker, and that of what prepares pictures for it. None if the file names none.
    checker: [Option<String>; 2],
}

impl ModelIndex {
    /// Reads and checks `model_index.json`.
    ///
    /// # Errors
    /// The file cannot be read, its JSON is wrong, or a class is not supported.
    pub fn load(model: &Path) -> Result<Self> {
        Self::from_object(&read_object(model, FILE)?)
    }

    /// Checks the content of `model_index.json`.
    ///
    /// # Errors
    /// A class that is not supported.
    pub fn from_object(index: &Map<String, Value>) -> Result<Self> {
        let class_name = index.get("_class_name").map_or_else(|| "absent".to_string(), shown);
        if !matches!(class_name.as_str(), "StableDiffusionPipeline" | LATENT_CONSISTENCY) {
            let supported = what_to_do(&class_name);
            return Err(PipelineError::Unsupported { file: FILE, field: "_class_name", value: class_name, supported });
        }
        // A library and a class.
        let class_of = |field: &str| index.get(field).and_then(|part| part.get(1)).map(shown);
        for (field, supported) in PARTS {
            let class = class_of(field);
            if let Some(value) = class.filter(|class| !supported.split(", ").any(|known| known == class)) {
                return Err(PipelineError::Unsupported { file: FILE, field, value, supported });
            }
        }
        let checker = CHECKER.map(|(field, _)| class_of(field).filter(|class| class != "null"));
        Ok(Self { class_name, checker })
    }

    /// Whether the pipeline has a safety checker.
    ///
    /// # Errors
    /// Its class, or that of what prepares pictures for it, is not supported.
    pub fn has_safety_checker(&self) -> Result<bool> {
        if self.checker[0].is_none() {
            return Ok(false);
        }
        for ((field, supported), class) in CHECKER.into_iter().zip(&self.checker) {
            if let Some(value) = class.clone().filter(|class| !supported.split(", ").any(|known| known == class)) {
                return Err(PipelineError::Unsupported { file: FILE, field, value, supported });
            }
        }
        Ok(true)
    }

    /// Whether the pipeline gives the guidance scale to the UNet, whatever the UNet is.
    pub(super) fn embeds_guidance(&self) -> bool {
        self.class_name == LATENT_CONSISTENCY
    }
}

/// What a folder of that class needs, as the end of an error.
fn what_to_do(class: &str) -> &'static str {
    let kinds = [
        ("XL", "StableDiffusionPipeline (this is SDXL or a relative of it: give a model of Stable Diffusion 1.5)"),
        (
            "Inpaint",
            "StableDiffusionPipeline (this one fills a hole in a picture: give the model that it was trained from)",
        ),
        ("Pix2Pix", "StableDiffusionPipeline (this one changes a picture: give the model that it was trained from)"),
        ("Upscale", "StableDiffusionPipeline (this one enlarges a picture: give a model of Stable Diffusion 1.5)"),
        ("Depth2Img", "StableDiffusionPipeline (this one needs a depth map: give a model of Stable Diffusion 1.5)"),
        (
            "Img2Img",
            "StableDiffusionPipeline (this class starts from a picture; if its parts are those of Stable Diffusion 1.5, name \
             StableDiffusionPipeline in their place)",
        ),
        (
            "StableDiffusionControlNet",
            "StableDiffusionPipeline (there is no ControlNet here; the other parts paint if `_class_name` is \
             StableDiffusionPipeline)",
        ),
    ];
    let found = kinds.iter().find(|(part, _)| class.contains(part)).map(|(_, remedy)| *remedy);
    found.unwrap_or("StableDiffusionPipeline, LatentConsistencyModelPipeline (give a model of Stable Diffusion 1.5)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn index(changed: Value) -> Result<ModelIndex> {
        let mut index = json!({
            "_class_name": "StableDiffusionPipeline", "feature_extractor": [null, null], "safety_checker": [null, null],
            "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        });
        let index = index.as_object_mut().unwrap();
        index.extend(changed.as_object().unwrap().clone());
        ModelIndex::from_object(index)
    }

    #[test]
    fn other_pipelines_are_refused_by_name_with_what_to_do() {
        for class in ["StableDiffusionPipeline", "LatentConsistencyModelPipeline"] {
            assert_eq!(index(json!({ "_class_name": class })).unwrap().class_name, class);
        }
        for (class, remedy) in [
            (json!("StableDiffusionXLPipeline"), "this is SDXL"),
            (json!("StableDiffusionXLInpaintPipeline"), "this is SDXL"),
            (json!("StableDiffusionInpaintPipeline"), "the model that it was trained from"),
            (json!("StableDiffusionInstructPix2PixPipeline"), "changes a picture"),
            (json!("StableDiffusionUpscalePipeline"), "enlarges a picture"),
            (json!("StableDiffusionDepth2ImgPipeline"), "depth map"),
            (json!("StableDiffusionImg2ImgPipeline"), "name StableDiffusionPipeline"),
            (json!("StableDiffusionControlNetPipeline"), "ControlNet"),
            (json!("StableDiffusion3Pipeline"), "give a model of Stable Diffusion 1.5"),
            (json!("FluxPipeline"), "give a model of Stable Diffusion 1.5"),
            (json!(["pipeline", "MyPipeline"]), "give a model of Stable Diffusion 1.5"),
            (json!(null), "give a model of Stable Diffusion 1.5"),
        ] {
            let error = index(json!({ "_class_name": class })).unwrap_err().to_string();
            let named =
                format!("model_index.json: `_class_name` is {}, supported: StableDiffusionPipeline", shown(&class));
            assert!(error.starts_with(&named) && error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn parts_of_another_class_are_refused_by_name() {
        for (part, class, message) in [
            (
                "text_encoder",
                "CLIPTextModelWithProjection",
                "`text_encoder` is CLIPTextModelWithProjection, supported: CLIPTextModel",
            ),
            ("text_encoder", "T5EncoderModel", "`text_encoder` is T5EncoderModel"),
            ("tokenizer", "T5Tokenizer", "`tokenizer` is T5Tokenizer"),
            ("unet", "UNet2DModel", "`unet` is UNet2DModel"),
            ("vae", "AutoencoderTiny", "`vae` is AutoencoderTiny, supported: AutoencoderKL"),
        ] {
            let error = index(json!({ part: ["library", class] })).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let error = index(json!({ "vae": [null, null] })).unwrap_err().to_string();
        assert!(error.contains("`vae` is null"), "{error}");
        index(json!({ "tokenizer": ["transformers", "CLIPTokenizerFast"], "scheduler": ["diffusers", "Any"] }))
            .unwrap();
    }

    #[test]
    fn a_safety_checker_is_there_if_it_is_named_and_refused_if_it_is_another_class() {
        let classes = |checker: &Value, extractor: &Value| {
            index(json!({ "safety_checker": checker, "feature_extractor": extractor })).unwrap().has_safety_checker()
        };
        let checker = json!(["stable_diffusion", "StableDiffusionSafetyChecker"]);
        let (extractor, none) = (json!(["transformers", "CLIPFeatureExtractor"]), json!([null, null]));
        assert!(classes(&checker, &extractor).unwrap() && classes(&checker, &none).unwrap());
        assert!(!classes(&none, &extractor).unwrap());
        let error = classes(&json!(["library", "MyChecker"]), &extractor).unwrap_err().to_string();
        assert_eq!(error, "model_index.json: `safety_checker` is MyChecker, supported: StableDiffusionSafetyChecker");
        let error = classes(&checker, &json!(["transformers", "ViTImageProcessor"])).unwrap_err().to_string();
        assert!(error.contains("`feature_extractor` is ViTImageProcessor, supported: CLIPImageProcessor, "), "{error}");
    }
}
