//! Downloads a model from S3 into a folder: the files that its manifest lists, in parallel ranged reads, each checked by SHA-256.
//!
//! The folder's own manifest is removed first and written last, so a folder with a manifest is complete. A download is named
//! `.NAME.partial`. If a process is killed, the next one keeps the files with the right SHA-256 and downloads the others again.

use super::{
    LOCK,
    manifest::{self, Manifest, ManifestEntry},
    selection::shadowing,
};
use crate::{
    observe::CacheMetrics,
    storage::{
        ErrorWording, S3Client, S3Source,
        cache::{
            DownloadError, DownloadOptions, Lock, LockMode, ObjectLocation, ObjectSource, SourceError, blocking,
            download_verified, free_bytes, on_own_thread, with_retries,
        },
        weights::options::ModelUrl,
    },
};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use rustix::fs::{Access, access};
use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// AWS expects 85 to 90 MB/s per connection to S3, and recommends ranges of 8 to 16 MB and about 15 concurrent requests for 10 Gbit/s
/// ("Performance design patterns for Amazon S3"). The parts take 128 MiB of memory.
const DOWNLOAD_OPTIONS: DownloadOptions =
    DownloadOptions { part_bytes: 8 << 20, parallel: 16, first_delay: Duration::from_millis(200) };
/// Largest manifest, in bytes. One of thirteen files has less than 3 KB.
const MAX_MANIFEST: u64 = 1 << 20;
/// How long to wait while another process fills the folder.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1800);
/// How often the model may be replaced while it is fetched.
const MAX_CHANGES: usize = 3;

/// Why a model was not fetched from S3, by where to fix it. The process that needs the model ends.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The bucket or the address. Trying again does not help.
    #[error("{0}")]
    Bucket(String),
    /// S3, the role or the network. Retries did not help.
    #[error("{0}")]
    Storage(String),
    /// The folder to fill.
    #[error("{0}")]
    Folder(String),
    /// The model was replaced while it was read.
    #[error("{0} was replaced while it was fetched: start again when nobody writes to it")]
    Changed(String),
}

const IF_DENIED: &str = "S3 says so also of what is not there to a role without s3:ListBucket: check that aws s3 sync brought the \
                         folder there, and that the role has s3:GetObject on it";
const IF_RANGE_IGNORED: &str = "a model is fetched in parts alone";

/// A model in S3, and the folder to download it to.
pub(crate) struct RemoteModel<S> {
    source: S,
    url: ModelUrl,
    folder: PathBuf,
    /// The option that names the folder.
    option: &'static str,
    options: DownloadOptions,
}

/// What was downloaded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FetchSummary {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

/// The state of bucket and folder.
pub(crate) struct Inspection {
    /// Repository and commit.
    pub(crate) source: String,
    /// Files of the model.
    pub(crate) files: usize,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Whether the folder has the whole model.
    pub(crate) is_complete: bool,
    /// Bytes of files that are missing in the folder or have another size.
    pub(crate) missing_bytes: u64,
    /// Free bytes on the folder's volume.
    pub(crate) free_bytes: u64,
}

impl RemoteModel<S3Source> {
    /// For function, worker and doctor.
    pub(crate) fn for_service(s3: S3Client, url: &ModelUrl, folder: &Path) -> Self {
        Self::new(s3, "--model-url (EASEL_MODEL_URL)", url, "--model (EASEL_MODEL_DIR)", folder)
    }

    /// For `handler weights fetch`.
    pub(super) fn for_command(s3: S3Client, url: &ModelUrl, folder: &Path) -> Self {
        Self::new(s3, "model", url, "--to", folder)
    }

    fn new(s3: S3Client, name: &'static str, url: &ModelUrl, option: &'static str, folder: &Path) -> Self {
        let wording =
            ErrorWording { permanent: name, transient: name, if_denied: IF_DENIED, if_range_ignored: IF_RANGE_IGNORED };
        let (url, folder) = (url.clone(), folder.to_owned());
        Self { source: S3Source::new(s3, wording), url, folder, option, options: DOWNLOAD_OPTIONS }
    }
}

impl<S: ObjectSource> RemoteModel<S> {
    /// Fills the folder. Calls `report` with a line for each step.
    pub(crate) async fn fetch(&self, report: &(dyn Fn(&str) + Sync)) -> Result<FetchSummary, FetchError> {
        let mut round = 1;
        loop {
            match self.fetch_once(report).await {
                Err(FetchError::Changed(name)) if round < MAX_CHANGES => {
                    tracing::warn!("{name} was replaced while it was fetched: begun again");
                    round += 1;
                }
                ended => return ended,
            }
        }
    }

    /// Compares bucket and folder without changing anything.
    pub(crate) async fn inspect(&self) -> Result<Inspection, FetchError> {
        let manifest = self.manifest().await?;
        let (wanted, folder) = (manifest.clone(), self.folder.clone());
        let found = on_own_thread("inspect", move || {
            let is_lacking = |entry: &&ManifestEntry| entry.difference_in_size(&folder).is_some();
            let missing_bytes =
                wanted.files.iter().filter(is_lacking).fold(0_u64, |sum, entry| sum.saturating_add(entry.bytes));
            let above = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
            let (is_complete, free_bytes) = (is_complete(&wanted, &folder), free_bytes(above)?);
            // A complete folder may be read-only.
            if !is_complete {
                access(above, Access::WRITE_OK | Access::EXEC_OK)?;
            }
            Ok((is_complete, missing_bytes, free_bytes))
        });
        let (is_complete, missing_bytes, free_bytes) = found.await.map_err(|error| self.unusable(&error))?;
        let Manifest { repo, commit, files, .. } = &manifest;
        let source = format!("{repo} at {commit}");
        Ok(Inspection { source, files: files.len(), bytes: manifest.bytes(), is_complete, missing_bytes, free_bytes })
    }

    async fn fetch_once(&self, report: &(dyn Fn(&str) + Sync)) -> Result<FetchSummary, FetchError> {
        let manifest = self.manifest().await?;
        let Manifest { repo, commit, files, .. } = &manifest;
        report(&format!("{repo} at {commit}: {} files, {} bytes", files.len(), manifest.bytes()));
        if self.has(&manifest).await? {
            return Ok(report_complete(&manifest, report));
        }
        let _lock = self.lock().await?;
        // The lock's last holder may have filled the folder.
        if self.has(&manifest).await? {
            return Ok(report_complete(&manifest, report));
        }
        let (wanted, folder) = (manifest.clone(), self.folder.clone());
        let missing = on_own_thread("weights", move || remove_outdated(&wanted, &folder))
            .await
            .map_err(|error| self.unusable(&error))?;
        files.iter().filter(|entry| !missing.contains(entry)).for_each(|entry| report_present(entry, report));
        let bytes = missing.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.bytes));
        self.check_space(&manifest, bytes).await?;
        let fetched = FetchSummary { files: missing.len(), bytes };
        // Files of one part concurrently, then larger files one after the other. So there are never more than `parallel` parts.
        let (small, large): (Vec<ManifestEntry>, Vec<ManifestEntry>) =
            missing.into_iter().partition(|entry| entry.bytes <= self.options.part_bytes);
        let small: Vec<_> = small.iter().map(|entry| self.fetch_file(entry, report)).collect();
        stream::iter(small).buffer_unordered(self.options.parallel).try_collect::<()>().await?;
        for entry in &large {
            self.fetch_file(entry, report).await?;
        }
        let folder = self.folder.clone();
        let written = blocking(move || manifest.write(&folder).map_err(io::Error::other));
        written.await.map_err(|error| self.unusable(&error))?;
        Ok(fetched)
    }

    /// The manifest in S3.
    async fn manifest(&self) -> Result<Manifest, FetchError> {
        let location = self.location(manifest::NAME);
        let (name, url) = (self.source.name_of(&location), &self.url);
        let advice = format!("bring a folder there that handler weights pull filled: aws s3 sync DIR {url}");
        let version = with_retries(self.options.first_delay, || self.source.version(&location)).await;
        let version = version.map_err(|error| self.fetch_error(error, &location, &advice))?;
        if version.length > MAX_MANIFEST {
            let length = version.length;
            let reason = format!("{name} has {length} bytes, a manifest has {MAX_MANIFEST} at most; {advice}");
            return Err(FetchError::Bucket(reason));
        }
        let read = || self.source.read(&location, &version, 0..version.length);
        let text = with_retries(self.options.first_delay, read).await;
        let text = text.map_err(|error| self.fetch_error(error, &location, &advice))?;
        Manifest::parse(&text).map_err(|bad| FetchError::Bucket(format!("{name} {bad}; {advice}")))
    }

    /// Whether the folder has the whole model, by its own manifest.
    async fn has(&self, manifest: &Manifest) -> Result<bool, FetchError> {
        let (wanted, folder) = (manifest.clone(), self.folder.clone());
        on_own_thread("inspect", move || Ok(is_complete(&wanted, &folder))).await.map_err(|error| self.unusable(&error))
    }

    /// Locks the folder.
    async fn lock(&self) -> Result<Lock, FetchError> {
        let (folder, path) = (self.folder.clone(), self.folder.join(LOCK));
        let attempt = path.clone();
        let taken = on_own_thread("lock", move || {
            fs::create_dir_all(&folder)?;
            Lock::attempt(&attempt, LockMode::Exclusive)
        });
        if let Some(lock) = taken.await.map_err(|error| self.unusable(&error))? {
            return Ok(lock);
        }
        tracing::info!(folder = %self.folder.display(), "another process fills the model's folder: waiting for it");
        let waited = Lock::wait(&path, LockMode::Exclusive, LOCK_TIMEOUT).await;
        waited.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => FetchError::Folder(format!(
                "{}: another process has been filling it for {LOCK_TIMEOUT:?}; look what holds {LOCK}",
                self.folder_is()
            )),
            _ => self.unusable(&error),
        })
    }

    /// Checks that the missing bytes fit, and that no other file would be loaded instead of the model's.
    async fn check_space(&self, manifest: &Manifest, bytes: u64) -> Result<(), FetchError> {
        let is_foreign = |name: &String| manifest.files.iter().all(|entry| entry.path != *name);
        let shadowing = shadowing(manifest.variant).filter(is_foreign).map(|name| self.folder.join(name));
        let shadowing: Vec<PathBuf> = shadowing.collect();
        let folder = self.folder.clone();
        let looked = on_own_thread("inspect", move || {
            Ok((free_bytes(&folder)?, shadowing.into_iter().find(|path| path.exists())))
        });
        let (free, shadow) = looked.await.map_err(|error| self.unusable(&error))?;
        if let Some(shadow) = shadow {
            let (shadow, url) = (shadow.display(), &self.url);
            let reason = format!("{}: {shadow} would be loaded instead of what {url} has: remove it", self.folder_is());
            return Err(FetchError::Folder(reason));
        }
        if bytes > free {
            return Err(FetchError::Folder(not_enough_space(&self.folder_is(), bytes, free)));
        }
        Ok(())
    }

    /// Downloads one file. It gets its name when it is complete and its checksum is right.
    async fn fetch_file(&self, entry: &ManifestEntry, report: &(dyn Fn(&str) + Sync)) -> Result<(), FetchError> {
        let clock = Instant::now();
        let (location, path) = (self.location(&entry.path), self.folder.join(&entry.path));
        let again = format!("upload it again: aws s3 cp DIR/{} {}/{}", entry.path, self.url, entry.path);
        let fetch_error = |error| self.fetch_error(error, &location, &again);
        let mut version =
            with_retries(self.options.first_delay, || self.source.version(&location)).await.map_err(fetch_error)?;
        if version.length != entry.bytes {
            let (name, found, wanted) = (self.source.name_of(&location), version.length, entry.bytes);
            let reason = format!("{name} has {found} bytes, its manifest says {wanted}; {again}");
            return Err(FetchError::Bucket(reason));
        }
        // The manifest's checksum counts, not that of S3.
        (version.sha256, version.md5) = (entry.sha256_bytes(), None);
        let partial = Partial::of(&path);
        let target = || {
            let partial = partial.0.clone();
            blocking(move || {
                fs::create_dir_all(partial.parent().unwrap_or(Path::new(".")))?;
                File::create(partial)
            })
            .boxed()
        };
        match download_verified(&self.source, &location, &version, self.options, &CacheMetrics::default(), target).await
        {
            // No fsync: a file that a crash cut off has the wrong size and is downloaded again.
            Ok(_) => {}
            Err(DownloadError::Source(error)) => return Err(fetch_error(error)),
            Err(DownloadError::Volume(error)) => return Err(self.unusable(&error)),
        }
        let from = partial.0.clone();
        blocking(move || fs::rename(from, path)).await.map_err(|error| self.unusable(&error))?;
        report(&format!("{}: {} bytes in {:.1} s", entry.path, entry.bytes, clock.elapsed().as_secs_f32()));
        Ok(())
    }

    fn location(&self, path: &str) -> ObjectLocation {
        ObjectLocation { bucket: self.url.bucket.clone(), key: format!("{}/{path}", self.url.prefix) }
    }

    fn folder_is(&self) -> String {
        format!("{} {}", self.option, self.folder.display())
    }

    fn unusable(&self, error: &io::Error) -> FetchError {
        let advice = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room there",
            _ => "choose a folder that can be written to, as one under /tmp",
        };
        FetchError::Folder(format!("{} cannot be filled: {error}; {advice}", self.folder_is()))
    }

    fn fetch_error(&self, error: SourceError, location: &ObjectLocation, advice: &str) -> FetchError {
        let name = self.source.name_of(location);
        // Errors of one part do not name the file.
        let named = |reason: String| if reason.contains(&name) { reason } else { format!("{name}: {reason}") };
        match error {
            SourceError::Permanent(reason) => FetchError::Bucket(format!("{}; {advice}", named(reason))),
            SourceError::Transient(reason) => FetchError::Storage(named(reason)),
            SourceError::Changed => FetchError::Changed(name),
        }
    }
}

/// The error message for a model that does not fit.
pub(crate) fn not_enough_space(folder: &str, bytes: u64, free: u64) -> String {
    format!(
        "{folder}: {bytes} bytes are to be fetched, and {free} are free there: make room, or choose another folder; on Lambda raise \
         EphemeralStorage"
    )
}

/// A partial file. Dropping it removes the file unless it was renamed.
struct Partial(PathBuf);

impl Partial {
    fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self(path.with_file_name(format!(".{name}.partial")))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // If this fails, the next download overwrites the file.
        let _ = fs::remove_file(&self.0);
    }
}

fn is_complete(manifest: &Manifest, folder: &Path) -> bool {
    let own = Manifest::read(folder);
    own.is_ok_and(|own| own == *manifest)
        && manifest.files.iter().all(|entry| entry.difference_in_size(folder).is_none())
}

/// Prepares the folder for a model: removes its manifest, files that only that manifest lists, and files with other content. Returns the
/// files to download.
fn remove_outdated(manifest: &Manifest, folder: &Path) -> io::Result<Vec<ManifestEntry>> {
    let own = Manifest::read(folder).ok();
    let is_same = own.as_ref() == Some(manifest);
    remove_if_present(&folder.join(manifest::NAME))?;
    for entry in own.iter().flat_map(|own| &own.files) {
        if manifest.files.iter().all(|wanted| wanted.path != entry.path) {
            remove_if_present(&folder.join(&entry.path))?;
        }
    }
    let mut missing = Vec::new();
    for entry in &manifest.files {
        // Without the same manifest the size is not enough.
        let difference = if is_same { entry.difference_in_size(folder) } else { entry.difference(folder) };
        if difference.is_some() {
            remove_if_present(&folder.join(&entry.path))?;
            missing.push(entry.clone());
        }
    }
    Ok(missing)
}

/// Removes a file, if it exists.
fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn report_complete(manifest: &Manifest, report: &(dyn Fn(&str) + Sync)) -> FetchSummary {
    manifest.files.iter().for_each(|entry| report_present(entry, report));
    FetchSummary { files: 0, bytes: 0 }
}

fn report_present(entry: &ManifestEntry, report: &(dyn Fn(&str) + Sync)) {
    report(&format!("{}: there already, {} bytes", entry.path, entry.bytes));
}

#[cfg(test)]
mod tests;
