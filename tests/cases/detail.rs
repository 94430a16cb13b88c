//! What the backend hears where the operator wants more: details in `complete`, progress at other marks, and previews.

use crate::{
    context::{PATIENCE, case},
    redelivery::second_complete,
    worker::{SHORT_VISIBILITY, worker},
};
use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};
use e2e::{backend::COMPLETE, paths::binary, process::Spec};
use image::{GenericImageView, ImageFormat};
use serde_json::{Value, json};

#[test]
fn complete_tells_how_the_picture_came_about_if_the_operator_wants_it() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("detail", SHORT_VISIBILITY, 3).await?;
        let worker = worker(&ctx, "detail", &queue, &[("EASEL_WEBHOOK_DETAIL", "full")])?;
        let tags: Vec<String> =
            (0..80).map(|number| format!("cat{}", if number == 79 { " dog" } else { "" })).collect();
        let task = ctx.task().with("width", 264).with("height", 256).with("scheduler", "euler").with("lora_scale", 0.5);
        let task = task.with("aspect_ratio", "2:2").with("prompt_tags", json!(tags)).with("artist_name", "Ada 🦀");
        aws.send(&queue.url, &task.body()).await?;
        let complete = ctx.painting(&task).await?.complete;
        let metadata = &complete.body["metadata"];
        let told: Vec<&String> = metadata.as_object().context("no metadata")?.keys().collect();
        let mut wanted = vec![
            "guidance_scale",
            "height",
            "loras",
            "model",
            "scheduler",
            "seed",
            "steps",
            "timings",
            "warnings",
            "width",
        ];
        // An object of serde_json may keep its order.
        wanted.sort_unstable_by_key(|name| told.iter().position(|key| key == name));
        assert_eq!(told, wanted);
        for (field, value) in [
            ("seed", json!(42)),
            ("steps", json!(2)),
            ("guidance_scale", json!(7.5)),
            ("scheduler", json!("euler")),
            ("width", json!(264)),
            ("height", json!(256)),
        ] {
            assert_eq!(metadata[field], value, "{field}");
        }
        assert!(metadata["model"].as_str().is_some_and(|name| !name.is_empty() && !name.contains('/')), "{metadata}");
        let lora = &metadata["loras"][0];
        assert_eq!((&lora["scale"], lora["hash"].as_str().map(str::len)), (&json!(0.5), Some(64)));
        let url = serde_json::from_str::<Value>(&task.body())?["lora_model_url"].clone();
        let name = lora["name"].as_str().context("no name")?;
        assert!(url.as_str().is_some_and(|url| url.ends_with(&format!("/{name}"))), "{name} of {url}");
        for stage in ["queue", "fetch", "wait", "denoise", "decode", "upload"] {
            assert!(metadata["timings"][stage].is_u64(), "{stage}: {metadata}");
        }
        let codes = |metadata: &Value| {
            let warnings = metadata["warnings"].as_array().cloned().unwrap_or_default();
            warnings.iter().map(|warning| warning["code"].as_str().unwrap_or_default().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(codes(metadata), ["aspect_ratio_ignored", "no_glyph", "prompt_cut"]);
        let cut = &metadata["warnings"][2]["message"];
        assert!(
            cut.as_str().is_some_and(|text| text
                .contains("of which the first 75 count: the last tag that counts whole is number ")
                && text.ends_with(" of 80, `cat`")),
            "{cut}"
        );
        // Delivered again: what painting alone tells is not known any more.
        aws.send(&queue.url, &task.body()).await?;
        let calls = second_complete(&ctx).await?;
        let again = calls.iter().rfind(|call| call.path == COMPLETE).context("no complete")?;
        assert_eq!(again.headers["webhook-id"], complete.headers["webhook-id"]);
        let metadata = &again.body["metadata"];
        assert_eq!((&metadata["timings"], &metadata["model"]), (&Value::Null, &Value::Null));
        assert_eq!(metadata["loras"][0], json!({ "name": name, "scale": 0.5 }));
        assert_eq!(codes(metadata), ["aspect_ratio_ignored", "no_glyph"]);
        // A task that gets what it asks for.
        let plain = ctx.task();
        aws.send(&queue.url, &plain.body()).await?;
        assert_eq!(ctx.painting(&plain).await?.complete.body["metadata"]["warnings"], json!([]));
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

#[test]
fn progress_comes_at_the_operators_marks_and_with_a_preview() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("marks", SHORT_VISIBILITY, 3).await?;
        let options = [("EASEL_PROGRESS", "every:20"), ("EASEL_PROGRESS_PREVIEW", "true"), ("EASEL_BATCH", "2")];
        let worker = worker(&ctx, "marks", &queue, &options)?;
        let task = ctx.task().with("num_inference_steps", 10).with("num_images", 2);
        aws.send(&queue.url, &task.body()).await?;
        let painting = ctx.painting(&task).await?;
        let steps: Vec<&Value> = painting.progress.iter().map(|call| &call.body["progress"]["current_step"]).collect();
        assert_eq!(steps, [0, 2, 4, 6, 8]);
        let mut previews = Vec::new();
        for call in &painting.progress {
            let Some(preview) = call.body["preview"].as_str() else {
                assert_eq!(call.body["progress"]["current_step"], 0, "no preview");
                continue;
            };
            let file = BASE64_STANDARD.decode(preview)?;
            assert!(file.len() < 10_000, "{} bytes", file.len());
            assert_eq!(image::guess_format(&file)?, ImageFormat::Jpeg);
            assert_eq!(image::load_from_memory(&file)?.dimensions(), (64, 64));
            previews.push(file);
        }
        assert_eq!(previews.len(), 4);
        // What they show is tested with a model that paints.
        assert!(previews[0] != previews[3], "the painting does not move");
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

#[test]
fn bad_values_are_refused_at_the_start_and_named() {
    case(|ctx| async move {
        for (variable, value, said) in [
            ("EASEL_WEBHOOK_DETAIL", "some", "seed, full"),
            ("EASEL_PROGRESS", "0,25,101", "whole percentages from 0 to 100"),
            ("EASEL_PROGRESS", "every:0", "every:N"),
            ("EASEL_PROGRESS_PREVIEW", "perhaps", "true, false"),
        ] {
            let spec = Spec::new("detail-bad", binary("handler")?).args(["function"]).envs(ctx.env("detail-bad")?);
            let (code, text) = ctx.output(spec.env(variable, value)).await?;
            assert_eq!(code, 64, "{variable}: {text}");
            assert!(text.contains(variable) && text.contains(said), "{text}");
        }
        Ok(())
    });
}
