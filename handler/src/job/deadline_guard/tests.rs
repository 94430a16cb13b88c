//! Paintings at times of a made-up clock: nothing sleeps.

use super::*;
use std::cell::RefCell;

const LOAD: Load = Load { width: 512, height: 512, pictures: 1 };
const STEPS: usize = 10;

/// A painting of ten steps that begins now, and has `left` milliseconds.
fn guard(
    times: &Times,
    now: Instant,
    left: Option<u64>,
) -> DeadlineGuard<impl Fn(Progress) + use<>, impl Fn() -> bool + use<>> {
    let end = left.map(|left| now + Duration::from_millis(left));
    DeadlineGuard::new(STEPS, LOAD, end, times.clone(), |_| {}, || false)
}

fn alone(finished: usize) -> Step {
    Step { finished, part: 0, parts: 1, pictures: 1 }
}

/// Part and finished steps when it was stopped, if it was. The first step of each part takes `first` ms, the others `step` ms.
fn run(
    guard: &mut DeadlineGuard<impl Fn(Progress), impl Fn() -> bool>,
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
            if guard.step(Step { finished, part, parts, pictures: 1 }, *now).is_break() {
                return Some((part, finished));
            }
        }
    }
    None
}

#[test]
fn a_painting_is_stopped_as_soon_as_its_own_steps_show_that_it_cannot_be_finished() {
    for (left, parts, first, step, stopped) in [
        // Ten steps of 100 ms, and nothing measured of what follows.
        (1_000, 1, 100, 100, None),
        (999, 1, 100, 100, Some((0, 2))),
        // The first step, with everything that is planned and recorded in it, is no measure.
        (6_000, 1, 5_000, 100, None),
        (5_850, 1, 5_000, 100, Some((0, 2))),
        // What is left may already be over at the first one.
        (1_000, 1, 1_000, 100, Some((0, 1))),
        (0, 1, 100, 100, Some((0, 0))),
        // Parts that are still to come count, and a part's steps do not count for the next one's.
        (2_000, 2, 100, 100, None),
        (1_999, 2, 100, 100, Some((0, 2))),
        (3_000, 3, 100, 100, None),
        // The second part's planning takes so long that only now it does not fit.
        (3_400, 2, 1_000, 100, Some((1, 1))),
    ] {
        let mut now = Instant::now();
        let mut guard = guard(&Times::default(), now, Some(left));
        let what = format!("{left} ms for {parts} parts of {first} and {step} ms");
        assert_eq!(run(&mut guard, &mut now, parts, (first, step)), stopped, "{what}");
        assert_eq!(guard.out_of_time().load(Ordering::Relaxed), stopped.is_some(), "{what}");
    }
}

#[test]
fn slow_steps_of_an_earlier_painting_stop_no_other() {
    let (times, mut now) = (Times::default(), Instant::now());
    let mut slow = guard(&times, now, None);
    assert_eq!(run(&mut slow, &mut now, 1, (60_000, 60_000)), None);
    // The same process and size, with time enough for steps that are as fast as usual.
    let mut usual = guard(&times, now, Some(2_000));
    assert_eq!(run(&mut usual, &mut now, 1, (100, 100)), None);
}

#[test]
fn what_is_told_to_take_too_long_after_the_steps_stops_one_task_and_then_the_next_finds_out_anew() {
    let (times, mut now) = (Times::default(), Instant::now());
    // One upload that S3 held up says nothing.
    times.note_rest(LOAD, Duration::from_secs(300));
    assert_eq!(run(&mut guard(&times, now, Some(2_000)), &mut now, 1, (100, 100)), None);
    times.note_rest(LOAD, Duration::from_secs(200));
    assert_eq!(run(&mut guard(&times, now, Some(2_000)), &mut now, 1, (100, 100)), Some((0, 2)));
    assert_eq!(run(&mut guard(&times, now, Some(2_000)), &mut now, 1, (100, 100)), None);
    // It is kept where the steps alone were too many.
    [3, 3].iter().for_each(|seconds| times.note_rest(LOAD, Duration::from_secs(*seconds)));
    assert_eq!(run(&mut guard(&times, now, Some(500)), &mut now, 1, (100, 100)), Some((0, 2)));
    assert_eq!(times.rest(LOAD), Duration::from_secs(3));
}

#[test]
fn each_try_has_a_clock_of_its_own() {
    let (times, mut now) = (Times::default(), Instant::now());
    let mut guard = guard(&times, now, Some(60_000));
    // A batch of eight is slow, and breaks off out of memory. The next try waits for the others, and is fast.
    for finished in 0..=4 {
        assert!(guard.step(Step { pictures: 8, ..alone(finished) }, now).is_continue());
        now += Duration::from_millis(5_000);
    }
    now += Duration::from_millis(30_000);
    assert_eq!(run(&mut guard, &mut now, 1, (100, 100)), None);
    assert_eq!(times.step(LOAD), Some(Duration::from_millis(100)), "the batch's steps are those of a single one");
    assert_eq!(times.step(Load { pictures: 8, ..LOAD }), Some(Duration::from_millis(5_000)));
}

#[test]
fn who_was_stopped_for_want_of_time_stays_so_when_the_batch_is_tried_again() {
    let mut now = Instant::now();
    let mut guard = guard(&Times::default(), now, Some(500));
    assert_eq!(run(&mut guard, &mut now, 1, (100, 100)), Some((0, 2)));
    assert!(guard.step(alone(0), now - Duration::from_secs(10)).is_break());
}

#[test]
fn a_finished_painting_is_never_given_up() {
    let now = Instant::now();
    let late = now + Duration::from_secs(9);
    assert!(guard(&Times::default(), now, Some(0)).step(alone(STEPS), late).is_continue());
    let first_of_two = Step { parts: 2, ..alone(STEPS) };
    assert!(guard(&Times::default(), now, Some(0)).step(first_of_two, late).is_break(), "a part is missing");
}

#[test]
fn milestones_are_told_once_over_all_tries_and_parts_until_the_picture_is_unwanted() {
    let (told, unwanted) = (RefCell::new(vec![]), RefCell::new(false));
    let tell = |progress: Progress| told.borrow_mut().push((progress.current_step, progress.estimated_seconds));
    let mut guard = DeadlineGuard::new(STEPS, LOAD, None, Times::default(), tell, || *unwanted.borrow());
    let mut now = Instant::now();
    let mut step = |finished, part, parts| {
        now += Duration::from_secs(1);
        guard.step(Step { finished, part, parts, pictures: 1 }, now)
    };
    // Out of memory after three of ten steps; then in two parts.
    assert!((0..=3).all(|finished| step(finished, 0, 1).is_continue()));
    assert!((0..2).all(|part| (0..=10).all(|finished| part * finished == 10 || step(finished, part, 2).is_continue())));
    *unwanted.borrow_mut() = true;
    assert!(step(10, 1, 2).is_break());
    assert_eq!(*told.borrow(), [(0, 1), (3, 7), (5, 10), (8, 4), (9, 2)]);
}
