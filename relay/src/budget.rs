//! How many bytes of messages the relay holds, and when it reads no more of them.
//!
//! The broker counts messages, not bytes: with a prefetch of 100 it may have sent 100 of the largest before anybody has seen the
//! first. So the bound is kept where the bytes come in (see [`crate::wire`]): while it is reached, no further delivery is read. RabbitMQ
//! closes a connection that is not read from for 30 s; the next one gets the same messages in the same order. The prefetch does not
//! follow: see [`crate::source`].

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use prometheus_client::metrics::gauge::Gauge;

/// The bytes held, over all connections. Clones are the same one. The default has no bound.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    gauge: Gauge,
    holding: Mutex<Holding>,
}

#[derive(Debug, Default)]
struct Holding {
    bytes: usize,
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
        Self(Arc::new(Inner { limit, gauge, holding: Mutex::default() }))
    }

    /// Counts a message, whether there is room for it or not: whoever begins to read one reads it to its end.
    pub(crate) fn hold(&self, bytes: usize) -> Held {
        let mut holding = self.holding();
        holding.bytes += bytes;
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
        }
        Poll::Pending
    }

    /// Whether nothing more may be read now.
    pub(crate) fn is_full(&self) -> bool {
        self.holding().bytes >= self.0.limit
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

impl Drop for Held {
    fn drop(&mut self) {
        let mut holding = self.budget.holding();
        holding.bytes -= self.bytes;
        self.budget.0.gauge.set(i64::try_from(holding.bytes).unwrap_or(i64::MAX));
        if holding.bytes < self.budget.0.limit {
            drop(holding);
            self.budget.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
    };

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn one_message_always_passes_and_one_at_most_goes_over() {
        let (gauge, woken) = (Gauge::default(), Arc::new(Woken::default()));
        let budget = Budget::new(100, gauge.clone());
        let waker = Waker::from(Arc::clone(&woken));
        let context = Context::from_waker(&waker);
        let room = || budget.poll_room(&context).is_ready();
        assert!(room());
        let huge = budget.hold(1_000);
        assert!(!room() && !room(), "nothing beside one that is over the limit alone");
        drop(huge);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "woken once, however often it asked");
        let (first, second) = (budget.hold(99), budget.hold(500));
        assert_eq!(gauge.get(), 599);
        assert!(!room());
        drop(first);
        assert!(!room() && woken.0.load(Ordering::Relaxed) == 1, "still full");
        drop(second);
        assert_eq!((gauge.get(), woken.0.load(Ordering::Relaxed)), (0, 2));
        assert!(room());
        let _all = [(); 1_000].map(|()| Budget::default().hold(usize::MAX / 2));
        assert!(Budget::default().poll_room(&context).is_ready(), "without a bound");
    }
}
