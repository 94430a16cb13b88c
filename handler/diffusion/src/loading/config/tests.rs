//! The tables of settings against the signatures of diffusers and transformers, and what is refused.

use super::{
    fields::{Field, Rule, shown},
    *,
};
use serde_json::json;
use std::collections::BTreeMap;

/// Each parameter of the constructors of the reference with its default, as `tests/goldens/parts/settings.py` writes them.
#[derive(Deserialize)]
struct Signatures {
    unet: BTreeMap<String, Value>,
    vae: BTreeMap<String, Value>,
    text_encoder: BTreeMap<String, Value>,
    safety_checker: BTreeMap<String, Value>,
    vision: BTreeMap<String, Value>,
    preprocessor: BTreeMap<String, Value>,
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap()
}

#[test]
fn every_setting_of_the_reference_is_in_a_table_with_its_default() {
    let theirs: Signatures = serde_json::from_str(include_str!("../../../../../tests/goldens/settings.json")).unwrap();
    for (name, theirs, ours) in [
        ("unet", theirs.unet, unet::table()),
        ("vae", theirs.vae, vae::table()),
        ("text_encoder", theirs.text_encoder, text_encoder::table()),
        ("safety_checker", theirs.safety_checker, safety_checker::table()),
        ("vision", theirs.vision, safety_checker::vision_table()),
        ("preprocessor", theirs.preprocessor, preprocessor::table()),
    ] {
        assert!(theirs.len() > 14, "{name}: {} settings", theirs.len());
        for (setting, default) in &theirs {
            let found: Vec<&Field> = ours.iter().filter(|field| field.name == setting).collect();
            let [field] = found.as_slice() else { panic!("{name}: {} rows for {setting}", found.len()) };
            let same =
                field.default == *default || field.default.as_f64().is_some_and(|ours| Some(ours) == default.as_f64());
            assert!(same, "{name}: {setting} is {default} by default, not {}", field.default);
        }
        for field in &ours {
            assert_eq!(ours.iter().filter(|other| other.name == field.name).count(), 1, "{name}: {}", field.name);
            let (Rule::Used(text) | Rule::Only(text) | Rule::Unneeded(text)) = field.rule;
            assert!(!text.is_empty(), "{name}: {}", field.name);
            if let Rule::Only(supported) = field.rule {
                assert!(
                    supported.starts_with(&shown(&field.default)) || field.default == json!(1.0),
                    "{}: {supported}",
                    field.name
                );
            }
        }
    }
}

#[test]
fn an_empty_file_is_the_network_of_the_constructors_defaults() {
    let unet = UnetConfig::from_object(&Map::new()).unwrap();
    assert_eq!((unet.block_out_channels, unet.norm_num_groups), (vec![320, 640, 1280, 1280], 32));
    let text = TextEncoderConfig::from_object(&Map::new()).unwrap();
    assert_eq!((text.vocab_size, text.hidden_size, text.layer_norm_eps), (49408, 512, 1e-5));
    let vae = VaeConfig::from_object(&Map::new()).unwrap();
    assert_eq!((vae.block_out_channels, vae.latent_channels, vae.scaling_factor), (vec![64], 4, 0.18215));
}

#[test]
fn settings_that_change_the_arithmetic_are_refused_by_name() {
    for (setting, value) in [
        ("center_input_sample", json!(true)),
        ("mid_block_scale_factor", json!(1.5)),
        ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        ("mid_block_type", json!(null)),
        ("time_embedding_act_fn", json!("silu")),
        ("timestep_post_act", json!("silu")),
        ("only_cross_attention", json!(true)),
        ("only_cross_attention", json!([true, false, false, false])),
        ("dual_cross_attention", json!(true)),
        ("resnet_skip_time_act", json!(true)),
        ("resnet_out_scale_factor", json!(1.4)),
        ("resnet_time_scale_shift", json!("scale_shift")),
        ("time_embedding_type", json!("fourier")),
        ("time_embedding_dim", json!(512)),
        ("num_class_embeds", json!(10)),
        ("class_embed_type", json!("timestep")),
        ("class_embeddings_concat", json!(true)),
        ("addition_embed_type", json!("text_time")),
        ("encoder_hid_dim", json!(768)),
        ("encoder_hid_dim_type", json!("text_proj")),
        ("cross_attention_norm", json!("layer_norm")),
        ("mid_block_only_cross_attention", json!(true)),
        ("conv_in_kernel", json!(5)),
        ("conv_out_kernel", json!(1)),
        ("downsample_padding", json!(0)),
        ("attention_type", json!("gated")),
        ("act_fn", json!("gelu")),
        ("num_attention_heads", json!(8)),
        ("reverse_transformer_layers_per_block", json!([1, 1, 1, 1])),
        ("transformer_layers_per_block", json!([[1], [1], [1], [1]])),
        ("transformer_layers_per_block", json!([1, 1])),
        ("attention_head_dim", json!([8, 8, 8])),
        ("norm_num_groups", json!(null)),
        ("down_block_types", json!(["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"])),
        ("time_cond_proj_dim", json!(2)),
        ("quantization_config", json!({ "load_in_8bit": true })),
    ] {
        let error = UnetConfig::from_object(object(&json!({ setting: value }))).unwrap_err().to_string();
        assert!(error.starts_with(&format!("unet/config.json: `{setting}` is ")), "{value}: {error}");
        assert!(error.contains(", supported: "), "{error}");
    }
    for (setting, value) in [
        ("hidden_act", json!("gelu")),
        ("use_attention_mask", json!(true)),
        ("pruned_heads", json!({ "1": [0] })),
        ("quantization_config", json!({})),
        ("layer_norm_eps", json!(null)),
        ("num_attention_heads", json!(7)),
        ("text_config", json!(null)),
    ] {
        let error = TextEncoderConfig::from_object(object(&json!({ setting: value }))).unwrap_err().to_string();
        assert!(error.starts_with(&format!("text_encoder/config.json: `{setting}` is ")), "{value}: {error}");
    }
    for (setting, value) in [
        ("shift_factor", json!(0.1)),
        ("latents_mean", json!([0.0, 0.1, 0.2, 0.3])),
        ("latents_std", json!([1.0, 1.1, 1.2, 1.3])),
        ("act_fn", json!("relu")),
        ("up_block_types", json!(["AttnUpDecoderBlock2D"])),
        ("up_block_types", json!(["UpDecoderBlock2D", "UpDecoderBlock2D"])),
        ("scaling_factor", json!(0)),
        ("quantization_config", json!({})),
    ] {
        let error = VaeConfig::from_object(object(&json!({ setting: value }))).unwrap_err().to_string();
        assert!(error.starts_with(&format!("vae/config.json: `{setting}` is ")), "{value}: {error}");
    }
}

/// Forms of the defaults that published files have.
#[test]
fn other_forms_of_the_same_settings_are_read() {
    let unet = json!({
        "act_fn": "swish", "sample_size": [64, 96], "mid_block_scale_factor": 1.0, "only_cross_attention": [false, false, false, false],
        "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": [768, 768, 768, 768], "upcast_attention": true,
        "down_block_types": ["UNetResCrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "num_attention_heads": null, "freq_shift": 0.0, "_diffusers_version": "0.2.2", "resnet_out_scale_factor": 1,
    });
    let unet = UnetConfig::from_object(object(&unet)).unwrap();
    assert_eq!((unet.heads(1), unet.down_block_types[0].as_str()), (10, "CrossAttnDownBlock2D"));
    let text = json!({
        "model_type": "clip", "text_config": { "hidden_size": 768, "num_attention_heads": 12, "layer_norm_eps": 1e-3, "top_k": 50 },
        "vision_config": {}, "hidden_size": 1,
    });
    let text = TextEncoderConfig::from_object(object(&text)).unwrap();
    assert_eq!((text.hidden_size, text.layer_norm_eps, text.intermediate_size), (768, 1e-3, 2048));
}

#[test]
fn parts_that_do_not_fit_each_other_are_refused_by_field() {
    let check = |class: &str, unet: Value, vae: Value| {
        let index = ModelIndex::from_object(object(&json!({ "_class_name": class })))?;
        let text = TextEncoderConfig::from_object(object(&json!({ "hidden_size": 768 })))?;
        let mut whole = json!({ "cross_attention_dim": 768 });
        whole.as_object_mut().unwrap().extend(object(&unet).clone());
        check_together(&index, &text, &UnetConfig::from_object(object(&whole))?, &VaeConfig::from_object(object(&vae))?)
    };
    let sd = "StableDiffusionPipeline";
    check(sd, json!({}), json!({})).unwrap();
    check(sd, json!({ "time_cond_proj_dim": 256 }), json!({})).unwrap();
    check("LatentConsistencyModelPipeline", json!({ "time_cond_proj_dim": 256 }), json!({})).unwrap();
    check(sd, json!({ "in_channels": 8, "out_channels": 8 }), json!({ "latent_channels": 8 })).unwrap();
    for (class, unet, vae, message) in [
        (
            sd,
            json!({ "in_channels": 9 }),
            json!({}),
            "unet/config.json: `in_channels` is 9, supported: the VAE's `latent_channels` (9 is an inpainting",
        ),
        (sd, json!({ "in_channels": 8 }), json!({}), "InstructPix2Pix"),
        (sd, json!({ "in_channels": 7 }), json!({}), "enlarges"),
        (sd, json!({ "in_channels": 5 }), json!({}), "depth map"),
        (sd, json!({ "in_channels": 3 }), json!({}), "`in_channels` is 3, supported: the VAE's `latent_channels`"),
        (
            sd,
            json!({ "out_channels": 8 }),
            json!({}),
            "unet/config.json: `out_channels` is 8, supported: the same as `in_channels`",
        ),
        (
            sd,
            json!({}),
            json!({ "latent_channels": 16 }),
            "vae/config.json: `latent_channels` is 16, supported: 1 to 8",
        ),
        (
            sd,
            json!({ "cross_attention_dim": 1024 }),
            json!({}),
            "unet/config.json: `cross_attention_dim` is 1024, supported: the text encoder's",
        ),
        (sd, json!({ "cross_attention_dim": [768, 768, 768, 1280] }), json!({}), "`cross_attention_dim` is 1280"),
        ("LatentConsistencyModelPipeline", json!({}), json!({}), "unet/config.json: `time_cond_proj_dim` is null"),
    ] {
        let error = check(class, unet, vae).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
