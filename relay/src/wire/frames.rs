//! Splits the broker's bytes into AMQP frames, repairs methods and content headers, and notes what it saw of each
//! delivery.
//!
//! A method or content header is held back until it is complete, and a delivery until there is room for it. Everything
//! else passes as it comes. What is no frame, or larger than any that a broker sends, passes unchanged, and the client
//! reports the error.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use crate::{
    budget::{Budget, HeldBytes},
    wire::strings::{self, DeliverFrame},
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
/// A heartbeat as the broker sends it.
const HEARTBEAT_FRAME: [u8; HEAD + END] = [HEARTBEAT, 0, 0, 0, 0, 0, 0, 0xce];
/// Far more than brokers agree on: 128 KiB, some a few MiB.
const MAX_FRAME_BYTES: usize = 64 * 1024 * 1024;
/// No broker takes a larger body.
const MAX_BODY_BYTES: usize = 1 << 32;
/// In a content header, the body's size comes after class and weight.
const BODY_SIZE: std::ops::Range<usize> = 4..12;
/// For one read from the socket.
const READ_BYTES: usize = 64 * 1024;

/// The incoming bytes of one connection.
#[derive(Debug)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    /// Up to here the client has read.
    given: usize,
    /// Up to here the client may read.
    whole: usize,
    /// Up to here it is filled.
    filled: usize,
    /// Bytes left of a frame that passes as it comes.
    to_pass: usize,
    /// Bytes left of a frame that is left out.
    to_skip: usize,
    /// A delivery is next, and waits for room.
    waiting: bool,
    /// The channels whose delivery is left out.
    skipped_channels: HashSet<u16>,
    /// These are no frames: everything passes.
    opaque: bool,
    /// The last delivery of each channel, whose content header is still to come.
    deliveries: HashMap<u16, u64>,
    notes: ConnectionNotes,
}

impl Frames {
    /// No bytes yet.
    pub(super) fn new(notes: ConnectionNotes) -> Self {
        Self {
            buffer: vec![],
            given: 0,
            whole: 0,
            filled: 0,
            to_pass: 0,
            to_skip: 0,
            waiting: false,
            skipped_channels: HashSet::new(),
            opaque: false,
            deliveries: HashMap::new(),
            notes,
        }
    }

    /// Moves what is ready into `buffer`. Returns the number of bytes.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(self.whole - self.given);
        buffer[..count].copy_from_slice(&self.buffer[self.given..self.given + count]);
        self.given += count;
        count
    }

    /// The buffer for the next bytes, never empty. Call it only when nothing is ready.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.given..self.filled, 0);
        self.filled -= self.given;
        self.whole -= self.given;
        self.given = 0;
        if self.buffer.len() < self.filled + READ_BYTES {
            self.buffer.resize(self.filled + READ_BYTES, 0);
        } else if self.filled == 0 && self.buffer.len() > 4 * READ_BYTES {
            // One large frame must not hold its memory for ever.
            self.buffer = vec![0; READ_BYTES];
        }
        &mut self.buffer[self.filled..]
    }

    /// Waits until there is room for the next delivery, if one is next.
    pub(super) fn poll_delivery(&mut self, context: &Context<'_>) -> Poll<()> {
        if !self.waiting {
            return Poll::Ready(());
        }
        self.notes.poll_room(context).map(|()| {
            self.waiting = false;
            self.scan(true);
        })
    }

    /// Whether [`Self::read`] has something.
    pub(super) fn is_ready(&self) -> bool {
        self.whole > self.given
    }

    /// Whether a delivery waits for room.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Inserts a heartbeat as if the broker had sent it: its own are behind the waiting delivery. Only between frames.
    pub(super) fn insert_heartbeat(&mut self) {
        drop(self.buffer.splice(self.whole..self.whole, HEARTBEAT_FRAME));
        self.whole += HEARTBEAT_FRAME.len();
        self.filled += HEARTBEAT_FRAME.len();
    }

    /// The first `count` bytes of [`Self::spare`] were filled.
    pub(super) fn fill(&mut self, count: usize) {
        self.filled += count;
        self.scan(false);
    }

    /// Finds what the client may read. `room`: one delivery may pass without asking the budget.
    fn scan(&mut self, mut room: bool) {
        loop {
            if self.opaque {
                self.whole = self.filled;
                return;
            }
            let passed = self.to_pass.min(self.filled - self.whole);
            self.whole += passed;
            self.to_pass -= passed;
            let skipped = self.to_skip.min(self.filled - self.whole);
            self.buffer.copy_within(self.whole + skipped..self.filled, self.whole);
            self.filled -= skipped;
            self.to_skip -= skipped;
            let ahead = &mut self.buffer[self.whole..self.filled];
            let Some((&mut [kind, high, low, a, b, c, d], rest)) = ahead.split_first_chunk_mut::<HEAD>() else {
                return;
            };
            let (channel, size) = (u16::from_be_bytes([high, low]), u32::from_be_bytes([a, b, c, d]) as usize);
            match kind {
                METHOD | CONTENT_HEADER if size <= MAX_FRAME_BYTES => {
                    let Some((payload, _end)) =
                        rest.get_mut(..size + END).and_then(|rest| rest.split_at_mut_checked(size))
                    else {
                        return;
                    };
                    let repaired = if kind == METHOD {
                        if let Some(bytes) = frame_max(payload) {
                            self.notes.set_frame_max(bytes);
                        }
                        let is_delivery = strings::is_delivery(payload);
                        if is_delivery && self.notes.has_ended() {
                            self.skipped_channels.insert(channel);
                            self.to_skip = HEAD + size + END;
                            continue;
                        }
                        if is_delivery && !std::mem::take(&mut room) && self.notes.is_full() {
                            self.waiting = true;
                            return;
                        }
                        self.skipped_channels.remove(&channel);
                        let DeliverFrame { tag, repaired } = strings::repair_method(payload);
                        match tag {
                            Some(tag) => self.deliveries.insert(channel, tag),
                            None => self.deliveries.remove(&channel),
                        };
                        repaired
                    } else if self.skipped_channels.contains(&channel) {
                        self.to_skip = HEAD + size + END;
                        continue;
                    } else {
                        if let Some(&tag) = self.deliveries.get(&channel) {
                            self.notes.hold(channel, tag, size + body_size(payload));
                        }
                        strings::repair_content_header(payload)
                    };
                    if let Some(&tag) = self.deliveries.get(&channel) {
                        self.notes.add(channel, tag, repaired);
                    }
                }
                BODY if self.skipped_channels.contains(&channel) => {
                    self.to_skip = HEAD + size + END;
                    continue;
                }
                BODY | HEARTBEAT => {}
                _ => {
                    self.opaque = true;
                    continue;
                }
            }
            self.to_pass = HEAD + size + END;
        }
    }
}

/// The size of the body that follows a content header.
fn body_size(header: &[u8]) -> usize {
    let size = header.get(BODY_SIZE).and_then(|size| size.try_into().ok()).map_or(0, u64::from_be_bytes);
    usize::try_from(size).unwrap_or(MAX_BODY_BYTES).min(MAX_BODY_BYTES)
}

/// The broker's `frame_max`, if this method is `connection.tune`.
fn frame_max(payload: &[u8]) -> Option<u32> {
    let (_channel_max, rest) = payload.strip_prefix(&TUNE)?.split_first_chunk::<2>()?;
    rest.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// A channel and a delivery tag on it.
type ChannelAndTag = (u16, u64);

/// What was seen of one connection: its `frame_max` and a note for each delivery, written before the client sees the
/// delivery. The default has no byte limit.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConnectionNotes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    budget: Budget,
    /// Deliveries are no longer wanted: those that come are left out.
    ended: AtomicBool,
    notes: Mutex<HashMap<ChannelAndTag, DeliveryNote>>,
    /// In bytes; 0 if the broker has set none.
    frame_max: AtomicU32,
}

/// What was noted about one delivery.
#[derive(Debug, Default)]
pub(crate) struct DeliveryNote {
    /// Which of its strings were not UTF-8 and were repaired, in words.
    pub(crate) repaired: Option<String>,
    /// Its bytes in the budget.
    pub(crate) held: Option<HeldBytes>,
}

impl ConnectionNotes {
    /// Notes on a connection whose deliveries count against `budget`.
    pub(crate) fn within(budget: Budget) -> Self {
        Self(Arc::new(Shared { budget, ..Shared::default() }))
    }

    /// Adds what was repaired in a delivery.
    fn add(&self, channel: u16, tag: u64, repaired: Vec<String>) {
        if !repaired.is_empty() {
            let mut notes = self.notes();
            let note = notes.entry((channel, tag)).or_default();
            let all = note.repaired.take().into_iter().chain(repaired).collect::<Vec<_>>();
            note.repaired = Some(all.join(", "));
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

    /// Takes out the note on a delivery.
    pub(crate) fn take(&self, channel: u16, tag: u64) -> DeliveryNote {
        self.notes().remove(&(channel, tag)).unwrap_or_default()
    }

    /// From now on deliveries are left out unless the client has seen them, so that answers get through without memory
    /// for deliveries. They go back to the queue with the connection.
    pub(crate) fn end(&self) {
        self.0.ended.store(true, Ordering::Release);
        self.notes().clear();
        self.0.budget.wake();
    }

    fn notes(&self) -> MutexGuard<'_, HashMap<ChannelAndTag, DeliveryNote>> {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_frame_max(&self, bytes: u32) {
        self.0.frame_max.store(bytes, Ordering::Relaxed);
    }

    /// For the next connection.
    pub(crate) fn reset_frame_max(&self) {
        self.set_frame_max(0);
    }

    /// The broker's `frame_max` in bytes, if it has sent one.
    pub(crate) fn frame_max(&self) -> Option<u32> {
        Some(self.0.frame_max.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}

#[cfg(test)]
mod tests;
