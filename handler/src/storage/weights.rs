//! Fills model folders and verifies them, for `handler weights`, and for function and worker with `--model-url`.
//!
//! From the hub only the files that the pipeline reads are downloaded, and no pickles; from S3 those that the manifest there lists. A file
//! with the wrong checksum is not kept.

mod bucket;
mod download;
mod hub;
mod manifest;
pub mod options;
mod pull;
mod selection;

pub use bucket::FetchError;
pub(crate) use bucket::{RemoteModel, not_enough_space};

use crate::storage::{
    self,
    weights::options::{ConvertConfig, FetchConfig, PullConfig, VerifyConfig},
};
use anyhow::ensure;
use diffusion::loading;
use manifest::{Manifest, ManifestEntry};
use std::{path::Path, time::Instant};

/// Lock file that is held while a folder is filled.
const LOCK: &str = ".easel-pull.lock";

/// Downloads a model from the hub. Prints its progress on stdout.
///
/// # Errors
/// The hub refuses or does not have the model, it is none that the pipeline paints with, a checksum does not match, or the folder cannot
/// be written.
pub fn pull(config: &PullConfig) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(pull::pull(config, &|line| println!("{line}")))
}

/// Downloads a model from S3. Prints its progress on stdout.
///
/// # Errors
/// S3 refuses or cannot be reached, the files do not match their manifest, or the folder cannot be filled.
pub fn fetch(config: &FetchConfig) -> anyhow::Result<()> {
    // TLS of sixteen connections is too much for one thread.
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(fetch_all(config))
}

async fn fetch_all(config: &FetchConfig) -> anyhow::Result<()> {
    let aws = settings::sdk_config().await?;
    let remote = RemoteModel::for_command(storage::client(&aws, config.path_style), &config.url, &config.folder);
    let clock = Instant::now();
    let summary = remote.fetch(&|line| println!("{line}")).await?;
    let (bytes, seconds) = (summary.bytes, clock.elapsed().as_secs_f64());
    let rate = bytes as f64 / 1e6 / seconds;
    println!("{} files fetched, {bytes} bytes in {seconds:.2} s, {rate:.0} MB/s", summary.files);
    Ok(())
}

/// Writes a checkpoint as a model folder. Prints a line for each file on stdout.
///
/// # Errors
/// The file is no checkpoint of Stable Diffusion 1.x, the folder is there already, or it cannot be written.
pub fn convert(config: &ConvertConfig) -> anyhow::Result<()> {
    let unread =
        loading::convert(&config.file, &config.folder, &mut |file| println!("{}: {} bytes", file.name, file.bytes))?;
    if let [first, ..] = unread.as_slice() {
        println!(
            "not in the folder: {} tensors that no Stable Diffusion 1.x model reads, such as {first}",
            unread.len()
        );
    }
    println!("not in the folder: a safety checker, as no checkpoint has one");
    Ok(())
}

/// Repository and commit of a pulled folder; `None` for any other.
pub(crate) fn pulled_from(folder: &Path) -> Option<(String, String)> {
    let Manifest { repo, commit, .. } = Manifest::read(folder).ok()?;
    Some((repo, commit))
}

/// The result of comparing a pulled folder with its manifest.
pub(crate) struct FolderCheck {
    /// Repository and commit.
    pub(crate) source: String,
    /// The difference of each file that is not as it was pulled.
    pub(crate) different: Vec<String>,
}

/// Compares a pulled folder with its manifest, by hash or only by size; `None` for a folder that was not pulled.
pub(crate) fn check_folder(folder: &Path, hash: bool) -> anyhow::Result<Option<FolderCheck>> {
    if !Manifest::is_in(folder) {
        return Ok(None);
    }
    let Manifest { repo, commit, files, .. } = Manifest::read(folder)?;
    let difference = |entry: &ManifestEntry| {
        let difference = if hash { entry.difference(folder) } else { entry.difference_in_size(folder) };
        difference.map(|difference| format!("{}: {difference}", entry.path))
    };
    let different = files.iter().filter_map(difference).collect();
    Ok(Some(FolderCheck { source: format!("{repo} at {commit}"), different }))
}

/// Whether every file of a pulled folder matches its manifest. Prints each that does not on stdout.
///
/// # Errors
/// The manifest is missing or cannot be read.
pub fn verify(config: &VerifyConfig) -> anyhow::Result<bool> {
    ensure!(
        !config.folder.is_file(),
        "{} is a file: only a folder that handler weights pull filled has a manifest; handler doctor looks at a checkpoint",
        config.folder.display()
    );
    let manifest = Manifest::read(&config.folder)?;
    let mut matches = true;
    for entry in &manifest.files {
        if let Some(difference) = entry.difference(&config.folder) {
            println!("{}: {difference}", entry.path);
            matches = false;
        }
    }
    let Manifest { repo, commit, files, .. } = &manifest;
    let verdict = if matches { "every file is as it was pulled" } else { "not as it was pulled" };
    println!("{repo} at {commit}, {} files: {verdict}", files.len());
    Ok(matches)
}
