//! A model in S3, brought into a folder: what the manifest there names, in parallel ranged reads, each file held to its SHA-256.
//!
//! The folder's own manifest goes before anything else is changed and is written last, so a folder with a manifest is complete. A file
//! grows as `.NAME.partial`. After a process that was killed the next one keeps the files that have their SHA-256, and begins the others anew.

use super::{
    LOCK,
    layout::shadows,
    manifest::{self, Entry, Manifest},
};
use crate::{
    observe::CacheMetrics,
    storage::{
        Objects, Regional, Wording,
        cache::{
            DownloadError, Kind, Lock, Parts, Place, Source, SourceError, aside, blocking, free_bytes, patiently, sound,
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

/// AWS counts with 85 to 90 MB/s of one connection to S3, advises ranges of 8 to 16 MB, and about 15 requests at a time for 10 Gbit/s
/// ("Performance design patterns for Amazon S3"). So there are 128 MiB of parts in memory.
const PARTS: Parts = Parts { bytes: 8 << 20, parallel: 16, first_delay: Duration::from_millis(200) };
/// Most bytes of a manifest. One of thirteen files has less than 3 KB.
const MAX_MANIFEST: u64 = 1 << 20;
/// How long another process may take to fill the same folder.
const LOCK_PATIENCE: Duration = Duration::from_secs(1800);
/// How often the model may be replaced while it is fetched.
const CHANGES: usize = 3;

/// Why a model did not come from S3, by where it must be mended. The process that needs the model ends.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// In the bucket or the address: trying again would end the same way.
    #[error("{0}")]
    Bucket(String),
    /// In S3, the role, or the way there, for as long as it was tried.
    #[error("{0}")]
    Storage(String),
    /// In the folder that is to be filled.
    #[error("{0}")]
    Folder(String),
    /// The model was replaced while it was read.
    #[error("{0} was replaced while it was fetched: start again when nobody writes to it")]
    Changed(String),
}

const IF_DENIED: &str = "S3 says so also of what is not there to a role without s3:ListBucket: check that aws s3 sync brought the \
                         folder there, and that the role has s3:GetObject on it";
const IF_WHOLE: &str = "a model is fetched in parts alone";

/// A model in S3, and the folder that it is brought into.
pub(crate) struct Remote<S> {
    source: S,
    url: ModelUrl,
    folder: PathBuf,
    /// The option that names it.
    option: &'static str,
    parts: Parts,
}

/// What was fetched of a model.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Brought {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

/// What a look at both ends found.
pub(crate) struct Looked {
    /// Repository and commit.
    pub(crate) source: String,
    /// How many files, and their bytes.
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// Whether the folder has all of it.
    pub(crate) is_complete: bool,
    /// Bytes of those that are not in the folder, by their size.
    pub(crate) lacking: u64,
    /// Bytes that are free there.
    pub(crate) free: u64,
}

impl Remote<Objects> {
    /// Of function, worker and doctor.
    pub(crate) fn at_start(s3: Regional, url: &ModelUrl, folder: &Path) -> Self {
        Self::new(s3, "--model-url (EASEL_MODEL_URL)", url, "--model (EASEL_MODEL_DIR)", folder)
    }

    /// Of `handler weights fetch`.
    pub(super) fn by_hand(s3: Regional, url: &ModelUrl, folder: &Path) -> Self {
        Self::new(s3, "model", url, "--to", folder)
    }

    fn new(s3: Regional, file: &'static str, url: &ModelUrl, option: &'static str, folder: &Path) -> Self {
        let wording = Wording { file, passing: file, if_denied: IF_DENIED, if_whole: IF_WHOLE };
        let (url, folder) = (url.clone(), folder.to_owned());
        Self { source: Objects::new(s3, wording), url, folder, option, parts: PARTS }
    }
}

impl<S: Source> Remote<S> {
    /// Fills the folder; `said` is told a line for each step.
    pub(crate) async fn bring(&self, said: &(dyn Fn(&str) + Sync)) -> Result<Brought, FetchError> {
        let mut round = 1;
        loop {
            match self.bring_once(said).await {
                Err(FetchError::Changed(name)) if round < CHANGES => {
                    tracing::warn!("{name} was replaced while it was fetched: begun again");
                    round += 1;
                }
                ended => return ended,
            }
        }
    }

    /// Looks at bucket and folder, and changes nothing.
    pub(crate) async fn look(&self) -> Result<Looked, FetchError> {
        let manifest = self.manifest().await?;
        let (wanted, folder) = (manifest.clone(), self.folder.clone());
        let found = aside("look", move || {
            let is_lacking = |entry: &&Entry| entry.difference_in_size(&folder).is_some();
            let lacking =
                wanted.files.iter().filter(is_lacking).fold(0_u64, |sum, entry| sum.saturating_add(entry.bytes));
            let above = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
            let (is_complete, free) = (is_complete(&wanted, &folder), free_bytes(above)?);
            // One that has all may be read-only.
            if !is_complete {
                access(above, Access::WRITE_OK | Access::EXEC_OK)?;
            }
            Ok((is_complete, lacking, free))
        });
        let (is_complete, lacking, free) = found.await.map_err(|error| self.unusable(&error))?;
        let Manifest { repo, commit, files, .. } = &manifest;
        let source = format!("{repo} at {commit}");
        Ok(Looked { source, files: files.len(), bytes: manifest.bytes(), is_complete, lacking, free })
    }

    async fn bring_once(&self, said: &(dyn Fn(&str) + Sync)) -> Result<Brought, FetchError> {
        let manifest = self.manifest().await?;
        let Manifest { repo, commit, files, .. } = &manifest;
        said(&format!("{repo} at {commit}: {} files, {} bytes", files.len(), manifest.bytes()));
        if self.has(&manifest).await? {
            return Ok(all_there(&manifest, said));
        }
        let _lock = self.lock().await?;
        // Whoever held it may have filled the folder.
        if self.has(&manifest).await? {
            return Ok(all_there(&manifest, said));
        }
        let (wanted, folder) = (manifest.clone(), self.folder.clone());
        let missing = aside("weights", move || clear(&wanted, &folder)).await.map_err(|error| self.unusable(&error))?;
        files.iter().filter(|entry| !missing.contains(entry)).for_each(|entry| there(entry, said));
        let bytes = missing.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.bytes));
        self.check_room(&manifest, bytes).await?;
        let fetched = Brought { files: missing.len(), bytes };
        // One part each: side by side. Then those of several parts one after the other, so that there are as many parts on their way
        // at any time, and no more of them in memory.
        let (small, large): (Vec<Entry>, Vec<Entry>) =
            missing.into_iter().partition(|entry| entry.bytes <= self.parts.bytes);
        let small: Vec<_> = small.iter().map(|entry| self.fetch(entry, said)).collect();
        stream::iter(small).buffer_unordered(self.parts.parallel).try_collect::<()>().await?;
        for entry in &large {
            self.fetch(entry, said).await?;
        }
        let folder = self.folder.clone();
        let written = blocking(move || manifest.write(&folder).map_err(io::Error::other));
        written.await.map_err(|error| self.unusable(&error))?;
        Ok(fetched)
    }

    /// The manifest in S3.
    async fn manifest(&self) -> Result<Manifest, FetchError> {
        let place = self.place(manifest::NAME);
        let (name, url) = (self.source.name_of(&place), &self.url);
        let advice = format!("bring a folder there that handler weights pull filled: aws s3 sync DIR {url}");
        let version = patiently(self.parts.first_delay, || self.source.version(&place)).await;
        let version = version.map_err(|error| self.fault(error, &place, &advice))?;
        if version.length > MAX_MANIFEST {
            let length = version.length;
            let reason = format!("{name} has {length} bytes, a manifest has {MAX_MANIFEST} at most; {advice}");
            return Err(FetchError::Bucket(reason));
        }
        let read = || self.source.read(&place, &version, 0..version.length);
        let text = patiently(self.parts.first_delay, read).await;
        let text = text.map_err(|error| self.fault(error, &place, &advice))?;
        Manifest::parse(&text).map_err(|bad| FetchError::Bucket(format!("{name} {bad}; {advice}")))
    }

    /// Whether the folder has all of a model, as its own manifest says.
    async fn has(&self, manifest: &Manifest) -> Result<bool, FetchError> {
        let (wanted, folder) = (manifest.clone(), self.folder.clone());
        aside("look", move || Ok(is_complete(&wanted, &folder))).await.map_err(|error| self.unusable(&error))
    }

    /// The folder for us alone.
    async fn lock(&self) -> Result<Lock, FetchError> {
        let (folder, path) = (self.folder.clone(), self.folder.join(LOCK));
        let attempt = path.clone();
        let taken = aside("lock", move || {
            fs::create_dir_all(&folder)?;
            Lock::attempt(&attempt, Kind::Exclusive)
        });
        if let Some(lock) = taken.await.map_err(|error| self.unusable(&error))? {
            return Ok(lock);
        }
        tracing::info!(folder = %self.folder.display(), "another process fills the model's folder: waiting for it");
        let waited = Lock::wait(&path, Kind::Exclusive, LOCK_PATIENCE).await;
        waited.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => FetchError::Folder(format!(
                "{}: another process has been filling it for {LOCK_PATIENCE:?}; look what holds {LOCK}",
                self.folder_is()
            )),
            _ => self.unusable(&error),
        })
    }

    /// Whether what is to come fits, and whether the folder then is this model.
    async fn check_room(&self, manifest: &Manifest, bytes: u64) -> Result<(), FetchError> {
        let strange = |name: &String| manifest.files.iter().all(|entry| entry.path != *name);
        let shadows = shadows(manifest.variant).filter(strange).map(|name| self.folder.join(name));
        let shadows: Vec<PathBuf> = shadows.collect();
        let folder = self.folder.clone();
        let looked = aside("look", move || Ok((free_bytes(&folder)?, shadows.into_iter().find(|path| path.exists()))));
        let (free, shadow) = looked.await.map_err(|error| self.unusable(&error))?;
        if let Some(shadow) = shadow {
            let (shadow, url) = (shadow.display(), &self.url);
            let reason = format!("{}: {shadow} would be loaded instead of what {url} has: remove it", self.folder_is());
            return Err(FetchError::Folder(reason));
        }
        if bytes > free {
            return Err(FetchError::Folder(no_room(&self.folder_is(), bytes, free)));
        }
        Ok(())
    }

    /// One file, under its name when it is whole and right.
    async fn fetch(&self, entry: &Entry, said: &(dyn Fn(&str) + Sync)) -> Result<(), FetchError> {
        let clock = Instant::now();
        let (place, path) = (self.place(&entry.path), self.folder.join(&entry.path));
        let again = format!("upload it again: aws s3 cp DIR/{} {}/{}", entry.path, self.url, entry.path);
        let fault = |error| self.fault(error, &place, &again);
        let mut version = patiently(self.parts.first_delay, || self.source.version(&place)).await.map_err(fault)?;
        if version.length != entry.bytes {
            let (name, found, wanted) = (self.source.name_of(&place), version.length, entry.bytes);
            let reason = format!("{name} has {found} bytes, its manifest says {wanted}; {again}");
            return Err(FetchError::Bucket(reason));
        }
        // Whatever checksum S3 has, the manifest's says more.
        (version.sha256, version.md5) = (entry.sum(), None);
        let partial = Partial::of(&path);
        let target = || {
            let partial = partial.0.clone();
            blocking(move || {
                fs::create_dir_all(partial.parent().unwrap_or(Path::new(".")))?;
                File::create(partial)
            })
            .boxed()
        };
        match sound(&self.source, &place, &version, self.parts, &CacheMetrics::default(), target).await {
            // Nothing waits for the disk: a file that it lost in a crash is shorter than the manifest says, and is fetched again.
            Ok(_) => {}
            Err(DownloadError::Source(error)) => return Err(fault(error)),
            Err(DownloadError::Volume(error)) => return Err(self.unusable(&error)),
        }
        let from = partial.0.clone();
        blocking(move || fs::rename(from, path)).await.map_err(|error| self.unusable(&error))?;
        said(&format!("{}: {} bytes in {:.1} s", entry.path, entry.bytes, clock.elapsed().as_secs_f32()));
        Ok(())
    }

    fn place(&self, path: &str) -> Place {
        Place { bucket: self.url.bucket.clone(), key: format!("{}/{path}", self.url.prefix) }
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

    fn fault(&self, error: SourceError, place: &Place, advice: &str) -> FetchError {
        let name = self.source.name_of(place);
        // What was said of a part does not name the file.
        let named = |reason: String| if reason.contains(&name) { reason } else { format!("{name}: {reason}") };
        match error {
            SourceError::Permanent(reason) => FetchError::Bucket(format!("{}; {advice}", named(reason))),
            SourceError::Transient(reason) => FetchError::Storage(named(reason)),
            SourceError::Changed => FetchError::Changed(name),
        }
    }
}

/// What is said where a model does not fit.
pub(crate) fn no_room(folder: &str, bytes: u64, free: u64) -> String {
    format!(
        "{folder}: {bytes} bytes are to be fetched, and {free} are free there: make room, or choose another folder; on Lambda raise \
         EphemeralStorage"
    )
}

/// The file that grows. It goes if it did not get its name, unless the process is killed.
struct Partial(PathBuf);

impl Partial {
    fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self(path.with_file_name(format!(".{name}.partial")))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // The next try overwrites what cannot be removed.
        let _ = fs::remove_file(&self.0);
    }
}

fn is_complete(manifest: &Manifest, folder: &Path) -> bool {
    let own = Manifest::read(folder);
    own.is_ok_and(|own| own == *manifest)
        && manifest.files.iter().all(|entry| entry.difference_in_size(folder).is_none())
}

/// Makes way for a model: removes the folder's manifest, what that alone names, and what has another content. Gives what is to be fetched.
fn clear(manifest: &Manifest, folder: &Path) -> io::Result<Vec<Entry>> {
    let own = Manifest::read(folder).ok();
    let is_same = own.as_ref() == Some(manifest);
    gone(&folder.join(manifest::NAME))?;
    for entry in own.iter().flat_map(|own| &own.files) {
        if manifest.files.iter().all(|wanted| wanted.path != entry.path) {
            gone(&folder.join(&entry.path))?;
        }
    }
    let mut missing = Vec::new();
    for entry in &manifest.files {
        // The hash says what a file is that no manifest vouches for.
        let difference = if is_same { entry.difference_in_size(folder) } else { entry.difference(folder) };
        if difference.is_some() {
            gone(&folder.join(&entry.path))?;
            missing.push(entry.clone());
        }
    }
    Ok(missing)
}

/// Removes a file that may not be there.
fn gone(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn all_there(manifest: &Manifest, said: &(dyn Fn(&str) + Sync)) -> Brought {
    manifest.files.iter().for_each(|entry| there(entry, said));
    Brought { files: 0, bytes: 0 }
}

fn there(entry: &Entry, said: &(dyn Fn(&str) + Sync)) {
    said(&format!("{}: there already, {} bytes", entry.path, entry.bytes));
}

#[cfg(test)]
mod tests;
