//! `handler doctor`: every check is ok where all is well, and each problem has one line with the remedy.

use crate::{
    context::{TestContext, case, lora_file, model},
    weights_models::renamed,
};
use anyhow::Result;
use e2e::{
    aws::{IMAGES, MODELS},
    paths::binary,
    ports,
    process::Spec,
    stack::TOKEN,
};
use std::{fs, time::Duration};

const VISIBILITY: Duration = Duration::from_secs(900);
/// Its checks.
const LINES: [&str; 16] = [
    "model.folder ",
    "model.safety: off",
    "model.manifest",
    "model.load",
    "gpu",
    "fonts",
    "cache ",
    "aws.credentials",
    "secrets",
    "s3.pictures stylelicense-images",
    "s3.lora-bucket stylelicense-models",
    "s3.payload-bucket stylelicense-payloads",
    "s3.lora s3://stylelicense-models/doctor.safetensors",
    "sqs.queue ",
    "sqs.visibility-timeout",
    "sqs.redrive-policy",
];

/// Runs it with the variables of a function that works and `changed`; its exit code and output.
pub(crate) async fn doctor(
    ctx: &TestContext,
    name: &str,
    queue: &str,
    changed: &[(&str, &str)],
) -> Result<(i32, String)> {
    let (timeout, backend) = ((VISIBILITY.as_secs() / 6).to_string(), ctx.backend.url());
    let mut spec = Spec::new(&format!("doctor-{name}"), binary("handler")?)
        .args(["doctor"])
        .envs(ctx.env("doctor")?)
        .env("EASEL_DEVICE", "cpu")
        .env("EASEL_LORA_BUCKETS", MODELS)
        .env("EASEL_DOCTOR_LORA_URL", "s3://stylelicense-models/doctor.safetensors")
        .env("EASEL_DOCTOR_WEBHOOK_URL", backend)
        .env("EASEL_FUNCTION_TIMEOUT", timeout)
        .env("SQS_QUEUE_URL", queue);
    for (variable, value) in changed {
        spec = match *variable {
            "" => spec.args([*value]),
            variable => spec.env(variable, *value),
        };
    }
    let (code, text) = ctx.output(spec).await?;
    assert!(!text.contains(TOKEN), "it shows the token: {text}");
    Ok((code, text))
}

#[test]
fn where_all_is_well_every_line_says_so_and_nothing_is_left_behind() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("doctor", VISIBILITY, 3).await?.url;
        aws.put(MODELS, "doctor.safetensors", fs::read(lora_file())?).await?;
        let (code, text) = doctor(&ctx, "well", &queue, &[("", "--load")]).await?;
        assert_eq!(code, 0, "{text}");
        for line in LINES {
            assert!(text.lines().any(|said| said.starts_with(&format!("ok   {line}"))), "no word of {line}:\n{text}");
        }
        assert!(text.contains("ok   webhooks.backend 127.0.0.1: answers HEAD with 200"), "{text}");
        // The cases' backend has a private address.
        assert!(text.contains("warn webhooks.hosts") && !text.contains("FAIL"), "{text}");
        let base = format!("{}/{IMAGES}", aws.endpoint());
        assert!(
            text.contains(&format!("warn s3.result-url {base}: ")) && text.contains("EASEL_RESULT_BASE_URL"),
            "{text}"
        );
        let calls = ctx.backend.calls();
        assert!(
            calls.iter().all(|call| call.method == "HEAD" && !call.headers.contains_key("authorization")),
            "{calls:?}"
        );
        assert_eq!(aws.etag(IMAGES, "generations/.easel-doctor").await, None);
        Ok(())
    });
}

#[test]
fn what_is_wrong_is_named_with_its_remedy() {
    case(|ctx| async move {
        let (aws, run) = (&ctx.stack.aws, &ctx.stack.run);
        let queue = aws.queue("doctor-wrong", VISIBILITY, 3).await?.url;
        aws.put(MODELS, "doctor.safetensors", fs::read(lora_file())?).await?;
        let (empty, cut) = (run.folder("doctor-empty")?.display().to_string(), run.folder("doctor-cut")?);
        let weights = "unet/diffusion_pytorch_model.safetensors";
        copy(&model(), &cut)?;
        fs::write(cut.join(weights), &fs::read(model().join(weights))?[..100])?;
        let (cut, gone) = (cut.display().to_string(), format!("{queue}-gone"));
        let (ldm, schedule) = (run.folder("doctor-ldm")?, run.folder("doctor-schedule")?);
        copy(&model(), &ldm)?;
        let file = fs::read(ldm.join(weights))?;
        fs::write(ldm.join(weights), renamed(&file, |name| format!("model.diffusion_model.{name}"))?)?;
        copy(&model(), &schedule)?;
        fs::write(schedule.join("scheduler/scheduler_config.json"), r#"{"thresholding": true}"#)?;
        let (ldm, schedule) = (ldm.display().to_string(), schedule.display().to_string());
        let (nobody, no_aws) = (ports::free()?, ports::free()?);
        let (nobody, no_aws) = (format!("http://127.0.0.1:{nobody}"), format!("http://127.0.0.1:{no_aws}"));
        for (name, variable, value, line, remedy) in [
            ("no-model", "EASEL_MODEL_DIR", empty.as_str(), "FAIL model.folder ", "handler weights pull"),
            ("cut-model", "EASEL_MODEL_DIR", &cut, "FAIL model.folder ", weights),
            ("ldm-model", "EASEL_MODEL_DIR", &ldm, "FAIL model.folder ", "names of the original Stable Diffusion code"),
            ("scheduler", "EASEL_MODEL_DIR", &schedule, "FAIL model.folder ", "`thresholding` is true"),
            ("no-checker", "EASEL_SAFETY", "black", "FAIL model.safety", "EASEL_SAFETY_CHECKER"),
            ("no-cache", "EASEL_CACHE_DIR", "/proc/easel", "FAIL cache /proc/easel", "EASEL_CACHE_DIR"),
            ("small", "EASEL_CACHE_RESERVE_BYTES", "9000000000000000", "FAIL cache ", "make room"),
            ("no-bucket", "S3_BUCKET", "not-a-bucket", "FAIL s3.pictures not-a-bucket: does not exist", "S3_BUCKET"),
            (
                "no-loras",
                "EASEL_LORA_BUCKETS",
                "not-a-bucket",
                "FAIL s3.lora-bucket not-a-bucket",
                "EASEL_LORA_BUCKETS",
            ),
            ("no-payloads", "EASEL_PAYLOAD_BUCKET", "not-a-bucket", "FAIL s3.payload-bucket ", "EASEL_PAYLOAD_BUCKET"),
            ("no-lora", "EASEL_DOCTOR_LORA_URL", "s3://stylelicense-models/no", "FAIL s3.lora ", "--lora-url"),
            ("no-queue", "SQS_QUEUE_URL", &gone, "FAIL sqs.queue ", "SQS_QUEUE_URL"),
            ("impatient", "EASEL_FUNCTION_TIMEOUT", "901", "FAIL sqs.visibility-timeout", "set it to 5406 s"),
            ("give-up", "EASEL_MAX_RECEIVE_COUNT", "4", "FAIL sqs.redrive-policy", "EASEL_MAX_RECEIVE_COUNT"),
            ("nobody", "EASEL_DOCTOR_WEBHOOK_URL", &nobody, "FAIL webhooks.backend 127.0.0.1", "check its name"),
            ("unlisted", "EASEL_WEBHOOK_HOSTS", "example.org", "FAIL webhooks.backend ", "EASEL_WEBHOOK_HOSTS"),
            ("no-aws", "AWS_ENDPOINT_URL", &no_aws, "FAIL s3.pictures ", "check the network"),
        ] {
            let (code, text) = doctor(&ctx, name, &queue, &[(variable, value)]).await?;
            assert_eq!(code, 1, "{name}: {text}");
            let said = text.lines().find(|said| said.starts_with(line));
            assert!(said.is_some_and(|said| said.contains(remedy)), "{name}: no `{line}` with `{remedy}`:\n{text}");
        }
        Ok(())
    });
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let (entry, to) = (entry?, to);
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&to)?;
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}
