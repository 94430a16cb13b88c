//! Counts the messages that could not be buried yet, and tells when they are all that the relay may hold.
//!
//! Refuses to end such a stall: the messages may be neither lost nor given back without an end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tracing::warn;

/// How many messages are stuck on their way to one exchange.
#[derive(Debug)]
pub struct Stall {
    exchange: String,
    prefetch: usize,
    stuck: AtomicUsize,
    told: AtomicBool,
}

/// One message that could not be buried yet. It counts until it is dropped.
#[derive(Debug)]
pub struct Stuck<'a>(&'a AtomicUsize);

impl Stall {
    /// None is stuck; the broker may have `prefetch` messages out.
    pub(crate) fn new(exchange: String, prefetch: usize) -> Self {
        Self { exchange, prefetch, stuck: AtomicUsize::new(0), told: AtomicBool::new(false) }
    }

    /// Counts one more. When they fill the prefetch, the broker delivers nothing more, and that is told, once.
    pub(crate) fn count(&self) -> Stuck<'_> {
        let count = self.stuck.fetch_add(1, Ordering::Relaxed) + 1;
        if count >= self.prefetch && !self.told.swap(true, Ordering::Relaxed) {
            warn!(
                messages = count,
                amqp.exchange = self.exchange,
                "every message that the broker may have out here waits for the dead-letter exchange: the relay stands \
                 still until the exchange takes them"
            );
        }
        Stuck(&self.stuck)
    }
}

impl Drop for Stuck<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    /// Keeps the lines.
    #[derive(Debug, Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stall_is_told_once_and_only_when_the_whole_prefetch_is_stuck() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        let told = || String::from_utf8(lines.0.lock().unwrap().clone()).unwrap().lines().count();
        tracing::subscriber::with_default(subscriber, || {
            let stall = Stall::new("ex".to_owned(), 3);
            let held: Vec<Stuck<'_>> = (0..2).map(|_| stall.count()).collect();
            drop(held);
            // What got through in the meantime does not count.
            let held: Vec<Stuck<'_>> = (0..2).map(|_| stall.count()).collect();
            assert_eq!(told(), 0);
            let _last = stall.count();
            assert_eq!(told(), 1);
            drop(held);
            let _again: Vec<Stuck<'_>> = (0..5).map(|_| stall.count()).collect();
            assert_eq!(told(), 1);
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("messages=3") && text.contains("the relay stands still"), "{text}");
    }
}
