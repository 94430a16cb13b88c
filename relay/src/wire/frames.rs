//! Cuts the broker's bytes into AMQP frames and lets them out again, methods and content headers mended.
//!
//! Holds back a method or content header until it is whole; everything else passes as it comes. Refuses to judge: what is
//! no frame, or larger than any that a broker would send, passes as it is, and the client says what is wrong with it.

use std::collections::HashMap;

use crate::wire::{
    notes::Notes,
    strings::{self, Delivery},
};

/// A frame's type, channel and size come before its payload, and one byte after it.
const HEAD: usize = 7;
const END: usize = 1;
const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Brokers agree on 128 KiB, some on a few MiB.
const LARGEST: usize = 64 * 1024 * 1024;
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

    /// Takes over the first `count` bytes of [`Self::room`].
    pub(super) fn take(&mut self, count: usize) {
        self.filled += count;
        loop {
            if self.opaque {
                self.whole = self.filled;
                return;
            }
            let passed = self.passing.min(self.filled - self.whole);
            self.whole += passed;
            self.passing -= passed;
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
                        let Delivery { tag, mended } = strings::method(payload);
                        match tag {
                            Some(tag) => self.deliveries.insert(channel, tag),
                            None => self.deliveries.remove(&channel),
                        };
                        mended
                    } else {
                        strings::content_header(payload)
                    };
                    if let Some(&tag) = self.deliveries.get(&channel) {
                        self.notes.add(channel, tag, mended);
                    }
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

#[cfg(test)]
mod tests;
