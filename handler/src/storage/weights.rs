//! Fills model folders and checks them: `handler weights` by hand, and function and worker with `--model-url`.
//!
//! Of the hub it takes the files that the pipeline reads and no others, nothing that is pickled, and of S3 what the manifest there names. A
//! file whose checksum is another one than theirs is not kept.

mod bucket;
mod files;
mod hub;
mod layout;
mod manifest;
pub mod options;

pub use bucket::FetchError;
pub(crate) use bucket::{Remote, no_room};

use crate::storage::{
    self,
    cache::{Kind, Lock},
    weights::options::{FetchConfig, PullConfig, VerifyConfig},
};
use anyhow::{Context, ensure};
use files::Progress;
use hub::Hub;
use manifest::{Entry, Manifest};
use std::{fs, path::Path, time::Instant};

/// Held while a folder is filled.
const LOCK: &str = ".easel-pull.lock";

/// Downloads a model; says on stdout what it does.
///
/// # Errors
/// The hub refuses or does not have the model, a checksum does not match, or the disk.
pub fn pull(config: &PullConfig) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(pull_all(config))
}

/// Fetches a model from S3; says on stdout what it does.
///
/// # Errors
/// S3 refuses or cannot be reached, what lies there is no model as its manifest says, or the folder cannot be filled.
pub fn fetch(config: &FetchConfig) -> anyhow::Result<()> {
    // Decrypting what sixteen connections bring is more than one thread's work.
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(fetch_all(config))
}

async fn fetch_all(config: &FetchConfig) -> anyhow::Result<()> {
    let aws = settings::sdk_config().await?;
    let remote = Remote::by_hand(storage::client(&aws, config.path_style), &config.url, &config.folder);
    let clock = Instant::now();
    let brought = remote.bring(&|line| println!("{line}")).await?;
    let (bytes, seconds) = (brought.bytes, clock.elapsed().as_secs_f64());
    let rate = bytes as f64 / 1e6 / seconds;
    println!("{} files fetched, {bytes} bytes in {seconds:.2} s, {rate:.0} MB/s", brought.files);
    Ok(())
}

/// Repository and commit of a folder that was pulled; `None` for any other.
pub(crate) fn source(folder: &Path) -> Option<(String, String)> {
    let Manifest { repo, commit, .. } = Manifest::read(folder).ok()?;
    Some((repo, commit))
}

async fn pull_all(config: &PullConfig) -> anyhow::Result<()> {
    let folder = &config.folder;
    fs::create_dir_all(folder)
        .with_context(|| format!("--to {} must be a folder, or a name that is free", folder.display()))?;
    let lock = Lock::attempt(&folder.join(LOCK), Kind::Exclusive).with_context(|| folder.display().to_string())?;
    ensure!(lock.is_some(), "{} is being filled by another process", folder.display());
    let hub = Hub::new(config)?;
    let commit = hub.commit().await?;
    let wanted = layout::wanted(hub.files(&commit).await?, config.variant)?;
    let shadow = layout::shadows(config.variant).map(|name| folder.join(name)).find(|path| path.exists());
    ensure!(
        shadow.is_none(),
        "{} would be loaded instead: remove it, or pull that variant",
        shadow.unwrap_or_default().display()
    );
    println!(
        "{} at {commit}: {} files, {} bytes",
        config.repo,
        wanted.len(),
        wanted.iter().map(|file| file.bytes).sum::<u64>()
    );
    let mut entries = Vec::with_capacity(wanted.len());
    for file in wanted {
        let clock = Instant::now();
        let (sha256, progress) = files::bring(&hub, &commit, &file, folder).await?;
        let (path, bytes, seconds) = (file.path, file.bytes, clock.elapsed().as_secs_f32());
        match progress {
            Progress::There => println!("{path}: there already, {bytes} bytes"),
            Progress::Downloaded { resumed_at: 0 } => println!("{path}: {bytes} bytes in {seconds:.1} s"),
            Progress::Downloaded { resumed_at } => {
                println!("{path}: {bytes} bytes in {seconds:.1} s, resumed at {resumed_at}");
            }
        }
        entries.push(Entry { path, bytes, sha256 });
    }
    let PullConfig { repo, revision, variant, .. } = config.clone();
    Manifest { repo, revision, commit, variant, files: entries }.write(folder)
}

/// What a pulled folder is, and what of it is not as it was pulled.
pub(crate) struct Examined {
    /// Repository and commit.
    pub(crate) source: String,
    /// Each file that is different, and how.
    pub(crate) different: Vec<String>,
}

/// Holds a pulled folder to its manifest, by hashes or by sizes alone; `None` for a folder that was not pulled.
pub(crate) fn examine(folder: &Path, hash: bool) -> anyhow::Result<Option<Examined>> {
    if !Manifest::is_in(folder) {
        return Ok(None);
    }
    let Manifest { repo, commit, files, .. } = Manifest::read(folder)?;
    let difference = |entry: &Entry| {
        let difference = if hash { entry.difference(folder) } else { entry.difference_in_size(folder) };
        difference.map(|difference| format!("{}: {difference}", entry.path))
    };
    let different = files.iter().filter_map(difference).collect();
    Ok(Some(Examined { source: format!("{repo} at {commit}"), different }))
}

/// Whether every file of a pulled folder is as its manifest says; names on stdout each that is not.
///
/// # Errors
/// There is no manifest, or it cannot be read.
pub fn verify(config: &VerifyConfig) -> anyhow::Result<bool> {
    let manifest = Manifest::read(&config.folder)?;
    let mut sound = true;
    for entry in &manifest.files {
        if let Some(difference) = entry.difference(&config.folder) {
            println!("{}: {difference}", entry.path);
            sound = false;
        }
    }
    let Manifest { repo, commit, files, .. } = &manifest;
    let verdict = if sound { "every file is as it was pulled" } else { "not as it was pulled" };
    println!("{repo} at {commit}, {} files: {verdict}", files.len());
    Ok(sound)
}
