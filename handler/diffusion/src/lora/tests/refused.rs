//! LoRA files that must be refused, and the error for each.

use super::*;

/// A safetensors file with that header and `data` zero bytes.
fn header(json: &str, data: usize) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat()
}

/// Checks that each file is refused with a permanent error that has the expected text.
fn all_refused(cases: Vec<(Vec<u8>, &str)>) {
    for (bytes, expected) in cases {
        let error = merged(&bytes, 1.0).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(expected), "`{error}` does not say `{expected}`");
        assert!(error.is_permanent(), "{error}");
    }
}

#[test]
fn broken_safetensors_files_are_refused() {
    let (down, up) = pair();
    let (a, b) = (format!("unet.{QUERY}.lora_A.weight"), format!("unet.{QUERY}.lora_B.weight"));
    let mut cut_short = file(&[(&a, down), (&b, up)], None);
    cut_short.pop();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (cut_short, "not a safetensors file"),
        (b"PK\x03\x04\x00\x00\x08\x08 archive/data.pkl".to_vec(), "pickled"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF an old pickle".to_vec(), "pickled"),
        ([&(2u64 << 30).to_le_bytes()[..], b"{}"].concat(), "claims 2147483648 bytes"),
        ([&9u64.to_le_bytes()[..], b"{\"a\":[]} "].concat(), "header"),
        (
            header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4),
            "describes 8 bytes of data, the file holds 4",
        ),
        (header(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8), "header"),
        (header(r#"{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,8]}}"#, 8), "header"),
        (header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8), "header"),
        (
            header(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                4,
            ),
            "`a` stands twice",
        ),
        (Vec::new(), "it has 0 bytes"),
    ];
    all_refused(cases);
}

/// A file that fits, with one field of metadata.
fn with_metadata(field: &str, text: &str) -> Vec<u8> {
    let ((down, up), keys) = (pair(), ["lora_A", "lora_B"].map(|part| format!("unet.{QUERY}.{part}.weight")));
    let metadata = HashMap::from([(field.to_string(), text.to_string())]);
    safetensors::serialize([(&keys[0], &down), (&keys[1], &up)], Some(metadata)).unwrap()
}

#[test]
fn errors_name_the_other_base_model() {
    let context = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k";
    let unet = Tensors::from([
        (format!("{context}.weight"), tensor(&[0.5; 2 * 768], &[2, 768])),
        (format!("{QUERY}.weight"), tensor(&[1., 0., 0., 1.], &[2, 2])),
    ]);
    let (unet, text) = (Weights::new(unet), base().1);
    let target = Target::of_weights(&unet, &text);
    let onto_sd1 = |bytes: &[u8]| {
        let lora = Arc::new(Lora::from_bytes(bytes)?);
        merge(&[AppliedLora::new(lora, 0.0)], &target, &unet, &text, Dora::Apply).map(|_| ())
    };
    let keys = ["lora_A", "lora_B"].map(|part| format!("unet.{context}.{part}.weight"));
    let of_width = |width: usize| {
        let down = tensor(&vec![0.5; width], &[1, width]);
        file(&[(&keys[0], down), (&keys[1], tensor(&[3., 5.], &[2, 1]))], None)
    };
    onto_sd1(&of_width(768)).unwrap();
    onto_sd1(&with_metadata("ss_base_model_version", "sd_v1")).unwrap();
    let cases = [
        (of_width(1024), "made for SD2"),
        (of_width(2048), "made for SDXL"),
        (with_metadata("ss_base_model_version", "sd_v2_768_v"), "made for SD2"),
        (with_metadata("ss_base_model_version", "sdxl_base_v1-0"), "made for SDXL"),
        (with_metadata("modelspec.architecture", "Flux-1-dev/lora"), "made for Flux"),
    ];
    for (bytes, expected) in cases {
        let error = onto_sd1(&bytes).unwrap_err();
        assert!(matches!(error, LoraError::OtherBase { .. }) && error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn an_untrained_dora_changes_nothing() {
    let keys = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"].map(|part| format!("unet.{QUERY}.{part}"));
    let zero = tensor(&[0., 0.], &[2, 1]);
    let with = |lengths: [f32; 2]| {
        file(&[(&keys[0], pair().0), (&keys[1], zero.clone()), (&keys[2], tensor(&lengths, &[2]))], None)
    };
    let error = merged(&with([1.0, 1.0]), 1.0).map(|_| ()).unwrap_err();
    assert!(matches!(error, LoraError::NoEffect(_)), "{error}");
    let sum = merged(&with([1.0, 1.5]), 1.0).unwrap().unet[&format!("{QUERY}.weight")].to_vec2::<f32>().unwrap();
    assert!((sum[1][1] - 1.5).abs() < 1e-6, "{sum:?}");
}

#[test]
fn errors_name_what_does_not_fit() {
    let (down, up) = pair();
    let query = |part: &str| format!("unet.{QUERY}.{part}.weight");
    let (a, b) = (query("lora_A"), query("lora_B"));
    let (kohya, sparse) =
        (format!("lora_unet_{}", QUERY.replace('.', "_")), |part: &str| format!("unet.{QUERY}.bias_{part}"));
    let ramp: Vec<f32> = (0..18u8).map(f32::from).collect();
    let zero = tensor(&[0., 0.], &[2, 1]);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (file(&[], None), "changes nothing"),
        (file(&[(&a, down.clone())], None), "up (lora_B)"),
        (file(&[(&b, up.clone())], None), "down (lora_A)"),
        (file(&[(&a, down.clone()), (&b, tensor(&[1.; 4], &[2, 2]))], None), "share no rank"),
        (file(&[(&a, tensor(&[f32::NAN, 1.], &[1, 2])), (&b, up.clone())], None), "NaN"),
        (file(&[(&a, down.clone()), (&b, zero)], None), "changes nothing"),
        (
            file(&[("unet.nowhere.lora_A.weight", down.clone()), ("unet.nowhere.lora_B.weight", up.clone())], None),
            "nowhere",
        ),
        (file(&[("unet.x.hada_w1_a", down.clone())], None), "hada_w1_b"),
        (file(&[("lora_unet_x.a1.weight", down.clone()), ("lora_unet_x.a2.weight", up.clone())], None), "b1"),
        (file(&[("lora_unet_x.lambda_layer", down.clone())], None), "T-LoRA of LyCORIS"),
        (file(&[("lora_unet_x.oft_blocks", down.clone())], None), "are no blocks"),
        (file(&[("base_model.model.x.oft_R.weight", tensor(&[1.; 4], &[2, 2]))], None), "no upper triangles"),
        (file(&[("base_model.model.x.oft_r", down.clone())], None), "before version 0.15"),
        (
            file(&[(&a, down.clone()), (&b, up.clone()), (&sparse("values"), tensor(&[1.], &[1]))], None),
            "belong together",
        ),
        (file(&[(&format!("{kohya}.oft_blocks"), tensor(&ramp, &[2, 3, 3]))], None), "do not rotate"),
        (file(&[(&format!("{kohya}.oft_blocks"), tensor(&[1.; 4], &[1, 2, 2]))], None), "changes nothing"),
        (
            file(
                &[
                    (&format!("{kohya}.oft_blocks"), tensor(&[1., 2., 3., 4.], &[1, 2, 2])),
                    (&format!("{kohya}.rescale"), tensor(&[1.; 3], &[3, 1])),
                ],
                None,
            ),
            "are not the outputs",
        ),
        (file(&[("clip_g.transformer.x.lora_down.weight", down.clone())], None), "made for SDXL"),
        (file(&[("bundle_emb.style.string_to_param.*", down.clone())], None), "embedding"),
        (file(&[("model.diffusion_model.out.2.weight", down.clone())], None), "whole checkpoint"),
        (file(&[("lora_te2_text_model_x.lora_down.weight", down.clone())], None), "made for SDXL"),
        (
            file(&[("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", down.clone())], None),
            "made for Flux",
        ),
        (file(&[(&a, tensor(&[], &[0, 2])), (&b, tensor(&[], &[2, 0]))], None), "rank 0"),
        (
            file(&[(&a, tensor(&[0.5; 20_482], &[10_241, 2])), (&b, tensor(&[0.5; 20_482], &[2, 10_241]))], None),
            "limit is 10240",
        ),
        (file(&[(&a, Tensor::zeros((1, 2), DType::U8, &Device::Cpu).unwrap()), (&b, up.clone())], None), "U8"),
        (
            file(
                &[(&a, down.clone()), (&b, up.clone()), (&query("lora_magnitude_vector"), tensor(&[1.; 3], &[3]))],
                None,
            ),
            "no side",
        ),
        (
            file(
                &[(&a, down.clone()), (&b, up.clone()), (&format!("unet.{QUERY}.diff_b"), tensor(&[1.; 2], &[2]))],
                None,
            ),
            "no bias",
        ),
        (
            file(
                &[(&a, down.clone()), (&b, up.clone()), (&format!("unet.{QUERY}.hada_t1"), tensor(&[1.; 2], &[2]))],
                None,
            ),
            "no use for it",
        ),
        (file(&[(&a, down.clone()), (&b, up.clone())], Some("{")), "lora_adapter_metadata"),
        (file(&[("something.else", down.clone())], None), "something.else"),
        (file(&[(&a, tensor(&[1.; 3], &[1, 3])), (&b, up)], None), "does not fit"),
    ];
    all_refused(cases);
}

/// Names in a file can have any length. An error must stay short, because it goes into a log and a webhook.
#[test]
fn long_names_are_cut_in_every_error() {
    let long = format!("unet.{}", "\u{fc}".repeat(1 << 20));
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let entry_of = |dtype: &str| format!(r#"{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,4]}}"#);
    let kohya = format!("lora_unet_{}", "x".repeat(1 << 20));
    let pattern = "(".repeat(1 << 20);
    let settings = |pattern: &str| format!(r#"{{"unet":{{"alpha_pattern":{{"{pattern}":1}}}}}}"#);
    let cases: Vec<Vec<u8>> = vec![
        header(&format!(r#"{{"{long}":{entry}}}"#), 4),
        header(&format!(r#"{{"{long}":{entry},"{long}":{entry}}}"#), 4),
        header(&format!(r#"{{"{long}":{}}}"#, entry.replace("[1]", "[2]")), 4),
        header(&format!(r#"{{"{long}":{}}}"#, entry.replace("[0,4]", "[4,8]")), 4),
        header(&format!(r#"{{"a":{}}}"#, entry_of(&long)), 4),
        header(&format!(r#"{{"a":"{long}"}}"#), 4),
        header(&format!(r#"{{"{kohya}.lora_down.weight":{entry}}}"#), 4),
        header(&format!(r#"{{"{kohya}.diff":{entry}}}"#), 4),
        header(&format!(r#"{{"{kohya}.default.diff":{entry},"{kohya}.diff":{}}}"#, entry.replace("[0,4]", "[4,8]")), 8),
        header(&format!(r#"{{"double_blocks.{long}":{entry}}}"#), 4),
        with_metadata("ss_base_model_version", &format!("sdxl {long}")),
        with_metadata("lora_adapter_metadata", &settings(&pattern)),
        with_metadata("lora_adapter_metadata", &settings(&pattern[..1000])),
        with_metadata("lora_adapter_metadata", &long),
    ];
    for (index, bytes) in cases.into_iter().enumerate() {
        let error = merged(&bytes, 1.0).map(|_| ()).unwrap_err();
        assert!(error.is_permanent(), "{index}");
        let text = error.to_string();
        assert!(text.len() < 2000, "{index}: {} bytes: {}", text.len(), text.chars().take(300).collect::<String>());
    }
}
