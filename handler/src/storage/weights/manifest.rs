//! The manifest of a pulled folder: repository, commit, and each file with its size and SHA-256. Written last, so a folder with a manifest
//! is complete. In S3 the same file lists the model's files.

use super::selection::is_inside;
use crate::storage::{cache::hash, weights::options::Variant};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, ErrorKind},
    path::Path,
};

/// File name in the folder.
pub(super) const NAME: &str = "easel-weights.json";

/// The manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) repo: String,
    /// The revision as it was requested.
    pub(super) revision: String,
    /// The commit that it referred to.
    pub(super) commit: String,
    pub(super) variant: Variant,
    pub(super) files: Vec<ManifestEntry>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ManifestEntry {
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// Why a file is not a manifest. The text continues after the file's name, and repeats nothing of the content but a path.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ManifestError {
    #[error("is no manifest of handler weights pull (line {0}, column {1})")]
    Json(usize, usize),
    #[error("names no file")]
    Empty,
    #[error("names a file outside the folder, {0:?}")]
    Outside(String),
    #[error("names {0:?} twice")]
    Twice(String),
    #[error("has no SHA-256 of {0:?}")]
    NoSha256(String),
}

impl Manifest {
    /// Parses and checks a manifest.
    pub(super) fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self =
            serde_json::from_slice(text).map_err(|error| ManifestError::Json(error.line(), error.column()))?;
        let mut seen = HashSet::new();
        for ManifestEntry { path, sha256, .. } in &manifest.files {
            if !is_inside(path) {
                return Err(ManifestError::Outside(path.clone()));
            }
            if !seen.insert(path) {
                return Err(ManifestError::Twice(path.clone()));
            }
            if parse_sha256(sha256).is_none() {
                return Err(ManifestError::NoSha256(path.clone()));
            }
        }
        if manifest.files.is_empty() { Err(ManifestError::Empty) } else { Ok(manifest) }
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, entry| sum.saturating_add(entry.bytes))
    }

    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let partial = folder.join(format!(".{NAME}.partial"));
        fs::write(&partial, serde_json::to_string_pretty(self)? + "\n")?;
        File::open(&partial)?.sync_all()?;
        fs::rename(&partial, folder.join(NAME))?;
        Ok(File::open(folder)?.sync_all()?)
    }

    pub(super) fn is_in(folder: &Path) -> bool {
        folder.join(NAME).exists()
    }

    pub(super) fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(NAME);
        let text = fs::read(&path).with_context(|| {
            format!("{}, which handler weights pull writes at its end: pull the folder again", path.display())
        })?;
        Self::parse(&text).map_err(|bad| anyhow::anyhow!("{} {bad}: pull the folder again", path.display()))
    }
}

impl ManifestEntry {
    /// The SHA-256 in bytes; always there in a parsed manifest.
    pub(super) fn sha256_bytes(&self) -> Option<[u8; 32]> {
        parse_sha256(&self.sha256)
    }

    /// How the file differs in size or hash, if it does.
    pub(super) fn difference(&self, folder: &Path) -> Option<String> {
        self.difference_in_size(folder).or_else(|| {
            match File::open(folder.join(&self.path)).and_then(|mut file| hash(&mut file)) {
                Err(error) => Some(unreadable(&error)),
                Ok(found) => {
                    let found = hex::encode(found);
                    (found != self.sha256).then(|| format!("has SHA-256 {found}, not {}", self.sha256))
                }
            }
        })
    }

    /// How the file differs in size, if it does. Does not read it.
    pub(super) fn difference_in_size(&self, folder: &Path) -> Option<String> {
        match fs::metadata(folder.join(&self.path)) {
            Err(error) => Some(unreadable(&error)),
            Ok(found) => (found.len() != self.bytes).then(|| format!("has {} bytes, not {}", found.len(), self.bytes)),
        }
    }
}

/// Parses a SHA-256 in lower-case hex.
fn parse_sha256(digits: &str) -> Option<[u8; 32]> {
    let is_plain = digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let digits = digits.as_bytes().chunks(2).filter(|_| is_plain);
    let bytes = digits.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    bytes.collect::<Vec<u8>>().try_into().ok()
}

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "missing".into(),
        _ => format!("cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_is_no_manifest_is_told_without_its_words() {
        let sum = "0123456789abcdef".repeat(4);
        let file = |path: &str, sum: &str| json!({ "path": path, "bytes": 1, "sha256": sum });
        let text = |files: Value| {
            json!({ "repo": "a/b", "revision": "main", "commit": "c", "variant": "full", "files": files }).to_string()
        };
        let good = Manifest::parse(text(json!([file("unet/a", &sum), file("b", &sum)])).as_bytes()).unwrap();
        assert_eq!((good.bytes(), good.files[0].sha256_bytes().unwrap()[..3].to_vec()), (2, vec![0x01, 0x23, 0x45]));
        for (text, said) in [
            (String::new(), "is no manifest of handler weights pull (line 1, column 0)"),
            ("{\"repo\":\n7}".into(), "is no manifest of handler weights pull (line 2, column 1)"),
            ("\"zebrafinch\"".into(), "is no manifest of handler weights pull (line 1, column 12)"),
            (text(json!([])), "names no file"),
            (text(json!([file("../x", &sum)])), "names a file outside the folder, \"../x\""),
            (text(json!([file("/x", &sum)])), "names a file outside the folder, \"/x\""),
            (text(json!([file("", &sum)])), "names a file outside the folder, \"\""),
            (text(json!([file("x", &sum), file("x", &sum)])), "names \"x\" twice"),
            (text(json!([file("x", &sum[1..])])), "has no SHA-256 of \"x\""),
            (text(json!([file("x", &sum.to_uppercase())])), "has no SHA-256 of \"x\""),
            (text(json!([file("x", &"+1".repeat(32))])), "has no SHA-256 of \"x\""),
        ] {
            assert_eq!(Manifest::parse(text.as_bytes()).unwrap_err().to_string(), said, "{text}");
        }
    }
}
