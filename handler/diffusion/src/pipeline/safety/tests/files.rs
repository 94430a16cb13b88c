//! Forms of a checker's files: names of both versions of transformers, dtypes, shards, older settings, folders, and what is refused.

use super::*;
use crate::pipeline::{LoadOptions, Pipeline};
use serde_json::json;
use std::fs;

const WEIGHTS: &str = "model.safetensors";

/// A small checker's settings as older versions wrote them.
fn older_settings() -> Value {
    json!({
        "_commit_hash": "4bb6", "architectures": ["StableDiffusionSafetyChecker"], "initializer_factor": 1.0, "model_type": "clip",
        "logit_scale_init_value": 2.6592, "projection_dim": 16, "torch_dtype": "float32", "transformers_version": null,
        "text_config": { "hidden_size": 768, "hidden_act": "gelu" }, "text_config_dict": { "hidden_size": 768 },
        "vision_config": { "hidden_size": 1024, "torchscript": false, "top_k": 50, "patch_size": 32, "hidden_act": "quick_gelu" },
        "vision_config_dict": {
            "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "patch_size": 28,
        },
    })
}

fn config(settings: &Value) -> SafetyCheckerConfig {
    SafetyCheckerConfig::from_object(settings.as_object().unwrap()).unwrap()
}

/// The same tensors under the names of older versions, with the positions that they had.
fn older_names(tensors: Tensors) -> Tensors {
    let nested = |name: String| match name.strip_prefix("vision_model.") {
        Some(rest) => format!("vision_model.vision_model.{rest}"),
        None => name,
    };
    let mut tensors: Tensors = tensors.into_iter().map(|(name, tensor)| (nested(name), tensor)).collect();
    let positions = Tensor::arange(0i64, 65, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    tensors.insert("vision_model.vision_model.embeddings.position_ids".into(), positions);
    tensors
}

fn write(folder: &Path, settings: &Value, tensors: &Tensors) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), settings.to_string()).unwrap();
    candle_core::safetensors::save(tensors, folder.join(WEIGHTS)).unwrap();
}

fn verdict_of(folder: &Path) -> Result<Verdict> {
    let mut pipeline = Pipeline::load(Path::new(MODEL), &Compute::Cpu, (64, 64))?;
    assert!(!pipeline.has_safety_checker());
    pipeline.load_safety_checker(&SafetySource::Folder(folder.into()))?;
    assert!(pipeline.has_safety_checker());
    Ok(pipeline.check_safety(&[picture("noise", 96, 64)])?.remove(0))
}

#[test]
fn the_same_checker_in_every_form_says_the_same() {
    let (older, folder) = (older_settings(), tempfile::tempdir().unwrap());
    let config = config(&older);
    assert_eq!((config.vision.hidden_size, config.vision.patch_size, config.vision.layer_norm_eps), (32, 28, 1e-5));
    let tensors = drawn(&config);
    let newer = json!({ "projection_dim": 16, "vision_config": older["vision_config_dict"], "text_config": {} });
    let path = |name: &str| folder.path().join(name);
    write(&path("newer"), &newer, &tensors);
    let whole = verdict_of(&path("newer")).unwrap();
    assert!(whole.concepts.iter().any(|&score| score.abs() > 0.05) && whole.concepts.len() == 17, "{whole:?}");
    write(&path("older"), &older, &older_names(tensors.clone()));
    assert_eq!(verdict_of(&path("older")).unwrap(), whole);
    // As in a model folder, with the settings of pictures, which are the defaults in an older form.
    write(&path("model/safety_checker"), &newer, &tensors);
    fs::create_dir_all(path("model/feature_extractor")).unwrap();
    let pictures = json!({
        "crop_size": 224, "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true, "do_resize": true, "size": 224,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3,
    });
    fs::write(path("model/feature_extractor/preprocessor_config.json"), pictures.to_string()).unwrap();
    assert_eq!(verdict_of(&path("model")).unwrap(), whole);
    // In shards.
    let (even, odd): (Tensors, Tensors) =
        tensors.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).partition(|(name, _)| name.len() % 2 == 0);
    write(&path("shards"), &newer, &even);
    fs::rename(path("shards").join(WEIGHTS), path("shards/a.safetensors")).unwrap();
    candle_core::safetensors::save(&odd, path("shards/b.safetensors")).unwrap();
    let place = |name: &String| if even.contains_key(name) { "a.safetensors" } else { "b.safetensors" };
    let map: HashMap<&String, &str> = tensors.keys().map(|name| (name, place(name))).collect();
    fs::write(path("shards/model.safetensors.index.json"), json!({ "metadata": {}, "weight_map": map }).to_string())
        .unwrap();
    assert_eq!(verdict_of(&path("shards")).unwrap(), whole);
    // Half precision differs by its rounding.
    for (name, dtype, limit) in [("f16", DType::F16, 3e-3), ("bf16", DType::BF16, 2e-2)] {
        let halves = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.to_dtype(dtype).unwrap()));
        write(&path(name), &newer, &halves.collect());
        let half = verdict_of(&path(name)).unwrap();
        let error = apart(&half.concepts, &whole.concepts);
        assert!(error < limit, "{name}: {error} of {limit}, {half:?} for {whole:?}");
    }
}

#[test]
fn what_is_no_checker_is_refused_by_name() {
    let (settings, folder) = (older_settings(), tempfile::tempdir().unwrap());
    let tensors = drawn(&config(&settings));
    let refused = |name: &str, change: &dyn Fn(&Path, &mut Value, &mut Tensors), said: &str| {
        let (path, mut settings, mut tensors) = (folder.path().join(name), settings.clone(), tensors.clone());
        change(&path, &mut settings, &mut tensors);
        write(&path, &settings, &tensors);
        let error = verdict_of(&path).unwrap_err().to_string();
        assert!(
            error.contains(said) && error.contains(&format!("safety checker {}", path.display())),
            "{name}: {error}"
        );
        let source = SafetySource::Folder(path);
        assert_eq!(inspect_safety_checker(Path::new(MODEL), &source).unwrap_err().to_string(), error);
    };
    refused(
        "activation",
        &|_, settings, _| settings["vision_config_dict"]["hidden_act"] = json!("gelu"),
        "`hidden_act` is gelu",
    );
    refused(
        "width",
        &|_, settings, _| settings["projection_dim"] = json!(24),
        "`visual_projection.weight` is [16, 32], ",
    );
    refused(
        "vision",
        &|_, settings, _| settings["vision_config_dict"] = json!(7),
        "`vision_config_dict` is 7, supported: an object",
    );
    refused(
        "heads",
        &|_, settings, _| settings["vision_config_dict"]["num_attention_heads"] = json!(3),
        "`num_attention_heads` is 3",
    );
    refused(
        "missing",
        &|_, _, tensors| drop(tensors.remove("concept_embeds_weights")),
        "no `concept_embeds_weights` [17]",
    );
    let picture = |field: &'static str, value: Value| {
        move |path: &Path, _: &mut Value, _: &mut Tensors| {
            fs::create_dir_all(path).unwrap();
            fs::write(path.join("preprocessor_config.json"), json!({ field: value }).to_string()).unwrap();
        }
    };
    refused(
        "resample",
        &picture("resample", json!(2)),
        "preprocessor_config.json: `resample` is 2, supported: 3 (bicubic)",
    );
    refused("no-crop", &picture("do_center_crop", json!(false)), "`do_center_crop` is false, supported: true");
    refused("crop", &picture("crop_size", json!(200)), "`crop_size` is 200, supported: the `image_size`");
    refused("large", &picture("crop_size", json!({ "height": 300, "width": 300 })), "not larger than `size`");
    refused(
        "class",
        &picture("image_processor_type", json!("ViTImageProcessor")),
        "`image_processor_type` is ViTImageProcessor",
    );
    refused(
        "longest",
        &picture("size", json!({ "longest_edge": 224 })),
        "`size` is {\"longest_edge\":224}, supported: a whole",
    );
    let error = verdict_of(&folder.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("nowhere: there is no such folder"), "{error}");
}

#[test]
fn a_model_has_the_checker_that_its_index_names() {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(MODEL).unwrap() {
        let path = entry.unwrap().path();
        std::os::unix::fs::symlink(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let index: Value = read_json(&Path::new(MODEL).join("model_index.json")).unwrap();
    let load = |class: Value| {
        let mut index = index.clone();
        index["safety_checker"] = class;
        fs::remove_file(folder.path().join("model_index.json")).unwrap();
        fs::write(folder.path().join("model_index.json"), index.to_string()).unwrap();
        let options = LoadOptions { safety_checker: SafetySource::OfModel, ..LoadOptions::default() };
        let loaded = Pipeline::load_with(folder.path(), &Compute::Cpu, &options);
        let inspected = inspect_safety_checker(folder.path(), &SafetySource::OfModel);
        let loaded = loaded.map(|pipeline| pipeline.has_safety_checker()).map_err(|error| error.to_string());
        assert_eq!(inspected.map(|found| found.is_some()).map_err(|error| error.to_string()), loaded);
        loaded
    };
    let named = json!(["stable_diffusion", "StableDiffusionSafetyChecker"]);
    assert_eq!(load(named.clone()), Ok(true));
    assert_eq!(load(json!([null, null])), Ok(false));
    assert!(load(json!(["library", "MyChecker"])).unwrap_err().contains("`safety_checker` is MyChecker"));
    let found = inspect_safety_checker(Path::new(MODEL), &SafetySource::OfModel).unwrap().unwrap();
    assert!(found.tensors > 50 && found.unread.is_none() && found.folder.ends_with("safety_checker"), "{found:?}");
    // A folder that was pulled without its checker.
    fs::remove_file(folder.path().join("safety_checker")).unwrap();
    assert_eq!(load(named.clone()), Ok(false));
    // Half of a checker is an error, not none.
    fs::create_dir(folder.path().join("safety_checker")).unwrap();
    fs::copy(Path::new(MODEL).join("safety_checker/config.json"), folder.path().join("safety_checker/config.json"))
        .unwrap();
    assert!(load(named).unwrap_err().contains("safety_checker/model.safetensors"));
}
