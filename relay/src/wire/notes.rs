//! Which deliveries of one connection had strings that were mended.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// A channel and a delivery tag on it.
type Place = (u16, u64);

/// Written before the client sees the delivery, and read when it hands the delivery out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<HashMap<Place, Vec<String>>>>);

impl Notes {
    /// Adds what was mended in a delivery.
    pub(super) fn add(&self, channel: u16, tag: u64, mended: Vec<String>) {
        if !mended.is_empty() {
            let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            notes.entry((channel, tag)).or_default().extend(mended);
        }
    }

    /// What was mended in a delivery, in words; the note is gone afterwards.
    pub(crate) fn take(&self, channel: u16, tag: u64) -> Option<String> {
        let mended = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(channel, tag))?;
        Some(mended.join(", "))
    }
}
