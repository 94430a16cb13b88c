//! `handler weights pull`: the small files first, into a folder of their own. Only if the pipeline can use the model that they describe,
//! and the headers of the weights agree, they get their places, and the weights are downloaded.

use super::{
    LOCK,
    download::{download, present, start},
    hub::{Hub, HubFile},
    manifest::{Manifest, ManifestEntry},
    selection,
};
use crate::storage::{
    cache::{Lock, LockMode},
    weights::options::PullConfig,
};
use anyhow::{Context, bail, ensure};
use diffusion::{
    error::PipelineError,
    loading::{Header, config::ModelIndex},
    pipeline::{self, Shapes},
};
use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Instant,
};

/// Where the small files wait inside the folder.
const STAGING: &str = ".easel-pull";
/// As many bytes of weights hold their header: that of SD1.5's UNet has 90 KB.
const HEAD: u64 = 1 << 20;

/// Downloads a model. Calls `report` with a line for each step.
pub(super) async fn pull(config: &PullConfig, report: &dyn Fn(&str)) -> anyhow::Result<()> {
    let folder = &config.folder;
    fs::create_dir_all(folder)
        .with_context(|| format!("--to {} must be a folder, or a name that is free", folder.display()))?;
    let lock = Lock::attempt(&folder.join(LOCK), LockMode::Exclusive).with_context(|| folder.display().to_string())?;
    ensure!(lock.is_some(), "{} is being filled by another process", folder.display());
    let hub = Hub::new(config, report)?;
    let commit = hub.commit().await?;
    let offered = hub.files(&commit).await?;
    let shadowing = selection::shadowing(config.variant).map(|name| folder.join(name)).find(|path| path.exists());
    ensure!(
        shadowing.is_none(),
        "{} would be loaded instead: remove it, or pull that variant",
        shadowing.unwrap_or_default().display()
    );

    // What model it is comes first: another one has other files.
    let pulling = Pulling { hub: &hub, commit: &commit, folder, staging: Staging::new(folder)?, report };
    pulling.stage(selection::model_index(&offered)?).await?;
    let index = ModelIndex::load(pulling.staging.path());
    let checker = index.as_ref().map_or(Ok(false), ModelIndex::has_safety_checker);
    pulling.accept(index.map(|_| ()))?;
    let unused =
        |why: &str| report(&format!("the safety checker is not fetched, so pictures will not be checked: {why}"));
    let with_checker = checker.unwrap_or_else(|error| {
        unused(&error.to_string());
        false
    });
    let selection = selection::select(offered, config.variant, with_checker)?;
    if let Some(why) = &selection.left_out {
        unused(why);
    }
    for file in &selection.small {
        pulling.stage(file).await?;
    }
    pulling.accept(pipeline::inspect_settings(pulling.staging.path()))?;
    let weights = selection.weights(pulling.staging.path())?;
    let wanted: Vec<&HubFile> = selection.small.iter().chain(weights.iter().flat_map(|(_, files)| files)).collect();
    let bytes = wanted.iter().map(|file| file.bytes).sum::<u64>();
    report(&format!("{} at {commit}: {} files, {bytes} bytes", config.repo, wanted.len()));
    let mut found = Vec::new();
    for (part, files) in &weights {
        let mut shapes = Shapes::new();
        for file in files {
            found.push((file, present(file, folder)?));
            let there = found.last().is_some_and(|(_, sha256)| sha256.is_some());
            shapes.extend(pulling.shapes(file, there).await?);
        }
        pulling.accept(pipeline::check_weights(pulling.staging.path(), part, &shapes))?;
    }

    let mut entries = Vec::with_capacity(wanted.len());
    for file in &selection.small {
        let sha256 = pulling.settle(file)?;
        entries.push(ManifestEntry { path: file.path.clone(), bytes: file.bytes, sha256 });
    }
    for (file, sha256) in found {
        let (path, bytes) = (file.path.clone(), file.bytes);
        let sha256 = match sha256 {
            Some(sha256) => {
                report(&format!("{path}: there already, {bytes} bytes"));
                sha256
            }
            None => pulling.fetch(file, folder).await?,
        };
        entries.push(ManifestEntry { path, bytes, sha256 });
    }
    let PullConfig { repo, revision, variant, .. } = config.clone();
    Manifest { repo, revision, commit: commit.clone(), variant, files: entries }.write(folder)
}

/// One run.
struct Pulling<'a> {
    hub: &'a Hub<'a>,
    commit: &'a str,
    folder: &'a Path,
    staging: Staging,
    report: &'a dyn Fn(&str),
}

impl Pulling<'_> {
    /// Brings a small file into the staging folder: from its place, or from the hub.
    async fn stage(&self, file: &HubFile) -> anyhow::Result<()> {
        if present(file, self.staging.path())?.is_some() {
            return Ok(());
        }
        if present(file, self.folder)?.is_none() {
            self.fetch(file, self.staging.path()).await?;
            return Ok(());
        }
        (self.report)(&format!("{}: there already, {} bytes", file.path, file.bytes));
        let copy = self.staging.path().join(&file.path);
        fs::create_dir_all(copy.parent().unwrap_or(self.folder))?;
        fs::copy(self.folder.join(&file.path), &copy).with_context(|| copy.display().to_string())?;
        Ok(())
    }

    async fn fetch(&self, file: &HubFile, folder: &Path) -> anyhow::Result<String> {
        let clock = Instant::now();
        let (sha256, resumed_at) = download(self.hub, self.commit, file, folder).await?;
        let (path, bytes, seconds) = (&file.path, file.bytes, clock.elapsed().as_secs_f32());
        let resumed = if resumed_at > 0 { format!(", resumed at {resumed_at}") } else { String::new() };
        (self.report)(&format!("{path}: {bytes} bytes in {seconds:.1} s{resumed}"));
        Ok(sha256)
    }

    /// Passes an error of the model on. Its files are those of the repository, wherever they are for now.
    fn accept(&self, checked: Result<(), PipelineError>) -> anyhow::Result<()> {
        let Err(error) = checked else { return Ok(()) };
        let text = service::causes(&error).replace(&format!("{}/", self.staging.path().display()), "");
        bail!("this is no model that Easel paints with: {text}; no weights were fetched")
    }

    /// Names and shapes of the tensors of a file, from its header.
    async fn shapes(&self, file: &HubFile, there: bool) -> anyhow::Result<Shapes> {
        let start = match there {
            true => {
                let mut start = Vec::new();
                File::open(self.folder.join(&file.path))?.take(HEAD).read_to_end(&mut start)?;
                start
            }
            false => start(self.hub, self.commit, file, HEAD).await?,
        };
        let header = Header::read(&mut Head { start, length: file.bytes, position: 0 });
        let header = header.map_err(|error| anyhow::anyhow!("{}: {error}; no weights were fetched", file.path))?;
        Ok(header.tensors.into_iter().map(|(name, info)| (name, info.shape)).collect())
    }

    /// Moves a small file from the staging folder to its place. Returns its SHA-256 in hex.
    fn settle(&self, file: &HubFile) -> anyhow::Result<String> {
        let (from, to) = (self.staging.path().join(&file.path), self.folder.join(&file.path));
        let sha256 = present(file, self.staging.path())?.with_context(|| format!("{} was changed", from.display()))?;
        let parent = to.parent().unwrap_or(self.folder);
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        File::open(&from)?.sync_all()?;
        fs::rename(&from, &to)?;
        File::open(parent)?.sync_all()?;
        Ok(sha256)
    }
}

/// A folder inside the model's, removed when it is dropped.
struct Staging(PathBuf);

impl Staging {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(STAGING);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context(path.display().to_string()),
            _ => fs::create_dir(&path).with_context(|| path.display().to_string())?,
        }
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "cannot be removed");
        }
    }
}

/// The start of a file, as a file of the whole length.
struct Head {
    start: Vec<u8>,
    length: u64,
    position: u64,
}

impl Read for Head {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let start = self.start.get(self.position as usize..).unwrap_or_default();
        if start.is_empty() && self.position < self.length {
            let reason = format!("its header is longer than {} bytes", self.start.len());
            return Err(io::Error::other(reason));
        }
        let count = start.len().min(into.len());
        into[..count].copy_from_slice(&start[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Head {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
