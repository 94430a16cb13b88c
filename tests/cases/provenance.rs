//! The metadata of a picture's file, as the independent readers Pillow and exiftool find it.

use crate::context::{PATIENCE, TestContext, case, lora_file, model};
use anyhow::{Context, Result, ensure};
use e2e::{
    aws::IMAGES,
    paths::{RunDir, binary, repo, tool},
    process::{Spec, output},
    task::Task,
};
use handler::task::Format;
use serde_json::{Value, json};
use std::{fs, path::Path};

const TRAINED: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";
const GENERATOR: &str = concat!("Easel ", env!("CARGO_PKG_VERSION"));

/// What the readers find in a file.
async fn read(run: &RunDir, name: &str, file: &Path) -> Result<Value> {
    let script = repo().join("tests/read_picture.py");
    let spec = Spec::new(name, tool("python")?).args([script.as_path(), file]);
    let (status, text) = output(run, spec, PATIENCE).await?;
    ensure!(status.success(), "{text}");
    let found: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    Ok(found[0].clone())
}

/// Paints a task and reads its file.
async fn paint_and_read(ctx: &TestContext, task: &Task) -> Result<(Vec<u8>, Value)> {
    let painting = ctx.paint(task).await?;
    let name = format!("provenance-{}", task.id());
    let file = ctx.stack.run.folder("provenance")?.join(&name);
    fs::write(&file, &painting.file)?;
    Ok((painting.file, read(&ctx.stack.run, &name, &file).await?))
}

#[test]
fn independent_readers_find_the_same_in_every_format() {
    case(|ctx| async move {
        let lora = fs::read(lora_file())?;
        for format in Format::ALL {
            let task = ctx.task().with("output_format", format.name()).with("artist_name", "Łucja <김> & Co");
            let task = task.with("created_at", "2026-11-25T15:04:05.5+01:00").with("lora_scale", 0.5);
            let (file, found) = paint_and_read(&ctx, &task).await?;
            let (pillow, exiftool) = (&found["pillow"], &found["exiftool"]);
            assert_eq!(
                (&pillow["format"], &pillow["size"]),
                (&json!(format.name().to_uppercase()), &json!([512, 512]))
            );
            assert_eq!(exiftool["ExifTool:Validate"], "OK", "{format}: {found:#}");

            let exif = &pillow["exif"];
            assert_eq!(exif["Software"], GENERATOR);
            assert_eq!(exif["DateTimeOriginal"], "2026:11:25 14:04:05");
            assert_eq!(exif["OffsetTimeOriginal"], "+00:00");
            let comment = exiftool["ExifIFD:UserComment"].as_str().context("a comment")?;
            assert!(
                comment.contains(&format!("Task: {}, Model: toy-model, Seed: 42, Steps: 2", task.id())),
                "{comment}"
            );

            let about = &pillow["xmp"]["xmpmeta"]["RDF"]["Description"];
            assert_eq!(about["DigitalSourceType"], TRAINED, "{format}: {about:#}");
            assert_eq!(about["creator"]["Seq"]["li"], "Łucja <김> & Co");
            for (field, value) in [
                ("XMP-xmp:CreatorTool", json!(GENERATOR)),
                ("XMP-dc:Creator", json!(["Łucja <김> & Co"])),
                ("XMP-xmp:CreateDate", json!("2026:11:25 14:04:05Z")),
                ("XMP-iptcExt:DigitalSourceType", json!(TRAINED)),
                ("XMP-easel:GenerationId", json!(task.id())),
                ("XMP-easel:Model", json!("toy-model")),
                ("XMP-easel:Seed", json!(42)),
                ("XMP-easel:Steps", json!(2)),
                ("XMP-easel:GuidanceScale", json!(7.5)),
                ("XMP-easel:Scheduler", json!("dpmsolver++")),
                ("XMP-easel:Loras", json!([{ "Scale": 0.5, "Sha256": sha256(&lora) }])),
            ] {
                assert_eq!(exiftool[field], value, "{format} {field}: {exiftool:#}");
            }
            assert!(!holds(&file, "circle"), "{format}: the prompt is in the file");
        }
        Ok(())
    });
}

#[test]
fn a_task_that_is_painted_again_gives_the_same_bytes() {
    case(|ctx| async move {
        let task = ctx.task();
        let first = ctx.paint(&task).await?;
        ctx.stack.aws.delete(IMAGES, &task.key()).await?;
        ctx.publish(&task.body()).await?;
        let calls = crate::redelivery::second_complete(&ctx).await?;
        assert!(calls.len() > first.progress.len() + 2, "not painted again");
        assert!(ctx.painting(&task).await?.file == first.file, "other bytes");
        Ok(())
    });
}

#[test]
fn prompts_are_written_where_the_operator_wants_them() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let folder = run.folder("provenance")?;
        let each = Format::ALL.iter().map(|format| (format.extension(), true));
        for (ending, wanted) in each.chain([("webp", false)]) {
            let name = format!("prompt-{wanted}.{ending}");
            let file = folder.join(&name);
            let (model, out) = (model().display().to_string(), file.display().to_string());
            let mut args = vec!["generate", "--model", &model, "--prompt", "zażółć <red> circle", "--out", &out];
            args.extend(["--steps", "1", "--negative-prompt", "blurry"]);
            let setting = if wanted { "true" } else { "false" };
            let spec = Spec::new(&name, binary("handler")?).args(args).env("EASEL_METADATA_PROMPT", setting);
            let (status, text) = output(run, spec, PATIENCE).await?;
            ensure!(status.success(), "{text}");
            let found = read(run, &format!("read-{name}"), &file).await?;
            let about = &found["pillow"]["xmp"]["xmpmeta"]["RDF"]["Description"];
            assert_eq!(about["GenerationId"], Value::Null);
            let comment = found["exiftool"]["ExifIFD:UserComment"].as_str().context("a comment")?;
            let start = "zażółć <red> circle\nNegative prompt: blurry\nModel: ";
            assert_eq!(comment.starts_with(start), wanted, "{comment}");
            let prompt = if wanted { json!("zażółć <red> circle") } else { Value::Null };
            assert_eq!(about["AIPromptInformation"], prompt);
            assert_eq!(holds(&fs::read(&file)?, "blurry"), wanted, "{name}");
        }
        Ok(())
    });
}

/// Whether a file holds a word, in UTF-8 or UTF-16.
fn holds(file: &[u8], word: &str) -> bool {
    let wide: Vec<u8> = word.encode_utf16().flat_map(u16::to_be_bytes).collect();
    [word.as_bytes(), &wide].into_iter().any(|word| file.windows(word.len()).any(|window| window == word))
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(bytes))
}
