//! `handler lora inspect`, the binary itself: what it says, and its exit code.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn golden_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name)
}

/// Exit code and standard output.
fn inspect(file: &Path, more: &[&str]) -> Result<(Option<i32>, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_handler")).args(["lora", "inspect"]).arg(file).args(more).output()?;
    Ok((output.status.code(), String::from_utf8(output.stdout)?))
}

fn report(file: &Path, more: &[&str]) -> Result<(Option<i32>, Value)> {
    let (code, text) = inspect(file, &[more, &["--json"]].concat())?;
    Ok((code, serde_json::from_str(&text).with_context(|| text)?))
}

#[test]
fn inspect_tells_what_a_file_is() -> Result<()> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/model");
    let model = tests.join("easel-tiny").display().to_string();
    let (code, style) = report(&tests.join("styles/halftone-kohya.safetensors"), &["--model", &model])?;
    assert_eq!((code, &style["would_load"], &style["refusal"]), (Some(0), &json!(true), &Value::Null));
    assert_eq!((&style["formats"], &style["layouts"]), (&json!(["lora"]), &json!(["kohya"])));
    assert_eq!(style["rank"], json!({ "least": 8.0, "most": 8.0 }));
    assert_eq!((&style["alpha"], &style["modules"]["unet"]), (&json!({ "least": 8.0, "most": 8.0 }), &json!(84)));

    let golden = |name: &str| report(&golden_file(&format!("lora/{name}.safetensors")), &[]);
    let formats = [
        ("lycoris-dora-mid", json!(["dora", "locon", "lora"]), "kohya"),
        ("lycoris-loha-tucker", json!(["loha"]), "kohya"),
        ("lycoris-lokr", json!(["lokr"]), "kohya"),
        ("lycoris-ia3-on-input", json!(["ia3"]), "kohya"),
        ("lycoris-full", json!(["full"]), "kohya"),
        ("peft-dora", json!(["dora", "locon", "lora"]), "peft"),
        ("diffusers-processors", json!(["lora"]), "processors"),
    ];
    for (name, expected, layout) in formats {
        let (code, report) = golden(name)?;
        assert_eq!((code, &report["formats"], &report["layouts"]), (Some(0), &expected, &json!([layout])), "{name}");
    }
    let (code, text) = inspect(&golden_file("lora/peft-dora.safetensors"), &[])?;
    assert_eq!(code, Some(0));
    assert!(text.contains("rank      2\n") && text.contains("loads     yes"), "{text}");
    Ok(())
}

#[test]
fn inspect_lists_everything_that_does_not_fit() -> Result<()> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/model/easel-tiny").display().to_string();
    let (code, unfit) = report(&golden_file("lora/lycoris-full.safetensors"), &["--model", &model])?;
    assert_eq!((code, &unfit["would_load"]), (Some(1), &json!(false)));
    let keys: Vec<_> =
        unfit["misfits"].as_array().context("misfits")?.iter().filter_map(|misfit| misfit["key"].as_str()).collect();
    assert!(keys.len() >= 5 && keys.iter().all(|key| key.starts_with("lora_")), "{keys:?}");

    let folder = tempfile::tempdir()?;
    let cases = [
        (&b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl"[..], "pickled PyTorch file"),
        (b"", "it has 0 bytes"),
        (b"\x00\x00\x00\x80\x00\x00\x00\x00{}", "claims 2147483648 bytes"),
    ];
    for (bytes, expected) in cases {
        let file = folder.path().join("bad.safetensors");
        fs::write(&file, bytes)?;
        let (code, bad) = report(&file, &[])?;
        assert_eq!(code, Some(1));
        assert!(bad["refusal"].as_str().is_some_and(|text| text.contains(expected)), "{bad}");
        let (code, text) = inspect(&file, &[])?;
        assert!(code == Some(1) && text.contains(expected), "{text}");
    }
    Ok(())
}
