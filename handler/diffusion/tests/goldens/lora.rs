//! LoRA files written by peft, diffusers, LyCORIS and others, against the weights that each library merges from them, and what a
//! report says of them.

use super::{golden, numbers};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use diffusion::{
    loading::weights::{Tensors, Weights},
    lora::{AppliedLora, Dora, Lora, Overlays, Report, Target, merge},
};
use safetensors::{Dtype, tensor::TensorView};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The largest error of a merged tensor, relative to its largest change.
const TOLERANCE: f64 = 1e-5;

/// The metadata of `lora.safetensors`: for each file, the library that merged it and the scale.
#[derive(Deserialize)]
struct About {
    libraries: BTreeMap<String, String>,
    scales: HashMap<String, f64>,
}

/// The layers that all files were made for.
struct Base {
    unet: Weights,
    text_encoder: Weights,
    target: Target,
}

impl Base {
    /// The tensors of `goldens` whose names start with `base/`.
    fn new(goldens: &HashMap<String, Tensor>) -> Self {
        let part = |component: &str| {
            let named = goldens.iter().filter_map(|(key, tensor)| {
                Some((key.strip_prefix(&format!("base/{component}/"))?.to_string(), tensor.clone()))
            });
            Weights::new(named.collect())
        };
        let (unet, text_encoder) = (part("unet"), part("text_encoder"));
        Self { target: Target::of_weights(&unet, &text_encoder), unet, text_encoder }
    }

    fn merged(&self, lora: Lora, scale: f64, dora: Dora) -> Result<Overlays> {
        let loras = [AppliedLora::new(Arc::new(lora), scale)];
        Ok(merge(&loras, &self.target, &self.unet, &self.text_encoder, dora)?)
    }
}

const QUERY: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight";
/// The sets of files: each a folder and a file of the same name.
const SETS: [&str; 2] = ["lora", "lora-layouts"];

fn goldens(set: &str) -> Result<(HashMap<String, Tensor>, About)> {
    let bytes = fs::read(golden(&format!("{set}.safetensors")))?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let about = header.metadata().as_ref().and_then(|texts| texts.get("about")).context("no metadata")?;
    Ok((candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?, serde_json::from_str(about)?))
}

/// A file, or a folder as peft writes it.
fn path(set: &str, case: &str) -> PathBuf {
    let folder = golden(&format!("{set}/{case}"));
    if folder.is_dir() { folder } else { golden(&format!("{set}/{case}.safetensors")) }
}

fn lora(set: &str, case: &str) -> Result<Lora> {
    Lora::read(&path(set, case)).with_context(|| case.to_string())
}

/// The worst error of one component. Both sides must change the same tensors.
fn worst(
    case: &str,
    component: &str,
    ours: &Tensors,
    base: &Weights,
    goldens: &HashMap<String, Tensor>,
) -> Result<f64> {
    let prefix = format!("{case}/{component}/");
    let theirs: BTreeMap<_, _> =
        goldens.iter().filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?, tensor))).collect();
    let mut names: Vec<_> = ours.keys().map(String::as_str).collect();
    names.sort_unstable();
    anyhow::ensure!(names == theirs.keys().copied().collect::<Vec<_>>(), "{case}: {names:?} are changed");
    let mut worst = 0f64;
    for (name, theirs) in theirs {
        let (ours, theirs) = (numbers(&ours[name])?, numbers(theirs)?);
        let base = numbers(&base.base(name)?)?;
        let most =
            |pairs: &[f64], others: &[f64]| pairs.iter().zip(others).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        worst = worst.max(most(&ours, &theirs) / most(&theirs, &base));
    }
    Ok(worst)
}

#[test]
fn merged_loras_are_those_of_their_libraries() -> Result<()> {
    let base = Base::new(&goldens("lora")?.0);
    let (mut faults, mut count) = (Vec::new(), 0);
    println!("{:<32}  {:<18}  worst error, relative to the largest change", "file", "merged by");
    for set in SETS {
        let (goldens, About { libraries, scales }) = goldens(set)?;
        for (case, library) in &libraries {
            count += 1;
            let error = lora(set, case).and_then(|lora| {
                let ours = base.merged(lora, scales[case], Dora::Apply)?;
                let unet = worst(case, "unet", &ours.unet, &base.unet, &goldens)?;
                Ok(unet.max(worst(case, "text_encoder", &ours.text_encoder, &base.text_encoder, &goldens)?))
            });
            match error {
                Ok(error) if error <= TOLERANCE => println!("{case:<32}  {library:<18}  {error:.1e}"),
                Ok(error) => faults.push(format!("{case}: {error:.1e}")),
                Err(error) => faults.push(format!("{case}: {error:#}")),
            }
        }
    }
    assert!(faults.is_empty() && count >= 83, "{count} files, beyond {TOLERANCE:e}:\n{}", faults.join("\n"));
    Ok(())
}

/// The layers as a model folder.
fn model_folder(base: &Base) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    // A LoRA changes nothing in the VAE, and a model has one.
    let vae = Weights::new(HashMap::new());
    for (weights, part, file) in [
        (&base.unet, "unet", "diffusion_pytorch_model.safetensors"),
        (&base.text_encoder, "text_encoder", "model.safetensors"),
        (&vae, "vae", "diffusion_pytorch_model.safetensors"),
    ] {
        fs::create_dir(folder.path().join(part))?;
        let tensors: HashMap<_, _> =
            weights.names().into_iter().map(|name| Ok((name, weights.base(name)?))).collect::<Result<_>>()?;
        candle_core::safetensors::save(&tensors, folder.path().join(part).join(file))?;
    }
    Ok(folder)
}

/// `handler lora inspect` says what merging does.
#[test]
fn reports_agree_with_what_is_merged() -> Result<()> {
    let base = Base::new(&goldens("lora")?.0);
    let model = model_folder(&base)?;
    for set in SETS {
        for entry in fs::read_dir(golden(set))? {
            let path = entry?.path();
            let report = Report::of_file(&path, Some(model.path()))?;
            let merged = Lora::read(&path).map_err(Into::into).and_then(|lora| base.merged(lora, 1.0, Dora::Apply));
            let named = path.display();
            assert_eq!(report.would_load, merged.is_ok(), "{named}: {:?}", report.refusal);
            let ours = match merged {
                Ok(ours) => ours,
                Err(error) => {
                    assert_eq!(report.refusal, Some(error.to_string()), "{named}");
                    continue;
                }
            };
            let modules = |tensors: &Tensors| {
                tensors.keys().filter_map(|name| Some(name.rsplit_once('.')?.0)).collect::<BTreeSet<_>>().len()
            };
            let counts = [report.modules.unet, report.modules.text_encoder];
            assert_eq!(counts, [modules(&ours.unet), modules(&ours.text_encoder)], "{named}");
            let says_nothing_of_alpha = report.rank.is_some() && report.alpha.is_none();
            assert_eq!(
                report.notes.iter().any(|note| note.contains("alpha is not named")),
                says_nothing_of_alpha,
                "{named}"
            );
        }
    }
    Ok(())
}

#[test]
fn reports_say_the_scale_and_whose_settings_give_it() -> Result<()> {
    let of = |set: &str, case: &str| anyhow::Ok(Report::of_file(&path(set, case), None)?);
    for (case, least, most, settings) in [
        ("peft-folder", 4.0 / 3.0, 7.0 / 2.0, Some("adapter_config.json")),
        ("peft-folder-rslora", 5.0 / 3f64.sqrt(), 5.0 / 3f64.sqrt(), Some("adapter_config.json")),
        ("peft-folder-lokr-whole", 0.25, 0.5, Some("adapter_config.json")),
        ("diffusers-adapter", 4.0 / 3.0, 7.0 / 2.0, Some("lora_adapter_metadata")),
        ("lycoris-glora", 0.5, 0.5, None),
        ("onetrainer", 1.0, 1.0, None),
    ] {
        let report = of("lora-layouts", case)?;
        let scale = report.scale.context("no scale")?;
        assert!((scale.least - least).abs() < 1e-12 && (scale.most - most).abs() < 1e-12, "{case}: {scale:?}");
        assert_eq!(report.settings, settings, "{case}");
    }
    let text = of("lora-layouts", "onetrainer")?.to_string();
    assert!(
        text.contains("alpha     not named, the rank is taken") && text.contains("4 of the UNet, 1 of the text"),
        "{text}"
    );
    let refusal = of("lora-layouts", "refused-pissa")?.refusal.context("PiSSA is not refused")?;
    assert!(
        refusal.contains("init_lora_weights") && refusal.contains("path_initial_model_for_weight_conversion"),
        "{refusal}"
    );
    Ok(())
}

/// peft keeps alpha beside the file, so the same file alone is another LoRA.
#[test]
fn the_settings_beside_a_file_count() -> Result<()> {
    let base = Base::new(&goldens("lora")?.0);
    let name = "down_blocks.0.resnets.0.conv1.weight";
    let change = |lora: Lora| {
        let merged = base.merged(lora, 1.0, Dora::Apply)?.unet[name].clone();
        anyhow::Ok((merged - base.unet.base(name)?)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?)
    };
    let folder = golden("lora-layouts/peft-folder");
    let file = folder.join("adapter_model.safetensors");
    let (with, named, alone) = (Lora::read(&folder)?, Lora::read(&file)?, Lora::from_bytes(&fs::read(&file)?)?);
    let (with, named, alone) = (change(with)?, change(named)?, change(alone)?);
    assert_eq!(with, named);
    assert!((with / alone - 3.5).abs() < 1e-5, "{with} and {alone}");

    let other = tempfile::tempdir()?;
    for (config, expected) in [("{", "adapter_config.json"), (r#"{"lora_alpha": "5"}"#, "must be a number")] {
        fs::copy(&file, other.path().join("any.safetensors"))?;
        fs::write(other.path().join("adapter_config.json"), config)?;
        let error = Lora::read(other.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    fs::write(other.path().join("second.safetensors"), "")?;
    let error = Lora::read(other.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("2 safetensors files"), "{error}");
    Ok(())
}

/// torch's numbers for all codes of 8 bits, without NaN and infinity.
#[test]
fn numbers_of_8_bits_are_torchs() -> Result<()> {
    let codes = goldens("lora-layouts")?.0;
    for (name, dtype) in [("e4m3", Dtype::F8_E4M3), ("e5m2", Dtype::F8_E5M2)] {
        let torchs: Vec<f32> = codes[&format!("codes/{name}")].to_vec1()?;
        let code = |place: usize| if torchs[place].is_finite() { place as u8 } else { 1 };
        let bytes: Vec<u8> = (0..256).map(code).collect();
        let view = TensorView::new(dtype, vec![16, 16], &bytes)?;
        let key = "lora_unet_conv.diff";
        let file = safetensors::serialize([(key, view)], None)?;
        let zero = Tensor::zeros((16, 16), DType::F32, &Device::Cpu)?;
        let unet = Weights::new(HashMap::from([("conv.weight".to_string(), zero)]));
        let text_encoder = Weights::new(HashMap::new());
        let base = Base { target: Target::of_weights(&unet, &text_encoder), unet, text_encoder };
        let merged = base.merged(Lora::from_bytes(&file)?, 1.0, Dora::Apply)?;
        let ours: Vec<f32> = merged.unet["conv.weight"].flatten_all()?.to_vec1()?;
        for (place, ours) in ours.into_iter().enumerate() {
            assert_eq!(ours, torchs[usize::from(code(place))], "{name} {place}");
        }
    }
    Ok(())
}

#[test]
fn dora_is_dropped_as_diffusers_drops_it() -> Result<()> {
    let base = Base::new(&goldens("lora")?.0);
    // `Dora::Ignore` drops LyCORIS' `dora_scale` and ai-toolkit's `magnitude`, but not peft's magnitudes.
    let changes =
        |set: &str, case: &str, dora| anyhow::Ok(base.merged(lora(set, case)?, 1.0, dora)?.unet[QUERY].clone());
    for (set, case, dropped) in [
        ("lora", "lycoris-dora-by-output", true),
        ("lora-layouts", "ai-toolkit-dora", true),
        ("lora", "peft-dora", false),
    ] {
        let difference = (changes(set, case, Dora::Apply)? - changes(set, case, Dora::Ignore)?)?;
        let difference = difference.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        assert_eq!(difference > 0.1, dropped, "{case}: {difference}");
    }
    Ok(())
}

#[test]
fn styles_are_the_same_in_both_layouts() -> Result<()> {
    let tests = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model"));
    let load = |part: &str, file: &str| anyhow::Ok(Weights::open(&tests.join("easel-tiny").join(part), &[file])?);
    let unet = load("unet", "diffusion_pytorch_model.safetensors")?;
    let text_encoder = load("text_encoder", "model.safetensors")?;
    let base = Base { target: Target::of_weights(&unet, &text_encoder), unet, text_encoder };
    for style in ["halftone", "stained-glass"] {
        let merged = |file: String| {
            let lora = Lora::read(&tests.join("styles").join(file))?;
            base.merged(lora, 0.8, Dora::Apply)
        };
        let (peft, kohya) = (merged(format!("{style}.safetensors"))?, merged(format!("{style}-kohya.safetensors"))?);
        assert!(peft.unet.len() > 50 && peft.unet.len() == kohya.unet.len(), "{style}");
        for (name, tensor) in &peft.unet {
            assert_eq!(numbers(tensor)?, numbers(&kohya.unet[name])?, "{style} {name}");
        }
    }
    Ok(())
}
