//! Downloads a file in parts, several at a time, and checks it against the storage's checksums.
//!
//! Parts are hashed and written in order while the next ones arrive. So the SHA-256 is known with the last byte, and nothing is read
//! twice. At most `parallel` parts and the one being written are in memory.

use super::{ObjectLocation, ObjectSource, SourceError, Version, blocking};
use crate::observe::CacheMetrics;
use backon::{ExponentialBuilder, Retryable};
use futures_util::{
    FutureExt, StreamExt, TryFutureExt,
    future::{BoxFuture, ready},
    stream,
};
use md5::Md5;
use sha2::{Digest, Sha256};
use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, time::Duration};

/// Retries of one part.
const RETRIES: usize = 4;
/// Timeout of one part, long enough for large parts on slow connections.
const PART_TIMEOUT: Duration = Duration::from_secs(120);

/// How a file is downloaded.
#[derive(Debug, Clone, Copy)]
pub struct DownloadOptions {
    /// Bytes of a part. A smaller file is one part.
    pub part_bytes: u64,
    /// Parts that are requested at the same time.
    pub parallel: usize,
    /// Wait before the first retry of a part. It doubles with each retry.
    pub first_delay: Duration,
}

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    /// The storage, or the network.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The volume.
    #[error(transparent)]
    Volume(#[from] io::Error),
}

/// What the parts are written to, in order.
pub(crate) trait Target: Send + 'static {
    fn write(&mut self, start: u64, bytes: &[u8]) -> io::Result<()>;
}

impl Target for File {
    fn write(&mut self, start: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, start)
    }
}

impl Target for Vec<u8> {
    fn write(&mut self, _: u64, bytes: &[u8]) -> io::Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

/// The checksum of the storage that does not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mismatch {
    Sha256,
    Etag,
}

/// Downloads a file, and once more if its checksum does not match. If the bytes are the same again, the network is not at fault: then a
/// wrong SHA-256 means that the file is corrupt, and a wrong ETag that it is not an MD5.
pub(crate) async fn download_verified<S: ObjectSource, T: Target>(
    source: &S,
    location: &ObjectLocation,
    version: &Version,
    options: DownloadOptions,
    metrics: &CacheMetrics,
    target: impl Fn() -> BoxFuture<'static, io::Result<T>>,
) -> Result<([u8; 32], T), DownloadError> {
    let (sha256, mismatch, written) = download(source, location, version, options, target().await?).await?;
    metrics.downloaded_bytes.inc_by(version.length);
    let Some(mismatch) = mismatch else { return Ok((sha256, written)) };
    drop(written);
    metrics.refetches.inc();
    tracing::warn!(?mismatch, "a download does not have the checksum that it must have: read again");
    let (again, mismatch, written) = download(source, location, version, options, target().await?).await?;
    metrics.downloaded_bytes.inc_by(version.length);
    let name = || source.name_of(location);
    match mismatch {
        None => Ok((again, written)),
        Some(_) if again != sha256 => Err(SourceError::Transient(format!("{} came with two contents", name())).into()),
        Some(Mismatch::Etag) => Ok((again, written)),
        Some(Mismatch::Sha256) => {
            let (found, wanted) = (hex::encode(sha256), hex::encode(version.sha256.unwrap_or_default()));
            let reason = format!("{} is corrupt: its content has SHA-256 {found}, and must have {wanted}", name());
            Err(SourceError::Permanent(reason).into())
        }
    }
}

async fn download<S: ObjectSource, T: Target>(
    source: &S,
    location: &ObjectLocation,
    version: &Version,
    options: DownloadOptions,
    target: T,
) -> Result<([u8; 32], Option<Mismatch>, T), DownloadError> {
    let arriving = ranges(version.length, options.part_bytes).into_iter().map(|range| {
        let start = range.start;
        part(source, location, version, range, options.first_delay).map_ok(move |bytes| (start, bytes))
    });
    let mut arriving = stream::iter(arriving).buffered(options.parallel);
    let mut writing = ready(Ok((target, (Sha256::new(), version.md5.map(|_| Md5::new()))))).boxed();
    let (target, sums) = loop {
        let (arrived, written) = tokio::join!(arriving.next(), writing);
        let (mut target, mut sums) = written?;
        let Some((start, bytes)) = arrived.transpose()? else { break (target, sums) };
        writing = blocking(move || {
            sums.0.update(&bytes);
            if let Some(md5) = &mut sums.1 {
                md5.update(&bytes);
            }
            target.write(start, &bytes)?;
            Ok((target, sums))
        })
        .boxed();
    };
    let (sha256, md5): ([u8; 32], Option<[u8; 16]>) =
        (sums.0.finalize().into(), sums.1.map(|md5| md5.finalize().into()));
    let mismatch = match version.sha256 {
        Some(wanted) => (wanted != sha256).then_some(Mismatch::Sha256),
        None => (version.md5 != md5).then_some(Mismatch::Etag),
    };
    Ok((sha256, mismatch, target))
}

/// One part, with retries of temporary errors. A part of the wrong length is one.
fn part<'a, S: ObjectSource>(
    source: &'a S,
    location: &'a ObjectLocation,
    version: &'a Version,
    range: Range<u64>,
    first_delay: Duration,
) -> BoxFuture<'a, Result<Vec<u8>, SourceError>> {
    let read = move || {
        let range = range.clone();
        async move {
            let wanted = range.end - range.start;
            let read = tokio::time::timeout(PART_TIMEOUT, source.read(location, version, range)).await;
            let bytes = read.map_err(|_| SourceError::Transient(format!("a part took over {PART_TIMEOUT:?}")))??;
            let length = bytes.len() as u64;
            let wrong_length = || SourceError::Transient(format!("a part of {wanted} bytes came with {length}"));
            (length == wanted).then_some(bytes).ok_or_else(wrong_length)
        }
    };
    with_retries(first_delay, read).boxed()
}

/// Retries temporary errors. The wait starts with `first_delay` and doubles each time.
pub(crate) async fn with_retries<T, F: Future<Output = Result<T, SourceError>>>(
    first_delay: Duration,
    request: impl FnMut() -> F,
) -> Result<T, SourceError> {
    let delays = ExponentialBuilder::default().with_min_delay(first_delay).with_max_times(RETRIES).with_jitter();
    request.retry(delays).when(|error| matches!(error, SourceError::Transient(_))).await
}

/// The ranges of a file's parts. An empty file has one part.
pub(super) fn ranges(length: u64, part: u64) -> Vec<Range<u64>> {
    let starts = (0..length.div_ceil(part).max(1)).map(|index| index * part);
    starts.map(|start| start..(start + part).min(length)).collect()
}
