//! Where things are: the repository, the binaries, the tools that infra/local/install fetched, and the folder of one run.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The repository's root.
pub fn repo() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// A binary of the workspace, from the same target folder and profile as the running one.
///
/// # Errors
/// It has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("the path of this program")?;
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built: run infra/local/test, or cargo build -p {name}"))
}

/// A program of the virtual environment.
///
/// # Errors
/// It has not been installed.
pub fn tool(name: &str) -> Result<PathBuf> {
    let path = repo().join(".cache/venv/bin").join(name);
    ensure!(path.is_file(), "{name} is missing: run infra/local/install");
    Ok(path)
}

/// The folder of one run: logs and data. It stays until a later run finds that its process has gone, so that logs can be
/// read after a failure.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes the folder, and removes those of runs that have ended.
    ///
    /// # Errors
    /// The disk.
    pub fn create() -> Result<Self> {
        let runs = repo().join(".cache/run");
        fs::create_dir_all(&runs).with_context(|| format!("{}", runs.display()))?;
        for entry in fs::read_dir(&runs)?.flatten() {
            let name = entry.file_name();
            if !Path::new("/proc").join(&name).exists() {
                // Another run may be removing it, too.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let path = runs.join(std::process::id().to_string());
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }

    /// The folder itself, where the logs are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it, made when it is not there.
    ///
    /// # Errors
    /// The disk.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("{}", path.display()))?;
        Ok(path)
    }
}
