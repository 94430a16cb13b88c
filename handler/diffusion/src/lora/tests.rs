//! Keys, shapes and arithmetic of LoRA files, on a model of two layers.

mod layouts;
mod property;
mod refused;

use super::*;
use crate::loading::weights::{Tensors, Weights};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;

const QUERY: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
const OUT: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0";

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn base() -> (Weights, Weights) {
    let identity = tensor(&[1., 0., 0., 1.], &[2, 2]);
    let unet =
        Tensors::from([(format!("{QUERY}.weight"), identity.clone()), (format!("{OUT}.weight"), identity.clone())]);
    let text = Tensors::from([("text_model.encoder.layers.0.self_attn.q_proj.weight".to_string(), identity)]);
    let weights = |tensors| Weights::new(tensors);
    (weights(unet), weights(text))
}

fn file(tensors: &[(&str, Tensor)], metadata: Option<&str>) -> Vec<u8> {
    let metadata = metadata.map(|text| HashMap::from([("lora_adapter_metadata".to_string(), text.to_string())]));
    safetensors::serialize(tensors.iter().map(|(name, tensor)| (*name, tensor)), metadata).unwrap()
}

fn merged(bytes: &[u8], scale: f64) -> Result<Overlays, LoraError> {
    let lora = Arc::new(Lora::from_bytes(bytes)?);
    let (unet, text) = base();
    merge(&[AppliedLora::new(lora, scale)], &Target::of_weights(&unet, &text), &unet, &text, Dora::Apply)
}

fn pair() -> (Tensor, Tensor) {
    (tensor(&[1., 2.], &[1, 2]), tensor(&[3., 5.], &[2, 1]))
}

#[test]
fn every_naming_reaches_the_same_module() {
    let kohya = QUERY.replace('.', "_");
    let cases = [
        (format!("unet.{QUERY}.lora_A.weight"), format!("unet.{QUERY}.lora_B.weight")),
        (format!("base_model.model.{QUERY}.lora_A.weight"), format!("base_model.model.{QUERY}.lora_B.weight")),
        (format!("unet.{QUERY}.lora.down.weight"), format!("unet.{QUERY}.lora.up.weight")),
        (format!("lora_unet_{kohya}.lora_down.weight"), format!("lora_unet_{kohya}.lora_up.weight")),
        (format!("unet.{QUERY}.lora_A.default.weight"), format!("unet.{QUERY}.lora_B.default.weight")),
        (
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight".into(),
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight".into(),
        ),
        (
            format!("unet.{}.processor.to_q_lora.down.weight", QUERY.trim_end_matches(".to_q")),
            format!("unet.{}.processor.to_q_lora.up.weight", QUERY.trim_end_matches(".to_q")),
        ),
    ];
    for (down_key, up_key) in cases {
        let (down, up) = pair();
        let overlay = merged(&file(&[(&down_key, down), (&up_key, up)], None), 1.0).unwrap().unet;
        let sum = overlay[&format!("{QUERY}.weight")].to_vec2::<f32>().unwrap();
        assert_eq!(sum, [[4., 6.], [5., 11.]], "{down_key}");
    }
}

#[test]
fn old_attention_processors_reach_the_output_projection() {
    let (down, up) = pair();
    let block = QUERY.trim_end_matches(".to_q");
    let keys = ["down", "up"].map(|part| format!("unet.{block}.processor.to_out_lora.{part}.weight"));
    let overlay = merged(&file(&[(&keys[0], down), (&keys[1], up)], None), 1.0).unwrap().unet;
    assert!(overlay.contains_key(&format!("{OUT}.weight")));
}

#[test]
fn alpha_scale_and_metadata_multiply() {
    let kohya = format!("lora_unet_{}", QUERY.replace('.', "_"));
    let (down_key, up_key, alpha_key) =
        (format!("{kohya}.lora_down.weight"), format!("{kohya}.lora_up.weight"), format!("{kohya}.alpha"));
    let (down, up) = pair();
    let with_alpha = file(&[(&down_key, down.clone()), (&up_key, up.clone()), (&alpha_key, tensor(&[0.5], &[]))], None);
    let with_metadata = file(&[(&down_key, down), (&up_key, up)], Some(r#"{"unet.lora_alpha": 0.5}"#));
    for bytes in [with_alpha, with_metadata] {
        let sum = merged(&bytes, -2.0).unwrap().unet[&format!("{QUERY}.weight")].to_vec2::<f32>().unwrap();
        assert_eq!(sum, [[-2., -6.], [-5., -9.]]);
        assert!(merged(&bytes, 0.0).unwrap().unet.is_empty(), "scale zero leaves the base alone");
    }
}

#[test]
fn the_text_encoder_is_reached() {
    let (down, up) = pair();
    let keys =
        ["lora_down", "lora_up"].map(|p| format!("lora_te_text_model_encoder_layers_0_self_attn_q_proj.{p}.weight"));
    assert_eq!(merged(&file(&[(&keys[0], down), (&keys[1], up)], None), 1.0).unwrap().text_encoder.len(), 1);
}

#[test]
fn adapter_settings_reach_single_modules() {
    let (down, up) = pair();
    let keys = ["lora_A", "lora_B"].map(|part| format!("unet.{QUERY}.{part}.weight"));
    let cases = [
        (r#"{"unet.lora_alpha": 9, "unet.alpha_pattern": {"to_q": 2}}"#, 2.0),
        (r#"{"unet.lora_alpha": 9, "unet.alpha_pattern": {"attn.\\.to_[qk]": 2}}"#, 2.0),
        (r#"{"unet.lora_alpha": 9, "unet.alpha_pattern": {"o_q": 2}}"#, 9.0),
        (r#"{"unet.lora_alpha": 4, "unet.use_rslora": true}"#, 4.0),
    ];
    for (settings, factor) in cases {
        let overlay = merged(&file(&[(&keys[0], down.clone()), (&keys[1], up.clone())], Some(settings)), 1.0).unwrap();
        let sum = overlay.unet[&format!("{QUERY}.weight")].to_vec2::<f32>().unwrap();
        assert_eq!(sum[0], [1.0 + 3.0 * factor, 6.0 * factor], "{settings}");
    }
    let rank_2 = [tensor(&[1., 0., 0., 1.], &[2, 2]), tensor(&[1., 0., 0., 1.], &[2, 2])];
    let bytes = file(&[(&keys[0], rank_2[0].clone()), (&keys[1], rank_2[1].clone())], Some(cases[3].0));
    let sum = merged(&bytes, 1.0).unwrap().unet[&format!("{QUERY}.weight")].to_vec2::<f32>().unwrap();
    assert!((f64::from(sum[0][0]) - 1.0 - 4.0 / 2f64.sqrt()).abs() < 1e-6, "{sum:?}");
}

#[test]
fn several_loras_add_up_in_any_order() {
    let keys = ["lora_A", "lora_B"].map(|part| format!("unet.{QUERY}.{part}.weight"));
    let (down, up) = pair();
    let plain = file(&[(&keys[0], down), (&keys[1], up)], None);
    let vector = format!("base_model.model.{QUERY}.ia3_l");
    let scaled = file(&[(&vector, tensor(&[3., 0.5], &[2, 1]))], None);
    let loras = [(plain, 0.5), (scaled, -1.0)].map(|(bytes, scale)| {
        let lora = Arc::new(Lora::from_bytes(&bytes).unwrap());
        AppliedLora::new(lora, scale)
    });
    let (unet, text) = base();
    let target = Target::of_weights(&unet, &text);
    let mut sums = Vec::new();
    for order in [[0, 1], [1, 0]] {
        let loras = order.map(|index: usize| loras[index].clone());
        let overlay = merge(&loras, &target, &unet, &text, Dora::Apply).unwrap();
        sums.push(overlay.unet[&format!("{QUERY}.weight")].to_vec2::<f32>().unwrap());
    }
    assert_eq!(sums[0], [[1. + 1.5 - 2., 3.], [2.5, 1. + 5. + 0.5]]);
    assert_eq!(sums[0], sums[1]);
}
