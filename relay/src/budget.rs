//! Bounds the bytes of the messages that the relay holds.
//!
//! The prefetch counts messages, not bytes: with 100 the broker may have sent 100 of the largest before the first is
//! handled. So the bound is kept where the bytes come in (see [`crate::wire`]): while the budget is used up, no further
//! delivery is read. RabbitMQ closes a connection that is not read from for 30 s; the next one gets the same messages
//! in the same order. Why the prefetch stays the same: see [`crate::source`].

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use prometheus_client::metrics::gauge::Gauge;

/// The bytes held over all connections. Clones share it. The default has no bound.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    gauge: Gauge,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: usize,
    /// Readers that wait for room.
    waiting: Vec<Waker>,
}

/// The bytes of one message, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct HeldBytes {
    budget: Budget,
    bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(usize::MAX, Gauge::default())
    }
}

impl Budget {
    /// A budget of `limit` bytes; `gauge` shows how many are held.
    pub(crate) fn new(limit: usize, gauge: Gauge) -> Self {
        Self(Arc::new(Inner { limit, gauge, state: Mutex::default() }))
    }

    /// Counts a message, with or without room for it: one that has begun is read to its end.
    pub(crate) fn hold(&self, bytes: usize) -> HeldBytes {
        let mut state = self.state();
        state.bytes += bytes;
        self.0.gauge.set(i64::try_from(state.bytes).unwrap_or(i64::MAX));
        HeldBytes { budget: self.clone(), bytes }
    }

    /// Ready if another message may be read, which needs any room at all. So one message always passes when nothing is
    /// held, and at most one goes over the limit.
    pub(crate) fn poll_room(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.bytes < self.0.limit {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            state.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Whether no further message may be read now.
    pub(crate) fn is_full(&self) -> bool {
        self.state().bytes >= self.0.limit
    }

    /// Wakes the readers that wait for room.
    pub(crate) fn wake(&self) {
        let waiting = std::mem::take(&mut self.state().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave it half changed.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        state.bytes -= self.bytes;
        self.budget.0.gauge.set(i64::try_from(state.bytes).unwrap_or(i64::MAX));
        if state.bytes < self.budget.0.limit {
            drop(state);
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

    /// Counts its wake-ups.
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
