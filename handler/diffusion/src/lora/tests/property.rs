//! No key and no setting of a file is left unread: another value of it makes another picture or an error, or it is named as unused.

use super::*;
use crate::lora::settings::{Meaning, meaning};
use serde_json::{Map, Value, json};

const CONV: &str = "down_blocks.0.resnets.0.conv1";
const TEXT: &str = "text_model.encoder.layers.0.self_attn.q_proj";
/// Whose names, the module, and its shape with height and width.
const MODULES: [(&str, &str, [usize; 4]); 4] = [
    ("lora_unet_", QUERY, [4, 4, 1, 1]),
    ("unet.", OUT, [4, 4, 1, 1]),
    ("diffusion_model.", CONV, [4, 4, 3, 3]),
    ("lora_te_", TEXT, [4, 4, 1, 1]),
];
/// Parts with their shapes; `i` is the layer's inputs with height and width, `n` a single number, `c` the layer's own shape.
const FORMATS: [&[(&str, &str)]; 20] = [
    &[],
    &[("lora_down.weight", "2 i"), ("lora_up.weight", "4 2")],
    &[("lora_down.weight", "2 i"), ("lora_up.weight", "4 2"), ("alpha", "n"), ("scalar", "n")],
    &[("lora_down.weight", "2 i"), ("lora_up.weight", "4 2"), ("dora_scale", "4 1")],
    &[("lora_down.weight", "2 i"), ("lora_up.weight", "4 2"), ("magnitude", "4")],
    &[("lora_A.weight", "3 i"), ("lora_B.weight", "4 3"), ("lora_magnitude_vector", "4")],
    &[
        ("lora_down.weight", "1 i"),
        ("lora_up.weight", "4 1"),
        ("bias_values", "2"),
        ("bias_indices", "places"),
        ("bias_size", "size"),
    ],
    &[("hada_w1_a", "4 2"), ("hada_w1_b", "2 i"), ("hada_w2_a", "4 2"), ("hada_w2_b", "2 i"), ("alpha", "n")],
    &[("lokr_w1", "2 2"), ("lokr_w2", "2 h"), ("alpha", "n")],
    &[("lokr_w1", "2 2"), ("lokr_w2_a", "2 1"), ("lokr_w2_b", "1 h"), ("alpha", "n")],
    &[("weight", "4"), ("on_input", "n")],
    &[("diff", "c"), ("alpha", "n")],
    &[("diff", "c"), ("diff_b", "4")],
    &[("a1.weight", "4 1"), ("a2.weight", "1 4"), ("b1.weight", "4 1"), ("b2.weight", "1 i"), ("alpha", "n")],
    &[("oft_blocks", "2 2 2"), ("rescale", "4 1"), ("alpha", "n")],
    &[("oft_blocks", "2 2 2 2"), ("alpha", "n")],
    &[("boft_R", "1 1 i i"), ("boft_s", "4 1")],
    &[("oft_R.weight", "1 triangle")],
    &[("ia3_l", "4 1")],
    &[("lora_down.weight", "2 i"), ("lambda_layer", "1 2")],
];

/// How keys end that only a product with a scale has.
const PRODUCTS: [&str; 5] = [".lora_up.weight", ".lora_B.weight", ".hada_w1_a", ".lokr_w2_a", ".b1.weight"];

/// Numbers between -1 and 1 that a text gives.
fn numbers(text: &str, count: usize) -> Vec<f32> {
    let mut state = text.bytes().fold(7u64, |state, byte| state.wrapping_mul(31).wrapping_add(byte.into()));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn part(key: &str, shape: &str, [rows, inputs, height, width]: [usize; 4]) -> Tensor {
    let columns = inputs * height * width;
    let integers = |numbers: &[i64], shape: &[usize]| Tensor::from_slice(numbers, shape, &Device::Cpu).unwrap();
    match shape {
        "places" => return integers(&[0, 3, 1, 2], &[2, 2]),
        "size" => return integers(&[rows as i64, columns as i64], &[2]),
        _ => {}
    }
    let side = |word: &str| match word {
        "i" => columns,
        "h" => columns / 2,
        "triangle" => columns * (columns - 1) / 2,
        number => number.parse().unwrap(),
    };
    let shape = match shape {
        "n" => vec![],
        "c" => [rows, inputs, height, width][..if height > 1 { 4 } else { 2 }].to_vec(),
        words => words.split(' ').map(side).collect(),
    };
    let mut numbers = numbers(key, shape.iter().product());
    // As a constraint of OFT, an alpha that is not small limits nothing.
    if key.ends_with(".alpha") {
        numbers.iter_mut().for_each(|number| *number = number.abs() / 100.0);
    }
    // Every number but 0 says that it is.
    if key.ends_with(".on_input") {
        numbers[0] = 0.0;
    }
    tensor(&numbers, &shape)
}

fn model() -> (Weights, Weights) {
    let (mut unet, mut text) = (Tensors::new(), Tensors::new());
    for (_, module, shape) in MODULES {
        let into = if module == TEXT { &mut text } else { &mut unet };
        into.insert(format!("{module}.weight"), part(module, "c", shape));
        into.insert(format!("{module}.bias"), part(&format!("{module}.bias"), "4", shape));
    }
    (Weights::new(unet), Weights::new(text))
}

/// What is merged, by name, and the keys of the file that change nothing. None: it is refused.
type Merged = Option<(Vec<(String, Vec<f32>)>, Vec<String>)>;

fn outcome(tensors: &[(String, Tensor)], settings: &Map<String, Value>) -> Merged {
    let tensors: Vec<_> = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
    let settings = Value::Object(settings.clone()).to_string();
    let lora = Arc::new(Lora::from_bytes(&file(&tensors, Some(&settings))).ok()?);
    let (unet, text) = model();
    let applied = [AppliedLora::new(lora.clone(), 0.75)];
    let overlays = merge(&applied, &Target::of_weights(&unet, &text), &unet, &text, Dora::Apply).ok()?;
    let all = overlays.unet.into_iter().chain(overlays.text_encoder);
    let mut merged: Vec<_> =
        all.map(|(name, tensor)| (name, tensor.flatten_all().unwrap().to_vec1().unwrap())).collect();
    merged.sort_by(|(a, _), (b, _)| a.cmp(b));
    Some((merged, lora.info.unused.clone()))
}

/// The same tensor with other numbers.
fn other(tensor: &Tensor) -> Tensor {
    let whole = tensor.dtype() == DType::I64;
    if whole { (tensor + 1.0).unwrap() } else { tensor.affine(-1.7, 0.31).unwrap() }
}

/// A setting and another value of it. Those of the second half only count where a module has use for them.
fn settings() -> Vec<(&'static str, Value, Value)> {
    vec![
        ("base_model_name_or_path", json!("a"), json!("b")),
        ("lora_dropout", json!(0.1), json!(0.2)),
        ("target_modules", json!(["to_q"]), json!(["to_k"])),
        ("megatron_core", json!("a"), json!("b")),
        ("fan_in_fan_out", json!(false), json!(true)),
        ("bias", json!("none"), json!("all")),
        ("kasa_config", json!(null), json!({ "beta": 1 })),
        ("unheard_of", json!(null), json!(7)),
        ("init_lora_weights", json!("gaussian"), json!("pissa_niter_4")),
        ("peft_type", json!("LORA"), json!("VERA")),
        ("lora_alpha", json!(6), json!(7)),
        ("alpha_pattern", json!({ "q_proj|to_q|conv1|0": 3 }), json!({ "q_proj|to_q|conv1|0": 5 })),
    ]
}

/// Draws whole numbers below a limit, the same ones for a seed.
struct Draws(u64);

impl Draws {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    /// Something in one of `times` cases.
    fn seldom(&mut self, times: usize, limit: usize) -> Option<usize> {
        (self.below(times) == 0).then(|| self.below(limit))
    }
}

/// Checks one file of random parts and settings. Returns whether it was merged.
fn checked(draws: &mut Draws) -> bool {
    let formats = MODULES.map(|_| draws.below(FORMATS.len() - 1));
    let (lost, stray) = (draws.seldom(5, 12), draws.seldom(5, FORMATS.len()));
    let chosen: Vec<_> = settings().into_iter().filter(|_| draws.below(4) == 0).collect();
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    let mut add = |format: usize, (prefix, module, shape): (&str, &str, [usize; 4])| {
        for (ending, sides) in FORMATS[format] {
            let flat = if prefix.ends_with('_') { module.replace('.', "_") } else { module.to_string() };
            let key = format!("{prefix}{flat}.{ending}");
            tensors.retain(|(known, _)| *known != key);
            tensors.push((key.clone(), part(&key, sides, shape)));
        }
    };
    formats.into_iter().zip(MODULES).for_each(|(format, module)| add(format, module));
    if let Some(format) = stray {
        add(format, MODULES[format % 4]);
    }
    if let Some(index) = lost.filter(|index| *index < tensors.len()) {
        tensors.remove(index);
    }
    let fields: Map<String, Value> = chosen.iter().map(|(name, value, _)| (name.to_string(), value.clone())).collect();
    let Some((merged, unused)) = outcome(&tensors, &fields) else { return false };

    for index in 0..tensors.len() {
        let mut changed = tensors.clone();
        changed[index].1 = other(&changed[index].1);
        let same = outcome(&changed, &fields).is_some_and(|(now, _)| now == merged);
        let key = &tensors[index].0;
        assert_eq!(
            same,
            unused.contains(key),
            "`{}` of {:?}",
            key,
            tensors.iter().map(|(key, _)| key).collect::<Vec<_>>()
        );
    }
    // Alpha counts for products that bring none of their own, a pattern for names with dots.
    let has = |start: &str, ends: &[&str]| {
        tensors.iter().any(|(key, _)| key.starts_with(start) && ends.iter().any(|end| key.ends_with(end)))
    };
    let unscaled: Vec<bool> = MODULES
        .iter()
        .filter(|(prefix, _, _)| has(prefix, &PRODUCTS) && !has(prefix, &[".alpha"]))
        .map(|(prefix, _, _)| prefix.ends_with('.'))
        .collect();
    for (name, _, value) in chosen {
        let mut changed = fields.clone();
        changed.insert(name.to_string(), value);
        let same = outcome(&tensors, &changed).is_some_and(|(now, _)| now == merged);
        let harmless = matches!(meaning(name), Meaning::Harmless(_));
        let idle = match name {
            "lora_alpha" => unscaled.iter().all(|dots| *dots && fields.contains_key("alpha_pattern")),
            "alpha_pattern" => !unscaled.contains(&true),
            _ => false,
        };
        assert_eq!(same, harmless || idle, "`{}`", name);
    }
    true
}

#[test]
fn no_key_and_no_setting_is_left_unread() {
    let merged = (0..150).filter(|&seed| checked(&mut Draws(seed))).count();
    assert!(merged > 20, "only {merged} files were merged");
}
