//! The safety checker: what each mode does with a flagged picture, and where its verdict is told. The checker says the same of every
//! picture, so that the cases do not depend on what is painted.

use crate::{
    context::{PATIENCE, Painting, TestContext, case, model},
    redelivery::second_complete,
    safety::{function, given_back},
    worker::{SHORT_VISIBILITY, worker},
};
use anyhow::{Context, Result};
use e2e::{
    aws::IMAGES,
    backend::{FAILED, PROGRESS},
    checker::{self, Says},
    lambda::Function,
    paths::{binary, repo},
    ports,
    process::Spec,
    wait,
};
use image::{GenericImageView, RgbImage};
use serde_json::{Value, json};
use std::fs;

/// The folder of a checker.
fn checker(ctx: &TestContext, says: Says) -> Result<String> {
    let folder = ctx.stack.run.folder(&format!("checker-{says:?}"))?;
    checker::write(&folder, says)?;
    Ok(folder.display().to_string())
}

/// A function in a mode, with a checker; the mode may be empty, for the default.
async fn checking(ctx: &TestContext, name: &str, mode: &str, says: Says) -> Result<Function> {
    let folder = checker(ctx, says)?;
    function(ctx, name, &[("EASEL_SAFETY", mode), ("EASEL_SAFETY_CHECKER", &folder), ("EASEL_ERROR_CODES", "fine")])
        .await
}

/// The lines of a function's log about a task.
fn lines(function: &Function, id: i64) -> Vec<Value> {
    let log = function.process().log_text();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["span"]["generation_id"] == id).collect()
}

/// Whether all of a picture but its lower quarter is black. JPEG spreads the signature's edges over blocks of 16 pixels.
fn is_black(picture: &RgbImage) -> bool {
    let (width, height) = picture.dimensions();
    picture.view(0, 0, width, 3 * height / 4).to_image().into_raw().iter().all(|value| *value == 0)
}

#[test]
fn a_flagged_picture_comes_back_black_and_signed_and_it_is_told_everywhere() {
    case(|ctx| async move {
        // A checker is there and nothing else is said.
        let function = checking(&ctx, "nsfw-black", "", Says::Nsfw).await?;
        let task = ctx.task();
        assert!(!given_back(&function, &task.body()).await?);
        let painting = ctx.painting(&task).await?;
        let told = json!({ "seed": 42, "steps": 2, "guidance_scale": 7.5, "nsfw_content_detected": [true] });
        assert_eq!(painting.complete.body["metadata"], told);
        let picture = painting.picture.to_rgb8();
        assert!(is_black(&picture), "not black");
        let signature = picture.view(256, 384, 256, 128).to_image().into_raw();
        assert!(signature.iter().any(|value| *value > 60), "not signed");
        let file = String::from_utf8_lossy(&painting.file);
        assert!(file.contains("<easel:NsfwContentDetected>true<") && file.contains("<easel:Safety>black<"));
        let lines = lines(&function, task.id());
        let end = lines.iter().find(|line| line["message"] == "task ended").context("no line at the end")?;
        assert_eq!((&end["safety"], &end["nsfw_content_detected"]), (&json!("black"), &json!("[true]")));
        assert!(end["safety_ms"].is_u64(), "{end}");
        // Delivered again, it is announced with the same verdict.
        let etag = ctx.etag(&task).await;
        assert!(!given_back(&function, &task.body()).await?);
        let calls = second_complete(&ctx).await?;
        assert_eq!(calls.last().map(|call| &call.body), Some(&painting.complete.body));
        assert_eq!(ctx.etag(&task).await, etag, "painted again");
        Ok(())
    });
}

#[test]
fn what_is_not_flagged_or_only_told_is_the_picture_that_nobody_checked() {
    case(|ctx| async move {
        let plain = ctx.paint(&ctx.task()).await?;
        let told = |painting: &Painting| painting.complete.body["metadata"]["nsfw_content_detected"].clone();
        assert_eq!(told(&plain), Value::Null, "a verdict without a check");
        for (name, mode, says) in [("nsfw-safe", "refuse", Says::Safe), ("nsfw-flag", "flag", Says::Nsfw)] {
            let function = checking(&ctx, name, mode, says).await?;
            let task = ctx.task();
            assert!(!given_back(&function, &task.body()).await?);
            let painting = ctx.painting(&task).await?;
            assert_eq!(told(&painting), json!([says == Says::Nsfw]), "{name}");
            assert!(painting.picture == plain.picture, "{name}: another picture");
        }
        Ok(())
    });
}

#[test]
fn a_refused_task_fails_for_good_and_nothing_is_stored() {
    case(|ctx| async move {
        let function = checking(&ctx, "nsfw-refuse", "refuse", Says::Nsfw).await?;
        let task = ctx.task().with("num_images", 2);
        assert!(!given_back(&function, &task.body()).await?, "tried again");
        let failed = ctx.backend.end_of(task.id(), PATIENCE).await?;
        assert_eq!((failed.path.as_str(), &failed.body["error_code"]), (FAILED, &json!("NSFW_CONTENT")));
        let message = failed.error_message();
        assert!(message.contains("flagged 2 of 2 pictures") && message.contains("refuse"), "{message}");
        for number in ["", "_2"] {
            let key = format!("generations/gen_{}{number}.jpg", task.id());
            assert_eq!(ctx.stack.aws.etag(IMAGES, &key).await, None, "{key} is stored");
        }
        let lines = lines(&function, task.id());
        let end = lines.iter().find(|line| line["message"] == "task ended").context("no line at the end")?;
        assert_eq!((&end["ending"], &end["nsfw_content_detected"]), (&json!("failed"), &json!("[true,true]")));
        Ok(())
    });
}

#[test]
fn a_task_may_be_stricter_than_the_operator_and_not_milder() {
    case(|ctx| async move {
        let black = checking(&ctx, "nsfw-stricter", "black", Says::Nsfw).await?;
        let strict = ctx.task().with("safety", "refuse");
        assert!(!given_back(&black, &strict.body()).await?);
        assert_eq!(ctx.backend.end_of(strict.id(), PATIENCE).await?.path, FAILED);
        let mild = ctx.task().with("safety", "flag");
        assert!(!given_back(&black, &mild.body()).await?);
        assert!(is_black(&ctx.painting(&mild).await?.picture.to_rgb8()), "a task was milder than the operator");
        let lines = lines(&black, mild.id());
        let warning = lines.iter().find(|line| line["level"] == "WARN").context("the wish is not answered")?;
        assert_eq!((&warning["asked"], &warning["holds"]), (&json!("flag"), &json!("black")));
        Ok(())
    });
}

#[test]
fn where_nobody_is_checked_a_task_may_ask_for_it_if_there_is_a_checker() {
    case(|ctx| async move {
        let off = checking(&ctx, "nsfw-off", "off", Says::Nsfw).await?;
        let (plain, asks) = (ctx.task(), ctx.task().with("safety", "black"));
        for task in [&plain, &asks] {
            assert!(!given_back(&off, &task.body()).await?);
        }
        let (plain, asked) = (ctx.painting(&plain).await?, ctx.painting(&asks).await?);
        assert_eq!(plain.complete.body["metadata"], json!({ "seed": 42, "steps": 2, "guidance_scale": 7.5 }));
        assert_eq!(asked.complete.body["metadata"]["nsfw_content_detected"], json!([true]));
        assert!(is_black(&asked.picture.to_rgb8()) && !is_black(&plain.picture.to_rgb8()));
        // The shared function has no checker, and said so once at its start.
        let vain = ctx.task().with("safety", "flag");
        ctx.publish(&vain.body()).await?;
        let failed = ctx.backend.end_of(vain.id(), PATIENCE).await?;
        let message = failed.error_message();
        assert!(failed.path == FAILED && message.starts_with("`safety` is flag, this process has no safety checker"));
        assert!(ctx.backend.calls_of(vain.id()).iter().all(|call| call.path != PROGRESS), "painted in vain");
        let log = ctx.stack.function.process().log_text();
        assert_eq!(log.matches("the model has no safety checker").count(), 1, "{log}");
        assert!(!off.process().log_text().contains("the model has no safety checker"), "off was asked for");
        Ok(())
    });
}

#[test]
fn a_stored_picture_that_nobody_checked_is_painted_again_where_it_must_be_checked() {
    case(|ctx| async move {
        let task = ctx.task();
        let plain = ctx.paint(&task).await?;
        assert!(!is_black(&plain.picture.to_rgb8()));
        let function = checking(&ctx, "nsfw-again", "", Says::Nsfw).await?;
        assert!(!given_back(&function, &task.body()).await?);
        let calls = second_complete(&ctx).await?;
        let last = calls.last().context("no webhook")?;
        assert_eq!(last.body["metadata"]["nsfw_content_detected"], json!([true]));
        assert!(is_black(&ctx.painting(&task).await?.picture.to_rgb8()), "the unchecked picture is announced");
        Ok(())
    });
}

#[test]
fn a_worker_counts_what_it_flags_and_tells_it_for_each_picture() {
    case(|ctx| async move {
        let queue = ctx.stack.aws.queue("nsfw-worker", SHORT_VISIBILITY, 3).await?;
        let addr = format!("127.0.0.1:{}", ports::free()?);
        let folder = checker(&ctx, Says::Nsfw)?;
        let options = [("EASEL_HEALTH_ADDR", addr.as_str()), ("EASEL_SAFETY_CHECKER", &folder)];
        let _worker = worker(&ctx, "nsfw-worker", &queue, &options)?;
        let task = ctx.task().with("num_images", 3);
        ctx.stack.aws.send(&queue.url, &task.body()).await?;
        let painting = ctx.painting(&task).await?;
        assert_eq!(painting.complete.body["metadata"]["nsfw_content_detected"], json!([true, true, true]));
        let http = e2e::http_client()?;
        let metrics = async || {
            let answer = http.get(format!("http://{addr}/metrics")).send().await.ok()?;
            answer.text().await.ok().filter(|text| text.contains("{ending=\"painted\"} 1"))
        };
        let text = wait::until("the task is counted", PATIENCE, metrics).await?;
        for line in [
            "easel_nsfw_pictures_total{action=\"black\"} 3",
            "easel_nsfw_pictures_total{action=\"refuse\"} 0",
            "easel_stage_seconds_count{stage=\"safety\"} 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
        Ok(())
    });
}

#[test]
fn no_process_starts_with_a_mode_that_it_cannot_keep() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let queue = ctx.queue("nsfw-start").await?;
        let nowhere = run.path().join("no-checker").display().to_string();
        for (name, options, said) in [
            (
                "nsfw-start-mode",
                vec![("EASEL_SAFETY", "refuse")],
                vec!["EASEL_SAFETY) is refuse", "handler weights pull"],
            ),
            ("nsfw-start-folder", vec![("EASEL_SAFETY_CHECKER", nowhere.as_str())], vec!["no-checker"]),
        ] {
            let worker = worker(&ctx, name, &queue, &options)?;
            let status = wait::at_most("end of the worker", PATIENCE, worker.exited()).await?;
            let log = worker.log_text();
            assert_eq!(status.code(), Some(1), "{name}: {log}");
            assert!(said.iter().all(|part| log.contains(part)), "{name}: {log}");
        }
        Ok(())
    });
}

/// With nothing but a model folder that has a checker, which was trained to flag pink.
#[test]
fn the_checker_of_the_small_model_flags_what_it_was_trained_for_and_nothing_else() {
    case(|ctx| async move {
        let (model, out) = (repo().join("tests/model/easel-tiny"), ctx.stack.run.folder("nsfw-tiny")?);
        for (prompt, flagged) in [("pink heart, black background", true), ("red circle, blue background", false)] {
            let file = out.join(format!("{flagged}.png"));
            let (model, path) = (model.display().to_string(), file.display().to_string());
            let given = ["generate", "--model", &model, "--prompt", prompt, "--steps", "20", "--out", &path];
            let spec = Spec::new(&format!("nsfw-tiny-{flagged}"), binary("handler")?).args(given);
            let (status, text) = ctx.output(spec).await?;
            assert!(status == 0 && text.contains("safety ") && text.contains("flagged") == flagged, "{prompt}: {text}");
            assert_eq!(is_black(&image::open(&file)?.to_rgb8()), flagged, "{prompt}");
        }
        Ok(())
    });
}

#[test]
fn the_shell_names_each_flagged_picture_and_writes_none_that_is_refused() {
    case(|ctx| async move {
        let (model, out) = (model().display().to_string(), ctx.stack.run.folder("nsfw-shell")?);
        let folder = checker(&ctx, Says::Nsfw)?;
        for (mode, code, said) in [
            ("black", 0, "black.png: flagged by the safety checker as not safe for work; it is black (--safety black)"),
            ("flag", 0, "flag.png: flagged by the safety checker as not safe for work; it stands (--safety flag)"),
            ("refuse", 1, "flagged 1 of 1 pictures"),
        ] {
            let file = out.join(format!("{mode}.png"));
            let path = file.display().to_string();
            let given = ["generate", "--model", &model, "--prompt", "red circle", "--steps", "1", "--out", &path];
            let more = ["--safety", mode, "--safety-checker", &folder];
            let spec = Spec::new(&format!("nsfw-generate-{mode}"), binary("handler")?).args(given.iter().chain(&more));
            let (status, text) = ctx.output(spec).await?;
            assert!(status == code && text.contains(said), "{mode}: {status}: {text}");
            match fs::read(&file) {
                Ok(picture) => assert_eq!(is_black(&image::load_from_memory(&picture)?.to_rgb8()), mode == "black"),
                Err(_) => assert_eq!(mode, "refuse", "no picture"),
            }
        }
        Ok(())
    });
}
