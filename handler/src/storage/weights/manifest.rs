//! What a pulled folder holds: repository, commit, and each file with its size and SHA-256. Written last, so that a folder with a manifest is
//! complete.

use super::layout::is_inside;
use crate::storage::{cache::hash, weights::options::Variant};
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::Path,
};

/// Its name in the folder.
const NAME: &str = "easel-weights.json";

/// The manifest.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) repo: String,
    /// As it was asked for.
    pub(super) revision: String,
    /// What that meant.
    pub(super) commit: String,
    pub(super) variant: Variant,
    pub(super) files: Vec<Entry>,
}

/// One file of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

impl Manifest {
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
        let manifest: Self = serde_json::from_slice(&text).with_context(|| {
            format!("{} is no manifest of handler weights pull: pull the folder again", path.display())
        })?;
        let outside = manifest.files.iter().find(|entry| !is_inside(&entry.path));
        ensure!(outside.is_none(), "{}: it names a file outside the folder: pull the folder again", path.display());
        Ok(manifest)
    }
}

impl Entry {
    /// What is wrong with the file, if anything is.
    pub(super) fn difference(&self, folder: &Path) -> Option<String> {
        self.difference_in_size(folder).or_else(|| {
            match File::open(folder.join(&self.path)).and_then(|mut file| hash(&mut file)) {
                Err(error) => Some(unreadable(&error)),
                Ok(found) => {
                    let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
                    (found != self.sha256).then(|| format!("has SHA-256 {found}, not {}", self.sha256))
                }
            }
        })
    }

    /// The same without reading the file.
    pub(super) fn difference_in_size(&self, folder: &Path) -> Option<String> {
        match fs::metadata(folder.join(&self.path)) {
            Err(error) => Some(unreadable(&error)),
            Ok(found) => (found.len() != self.bytes).then(|| format!("has {} bytes, not {}", found.len(), self.bytes)),
        }
    }
}

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "missing".into(),
        _ => format!("cannot be read: {error}"),
    }
}
