//! The contract, field by field.

mod odd;

use super::*;
use crate::{storage::KeyTemplate, task::signature::Position};
use serde_json::{Value, json};

fn seed_task() -> Value {
    json!({
        "generation_id": 500, "style_id": 10, "lora_model_url": "s3://bucket/models/style_10/lora_weights.safetensors",
        "prompt_tags": ["woman", "portrait"], "artist_name": "Ada", "webhook_url": "http://backend:8000"
    })
}

fn with(field: &str, value: Value) -> std::result::Result<Task, Box<InvalidTask>> {
    let mut task = seed_task();
    task[field] = value;
    Task::parse(&task.to_string())
}

#[test]
fn the_seeds_message_gets_the_seeds_defaults() {
    let task = Task::parse(&seed_task().to_string()).unwrap();
    assert_eq!((task.generation_id, task.style_id, task.seed, task.steps), (500, 10, 42, 50));
    assert_eq!((task.prompt.as_str(), task.guidance_scale, task.num_images), ("woman portrait", 7.5, 1));
    assert_eq!((task.width, task.height, task.format), (512, 512, Format::Jpeg));
    assert_eq!(KeyTemplate::default().keys(&task), ["generations/gen_500.jpg"]);
    let key = "models/style_10/lora_weights.safetensors".to_string();
    assert_eq!((task.scheduler, task.karras_sigmas), (schedulers::Kind::DpmSolverPlusPlus, None));
    assert_eq!((task.noise_source, task.prompt_weighting), (noise::Source::Cuda, prompt::Weighting::None));
    assert_eq!((task.long_prompt, task.clip_skip), (false, 0));
    assert_eq!((task.image.as_ref(), task.painted_steps()), (None, 50));
    assert_eq!(task.loras, [LoraRef { bucket: "bucket".into(), key, scale: 1.0, weights: BlockWeights::default() }]);
}

#[test]
fn the_fingerprint_depends_on_what_changes_the_picture() {
    let plain = Task::parse(&seed_task().to_string()).unwrap().fingerprint();
    assert_eq!(plain.len(), 66);
    for (field, value) in [
        ("generation_id", json!(7)),
        ("style_id", json!(7)),
        ("webhook_url", json!("https://elsewhere")),
        ("created_at", json!("2026-11-25T14:00:00Z")),
        ("seed", json!(42)),
        ("safety", json!("off")),
        ("long_prompt", json!(false)),
        ("clip_skip", json!(0)),
        ("lora_weights", json!({ "text_encoder": null, "unet": {} })),
        ("not_a_field", json!(1)),
    ] {
        assert_eq!(with(field, value).unwrap().fingerprint(), plain, "{field}");
    }
    for (field, value) in [
        ("lora_model_url", json!("s3://bucket/other")),
        ("lora_scale", json!(0.5)),
        ("prompt_tags", json!(["woman"])),
        ("negative_prompt", json!("hat")),
        ("prompt_weighting", json!("a1111")),
        ("artist_name", json!("Bo")),
        ("seed", json!(43)),
        ("aspect_ratio", json!("2:2")),
        ("num_inference_steps", json!(49)),
        ("guidance_scale", json!(7.0)),
        ("scheduler", json!("euler")),
        ("karras_sigmas", json!(false)),
        ("noise_source", json!("cpu")),
        ("num_images", json!(2)),
        ("output_format", json!("png")),
        ("signature", json!({ "opacity": 127 })),
        ("image_url", json!("s3://uploads/a.png")),
        ("safety", json!("flag")),
        ("safety", json!("refuse")),
        ("long_prompt", json!(true)),
        ("clip_skip", json!(1)),
        ("lora_weights", json!({ "unet": { "mid": 0.5 } })),
    ] {
        assert_ne!(with(field, value).unwrap().fingerprint(), plain, "{field}");
    }
}

/// Only a task that has them has lines for textual inversions, so that no other task's fingerprint changes.
#[test]
fn textual_inversions_are_part_of_the_fingerprint_only_where_they_are() {
    let with = |value: Value| {
        let mut task = seed_task();
        task["textual_inversions"] = value;
        Task::parse(&task.to_string()).unwrap()
    };
    let plain = Task::parse(&seed_task().to_string()).unwrap();
    assert_eq!(
        (with(json!([])).fingerprint(), with(Value::Null).fingerprint()),
        (plain.fingerprint(), plain.fingerprint())
    );
    let two = with(json!([{ "url": "s3://words/a", "token": "<cat-toy>" }, { "url": "s3://words/b" }]));
    let lines = "textual_inversions[0].bucket=5:words\ntextual_inversions[0].key=1:a\ntextual_inversions[0].token=9:<cat-toy>\n\
                 textual_inversions[1].bucket=5:words\ntextual_inversions[1].key=1:b\n";
    assert_eq!(two.canonical(), plain.canonical().replace("width=512", &format!("{lines}width=512")));
    assert_eq!(two.inversions[1], InversionRef { bucket: "words".into(), key: "b".into(), token: None });
}

#[test]
fn a_picture_to_begin_from_is_read_with_its_strength_and_is_part_of_the_fingerprint() {
    let plain = Task::parse(&seed_task().to_string()).unwrap();
    let from = |strength: Value, steps: usize| {
        let mut task = seed_task();
        (task["image_url"], task["strength"]) = (json!("s3://uploads/a/skétch.png"), strength);
        task["num_inference_steps"] = json!(steps);
        Task::parse(&task.to_string())
    };
    let usual = from(Value::Null, 50).unwrap();
    let image = ImageRef { bucket: "uploads".into(), key: "a/skétch.png".into(), strength: 0.8 };
    assert_eq!((usual.image.as_ref(), usual.painted_steps()), (Some(&image), 40));
    let lines = "image.bucket=7:uploads\nimage.key=13:a/skétch.png\n";
    let canonical = plain.canonical().replace("karras_sigmas", &format!("{lines}karras_sigmas"));
    assert_eq!(usual.canonical(), canonical.replace("width=512", "strength=8e-1\nwidth=512"));
    assert_eq!(from(json!(0.8), 50).unwrap().fingerprint(), usual.fingerprint());
    assert_ne!(from(json!(0.75), 50).unwrap().fingerprint(), usual.fingerprint());
    // As Python multiplies and cuts off: 50 times 0.58 is a little less than 29.
    for (strength, steps, painted) in [(0.58, 50, 28), (1.0, 50, 50), (0.02, 50, 1), (1.0, 1, 1), (0.3, 8, 2)] {
        assert_eq!(from(json!(strength), steps).unwrap().painted_steps(), painted, "{strength} of {steps}");
    }
    for (strength, steps, fault) in [
        (json!(0), 50, "`strength` is 0, must leave a step: 50 `num_inference_steps` times it must be 1 or more"),
        (json!(0.0199), 50, "`strength` is 0.0199, must leave a step"),
        (Value::Null, 1, "`strength` is 0.8, must leave a step: 1 `num_inference_steps` times it"),
        (json!(-0.1), 50, "`strength` is -0.1, must be a number from 0 to 1"),
        (json!(1.01), 50, "`strength` is 1.01, must be a number from 0 to 1"),
        (json!("much"), 50, "`strength` is a string, must be a number from 0 to 1"),
    ] {
        let invalid = from(strength, steps).unwrap_err();
        assert!(invalid.reason.starts_with(fault), "{invalid}");
    }
    let alone = with("strength", json!(0.5)).unwrap_err();
    assert_eq!(alone.reason, "`image_url` is missing, must be there because `strength` is");
}

/// Fingerprints are stored with pictures in S3. If this test fails, redelivered tasks are painted again: raise the version.
#[test]
fn the_fingerprint_is_the_same_in_every_release() {
    let plain = Task::parse(&seed_task().to_string()).unwrap();
    assert_eq!(
        plain.canonical(),
        "easel task 1\n\
         artist_name=3:Ada\n\
         guidance_scale=7.5e0\n\
         height=512\n\
         karras_sigmas=default\n\
         loras[0].bucket=6:bucket\n\
         loras[0].key=40:models/style_10/lora_weights.safetensors\n\
         loras[0].scale=1e0\n\
         negative_prompt=0:\n\
         noise_source=cuda\n\
         num_images=1\n\
         num_inference_steps=50\n\
         output_format=jpeg\n\
         prompt=14:woman portrait\n\
         prompt_weighting=none\n\
         scheduler=dpmsolver++\n\
         seed=42\n\
         signature.margin=3.5e-2\n\
         signature.opacity=128\n\
         signature.position=bottom-right\n\
         signature.size=default\n\
         width=512\n"
    );
    assert_eq!(plain.fingerprint(), "1-9791ff907234f70614e7744aad9b067c3bba0a7a0f3d8edc9b925bde2b610f5b");
    let full = json!({
        "generation_id": 500, "style_id": 10, "lora_model_url": "s3://styles/a/bü", "prompt_tags": ["cat", "(sea)"],
        "artist_name": "Żaneta =\nx=", "webhook_url": "http://backend:8000", "seed": u64::MAX, "aspect_ratio": "1:2",
        "negative_prompt": "blur", "num_inference_steps": 150, "guidance_scale": -0.0, "scheduler": "euler",
        "karras_sigmas": true, "noise_source": "cpu", "prompt_weighting": "a1111", "lora_scale": -10,
        "loras": [{ "lora_model_url": "s3://other/b", "scale": 1e-305 }], "num_images": 4, "output_format": "webp",
        "signature": { "position": "top-left", "opacity": 255, "size": 0.1, "margin": 0.25 },
        "created_at": "2026-11-25T14:00:00Z",
    });
    let full = Task::parse(&full.to_string()).unwrap();
    assert_eq!(
        full.canonical(),
        "easel task 1\n\
         artist_name=12:Żaneta =\n\
         x=\n\
         guidance_scale=0e0\n\
         height=1024\n\
         karras_sigmas=true\n\
         loras[0].bucket=6:styles\n\
         loras[0].key=5:a/bü\n\
         loras[0].scale=-1e1\n\
         loras[1].bucket=5:other\n\
         loras[1].key=1:b\n\
         loras[1].scale=1e-305\n\
         negative_prompt=4:blur\n\
         noise_source=cpu\n\
         num_images=4\n\
         num_inference_steps=150\n\
         output_format=webp\n\
         prompt=9:cat (sea)\n\
         prompt_weighting=a1111\n\
         scheduler=euler\n\
         seed=18446744073709551615\n\
         signature.margin=2.5e-1\n\
         signature.opacity=255\n\
         signature.position=top-left\n\
         signature.size=1e-1\n\
         width=512\n"
    );
    assert_eq!(full.fingerprint(), "1-b81f6dbb8f121fde123cd1d79534889ed8c65dff4e522bd0c00a9f1625c22053");
}

#[test]
fn optional_fields_are_read() {
    assert_eq!(with("seed", json!(0)).unwrap().seed, 0);
    assert_eq!(with("seed", json!(null)).unwrap().seed, 42);
    assert_eq!(with("seed", json!(-1)).unwrap().seed_bits(), u64::MAX);
    assert_eq!(with("seed", json!(u64::MAX)).unwrap().seed_bits(), u64::MAX);
    assert_eq!(KeyTemplate::default().keys(&with("num_images", json!(2)).unwrap())[1], "generations/gen_500_2.jpg");
    assert_eq!(
        with("loras", json!([{"lora_model_url": "s3://bucket/k", "scale": -0.5}])).unwrap().loras[1].scale,
        -0.5
    );
    assert_eq!(with("scheduler", json!("lcm")).unwrap().scheduler, schedulers::Kind::Lcm);
    assert_eq!(with("karras_sigmas", json!(true)).unwrap().karras_sigmas, Some(true));
    assert_eq!(with("safety", json!("black")).unwrap().safety, Some(SafetyMode::Black));
    assert_eq!(with("safety", json!(null)).unwrap().safety, None);
    assert_eq!(with("karras_sigmas", json!(null)).unwrap().karras_sigmas, None);
    assert_eq!(with("noise_source", json!("cpu")).unwrap().noise_source, noise::Source::Cpu);
    assert_eq!(with("prompt_weighting", json!("a1111")).unwrap().prompt_weighting, prompt::Weighting::A1111);
    assert!(
        with("long_prompt", json!(true)).unwrap().long_prompt && !with("long_prompt", json!(null)).unwrap().long_prompt
    );
    assert_eq!([11, 0].map(|layers| with("clip_skip", json!(layers)).unwrap().clip_skip), [11, 0]);
    assert_eq!(
        KeyTemplate::default().keys(&with("output_format", json!("webp")).unwrap()),
        ["generations/gen_500.webp"]
    );
    assert_eq!(with("output_format", json!(null)).unwrap().format, Format::Jpeg);
    assert_eq!(with("signature", json!(null)).unwrap().signature, Signature::default());
    assert_eq!(with("signature", json!({ "new": 1 })).unwrap().signature, Signature::default());
    let signature = json!({ "position": "top", "opacity": 0, "size": 0.1, "margin": 0 });
    let wished = Signature { position: Position::Top, opacity: 0, size: Some(0.1), margin: 0.0 };
    assert_eq!(with("signature", signature).unwrap().signature, wished);
    let instant = with("created_at", json!("2026-11-25T15:00:00.25+01:00")).unwrap().created_at.unwrap();
    assert_eq!(instant.secs(), 1_795_615_200);
    assert_eq!(with("created_at", json!(null)).unwrap().created_at, None);
    assert_eq!(with("a_field_of_tomorrow", json!([1])).unwrap().generation_id, 500);
    for (ratio, size) in [("1:1", (512, 512)), ("2:2", (768, 768)), ("1:2", (512, 1024)), ("16:9", (512, 512))] {
        let task = with("aspect_ratio", json!(ratio)).unwrap();
        assert_eq!((task.width, task.height), size, "{ratio}");
    }
}

/// The size as two numbers.
fn sized(width: Value, height: Value) -> std::result::Result<Task, Box<InvalidTask>> {
    let mut task = seed_task();
    (task["width"], task["height"]) = (width, height);
    Task::parse(&task.to_string())
}

#[test]
fn a_size_of_its_own_goes_before_the_aspect_ratio_and_has_both_sides() {
    let task = sized(json!(264), json!(328)).unwrap();
    assert_eq!((task.width, task.height, task.own_size), (264, 328, true));
    let plain = sized(json!(null), json!(null)).unwrap();
    assert_eq!((plain.width, plain.height, plain.own_size), (512, 512, false));
    // The fingerprint is that of the size, however it was asked for.
    assert_eq!(sized(json!(512), json!(512)).unwrap().fingerprint(), plain.fingerprint());
    assert_ne!(task.fingerprint(), plain.fingerprint());
    let mut both = seed_task();
    (both["width"], both["height"], both["aspect_ratio"]) = (json!(264), json!(328), json!("2:2"));
    let both = Task::parse(&both.to_string()).unwrap();
    assert_eq!((both.width, both.height, both.warnings.len()), (264, 328, 1));
    assert_eq!(both.warnings[0].code, Code::AspectRatioIgnored);
    assert!(both.warnings[0].message.ends_with("painted 264x328"), "{:?}", both.warnings);
    assert_eq!(both.fingerprint(), task.fingerprint());
    for (width, height, fault) in [
        (json!(264), json!(null), "`height` is missing, must be there because `width` is"),
        (json!(null), json!(264), "`width` is missing, must be there because `height` is"),
        (json!(260), json!(264), "`width` is 260, must be a multiple of 8 from 64 to 2048"),
        (json!(264), json!(56), "`height` is 56, must be a multiple of 8 from 64 to 2048"),
        (json!(264), json!(2056), "`height` is 2056, must be a multiple of 8"),
        (json!(264), json!("264"), "`height` is a string, must be a multiple of 8"),
        (json!(264.5), json!(264), "`width` is a fraction"),
        (json!(-8), json!(264), "`width` is -8"),
    ] {
        let invalid = sized(width, height).unwrap_err();
        assert!(invalid.reason.starts_with(fault), "{invalid}");
    }
}

#[test]
fn an_aspect_ratio_that_is_not_known_is_a_warning() {
    let ratio = |ratio: &str| with("aspect_ratio", json!(ratio)).unwrap().warnings;
    assert_eq!(ratio("2:2"), []);
    let message = "`aspect_ratio` is none of 1:1, 2:2 and 1:2: painted 512x512".to_string();
    assert_eq!(ratio("16:9"), [Warning::new(Code::AspectRatioUnknown, message)]);
}

#[test]
fn bad_fields_are_named_with_kind_and_limit() {
    let cases = [
        ("generation_id", json!(-1), "`generation_id` is -1, must be an integer from 0"),
        ("generation_id", json!("7"), "`generation_id` is a string"),
        ("generation_id", json!(1.5), "`generation_id` is a fraction"),
        ("generation_id", json!(null), "`generation_id` is missing"),
        ("style_id", json!(true), "`style_id` is a boolean"),
        ("prompt_tags", json!([]), "`prompt_tags` is an array of 0, must be an array of 1 to 100 strings"),
        ("prompt_tags", json!("cat"), "`prompt_tags` is a string"),
        ("prompt_tags", json!(["cat", 3]), "`prompt_tags[1]` is an integer"),
        ("prompt_tags", json!([" "]), "`prompt_tags[0]` is an empty string"),
        ("prompt_tags", json!(["x".repeat(10_001)]), "at most 10000 characters in all"),
        (
            "artist_name",
            json!("x".repeat(10_000)),
            "`artist_name` is a string of 10000 characters, must be a string of at most 200",
        ),
        ("artist_name", json!(""), "`artist_name` is empty"),
        (
            "lora_model_url",
            json!("https://x/y"),
            "`lora_model_url` is a string of another form, must be an address of the form s3://",
        ),
        ("lora_model_url", json!("s3://bucket/"), "`lora_model_url`"),
        ("lora_model_url", json!("s3://Bucket/k"), "`lora_model_url`"),
        ("lora_model_url", json!("s3://bucket/../other/k"), "`lora_model_url`"),
        ("webhook_url", json!("ftp://x"), "`webhook_url` is another address"),
        ("webhook_url", json!("http://user:word@x"), "`webhook_url` is another address"),
        ("num_inference_steps", json!(0), "`num_inference_steps` is 0, must be an integer from 1 to 150"),
        ("guidance_scale", json!(51), "`guidance_scale` is 51, must be a number from 0 to 50"),
        ("scheduler", json!("magic"), "`scheduler` is an unknown name, must be one of dpmsolver++, euler, "),
        ("scheduler", json!(1), "`scheduler` is an integer, must be a string"),
        ("karras_sigmas", json!("yes"), "`karras_sigmas` is a string, must be a boolean"),
        ("noise_source", json!("gpu"), "`noise_source` is an unknown name, must be one of cuda, cpu"),
        ("prompt_weighting", json!(true), "`prompt_weighting` is a boolean, must be a string"),
        ("prompt_weighting", json!("compel"), "`prompt_weighting` is an unknown name, must be one of none, a1111"),
        ("long_prompt", json!("yes"), "`long_prompt` is a string, must be a boolean"),
        ("clip_skip", json!(12), "`clip_skip` is 12, must be an integer from 0 to 11"),
        ("clip_skip", json!(-1), "`clip_skip` is -1, must be an integer from 0 to 11"),
        ("clip_skip", json!(true), "`clip_skip` is a boolean, must be an integer from 0 to 11"),
        ("safety", json!("strict"), "`safety` is an unknown name, must be one of off, flag, black, refuse"),
        ("safety", json!(true), "`safety` is a boolean, must be a string"),
        ("lora_scale", json!("big"), "`lora_scale` is a string"),
        ("loras", json!([{"scale": 1}]), "`loras[0].lora_model_url` is missing"),
        ("textual_inversions", json!([{"token": "x"}]), "`textual_inversions[0].url` is missing"),
        (
            "textual_inversions",
            json!([{"url": "s3://bucket/k", "token": " "}]),
            "`textual_inversions[0].token` is empty, must have something to see",
        ),
        (
            "textual_inversions",
            json!([{"url": "s3://bucket/k", "token": "x".repeat(101)}]),
            "`textual_inversions[0].token` is a string of 101 characters, must be a string of at most 100",
        ),
        (
            "textual_inversions",
            json!(vec![json!({}); 9]),
            "`textual_inversions` is an array of 9, must be an array of at most 8",
        ),
        (
            "image_url",
            json!("https://x/y.png"),
            "`image_url` is a string of another form, must be an address of the form s3://bucket/key",
        ),
        ("image_url", json!("data:image/png;base64,AAAA"), "`image_url` is a string of another form"),
        ("image_url", json!("s3://uploads/../others/k"), "`image_url` is a string of another form"),
        ("image_url", json!(["s3://uploads/k"]), "`image_url` is an array"),
        ("num_images", json!(5), "`num_images` is 5"),
        ("output_format", json!("gif"), "`output_format` is an unknown name, must be one of jpeg, png, "),
        ("output_format", json!(1), "`output_format` is an integer, must be a string"),
        (
            "signature",
            json!({"position": "middle"}),
            "`signature.position` is an unknown name, must be one of top-left, top, top-right, left, center, right, \
             bottom-left, bottom, bottom-right",
        ),
        ("signature", json!({"opacity": 256}), "`signature.opacity` is 256, must be an integer from 0 to 255"),
        ("signature", json!({"opacity": 0.5}), "`signature.opacity` is a fraction"),
        ("signature", json!({"size": 0.3}), "`signature.size` is 0.3, must be a number from 0.02 to 0.25"),
        ("signature", json!({"margin": -1}), "`signature.margin` is -1, must be a number from 0 to 0.25"),
        ("signature", json!("Ada"), "`signature` is a string, must be an object"),
        (
            "created_at",
            json!("yesterday"),
            "`created_at` is a string of another form, must be a date like 2026-11-25T14:00:00Z",
        ),
        ("created_at", json!(1_764_000_000), "`created_at` is an integer, must be a string"),
    ];
    for (field, value, expected) in cases {
        let invalid = with(field, value).unwrap_err();
        assert!(invalid.reason.contains(expected), "`{}` does not say `{expected}`", invalid.reason);
        assert_eq!(invalid.webhook_url.is_some(), field != "webhook_url", "{field}");
    }
}

#[test]
fn karras_sigmas_need_a_scheduler_that_has_them() {
    for (name, kind) in schedulers::Kind::NAMES {
        let mut task = seed_task();
        task["scheduler"] = json!(name);
        task["karras_sigmas"] = json!(false);
        assert_eq!(Task::parse(&task.to_string()).unwrap().karras_sigmas, Some(false), "{name}");
        task["karras_sigmas"] = json!(true);
        match Task::parse(&task.to_string()) {
            Ok(task) => assert!(kind.has_karras_sigmas() && task.karras_sigmas == Some(true), "{name}"),
            Err(invalid) => {
                let expected = format!("`karras_sigmas` is true, must be false or absent with the scheduler {name}");
                assert!(!kind.has_karras_sigmas() && invalid.reason == expected, "{}", invalid.reason);
            }
        }
    }
}
