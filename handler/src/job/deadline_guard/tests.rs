//! Paintings with made-up times: nothing sleeps.

use super::*;
use crate::webhook::progress::Marks;
use std::cell::RefCell;

const WORKLOAD: Workload = Workload { width: 512, height: 512, pictures: 1 };
const STEPS: usize = 10;

fn milestones() -> Milestones {
    Milestones::new(STEPS, &Marks::default())
}

/// Watches a painting of ten steps that begins at `now` and has `left` milliseconds.
fn guard(
    timings: &Timings,
    now: Instant,
    left: Option<u64>,
) -> DeadlineGuard<impl Fn(Progress, &mut Preview<'_>) + use<>, impl Fn() -> bool + use<>> {
    let end = left.map(|left| now + Duration::from_millis(left));
    DeadlineGuard::new(milestones(), WORKLOAD, end, timings.clone(), |_, _| {}, || false)
}

fn alone(finished: usize) -> Step {
    Step { finished, part: 0, parts: 1, pictures: 1 }
}

/// Runs a painting; returns part and step at which it was stopped. The first step of each part takes `first` ms, the others `step` ms.
fn run(
    guard: &mut DeadlineGuard<impl Fn(Progress, &mut Preview<'_>), impl Fn() -> bool>,
    now: &mut Instant,
    parts: usize,
    (first, step): (u64, u64),
) -> Option<(usize, usize)> {
    for part in 0..parts {
        for finished in 0..=STEPS {
            *now += Duration::from_millis(match finished {
                0 => 0,
                1 => first,
                _ => step,
            });
            if guard.step(Step { finished, part, parts, pictures: 1 }, *now, &mut || None).is_break() {
                return Some((part, finished));
            }
        }
    }
    None
}

/// The scheduler pndm may call the UNet ten times before its first step is finished. That says nothing of the later ones.
#[test]
fn calls_that_finish_no_step_are_not_measured() {
    let mut now = Instant::now();
    let mut guard = guard(&Timings::default(), now, Some(2_000));
    for finished in [0; 10].into_iter().chain(0..=STEPS) {
        assert!(guard.step(alone(finished), now, &mut || None).is_continue(), "step {finished}");
        now += Duration::from_millis(if finished < STEPS { 100 } else { 0 });
    }
    assert_eq!(guard.clock.per_step(), Some(Duration::from_millis(100)));
}

#[test]
fn a_painting_is_stopped_as_soon_as_its_own_steps_show_that_it_cannot_be_finished() {
    for (left, parts, first, step, stopped) in [
        // Ten steps of 100 ms, and nothing measured of what follows.
        (1_000, 1, 100, 100, None),
        (999, 1, 100, 100, Some((0, 2))),
        // The first step does not count: it includes planning and recording.
        (6_000, 1, 5_000, 100, None),
        (5_850, 1, 5_000, 100, Some((0, 2))),
        // The time may be over at the first step.
        (1_000, 1, 1_000, 100, Some((0, 1))),
        (0, 1, 100, 100, Some((0, 0))),
        // Parts to come count.
        (2_000, 2, 100, 100, None),
        (1_999, 2, 100, 100, Some((0, 2))),
        (3_000, 3, 100, 100, None),
        // The second part's first step takes so long that the rest no longer fits.
        (3_400, 2, 1_000, 100, Some((1, 1))),
    ] {
        let mut now = Instant::now();
        let mut guard = guard(&Timings::default(), now, Some(left));
        let what = format!("{left} ms for {parts} parts of {first} and {step} ms");
        assert_eq!(run(&mut guard, &mut now, parts, (first, step)), stopped, "{what}");
        assert_eq!(guard.out_of_time().load(Ordering::Relaxed), stopped.is_some(), "{what}");
    }
}

#[test]
fn slow_steps_of_an_earlier_painting_stop_no_other() {
    let (timings, mut now) = (Timings::default(), Instant::now());
    let mut slow = guard(&timings, now, None);
    assert_eq!(run(&mut slow, &mut now, 1, (60_000, 60_000)), None);
    // The same process and size, with time enough for steps that are as fast as usual.
    let mut usual = guard(&timings, now, Some(2_000));
    assert_eq!(run(&mut usual, &mut now, 1, (100, 100)), None);
}

#[test]
fn a_long_finishing_time_stops_one_task_and_the_next_measures_anew() {
    let (timings, mut now) = (Timings::default(), Instant::now());
    // A single slow upload does not count.
    timings.record_finishing(WORKLOAD, Duration::from_secs(300));
    assert_eq!(run(&mut guard(&timings, now, Some(2_000)), &mut now, 1, (100, 100)), None);
    timings.record_finishing(WORKLOAD, Duration::from_secs(200));
    assert_eq!(run(&mut guard(&timings, now, Some(2_000)), &mut now, 1, (100, 100)), Some((0, 2)));
    assert_eq!(run(&mut guard(&timings, now, Some(2_000)), &mut now, 1, (100, 100)), None);
    // It is kept if the steps alone took too long.
    [3, 3].iter().for_each(|seconds| timings.record_finishing(WORKLOAD, Duration::from_secs(*seconds)));
    assert_eq!(run(&mut guard(&timings, now, Some(500)), &mut now, 1, (100, 100)), Some((0, 2)));
    assert_eq!(timings.finishing(WORKLOAD), Duration::from_secs(3));
}

#[test]
fn each_attempt_is_measured_by_itself() {
    let (timings, mut now) = (Timings::default(), Instant::now());
    let mut guard = guard(&timings, now, Some(60_000));
    // A batch of eight is slow, and runs out of memory. The next attempt waits for the others, and is fast.
    for finished in 0..=4 {
        assert!(guard.step(Step { pictures: 8, ..alone(finished) }, now, &mut || None).is_continue());
        now += Duration::from_millis(5_000);
    }
    now += Duration::from_millis(30_000);
    assert_eq!(run(&mut guard, &mut now, 1, (100, 100)), None);
    assert_eq!(timings.step(WORKLOAD), Some(Duration::from_millis(100)), "the batch's steps are those of a single one");
    assert_eq!(timings.step(Workload { pictures: 8, ..WORKLOAD }), Some(Duration::from_millis(5_000)));
}

#[test]
fn a_task_that_was_stopped_stays_stopped_when_the_batch_is_painted_again() {
    let mut now = Instant::now();
    let mut guard = guard(&Timings::default(), now, Some(500));
    assert_eq!(run(&mut guard, &mut now, 1, (100, 100)), Some((0, 2)));
    assert!(guard.step(alone(0), now - Duration::from_secs(10), &mut || None).is_break());
}

#[test]
fn a_finished_painting_is_never_given_up() {
    let now = Instant::now();
    let late = now + Duration::from_secs(9);
    assert!(guard(&Timings::default(), now, Some(0)).step(alone(STEPS), late, &mut || None).is_continue());
    let first_of_two = Step { parts: 2, ..alone(STEPS) };
    assert!(
        guard(&Timings::default(), now, Some(0)).step(first_of_two, late, &mut || None).is_break(),
        "a part is missing"
    );
}

#[test]
fn milestones_are_reported_once_over_all_attempts_and_parts_until_the_task_is_cancelled() {
    let (reported, unwanted) = (RefCell::new(vec![]), RefCell::new(false));
    let report = |progress: Progress, _: &mut Preview<'_>| {
        reported.borrow_mut().push((progress.current_step, progress.estimated_seconds));
    };
    let mut guard = DeadlineGuard::new(milestones(), WORKLOAD, None, Timings::default(), report, || *unwanted.borrow());
    let mut now = Instant::now();
    let mut step = |finished, part, parts| {
        now += Duration::from_secs(1);
        guard.step(Step { finished, part, parts, pictures: 1 }, now, &mut || None)
    };
    // Out of memory after three of ten steps; then in two parts.
    assert!((0..=3).all(|finished| step(finished, 0, 1).is_continue()));
    assert!((0..2).all(|part| (0..=10).all(|finished| part * finished == 10 || step(finished, part, 2).is_continue())));
    *unwanted.borrow_mut() = true;
    assert!(step(10, 1, 2).is_break());
    assert_eq!(*reported.borrow(), [(0, 1), (3, 7), (5, 10), (8, 4), (9, 2)]);
}

#[test]
fn the_finishing_time_is_the_shortest_of_several_recent_tasks() {
    let cases: [(&[u64], u64); 5] = [
        (&[], 0),
        (&[300], 0),
        (&[300, 4], 4),
        (&[4, 300], 4),
        // The first is too old.
        (&[1, 5, 6, 7, 8], 5),
    ];
    for (measured, seconds) in cases {
        let timings = Timings::default();
        measured.iter().for_each(|seconds| timings.record_finishing(WORKLOAD, Duration::from_secs(*seconds)));
        assert_eq!(timings.finishing(WORKLOAD), Duration::from_secs(seconds), "{measured:?}");
        assert_eq!(timings.finishing(Workload { pictures: 4, ..WORKLOAD }), Duration::ZERO, "another size");
        timings.forget_finishing(WORKLOAD);
        assert_eq!(timings.finishing(WORKLOAD), Duration::ZERO);
    }
}

/// A backend may ask for another size each time.
#[test]
fn many_sizes_take_bounded_memory_and_the_last_ones_stay_known() {
    let timings = Timings::default();
    let of = |width: usize| Workload { width, ..WORKLOAD };
    let time = Duration::from_millis(100);
    timings.record_step(of(8), time);
    for width in 1..1000 {
        timings.record_step(of(8 * width), time);
        // One that is used again and again stays.
        timings.record_step(of(8), time);
        (0..2).for_each(|_| timings.record_finishing(of(8 * width), time));
    }
    let measured = timings.lock();
    assert_eq!((measured.steps.0.len(), measured.finishing.0.len()), (REMEMBERED, REMEMBERED));
    drop(measured);
    assert_eq!([8, 8 * 999, 8 * 500].map(|width| timings.step(of(width))), [Some(time), Some(time), None]);
    assert_eq!([8 * 999, 8 * 500].map(|width| timings.finishing(of(width))), [time, Duration::ZERO]);
}
