//! One file in parts, several at a time, checked against the checksums that the storage has.
//!
//! Parts arrive in any order and are taken in theirs, so that the SHA-256 of the whole is there with the last byte and nothing is read
//! twice. While one is taken, the next ones arrive. At most `parallel` parts and the one that is taken are in memory.

use super::{Place, Source, SourceError, Version, blocking};
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

/// How often one part is tried again.
const RETRIES: usize = 4;
/// How long a part may take. Larger ones get through on slow links, too.
const PART_PATIENCE: Duration = Duration::from_secs(120);

/// How a file is cut.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// Bytes of a part; a file of no more is read at once.
    pub bytes: u64,
    /// Parts on their way at a time.
    pub parallel: usize,
    /// Wait before the first retry of a part; it doubles.
    pub first_delay: Duration,
}

/// Why a download broke off, told apart by where the fault is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    /// In the storage, or on the way from there.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// On the volume.
    #[error(transparent)]
    Volume(#[from] io::Error),
}

/// What parts are written to, in order.
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

/// A checksum of the storage that the bytes do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mismatch {
    Sha256,
    Etag,
}

/// Downloads until the content is beyond doubt: what does not have the checksum of this version is read a second time. The same bytes again
/// were not broken on the way. Then a SHA-256 that differs says that the file itself is, and an ETag that it is no MD5.
pub(crate) async fn sound<S: Source, T: Target>(
    source: &S,
    place: &Place,
    version: &Version,
    parts: Parts,
    tally: &CacheMetrics,
    target: impl Fn() -> BoxFuture<'static, io::Result<T>>,
) -> Result<([u8; 32], T), DownloadError> {
    let (sha256, mismatch, written) = download(source, place, version, parts, target().await?).await?;
    tally.downloaded_bytes.inc_by(version.length);
    let Some(mismatch) = mismatch else { return Ok((sha256, written)) };
    drop(written);
    tally.refetches.inc();
    tracing::warn!(?mismatch, "a download does not have the checksum that it must have: read again");
    let (again, mismatch, written) = download(source, place, version, parts, target().await?).await?;
    tally.downloaded_bytes.inc_by(version.length);
    let name = || source.name_of(place);
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

async fn download<S: Source, T: Target>(
    source: &S,
    place: &Place,
    version: &Version,
    parts: Parts,
    target: T,
) -> Result<([u8; 32], Option<Mismatch>, T), DownloadError> {
    let arriving = ranges(version.length, parts.bytes).into_iter().map(|range| {
        let start = range.start;
        part(source, place, version, range, parts.first_delay).map_ok(move |bytes| (start, bytes))
    });
    let mut arriving = stream::iter(arriving).buffered(parts.parallel);
    let mut taking = ready(Ok((target, (Sha256::new(), version.md5.map(|_| Md5::new()))))).boxed();
    let (target, sums) = loop {
        let (arrived, taken) = tokio::join!(arriving.next(), taking);
        let (mut target, mut sums) = taken?;
        let Some((start, bytes)) = arrived.transpose()? else { break (target, sums) };
        taking = blocking(move || {
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

/// One part, tried again while the fault may pass. A part of another length is a fault of the way.
fn part<'a, S: Source>(
    source: &'a S,
    place: &'a Place,
    version: &'a Version,
    range: Range<u64>,
    first_delay: Duration,
) -> BoxFuture<'a, Result<Vec<u8>, SourceError>> {
    let read = move || {
        let range = range.clone();
        async move {
            let wanted = range.end - range.start;
            let read = tokio::time::timeout(PART_PATIENCE, source.read(place, version, range)).await;
            let bytes = read.map_err(|_| SourceError::Transient(format!("a part took over {PART_PATIENCE:?}")))??;
            let length = bytes.len() as u64;
            let short = || SourceError::Transient(format!("a part of {wanted} bytes came with {length}"));
            (length == wanted).then_some(bytes).ok_or_else(short)
        }
    };
    patiently(first_delay, read).boxed()
}

/// Asks, and asks again while the fault may pass. The wait before that doubles each time.
pub(crate) async fn patiently<T, F: Future<Output = Result<T, SourceError>>>(
    first_delay: Duration,
    ask: impl FnMut() -> F,
) -> Result<T, SourceError> {
    let delays = ExponentialBuilder::default().with_min_delay(first_delay).with_max_times(RETRIES).with_jitter();
    ask.retry(delays).when(|error| matches!(error, SourceError::Transient(_))).await
}

/// The parts of a file; an empty file has one, too.
pub(super) fn ranges(length: u64, part: u64) -> Vec<Range<u64>> {
    let starts = (0..length.div_ceil(part).max(1)).map(|index| index * part);
    starts.map(|start| start..(start + part).min(length)).collect()
}
