//! What a picture's file says of itself, by readers that share no code with its writer: exiftool, and the tests' own reader of
//! Content Credentials. Refuses to repeat what the task said.

use super::shelf::Shelf;
use crate::{
    paths::{RunDir, repo, tool},
    process::{Spec, output},
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(60);
/// What exiftool knows of the file and not from it.
const OUTSIDE: [&str; 3] = ["System", "ExifTool", "SourceFile"];
/// How the reader says that a file has no credential.
const NONE: [&str; 3] = ["0 boxes in APP11 segments", "0 caBX chunks", "0 C2PA chunks"];

static READS: AtomicU64 = AtomicU64::new(0);

/// Metadata and credential of a picture.
///
/// # Errors
/// There is no such picture, or a reader does not run.
pub async fn read(run: &RunDir, shelf: &Shelf, picture: &str) -> Result<Value> {
    let path = shelf.picture(picture).context("no such picture")?;
    let authority = shelf.signer()?.authority;
    let (metadata, credential) = tokio::try_join!(metadata(run, &path), credential(run, &path, &authority))?;
    Ok(json!({ "metadata": metadata, "credential": credential }))
}

async fn metadata(run: &RunDir, path: &Path) -> Result<Value> {
    let spec = Spec::new(&name("metadata"), "exiftool").args(["-json", "-G1", "-a", "--"]).args([path]);
    let (status, text) = output(run, spec, LIMIT).await?;
    ensure!(status.success(), "exiftool: {text}");
    let mut read: Vec<serde_json::Map<String, Value>> = serde_json::from_str(&text).context("exiftool")?;
    let mut tags = read.pop().context("exiftool says nothing")?;
    tags.retain(|tag, _| !OUTSIDE.contains(&tag.split(':').next().unwrap_or_default()));
    Ok(tags.into())
}

async fn credential(run: &RunDir, path: &Path, authority: &Path) -> Result<Value> {
    let script = repo().join("tests/cases/credential.py");
    let spec = Spec::new(&name("credential"), tool("python")?).args([script.as_path(), path, authority]);
    let (status, text) = output(run, spec, LIMIT).await?;
    judge(status.success(), &text)
}

/// What the reader says in three words: signed, none or bad.
fn judge(success: bool, text: &str) -> Result<Value> {
    if success {
        let said: Value = serde_json::from_str(text).context("the reader of credentials")?;
        return Ok(json!({ "state": "signed", "said": said }));
    }
    if NONE.iter().any(|none| text.contains(none)) {
        return Ok(json!({ "state": "none" }));
    }
    let reason = text.split_once(": ").map_or(text, |(_, reason)| reason).trim();
    Ok(json!({ "state": "bad", "reason": reason }))
}

/// Each reader has a log of its own.
fn name(reader: &str) -> String {
    format!("{reader}-{}", READS.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_without_a_credential_is_not_one_with_a_bad_one() {
        let state = |success, text| judge(success, text).unwrap()["state"].clone();
        assert_eq!(state(true, "{}"), "signed");
        assert_eq!(state(false, "/x/gen_1.jpg: Bad('0 boxes in APP11 segments')\n"), "none");
        let bad = judge(false, "/x/gen_1.jpg: Bad('c2pa.hash.data is not what was hashed')\n").unwrap();
        assert_eq!(bad, json!({ "state": "bad", "reason": "Bad('c2pa.hash.data is not what was hashed')" }));
    }
}
