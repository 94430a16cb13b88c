//! What the cache asks of the storage that files come from: S3, or a stand-in with faults in tests.

use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use std::ops::Range;

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
}

/// What lies there now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Version {
    /// The entity tag, as the storage wrote it.
    pub etag: String,
    /// The version, if the bucket keeps versions.
    pub id: Option<String>,
    /// Bytes.
    pub length: u64,
    /// SHA-256 of the whole, if the storage has it.
    pub sha256: Option<[u8; 32]>,
    /// MD5 of the whole, if the entity tag looks like one.
    pub md5: Option<[u8; 16]>,
}

/// Why a file did not come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Trying again would end the same way.
    #[error("{0}")]
    Permanent(String),
    /// May get better.
    #[error("{0}")]
    Transient(String),
    /// Another version lies there now.
    #[error("it was replaced while it was read")]
    Changed,
}

/// A storage.
pub trait Source: Send + Sync {
    /// What messages call the file that lies there: by the field or option that names it.
    fn name_of(&self, place: &Place) -> String;

    /// What lies there now.
    fn version<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<Version, SourceError>>;

    /// These bytes of this version and no other; a whole file is asked for without a range.
    fn read<'a>(
        &'a self,
        place: &'a Place,
        version: &'a Version,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Vec<u8>, SourceError>>;
}

/// The name of an entry: no two contents share one.
pub(super) fn name(place: &Place, version: &Version) -> String {
    let id = version.id.as_deref().unwrap_or_default();
    hex::encode(Sha256::digest([place.bucket.as_str(), &place.key, &version.etag, id].join("\0")))
}
