//! Tasks that begin from a picture: what is painted and told, where the picture may come from, and what is no picture.

use crate::{
    context::{PATIENCE, TestContext, case},
    safety::{function, given_back},
};
use anyhow::{Context, Result};
use e2e::{
    aws::MODELS,
    aws_proxies::{StubProxy, s3_error},
    backend::{Call, FAILED},
    lambda::Function,
    paths::repo,
    task::Task,
};
use image::{RgbImage, imageops::FilterType};
use serde_json::{Value, json};
use std::fs;

/// A sketch of 600x440 pixels.
const SKETCH: &str = "tests/goldens/pictures/sketch.png";
const BUCKETS: (&str, &str) = ("EASEL_IMAGE_BUCKETS", "*-models,uploads");

/// A function with a model that has an encoder, and a task that fits it.
async fn painter(ctx: &TestContext, name: &str, changes: &[(&'static str, &str)]) -> Result<(Function, Task)> {
    let model = repo().join("tests/model/easel-tiny").display().to_string();
    let mut usual = vec![("EASEL_MODEL_DIR", model.as_str()), BUCKETS];
    usual.retain(|(name, _)| changes.iter().all(|(change, _)| change != name));
    let changes = [&usual[..], changes].concat();
    let style = fs::read(repo().join("tests/model/styles/halftone.safetensors"))?;
    let lora = ctx.stack.put_lora("styles/halftone.safetensors", style).await?;
    let task = Task::new(&ctx.backend.url(), &lora).with("prompt_tags", json!(["mountains", "lake"]));
    let task = task.with("width", 256).with("height", 256).with("signature", json!({ "opacity": 0 }));
    Ok((function(ctx, name, &changes).await?, task.with("output_format", "png").with("num_inference_steps", 8)))
}

async fn put(ctx: &TestContext, key: &str, content: &[u8]) -> Result<String> {
    ctx.stack.aws.put(MODELS, key, content.to_vec()).await
}

/// The next task with these fields.
fn next(ctx: &TestContext, like: &Task, fields: &[(&str, Value)]) -> Task {
    let like = fields.iter().fold(like.clone(), |task, (field, value)| task.with(field, value.clone()));
    like.with("generation_id", ctx.task().id())
}

/// The mean difference of two pictures, in levels of 255.
fn apart(one: &RgbImage, other: &RgbImage) -> f64 {
    let differences = one.as_raw().iter().zip(other.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)));
    differences.sum::<f64>() / one.as_raw().len() as f64
}

/// The sketch as it fills the task's size.
fn filled() -> Result<RgbImage> {
    let sketch = image::open(repo().join(SKETCH))?;
    Ok(sketch.resize_to_fill(256, 256, FilterType::Lanczos3).into_rgb8())
}

#[test]
fn a_task_begins_from_its_picture_and_goes_as_far_as_its_strength() {
    case(|ctx| async move {
        let (function, task) = painter(&ctx, "images", &[("EASEL_WEBHOOK_DETAIL", "full")]).await?;
        let url = put(&ctx, "uploads/anna-private-sketch.png", &fs::read(repo().join(SKETCH))?).await?;
        let filled = filled()?;
        let mut distances = Vec::new();
        for (strength, painted) in [(Some(0.25), 2), (None, 6), (Some(1.0), 8)] {
            let mut fields = vec![("image_url", json!(url))];
            fields.extend(strength.map(|strength| ("strength", json!(strength))));
            let task = next(&ctx, &task, &fields);
            assert!(!given_back(&function, &task.body()).await?);
            let painting = ctx.painting(&task).await?;
            let steps = painting.progress.iter().map(|call| &call.body["progress"]);
            assert!(steps.clone().all(|progress| progress["total_steps"] == painted), "{strength:?}");
            assert!(steps.clone().count() >= 2, "{strength:?}");
            let (metadata, expected) = (&painting.complete.body["metadata"], strength.unwrap_or(0.8));
            assert_eq!((&metadata["strength"], &metadata["steps"]), (&json!(expected), &json!(8)));
            let written = |text: &str| painting.file.windows(text.len()).any(|part| part == text.as_bytes());
            assert!(written(&format!("Denoising strength: {expected}")), "{strength:?}");
            assert!(!written("anna"), "the file says where the picture lies");
            assert!(!metadata.to_string().contains("anna"), "{metadata}");
            distances.push(apart(&painting.picture.into_rgb8(), &filled));
        }
        println!("levels apart from the sketch: {distances:.1?}");
        assert!(distances[0] < distances[1] && distances[1] < distances[2], "{distances:?}");
        assert!(distances[0] < 30.0, "{distances:?}");
        // Without one, nothing is told of it.
        let plain = next(&ctx, &task, &[]);
        assert!(!given_back(&function, &plain.body()).await?);
        let painting = ctx.painting(&plain).await?;
        assert_eq!(painting.complete.body["metadata"].get("strength"), None);
        assert!(painting.progress.iter().all(|call| call.body["progress"]["total_steps"] == 8));
        assert!(apart(&painting.picture.into_rgb8(), &filled) > distances[0]);
        let log = function.process().log_text();
        assert!(log.contains("\"strength\":0.25") || log.contains("strength=0.25"), "{log}");
        Ok(())
    });
}

#[test]
fn a_delivery_again_paints_the_same_and_another_strength_is_another_task() {
    case(|ctx| async move {
        let (function, task) = painter(&ctx, "images-again", &[]).await?;
        let url = put(&ctx, "uploads/again.png", &fs::read(repo().join(SKETCH))?).await?;
        let first = next(&ctx, &task, &[("image_url", json!(url)), ("strength", json!(0.5))]);
        assert!(!given_back(&function, &first.body()).await?);
        let file = ctx.painting(&first).await?.file;
        // It is stored, and announced once more without the picture that it began from.
        ctx.stack.aws.delete(MODELS, "uploads/again.png").await?;
        assert!(!given_back(&function, &first.body()).await?);
        assert!(crate::redelivery::second_complete(&ctx).await?.len() > 2);
        put(&ctx, "uploads/again.png", &fs::read(repo().join(SKETCH))?).await?;
        let other = first.clone().with("strength", 0.75);
        assert!(!given_back(&function, &other.body()).await?);
        let painted: Vec<Call> = ctx.backend.calls_of(first.id()).into_iter().filter(Call::is_end).collect();
        let url = painted.last().context("no end")?.body["result_url"].as_str().context("no result_url")?;
        let again = e2e::http_client()?.get(url).send().await?.bytes().await?;
        assert!(painted.len() == 3 && again != file, "the same file for another strength");
        Ok(())
    });
}

/// A PNG that claims 900 million pixels.
fn bomb() -> Vec<u8> {
    let header = [&30_000_u32.to_be_bytes()[..], &30_000_u32.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let chunk = |kind: &[u8], content: &[u8]| {
        let body = [kind, content].concat();
        let length = u32::try_from(content.len()).unwrap_or_default().to_be_bytes();
        [&length[..], &body, &crc32(&body).to_be_bytes()].concat()
    };
    // A stream of zlib that ends at once.
    let data = [0x78, 0x9C, 0x03, 0, 0, 0, 0, 1];
    [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &header), &chunk(b"IDAT", &data), &chunk(b"IEND", b"")].concat()
}

/// The sum of a PNG's chunk.
fn crc32(bytes: &[u8]) -> u32 {
    let byte = |sum: u32, byte: &u8| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 })
    };
    !bytes.iter().fold(u32::MAX, byte)
}

#[test]
fn what_is_no_picture_to_begin_from_is_refused_by_name_and_the_process_goes_on() {
    case(|ctx| async move {
        let limits = [("EASEL_MAX_IMAGE_BYTES", "100000"), ("EASEL_ERROR_CODES", "fine")];
        let (function, task) = painter(&ctx, "images-refused", &limits).await?;
        let sketch = fs::read(repo().join(SKETCH))?;
        let mut jpeg = std::io::Cursor::new(Vec::new());
        image::load_from_memory(&sketch)?.into_rgb8().write_to(&mut jpeg, image::ImageFormat::Jpeg)?;
        let jpeg = jpeg.into_inner();
        let good = put(&ctx, "uploads/good.jpg", &jpeg).await?;
        let cut = put(&ctx, "uploads/cut.jpg", &jpeg[..jpeg.len() / 2]).await?;
        let text = put(&ctx, "uploads/notes.txt", b"a house, a lake").await?;
        let large = put(&ctx, "uploads/large.png", &[sketch.clone(), vec![0; 100_000]].concat()).await?;
        let bomb = put(&ctx, "uploads/bomb.png", &bomb()).await?;
        let none = format!("s3://{MODELS}/uploads/none.png");
        let image = |url: &str| vec![("image_url", json!(url))];
        let strength = |value: Value| vec![("image_url", json!(good)), ("strength", value)];
        let cases = [
            (
                image("https://example.org/a.png"),
                "TASK_INVALID",
                "`image_url` is a string of another form, must be an address of the form s3://",
            ),
            (
                image("s3://stylelicense-images/generations/gen_1.jpg"),
                "TASK_INVALID",
                "`image_url` names a bucket that is not among those of --image-buckets",
            ),
            (strength(json!(1.5)), "TASK_INVALID", "`strength` is 1.5, must be a number from 0 to 1"),
            (strength(json!(0.1)), "TASK_INVALID", "`strength` is 0.1, must leave a step: 8 `num_inference_steps`"),
            (
                vec![("strength", json!(0.5))],
                "TASK_INVALID",
                "`image_url` is missing, must be there because `strength` is",
            ),
            (image(&none), "IMAGE_UNUSABLE", "`image_url` s3://stylelicense-models/uploads/none.png does not exist"),
            (image("s3://uploads/none.png"), "IMAGE_UNUSABLE", "`image_url` s3://uploads/none.png does not exist"),
            (image(&text), "IMAGE_UNUSABLE", "is no PNG, JPEG or WebP file"),
            (image(&cut), "IMAGE_UNUSABLE", "ends before the picture does"),
            (
                image(&large),
                "IMAGE_UNUSABLE",
                "bytes, the limit is 100000 by --max-image-bytes (EASEL_MAX_IMAGE_BYTES)",
            ),
            (image(&bomb), "IMAGE_UNUSABLE", "has 30000x30000 pixels, the limit is 25000000 in all"),
        ];
        for (fields, code, said) in cases {
            let task = next(&ctx, &task, &fields);
            assert!(!given_back(&function, &task.body()).await?, "{said}: it is given back");
            let failed = ctx.backend.end_of(task.id(), PATIENCE).await?;
            assert_eq!((failed.path.as_str(), &failed.body["error_code"]), (FAILED, &json!(code)), "{}", failed.line());
            assert!(failed.error_message().contains(said), "{} does not say {said}", failed.error_message());
            assert!(
                failed.error_message().starts_with("`image_url`") || failed.error_message().starts_with("`strength`")
            );
            assert_eq!(ctx.etag(&task).await, None, "something was painted");
        }
        let task = next(&ctx, &task, &image(&good));
        assert!(!given_back(&function, &task.body()).await?);
        ctx.painting(&task).await?;
        Ok(())
    });
}

#[test]
fn without_a_list_of_buckets_no_task_begins_from_a_picture() {
    case(|ctx| async move {
        let (function, task) = painter(&ctx, "images-unlisted", &[("EASEL_IMAGE_BUCKETS", "")]).await?;
        let url = put(&ctx, "uploads/listed-nowhere.png", &fs::read(repo().join(SKETCH))?).await?;
        let refused = next(&ctx, &task, &[("image_url", json!(url))]);
        assert!(!given_back(&function, &refused.body()).await?);
        let failed = ctx.backend.end_of(refused.id(), PATIENCE).await?;
        let said = "`image_url` names a bucket that is not among those of --image-buckets (EASEL_IMAGE_BUCKETS), which by default are none";
        assert_eq!((failed.path.as_str(), failed.error_message()), (FAILED, said));
        Ok(())
    });
}

#[test]
fn what_passes_is_tried_again_and_the_picture_is_painted_then() {
    case(|ctx| async move {
        let s3 = StubProxy::start(ctx.stack.aws.endpoint()).await?;
        let (function, task) = painter(&ctx, "images-s3", &[("AWS_ENDPOINT_URL_S3", s3.url().as_str())]).await?;
        let url = put(&ctx, "uploads/slow.png", &fs::read(repo().join(SKETCH))?).await?;
        let task = next(&ctx, &task, &[("image_url", json!(url)), ("strength", json!(0.25))]);
        for (status, code) in [(403, "AccessDenied"), (400, "ExpiredToken")] {
            s3.answer(move |asked| asked.path.ends_with("/slow.png").then(|| s3_error(status, code, "it")));
            assert!(given_back(&function, &task.body()).await?, "{code}: the message is lost");
            assert_eq!(ctx.backend.calls(), [], "{code}");
        }
        s3.pass();
        assert!(!given_back(&function, &task.body()).await?);
        ctx.painting(&task).await?;
        Ok(())
    });
}

#[test]
fn a_model_without_an_encoder_fails_these_tasks_and_no_others() {
    case(|ctx| async move {
        let function = function(&ctx, "images-no-encoder", &[BUCKETS]).await?;
        let url = put(&ctx, "uploads/unread.png", &fs::read(repo().join(SKETCH))?).await?;
        let task = ctx.task().with("image_url", url).with("strength", 1);
        assert!(!given_back(&function, &task.body()).await?);
        let failed = ctx.backend.end_of(task.id(), PATIENCE).await?;
        let said = failed.error_message();
        assert!(
            failed.path == FAILED && said.starts_with("`image_url` is given, but the model has no VAE encoder"),
            "{said}"
        );
        assert!(said.contains("`encoder.conv_in.bias`") || said.contains("`encoder."), "{said}");
        let plain = ctx.task();
        assert!(!given_back(&function, &plain.body()).await?);
        ctx.painting(&plain).await?;
        Ok(())
    });
}
