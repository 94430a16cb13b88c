//! No program starts with a variable that begins or ends with whitespace, such as the line break at the end of a file.

use crate::context::{TestContext, case};
use anyhow::Result;
use e2e::{paths::binary, process::Spec};
use futures_util::{StreamExt, TryStreamExt, stream};
use regex::Regex;

const USAGE: i32 = 64;
/// Programs that run at the same time.
const AT_ONCE: usize = 4;
/// Variables that are trimmed.
const TRIMMED: [&str; 6] = [
    "AMQP_URL",
    "RELAY_ATTRIBUTES",
    "EASEL_WEBHOOK_HOSTS",
    "EASEL_LORA_BUCKETS",
    "EASEL_IMAGE_BUCKETS",
    "EASEL_WEBHOOK_SECRET",
];
/// Some variables of the SDK; the unit tests have all of them.
const OF_AWS: [&str; 8] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_ENDPOINT_URL_SQS",
    "AWS_MAX_ATTEMPTS",
    "AWS_RETRY_MODE",
    "AWS_CA_BUNDLE",
];

/// Runs a program that would work without `changed`; its exit code and output.
async fn run(
    ctx: &TestContext,
    name: &str,
    program: &str,
    args: &[&str],
    changed: &[(&str, &str)],
) -> Result<(i32, String)> {
    let stack = ctx.stack;
    let spec = Spec::new(name, binary(program)?)
        .envs(ctx.env("variables")?)
        .env("AMQP_URL", stack.broker.url())
        .env("SQS_QUEUE_URL", "http://127.0.0.1/123456789012/tasks")
        .args(args)
        .envs(changed.iter().copied());
    ctx.output(spec).await
}

#[test]
fn no_program_takes_a_variable_with_a_line_break_at_its_end() {
    case(|ctx| async move {
        let ctx = &ctx;
        let variable = Regex::new(r"\[env: ([A-Z0-9_]+)[=\]]")?;
        let (pull, none) = (["weights", "pull", "--repo", "a/b", "--to", "/nowhere"], [""; 0]);
        let mut cases = Vec::new();
        for (program, args, of_aws) in [
            ("relay", &none[..], true),
            ("relay", &["--check"], true),
            ("handler", &["function"], true),
            ("handler", &["worker"], true),
            ("handler", &["doctor"], true),
            ("handler", &pull, false),
            ("handler", &["weights", "fetch", "s3://models/sd15", "--to", "/nowhere"], true),
            ("handler", &["generate", "--prompt", "x", "--out", "/nowhere/x.png"], false),
            ("handler", &["bench", "file"], false),
        ] {
            let help = [args, &["--help"]].concat();
            let words: Vec<&str> = args.iter().take(2).map(|word| word.trim_start_matches('-')).collect();
            let name = format!("variables-{program}-{}", words.join("-"));
            let (_, said) = run(ctx, &format!("{name}-help"), program, &help, &[]).await?;
            let mut names: Vec<String> = variable.captures_iter(&said).map(|found| found[1].to_string()).collect();
            // The worker has the options that function and doctor share with it.
            names.retain(|found| match args {
                ["function" | "--check"] => false,
                ["doctor"] => found.contains("DOCTOR") || found.contains("FUNCTION"),
                _ => !TRIMMED.contains(&found.as_str()),
            });
            names.extend(OF_AWS.iter().filter(|_| of_aws).map(ToString::to_string));
            assert!(!names.is_empty(), "{program} {args:?}: {said}");
            cases.extend(names.into_iter().map(|found| (name.clone(), program, args, found)));
        }
        assert!(cases.len() > 100, "{}", cases.len());
        stream::iter(cases.into_iter().map(|(name, program, args, variable)| async move {
            let name = format!("{name}-{variable}");
            let (code, said) = run(ctx, &name, program, args, &[(&variable, "1\n")]).await?;
            assert!(code == USAGE && said.contains(&variable), "{program} {args:?} with {variable}: {code}: {said}");
            anyhow::Ok(())
        }))
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
        Ok(())
    });
}

#[test]
fn what_is_no_name_of_a_queue_or_bucket_is_refused_by_the_variables_name() {
    case(|ctx| async move {
        for (number, (program, args, variable, value)) in [
            ("relay", "--check", "SQS_QUEUE_URL", "http://127.0.0.1/1/tasks.fifo\n"),
            ("relay", "--check", "SQS_QUEUE_URL", "http://127.0.0.1/1/tasks.fifo/"),
            ("relay", "--check", "RELAY_PAYLOAD_BUCKET", "pics\n"),
            ("handler", "worker", "SQS_QUEUE_URL", "http://127.0.0.1/1/tasks.fifo\n"),
            ("handler", "worker", "S3_BUCKET", "pics\n"),
            ("handler", "function", "S3_BUCKET", "s3://pics"),
            ("handler", "doctor", "EASEL_PAYLOAD_BUCKET", "Pics"),
            ("handler", "worker", "EASEL_MODEL_URL", "my-models/sd15"),
            ("handler", "doctor", "EASEL_MODEL_URL", "s3://my-models"),
            ("handler", "worker", "AWS_ENDPOINT_URL", "localhost:4566"),
            ("relay", "--check", "AWS_REGION", "eu central 1"),
            ("relay", "--check", "AWS_ACCESS_KEY_ID", "AKIA\nEXAMPLE"),
        ]
        .into_iter()
        .enumerate()
        {
            let (code, said) = run(&ctx, &format!("names-{number}"), program, &[args], &[(variable, value)]).await?;
            assert!(code == USAGE && said.contains(variable), "{variable}={value:?}: {code}: {said}");
        }
        Ok(())
    });
}

#[test]
fn a_token_that_cannot_be_used_is_not_shown() {
    case(|ctx| async move {
        let pull = ["weights", "pull", "--repo", "a/b", "--to", "/nowhere"];
        let (code, said) = run(&ctx, "token-pull", "handler", &pull, &[("HF_TOKEN", "hf_hidden\n")]).await?;
        assert!(code == USAGE && said.contains("HF_TOKEN") && !said.contains("hidden"), "{said}");
        Ok(())
    });
}
