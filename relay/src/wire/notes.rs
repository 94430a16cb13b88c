//! What is seen of one connection on its way in: the broker's limit of frames, and of each delivery, which strings were mended and
//! the bytes that it holds of the budget.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use crate::budget::{Budget, Held};

/// A channel and a delivery tag on it.
type Place = (u16, u64);

/// Written before the client sees the delivery, and read when it hands the delivery out. The default has no bound.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    budget: Budget,
    /// Nobody takes deliveries any more: those that come are left out.
    ended: AtomicBool,
    notes: Mutex<HashMap<Place, Note>>,
    /// Of frames, in bytes; 0 when the broker has set none.
    limit: AtomicU32,
}

/// What is known of one delivery.
#[derive(Debug, Default)]
pub(crate) struct Note {
    /// Which of its strings are not UTF-8 and were mended, in words.
    pub(crate) mended: Option<String>,
    /// Its bytes, where somebody counts them.
    pub(crate) held: Option<Held>,
}

impl Notes {
    /// Those of a connection whose deliveries count on `budget`.
    pub(crate) fn within(budget: Budget) -> Self {
        Self(Arc::new(Shared { budget, ..Shared::default() }))
    }

    /// Adds what was mended in a delivery.
    pub(super) fn add(&self, channel: u16, tag: u64, mended: Vec<String>) {
        if !mended.is_empty() {
            let mut notes = self.notes();
            let note = notes.entry((channel, tag)).or_default();
            let all = note.mended.take().into_iter().chain(mended).collect::<Vec<_>>();
            note.mended = Some(all.join(", "));
        }
    }

    /// Counts the bytes of a delivery.
    pub(super) fn hold(&self, channel: u16, tag: u64, bytes: usize) {
        let held = self.0.budget.hold(bytes);
        self.notes().entry((channel, tag)).or_default().held = Some(held);
    }

    /// Whether another delivery may be read.
    pub(super) fn poll_room(&self, context: &Context<'_>) -> Poll<()> {
        if self.has_ended() { Poll::Ready(()) } else { self.0.budget.poll_room(context) }
    }

    /// Whether there is no room for another delivery.
    pub(super) fn is_full(&self) -> bool {
        self.0.budget.is_full()
    }

    /// Whether deliveries are to be left out.
    pub(super) fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::Acquire)
    }

    /// What is known of a delivery; the note is gone afterwards.
    pub(crate) fn take(&self, channel: u16, tag: u64) -> Note {
        self.notes().remove(&(channel, tag)).unwrap_or_default()
    }

    /// From now on nobody takes deliveries: those that the client has not seen are left out, so that answers to it come through
    /// and no memory is needed. They go back to the queue with the connection.
    pub(crate) fn end(&self) {
        self.0.ended.store(true, Ordering::Release);
        self.notes().clear();
        self.0.budget.wake();
    }

    fn notes(&self) -> MutexGuard<'_, HashMap<Place, Note>> {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The broker allows no frames of more than these bytes.
    pub(super) fn set_limit(&self, bytes: u32) {
        self.0.limit.store(bytes, Ordering::Relaxed);
    }

    /// Another connection begins.
    pub(crate) fn forget_limit(&self) {
        self.set_limit(0);
    }

    /// The broker's limit of frames in bytes, if it has told one.
    pub(crate) fn limit(&self) -> Option<u32> {
        Some(self.0.limit.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}
