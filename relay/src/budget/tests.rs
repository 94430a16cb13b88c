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
