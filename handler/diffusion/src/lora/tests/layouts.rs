//! Whose names reach which module, numbers that nobody uses, and the settings of one model saved alone.

use super::*;

/// Both tensors of a LoRA of the layer under those names.
fn named(prefix: &str, down: &str, up: &str) -> Vec<u8> {
    let (down, up) = (format!("{prefix}.{down}"), format!("{prefix}.{up}"));
    let (a, b) = pair();
    file(&[(&down, a), (&up, b)], None)
}

#[test]
fn names_of_every_program_reach_their_component() {
    let ldm = "input_blocks.1.1.transformer_blocks.0.attn1.to_q";
    let query = "encoder.layers.0.self_attn.q_proj";
    let flat = |path: &str| path.replace('.', "_");
    let unet = [
        format!("unet.{ldm}"),
        format!("diffusion_model.{ldm}"),
        format!("lycoris_{}", flat(QUERY)),
        format!("lora_unet.{QUERY}"),
        format!("unet.base_model.model.{QUERY}"),
    ];
    let text = [
        format!("clip_l.text_model.{query}"),
        format!("clip_l.transformer.text_model.{query}"),
        format!("text_encoders.clip_l.transformer.text_model.{query}"),
        format!("lycoris_text_model_{}", flat(query)),
        format!("lycoris_{}", flat(query)),
        format!("lora_te.text_model.{query}"),
        format!("text_encoder.base_model.model.text_model.{query}"),
        format!("base_model.model.text_model.{query}"),
    ];
    for (prefixes, is_text) in [(unet.as_slice(), false), (text.as_slice(), true)] {
        for prefix in prefixes {
            for (down, up) in [("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")] {
                let overlays =
                    merged(&named(prefix, down, up), 1.0).unwrap_or_else(|error| panic!("{prefix}: {error}"));
                let counts = [overlays.unet.len(), overlays.text_encoder.len()];
                assert_eq!(counts, if is_text { [0, 1] } else { [1, 0] }, "{prefix}");
            }
        }
    }
}

#[test]
fn a_number_that_nobody_uses_refuses_no_file() {
    let query = format!("lora_unet_{}", QUERY.replace('.', "_"));
    let key = |part: &str| format!("{query}.{part}");
    let infinite = || tensor(&[f32::INFINITY], &[]);
    let (one, square) = (tensor(&[1.0], &[1, 1]), tensor(&[1., 2., 3., 4.], &[2, 2]));
    let f16 = |number: f32| tensor(&[number], &[]).to_dtype(DType::F16).unwrap();
    // LoKr with both factors whole, as ai-toolkit writes it in f16: its alpha of 1e10 becomes infinite.
    let whole = [(key("lokr_w1"), one), (key("lokr_w2"), square.clone()), (key("alpha"), f16(1e10))];
    let difference = [(key("diff"), square.clone()), (key("alpha"), infinite())];
    let ia3 =
        [(key("weight"), tensor(&[1., 2.], &[2])), (key("on_input"), tensor(&[0.], &[])), (key("alpha"), infinite())];
    for tensors in [whole.as_slice(), &difference, &ia3] {
        let tensors: Vec<_> = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
        let bytes = file(&tensors, None);
        merged(&bytes, 1.0).unwrap_or_else(|error| panic!("{}: {error}", tensors[0].0));
        let notes = Lora::from_bytes(&bytes).unwrap().notes().join(" ");
        assert!(notes.contains("alpha` is not used"), "{notes}");
    }
    // Used, they are refused.
    let (down, up) = pair();
    for part in ["alpha", "scalar"] {
        let tensors =
            [(key("lora_down.weight"), down.clone()), (key("lora_up.weight"), up.clone()), (key(part), infinite())];
        let tensors: Vec<_> = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
        let error = merged(&file(&tensors, None), 1.0).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("NaN or infinite") && error.contains(part), "{error}");
    }
    // Magnitudes are not used where diffusers drops them.
    let tensors = [
        (key("lora_down.weight"), down),
        (key("lora_up.weight"), up),
        (key("dora_scale"), tensor(&[f32::NAN, 1.], &[2, 1])),
    ];
    let tensors: Vec<_> = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
    let lora = Arc::new(Lora::from_bytes(&file(&tensors, None)).unwrap());
    let (unet, text) = base();
    for (dora, works) in [(Dora::Apply, false), (Dora::Ignore, true)] {
        let applied = [AppliedLora::new(lora.clone(), 1.0)];
        let result = merge(&applied, &Target::of_weights(&unet, &text), &unet, &text, dora);
        assert_eq!(result.is_ok(), works);
        assert!(result.err().is_none_or(|error| error.to_string().contains("dora_scale") && error.is_permanent()));
    }
}

#[test]
fn settings_without_a_component_are_those_of_the_model_that_was_saved() {
    let keys = ["lora_A", "lora_B"].map(|part| format!("{QUERY}.{part}.weight"));
    let (down, up) = pair();
    for (settings, expected) in [
        (r#"{"lora_alpha": 0.5}"#, Ok(0.5)),
        (r#"{"lora_alpha": 0.5, "r": 1, "use_rslora": true, "alpha_pattern": {"to_q": 3}}"#, Ok(3.0)),
        (r#"{"lora_alpha": 0.5, "r": 2}"#, Err("its rank is 1, and the settings say 2")),
        (r#"{"alpha": 0.5, "peft_type": "LOHA"}"#, Err("the settings are for LOHA, and this is LORA")),
        (r#"{"lora_alpha": 0.5, "use_dora": true}"#, Err("`use_dora`, and it has no magnitudes")),
        (r#"{"lora_alpha": 0.5, "init_lora_weights": "pissa"}"#, Err("init_lora_weights")),
    ] {
        let result = merged(&file(&[(&keys[0], down.clone()), (&keys[1], up.clone())], Some(settings)), 1.0);
        match (result, expected) {
            (Ok(overlays), Ok(factor)) => {
                let sum = overlays.unet[&format!("{QUERY}.weight")].to_vec2::<f32>().unwrap();
                assert_eq!(sum[0], [1.0 + 3.0 * factor, 6.0 * factor], "{settings}");
            }
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{settings}: {error}"),
            (result, _) => panic!("{settings}: {:?}", result.map(|_| ())),
        }
    }
    // An alpha in both places must be the same.
    let alpha = format!("{QUERY}.alpha");
    for (number, works) in [(0.5, true), (2.0, false)] {
        let tensors = [(keys[0].as_str(), down.clone()), (&keys[1], up.clone()), (&alpha, tensor(&[number], &[]))];
        let result = merged(&file(&tensors, Some(r#"{"lora_alpha": 0.5}"#)), 1.0);
        assert_eq!(result.is_ok(), works);
        assert!(result.err().is_none_or(|error| error.to_string().contains("it is 2, and the settings say 0.5")));
    }
}

#[test]
fn peft_scales_inputs_or_outputs_of_a_square_convolution_by_its_settings() {
    let weight = tensor(&[1., 2., 3., 4.], &[2, 2, 1, 1]);
    let unet = Weights::new(Tensors::from([("conv.weight".to_string(), weight)]));
    let text = base().1;
    let of = |config: Option<&str>| {
        let bytes = file(&[("base_model.model.conv.ia3_l", tensor(&[10., 100.], &[1, 2, 1, 1]))], None);
        let lora = Lora::parse(&mut std::io::Cursor::new(bytes), config)?.validated()?;
        let applied = [AppliedLora::new(Arc::new(lora), 1.0)];
        let merged = merge(&applied, &Target::of_weights(&unet, &text), &unet, &text, Dora::Apply)?;
        Ok::<_, LoraError>(merged.unet["conv.weight"].flatten_all()?.to_vec1::<f32>()?)
    };
    assert!(of(None).unwrap_err().to_string().contains("keeps in another file which"));
    for (modules, expected) in
        [(r#"["conv"]"#, [10., 200., 30., 400.]), (r#""co.*""#, [10., 200., 30., 400.]), ("[]", [10., 20., 300., 400.])]
    {
        let config = format!(r#"{{"peft_type": "IA3", "feedforward_modules": {modules}}}"#);
        assert_eq!(of(Some(&config)).unwrap(), expected, "{modules}");
    }
}
