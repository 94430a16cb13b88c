//! How many bytes of messages the relay holds, and when it reads no more of them.
//!
//! The broker counts messages, not bytes: with a prefetch of 100 it may have sent 100 of the largest before anybody has seen the
//! first. So the bound is kept where the bytes come in (see [`crate::wire`]): while it is reached, no further delivery is read. As
//! RabbitMQ closes a connection that is not read from for 30 s, and counts what was on it as delivered, the prefetch follows: it
//! becomes what fitted, and grows again when messages are small.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

/// The bytes held, over all connections. Clones are the same one. The default has no bound.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    gauge: Gauge,
    holding: Mutex<Holding>,
    /// Told each time that somebody has to wait.
    full: Notify,
}

#[derive(Debug, Default)]
struct Holding {
    bytes: usize,
    messages: usize,
    /// Who waits for room.
    waiting: Vec<Waker>,
}

/// The bytes of one message. They count until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Budget,
    bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(usize::MAX, Gauge::default())
    }
}

impl Budget {
    /// For `limit` bytes; `gauge` shows how many there are.
    pub(crate) fn new(limit: usize, gauge: Gauge) -> Self {
        Self(Arc::new(Inner { limit, gauge, holding: Mutex::default(), full: Notify::new() }))
    }

    /// Counts a message, whether there is room for it or not: whoever begins to read one reads it to its end.
    pub(crate) fn hold(&self, bytes: usize) -> Held {
        let mut holding = self.holding();
        holding.bytes += bytes;
        holding.messages += 1;
        self.0.gauge.set(i64::try_from(holding.bytes).unwrap_or(i64::MAX));
        Held { budget: self.clone(), bytes }
    }

    /// Whether another message may be read: as long as any room is left. So one always may when nothing is held, and at most one
    /// goes over the limit.
    pub(crate) fn poll_room(&self, context: &Context<'_>) -> Poll<()> {
        let mut holding = self.holding();
        if holding.bytes < self.0.limit {
            return Poll::Ready(());
        }
        if !holding.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            holding.waiting.push(context.waker().clone());
            self.0.full.notify_one();
        }
        Poll::Pending
    }

    /// Whether nothing more may be read now.
    pub(crate) fn is_full(&self) -> bool {
        self.holding().bytes >= self.0.limit
    }

    /// Waits until somebody has to wait for room. Safe to cancel.
    pub(crate) async fn full(&self) {
        self.0.full.notified().await;
    }

    /// How many messages are held.
    pub(crate) fn messages(&self) -> usize {
        self.holding().messages
    }

    /// Lets those look again who wait for room.
    pub(crate) fn wake(&self) {
        let waiting = std::mem::take(&mut self.holding().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }

    fn holding(&self) -> MutexGuard<'_, Holding> {
        // Nothing in there can be half done.
        self.0.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// How many they are.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut holding = self.budget.holding();
        holding.bytes -= self.bytes;
        holding.messages -= 1;
        self.budget.0.gauge.set(i64::try_from(holding.bytes).unwrap_or(i64::MAX));
        if holding.bytes < self.budget.0.limit {
            drop(holding);
            self.budget.wake();
        }
    }
}

/// How many messages the broker may have out: at most the prefetch, and no more than fit, as far as can be told.
#[derive(Debug)]
pub(crate) struct Window {
    most: u16,
    now: u16,
    limit: usize,
    /// Those that came since the last change, and the largest of them.
    came: u16,
    largest: usize,
}

impl Window {
    /// As many as there may be: nothing is known of them yet.
    pub(crate) fn new(most: u16, limit: usize) -> Self {
        Self { most, now: most, limit, came: 0, largest: 0 }
    }

    /// How many.
    pub(crate) fn now(&self) -> u16 {
        self.now
    }

    /// Notes a message; whether there may be more from now on. That is so after a whole window of which twice as many would fit, were
    /// each as large as the largest.
    pub(crate) fn came(&mut self, bytes: usize) -> bool {
        self.largest = self.largest.max(bytes);
        self.came += 1;
        if self.came < self.now {
            return false;
        }
        let twice = self.now.saturating_mul(2).min(self.most);
        let grows = self.now < self.most && self.largest.saturating_mul(twice.into()) <= self.limit;
        self.change(if grows { twice } else { self.now });
        grows
    }

    /// Notes that so many messages are all that fit; whether there must be fewer from now on.
    pub(crate) fn full(&mut self, held: usize) -> bool {
        let fit = u16::try_from(held).unwrap_or(u16::MAX).max(1);
        let shrinks = fit < self.now;
        if shrinks {
            self.change(fit);
        }
        shrinks
    }

    fn change(&mut self, now: u16) {
        *self = Self { now, ..Self::new(self.most, self.limit) };
    }
}

#[cfg(test)]
mod tests;
