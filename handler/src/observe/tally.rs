//! What the cache did in this process, for whoever counts.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

/// The counters. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Files downloaded once more, because what was kept or had arrived was spoilt.
    pub refetches: Counter,
    /// Entries that went for a new one.
    pub evictions: Counter,
    /// Bytes downloaded, whether kept or not.
    pub downloaded_bytes: Counter,
    /// Bytes of all files on the volume, as this process last counted them: before a download, with what that brings.
    pub kept_bytes: Gauge,
}
