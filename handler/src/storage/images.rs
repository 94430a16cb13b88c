//! Pictures to begin from. They are a customer's: nothing of them is kept, neither on the volume nor in memory.

mod reading;

pub use reading::{ReadError, read};

use super::{StoreError, s3_source::S3Source};
use crate::{
    observe::CacheMetrics,
    storage::cache::{
        DownloadError, DownloadOptions, ObjectLocation, ObjectSource, SourceError, Version, download_verified,
    },
    task::ImageRef,
};
use clap::Args;
use diffusion::pipeline::filling;
use futures_util::FutureExt;
use image::RgbImage;
use tokio::sync::Semaphore;

/// How often a picture may be replaced while it is read.
const MAX_CHANGES: usize = 3;

/// Limits of pictures to begin from.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Pictures to begin from")]
pub struct ImageLimits {
    /// Largest file of a picture to begin from, in bytes.
    #[arg(long, env = "EASEL_MAX_IMAGE_BYTES", default_value_t = Self::DEFAULT.max_image_bytes, value_name = "BYTES")]
    pub max_image_bytes: u64,
    /// Most pixels of it, which is compared before it is decoded. Decoding takes up to 16 bytes of memory for each, of one picture at a time.
    #[arg(long, env = "EASEL_MAX_IMAGE_PIXELS", default_value_t = Self::DEFAULT.max_image_pixels, value_name = "PIXELS")]
    pub max_image_pixels: u64,
}

impl ImageLimits {
    /// Without options.
    pub const DEFAULT: Self = Self { max_image_bytes: 20 << 20, max_image_pixels: 25_000_000 };
}

/// Reads pictures from the storage.
pub(super) struct Images<S = S3Source> {
    source: S,
    options: DownloadOptions,
    limits: ImageLimits,
    /// One picture is decoded at a time, so that several tasks take no more memory than one.
    decoding: Semaphore,
}

impl<S: ObjectSource> Images<S> {
    pub(super) fn new(source: S, options: DownloadOptions, limits: ImageLimits) -> Self {
        Self { source, options, limits, decoding: Semaphore::new(1) }
    }

    /// The picture as it fills a width and height. Errors as of [`super::Store::image`].
    pub(super) async fn get(&self, wanted: &ImageRef, size: (usize, usize)) -> Result<RgbImage, StoreError> {
        let location = ObjectLocation { bucket: wanted.bucket.clone(), key: wanted.key.clone() };
        let bytes = self.fetch(&location).await?;
        let name = self.source.name_of(&location);
        let broke_off = |reason: String| StoreError::Transient(format!("{name}: {reason}"));
        let _one = self.decoding.acquire().await.map_err(|error| broke_off(error.to_string()))?;
        let max_pixels = self.limits.max_image_pixels;
        let decoding = tokio::task::spawn_blocking(move || {
            let picture = read(&bytes, max_pixels)?;
            // At once, as it may be many times as large.
            Ok(filling(&picture, size.0, size.1))
        });
        let decoded: Result<_, ReadError> = decoding.await.map_err(|error| broke_off(error.to_string()))?;
        let filled = decoded.map_err(|error| StoreError::Permanent(format!("{name} {error}")))?;
        filled.map_err(|error| StoreError::Permanent(format!("{name}: {error}")))
    }

    async fn fetch(&self, location: &ObjectLocation) -> Result<Vec<u8>, StoreError> {
        for _ in 0..MAX_CHANGES {
            let version = self.source.version(location).await?;
            self.check(location, &version)?;
            let target = || futures_util::future::ready(Ok(Vec::new())).boxed();
            // What is counted is the cache's, which it does not pass through.
            let metrics = CacheMetrics::default();
            match download_verified(&self.source, location, &version, self.options, &metrics, target).await {
                Ok((_, bytes)) => return Ok(bytes),
                Err(DownloadError::Source(SourceError::Changed)) => {
                    tracing::info!("the picture to begin from was replaced while it was read");
                }
                Err(DownloadError::Source(error)) => return Err(error.into()),
                // Memory has no I/O errors: no thread could be started.
                Err(DownloadError::Volume(error)) => return Err(StoreError::Transient(error.to_string())),
            }
        }
        let name = self.source.name_of(location);
        Err(StoreError::Transient(format!("{name} was replaced {MAX_CHANGES} times while it was read")))
    }

    fn check(&self, location: &ObjectLocation, version: &Version) -> Result<(), StoreError> {
        let (length, limit) = (version.length, self.limits.max_image_bytes);
        if length <= limit {
            return Ok(());
        }
        let advice = "--max-image-bytes (EASEL_MAX_IMAGE_BYTES): save it smaller";
        let name = self.source.name_of(location);
        Err(StoreError::Permanent(format!("{name} has {length} bytes, the limit is {limit} by {advice}")))
    }
}
