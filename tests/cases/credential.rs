//! Content Credentials as an independent reader finds them, and certificates with which no function starts.

use crate::{
    context::{PATIENCE, TestContext, case},
    safety::{function, given_back},
    secrets::keep,
};
use anyhow::{Context, Result};
use e2e::{
    paths::{RunDir, binary, repo, tool},
    process::{Spec, output},
    task::Task,
    tls::Authority,
};
use handler::task::Format;
use serde_json::{Value, json};
use std::{fs, path::Path};

const TRAINED: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";
const YEARS_ON: i32 = 2100;

/// The script's result for a file, or its error.
async fn read(
    run: &RunDir,
    name: &str,
    file: &Path,
    authority: &Authority,
) -> Result<std::result::Result<Value, String>> {
    let script = repo().join("tests/cases/credential.py");
    let spec = Spec::new(name, tool("python")?).args([script.as_path(), file, &authority.file()]);
    let (status, text) = output(run, spec, PATIENCE).await?;
    if !status.success() {
        return Ok(Err(text));
    }
    Ok(Ok(serde_json::from_str(&text).with_context(|| text.clone())?))
}

/// An authority for this case.
fn authority(ctx: &TestContext, name: &str) -> Result<Authority> {
    Authority::new(&ctx.stack.run.folder(name)?)
}

fn assert_says(said: &Value, title: &str, fields: &[(&str, &str)]) {
    assert_eq!(said["algorithm"], "ES256");
    assert_eq!(said["claim"]["dc:title"], title);
    assert_eq!(said["claim"]["claim_generator_info"]["name"], "Easel");
    let action = &said["assertions"]["c2pa.actions.v2"]["actions"][0];
    assert_eq!((&action["action"], &action["digitalSourceType"]), (&json!("c2pa.created"), &json!(TRAINED)));
    let own = &said["assertions"]["org.easel.generation"];
    for (field, value) in fields {
        assert_eq!(own[field], *value, "{field}: {own:#}");
    }
}

#[test]
fn an_independent_reader_verifies_every_format_and_notices_a_changed_byte() {
    case(|ctx| async move {
        let (run, authority) = (&ctx.stack.run, authority(&ctx, "credential")?);
        let (certificate, key) = authority.sign_for_pictures("signer", YEARS_ON)?;
        let files = [certificate.display().to_string(), key.display().to_string()];
        let env = [("EASEL_CREDENTIAL_CERTIFICATE", files[0].as_str()), ("EASEL_CREDENTIAL_KEY", &files[1])];
        let function = function(&ctx, "function-credential", &env).await?;
        let log = || function.process().log_text();
        for format in Format::ALL {
            let (ending, task) = (format.extension(), ctx.task().with("output_format", format.name()));
            assert!(!given_back(&function, &task.body()).await?, "{}", log());
            let file = ctx.painting(&task).await?.file;
            let path = run.folder("credential")?.join(format!("picture.{ending}"));
            fs::write(&path, &file)?;
            let said = read(run, &format!("credential-{format}"), &path, &authority).await?;
            let said = said.map_err(anyhow::Error::msg)?;
            let (id, title) = (task.id().to_string(), format!("gen_{}.{ending}", task.id()));
            assert_says(&said, &title, &[("GenerationId", &id), ("Seed", "42"), ("Steps", "2")]);
            assert!(!said.to_string().contains("circle"), "{format}: the prompt is in the credential");
            let mut changed = file.clone();
            changed[file.len() * 3 / 4] ^= 1;
            fs::write(&path, &changed)?;
            let fault = read(run, &format!("changed-{format}"), &path, &authority).await?;
            assert!(fault.is_err_and(|fault| fault.contains("not what was hashed")), "{format}");
        }
        assert!(log().contains("credential_ms"), "{}", log());
        Ok(())
    });
}

#[test]
fn certificate_and_key_come_from_secrets_and_several_pictures_each_have_their_own() {
    case(|ctx| async move {
        let (run, authority) = (&ctx.stack.run, authority(&ctx, "credential-arn")?);
        let (certificate, key) = authority.sign_for_pictures("signer", YEARS_ON)?;
        let (certificate, key) = (fs::read_to_string(certificate)?, fs::read_to_string(key)?);
        let pems = json!({ "certificate": certificate, "key": key });
        let arn = keep(&ctx.stack.aws, "credential", &pems.to_string()).await?;
        let arns = [format!("{arn}#certificate"), format!("{arn}#key")];
        let env = [
            ("EASEL_CREDENTIAL_CERTIFICATE_ARN", arns[0].as_str()),
            ("EASEL_CREDENTIAL_KEY_ARN", &arns[1]),
            ("RUST_LOG", "trace"),
        ];
        let function = function(&ctx, "function-credential-arn", &env).await?;
        let task = ctx.task().with("num_images", 2);
        assert!(!given_back(&function, &task.body()).await?);
        let urls = ctx.painting(&task).await?.complete.body["result_urls"].clone();
        let mut labels = Vec::new();
        for (number, title) in [(0, format!("gen_{}.jpg", task.id())), (1, format!("gen_{}_2.jpg", task.id()))] {
            let url = urls[number].as_str().context("no address")?;
            let answer = e2e::http_client()?.get(url).send().await?;
            let path = run.folder("credential-arn")?.join(&title);
            fs::write(&path, answer.bytes().await?)?;
            let said =
                read(run, &format!("credential-{number}"), &path, &authority).await?.map_err(anyhow::Error::msg)?;
            assert_says(&said, &title, &[("Image", if number == 0 { "1 of 2" } else { "2 of 2" })]);
            labels.push(said["label"].clone());
        }
        assert_ne!(labels[0], labels[1]);
        let log = function.process().log_text();
        let shown = key.lines().filter(|line| !line.is_empty()).find(|line| log.contains(line));
        assert!(log.contains("generation_id") && shown.is_none(), "a line of the key is in the log");
        Ok(())
    });
}

/// A redelivered task is not painted again, although the bytes would differ.
#[test]
fn a_picture_with_a_credential_that_stands_is_not_painted_again() {
    case(|ctx| async move {
        let authority = authority(&ctx, "credential-again")?;
        let (certificate, key) = authority.sign_for_pictures("signer", YEARS_ON)?;
        let files = [certificate.display().to_string(), key.display().to_string()];
        let env = [("EASEL_CREDENTIAL_CERTIFICATE", files[0].as_str()), ("EASEL_CREDENTIAL_KEY", &files[1])];
        let function = function(&ctx, "function-credential-again", &env).await?;
        let task: Task = ctx.task();
        assert!(!given_back(&function, &task.body()).await?);
        let first = ctx.etag(&task).await.context("no picture")?;
        assert!(!given_back(&function, &task.body()).await?);
        assert_eq!(ctx.etag(&task).await, Some(first));
        Ok(())
    });
}

#[test]
fn a_certificate_that_cannot_sign_ends_the_start_with_64_and_is_named() {
    case(|ctx| async move {
        let (stack, authority) = (ctx.stack, authority(&ctx, "credential-refused")?);
        let (good, key) = authority.sign_for_pictures("good", YEARS_ON)?;
        let (other, _) = authority.sign_for_pictures("other", YEARS_ON)?;
        let (old, old_key) = authority.sign_for_pictures("old", 2020)?;
        let (server, server_key) = authority.sign("server")?;
        for (name, certificate, key, expected) in [
            ("expired", Some(&old), Some(&old_key), "has expired"),
            ("strange", Some(&other), Some(&key), "belongs to another key"),
            ("server", Some(&server), Some(&server_key), "lacks the key usage digitalSignature"),
            ("alone", Some(&good), None, "--credential-key"),
            ("keyless", None, Some(&key), "--credential-certificate"),
        ] {
            let env = ctx.env(name)?;
            let mut spec = Spec::new(&format!("credential-{name}"), binary("handler")?).args(["function"]).envs(env);
            for (variable, file) in [("EASEL_CREDENTIAL_CERTIFICATE", certificate), ("EASEL_CREDENTIAL_KEY", key)] {
                if let Some(file) = file {
                    spec = spec.env(variable, file);
                }
            }
            let (status, said) = output(&stack.run, spec, PATIENCE).await?;
            assert_eq!(status.code(), Some(64), "{name}: {said}");
            assert!(said.contains(expected) && said.contains("--credential-certificate"), "{name}: {said}");
        }
        Ok(())
    });
}
