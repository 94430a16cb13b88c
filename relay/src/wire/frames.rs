//! Cuts the broker's bytes into AMQP frames and lets them out again, methods and content headers mended.
//!
//! Holds back a method or content header until it is whole, and a delivery until there is room for it; everything else passes
//! as it comes. What is no frame, or larger than any that a broker would send, passes as it is, and the client says what is
//! wrong with it.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use crate::{
    budget::{Budget, Held},
    wire::strings::{self, Delivery},
};

/// A frame's type, channel and size come before its payload, and one byte after it.
const HEAD: usize = 7;
const END: usize = 1;
const METHOD: u8 = 1;
/// Class and method of `connection.tune`.
const TUNE: [u8; 4] = [0, 10, 0, 30];
const CONTENT_HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// A whole frame of the broker's that says that it is there.
const BEAT: [u8; HEAD + END] = [HEARTBEAT, 0, 0, 0, 0, 0, 0, 0xce];
/// Brokers agree on 128 KiB, some on a few MiB.
const LARGEST: usize = 64 * 1024 * 1024;
/// No broker takes a larger body.
const LARGEST_BODY: usize = 1 << 32;
/// In a content header, the body's size stands behind class and weight.
const BODY_SIZE: std::ops::Range<usize> = 4..12;
/// For one read from the socket.
const READ: usize = 64 * 1024;

/// The bytes of one connection on their way in.
#[derive(Debug)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    /// Up to here it was given out.
    given: usize,
    /// Up to here it may be given out.
    whole: usize,
    /// Up to here it is filled.
    filled: usize,
    /// What follows of a frame that passes as it comes.
    passing: usize,
    /// What follows of a frame that is left out.
    skipping: usize,
    /// A delivery is next, and waits for room.
    waiting: bool,
    /// The channels whose delivery is left out.
    left_out: HashSet<u16>,
    /// No frames: everything passes.
    opaque: bool,
    /// The last delivery of each channel, whose content header is still to come.
    deliveries: HashMap<u16, u64>,
    notes: Notes,
}

impl Frames {
    /// None yet.
    pub(super) fn new(notes: Notes) -> Self {
        Self {
            buffer: vec![],
            given: 0,
            whole: 0,
            filled: 0,
            passing: 0,
            skipping: 0,
            waiting: false,
            left_out: HashSet::new(),
            opaque: false,
            deliveries: HashMap::new(),
            notes,
        }
    }

    /// Moves what is ready into `buffer`, and says how many bytes that are.
    pub(super) fn give(&mut self, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(self.whole - self.given);
        buffer[..count].copy_from_slice(&self.buffer[self.given..self.given + count]);
        self.given += count;
        count
    }

    /// Where the next bytes go. Never empty. To be asked for only when nothing is ready.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.given..self.filled, 0);
        self.filled -= self.given;
        self.whole -= self.given;
        self.given = 0;
        if self.buffer.len() < self.filled + READ {
            self.buffer.resize(self.filled + READ, 0);
        } else if self.filled == 0 && self.buffer.len() > 4 * READ {
            // One large frame must not hold its memory for ever.
            self.buffer = vec![0; READ];
        }
        &mut self.buffer[self.filled..]
    }

    /// Waits until the next delivery may be let out, if that is what comes next.
    pub(super) fn poll_delivery(&mut self, context: &Context<'_>) -> Poll<()> {
        if !self.waiting {
            return Poll::Ready(());
        }
        self.notes.poll_room(context).map(|()| {
            self.waiting = false;
            self.cut(true);
        })
    }

    /// Whether [`Self::give`] has something.
    pub(super) fn is_ready(&self) -> bool {
        self.whole > self.given
    }

    /// Whether a delivery waits for room.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Lets out a heartbeat as if it came from the broker, whose own are behind the delivery that waits. Only between frames.
    pub(super) fn beat(&mut self) {
        drop(self.buffer.splice(self.whole..self.whole, BEAT));
        self.whole += BEAT.len();
        self.filled += BEAT.len();
    }

    /// Takes over the first `count` bytes of [`Self::room`].
    pub(super) fn take(&mut self, count: usize) {
        self.filled += count;
        self.cut(false);
    }

    /// Finds what may be let out. `room`: whether one delivery may be, without another look.
    fn cut(&mut self, mut room: bool) {
        loop {
            if self.opaque {
                self.whole = self.filled;
                return;
            }
            let passed = self.passing.min(self.filled - self.whole);
            self.whole += passed;
            self.passing -= passed;
            let skipped = self.skipping.min(self.filled - self.whole);
            self.buffer.copy_within(self.whole + skipped..self.filled, self.whole);
            self.filled -= skipped;
            self.skipping -= skipped;
            let ahead = &mut self.buffer[self.whole..self.filled];
            let Some((&mut [kind, high, low, a, b, c, d], rest)) = ahead.split_first_chunk_mut::<HEAD>() else {
                return;
            };
            let (channel, size) = (u16::from_be_bytes([high, low]), u32::from_be_bytes([a, b, c, d]) as usize);
            match kind {
                METHOD | CONTENT_HEADER if size <= LARGEST => {
                    let Some((payload, _end)) =
                        rest.get_mut(..size + END).and_then(|rest| rest.split_at_mut_checked(size))
                    else {
                        return;
                    };
                    let mended = if kind == METHOD {
                        if let Some(bytes) = limit(payload) {
                            self.notes.set_limit(bytes);
                        }
                        let is_delivery = strings::is_delivery(payload);
                        if is_delivery && self.notes.has_ended() {
                            self.left_out.insert(channel);
                            self.skipping = HEAD + size + END;
                            continue;
                        }
                        if is_delivery && !std::mem::take(&mut room) && self.notes.is_full() {
                            self.waiting = true;
                            return;
                        }
                        self.left_out.remove(&channel);
                        let Delivery { tag, mended } = strings::method(payload);
                        match tag {
                            Some(tag) => self.deliveries.insert(channel, tag),
                            None => self.deliveries.remove(&channel),
                        };
                        mended
                    } else if self.left_out.contains(&channel) {
                        self.skipping = HEAD + size + END;
                        continue;
                    } else {
                        if let Some(&tag) = self.deliveries.get(&channel) {
                            self.notes.hold(channel, tag, size + body_size(payload));
                        }
                        strings::content_header(payload)
                    };
                    if let Some(&tag) = self.deliveries.get(&channel) {
                        self.notes.add(channel, tag, mended);
                    }
                }
                BODY if self.left_out.contains(&channel) => {
                    self.skipping = HEAD + size + END;
                    continue;
                }
                BODY | HEARTBEAT => {}
                _ => {
                    self.opaque = true;
                    continue;
                }
            }
            self.passing = HEAD + size + END;
        }
    }
}

/// The size of the body that follows a content header.
fn body_size(header: &[u8]) -> usize {
    let size = header.get(BODY_SIZE).and_then(|size| size.try_into().ok()).map_or(0, u64::from_be_bytes);
    usize::try_from(size).unwrap_or(LARGEST_BODY).min(LARGEST_BODY)
}

/// The limit of frames, if this method is `connection.tune`.
fn limit(payload: &[u8]) -> Option<u32> {
    let (_channel_max, rest) = payload.strip_prefix(&TUNE)?.split_first_chunk::<2>()?;
    rest.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

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
    fn add(&self, channel: u16, tag: u64, mended: Vec<String>) {
        if !mended.is_empty() {
            let mut notes = self.notes();
            let note = notes.entry((channel, tag)).or_default();
            let all = note.mended.take().into_iter().chain(mended).collect::<Vec<_>>();
            note.mended = Some(all.join(", "));
        }
    }

    /// Counts the bytes of a delivery.
    fn hold(&self, channel: u16, tag: u64, bytes: usize) {
        let held = self.0.budget.hold(bytes);
        self.notes().entry((channel, tag)).or_default().held = Some(held);
    }

    /// Whether another delivery may be read.
    fn poll_room(&self, context: &Context<'_>) -> Poll<()> {
        if self.has_ended() { Poll::Ready(()) } else { self.0.budget.poll_room(context) }
    }

    /// Whether there is no room for another delivery.
    fn is_full(&self) -> bool {
        self.0.budget.is_full()
    }

    /// Whether deliveries are to be left out.
    fn has_ended(&self) -> bool {
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
    fn set_limit(&self, bytes: u32) {
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

#[cfg(test)]
mod tests;
