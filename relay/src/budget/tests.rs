use std::{
    sync::atomic::{AtomicUsize, Ordering},
    task::Wake,
};

use proptest::prelude::*;

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
    assert_eq!((gauge.get(), budget.messages(), first.bytes()), (599, 2, 99));
    assert!(!room());
    drop(first);
    assert!(!room() && woken.0.load(Ordering::Relaxed) == 1, "still full");
    drop(second);
    assert_eq!((gauge.get(), budget.messages(), woken.0.load(Ordering::Relaxed)), (0, 0, 2));
    assert!(room());
    let _all = [(); 1_000].map(|()| Budget::default().hold(usize::MAX / 2));
    assert!(Budget::default().poll_room(&context).is_ready(), "without a bound");
}

#[tokio::test]
async fn whoever_looks_hears_of_a_full_budget_also_later() {
    let budget = Budget::new(1, Gauge::default());
    let _held = budget.hold(1);
    assert!(budget.poll_room(&Context::from_waker(Waker::noop())).is_pending());
    budget.full().await;
}

#[test]
fn the_window_becomes_what_fits_and_grows_with_small_messages() {
    const MIB: usize = 1 << 20;
    let mut window = Window::new(100, 128 * MIB);
    assert_eq!(window.now(), 100);
    assert!(window.full(10) && !window.full(10) && !window.full(20));
    assert_eq!(window.now(), 10);
    // Twenty of twelve MiB would not fit.
    assert!((0..1_000).all(|_| !window.came(12 * MIB)));
    assert_eq!(window.now(), 10);
    let mut steps = vec![];
    for _ in 0..200 {
        if window.came(1_000) {
            steps.push(window.now());
        }
    }
    assert_eq!(steps, [20, 40, 80, 100]);
    assert!(window.full(0));
    assert_eq!(window.now(), 1, "one always may come");
}

proptest! {
    #[test]
    fn the_window_stays_between_one_and_the_prefetch(
        most in 1..=u16::MAX,
        steps in prop::collection::vec((any::<bool>(), 0..usize::MAX), 0..300),
    ) {
        let mut window = Window::new(most, 128 << 20);
        for (full, value) in steps {
            let before = window.now();
            let changed = if full { window.full(value % 70_000) } else { window.came(value) };
            prop_assert!((1..=most).contains(&window.now()));
            prop_assert_eq!(changed, window.now() != before);
            prop_assert!(!changed || full == (window.now() < before));
        }
    }
}
