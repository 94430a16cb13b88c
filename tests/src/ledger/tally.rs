//! Counts what was published, confirmed and received. A message that was never published counts as foreign, which fails a run.

use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// The body of a message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Body<'a> {
    /// The number that must arrive.
    pub(super) number: u64,
    /// The number of the publish attempt.
    pub(super) publish: u64,
    /// The group.
    pub(super) style_id: u64,
    /// Fills it up to its size.
    #[serde(borrow, default)]
    pub(super) pad: Cow<'a, str>,
}

/// The sums of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// Publish attempts.
    pub attempted: u64,
    /// Numbers that the broker confirmed.
    pub confirmed: u64,
    /// Numbers that arrived.
    pub received: u64,
    /// Numbers that the dead-letter queue holds instead.
    pub dead_lettered: u64,
    /// Numbers that were confirmed and neither arrived nor were dead-lettered.
    pub lost: u64,
    /// Repeated arrivals of an attempt.
    pub duplicated: u64,
    /// First arrivals of an attempt after a later one of the same group.
    pub reordered: u64,
    /// Arrivals that were never published.
    pub foreign: u64,
}

/// The counts of one run.
#[derive(Debug)]
pub(super) struct Tally {
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
}

/// The counts that others wait for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    pub(super) confirmed: u64,
    pub(super) outstanding: u64,
    pub(super) received: u64,
}

#[derive(Debug, Default)]
struct State {
    sums: Sums,
    confirmed: Vec<bool>,
    /// Arrived or dead-lettered.
    received: Vec<bool>,
    arrivals: Vec<u8>,
    latest: HashMap<u64, u64>,
    outstanding: u64,
    /// When each attempt was published, from the first timed one on.
    clock: Option<(u64, Vec<Instant>)>,
    delays: Vec<Duration>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Tally {
    pub(super) fn new(messages: u64) -> Self {
        let flags = vec![false; messages as usize];
        let state = State { confirmed: flags.clone(), received: flags, ..Default::default() };
        Self { state: Mutex::new(state), progress: watch::channel(Progress::default()).0 }
    }

    /// Notes a publish attempt and gives its number.
    pub(super) fn attempt(&self) -> u64 {
        let mut state = self.state();
        state.arrivals.push(0);
        state.sums.attempted += 1;
        if let Some((_, published)) = &mut state.clock {
            published.push(Instant::now());
        }
        state.sums.attempted - 1
    }

    /// Notes a confirmation.
    pub(super) fn confirm(&self, number: u64) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.confirmed[number as usize], true) {
            state.sums.confirmed += 1;
            state.outstanding += u64::from(!state.received[number as usize]);
        }
        self.notify(&state);
    }

    /// Notes an arrival.
    pub(super) fn arrive(&self, text: &str) {
        let mut guard = self.state();
        let state = &mut *guard;
        let now = Instant::now();
        state.first.get_or_insert(now);
        let Some(body) = state.known(text) else {
            state.sums.foreign += 1;
            return;
        };
        let arrivals = &mut state.arrivals[body.publish as usize];
        *arrivals = arrivals.saturating_add(1);
        if *arrivals > 1 {
            state.sums.duplicated += 1;
            return;
        }
        if let Some((from, published)) = &state.clock {
            let at = body.publish.checked_sub(*from).and_then(|index| published.get(index as usize));
            state.delays.extend(at.map(|at| now.duration_since(*at)));
        }
        let latest = state.latest.entry(body.style_id).or_default();
        state.sums.reordered += u64::from(body.publish < *latest);
        *latest = body.publish.max(*latest);
        if !std::mem::replace(&mut state.received[body.number as usize], true) {
            state.sums.received += 1;
            state.outstanding -= u64::from(state.confirmed[body.number as usize]);
            state.last = Some(now);
        }
        self.notify(state);
    }

    /// Times each attempt from now on.
    pub(super) fn start_clock(&self) {
        let mut state = self.state();
        state.clock = Some((state.sums.attempted, Vec::new()));
    }

    /// The time from publish to arrival of each timed attempt.
    pub(super) fn delays(&self) -> Vec<Duration> {
        self.state().delays.clone()
    }

    /// Notes a message in the dead-letter queue. If it also arrives in SQS it is a duplicate.
    pub(super) fn dead_letter(&self, text: &str) {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(body) = state.known(text) else {
            state.sums.foreign += 1;
            return;
        };
        let arrivals = &mut state.arrivals[body.publish as usize];
        *arrivals = arrivals.saturating_add(1);
        if std::mem::replace(&mut state.received[body.number as usize], true) {
            state.sums.duplicated += 1;
        } else {
            state.sums.dead_lettered += 1;
            state.outstanding -= u64::from(state.confirmed[body.number as usize]);
        }
        self.notify(state);
    }

    pub(super) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The sums so far.
    pub(super) fn sums(&self) -> Sums {
        let state = self.state();
        Sums { lost: state.outstanding, ..state.sums }
    }

    /// The first numbers that were confirmed and did not arrive.
    pub(super) fn missing(&self) -> Vec<u64> {
        let state = self.state();
        let all = state.confirmed.iter().zip(&state.received).enumerate();
        all.filter(|(_, (confirmed, received))| **confirmed && !**received).map(|(at, _)| at as u64).take(40).collect()
    }

    /// Seconds from the first arrival to the last new one.
    pub(super) fn seconds(&self) -> f64 {
        let state = self.state();
        match (state.first, state.last) {
            (Some(first), Some(last)) => last.duration_since(first).as_secs_f64(),
            _ => 0.0,
        }
    }

    fn notify(&self, state: &State) {
        let (confirmed, received) = (state.sums.confirmed, state.sums.received);
        self.progress.send_replace(Progress { confirmed, received, outstanding: state.outstanding });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A message of this run.
    fn known<'a>(&self, text: &'a str) -> Option<Body<'a>> {
        let body = serde_json::from_str::<Body<'_>>(text).ok()?;
        let known = (body.publish as usize) < self.arrivals.len() && (body.number as usize) < self.received.len();
        known.then_some(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(number: u64, publish: u64, style_id: u64) -> String {
        serde_json::to_string(&Body { number, publish, style_id, pad: "".into() }).unwrap()
    }

    #[test]
    fn each_kind_of_fault_is_counted() {
        let tally = Tally::new(4);
        for publish in 0..5 {
            assert_eq!(tally.attempt(), publish);
        }
        // Number 0 was published twice. Number 3 was published once and never confirmed.
        [0, 1, 2].into_iter().for_each(|number| tally.confirm(number));
        assert_eq!(tally.sums().lost, 3);
        for text in [text(1, 1, 7), text(0, 0, 7), text(0, 0, 7), text(0, 4, 7), text(3, 3, 8), text(9, 9, 9)] {
            tally.arrive(&text);
        }
        tally.arrive("no JSON");
        let want = Sums {
            attempted: 5,
            confirmed: 3,
            received: 3,
            dead_lettered: 0,
            lost: 1,
            duplicated: 1,
            reordered: 1,
            foreign: 2,
        };
        assert_eq!(tally.sums(), want);
        tally.confirm(3);
        tally.arrive(&text(2, 2, 1));
        let sums = tally.sums();
        assert_eq!((sums.confirmed, sums.received, sums.lost), (4, 4, 0));
    }

    #[test]
    fn a_dead_letter_is_not_lost_and_must_not_arrive_too() {
        let tally = Tally::new(2);
        assert_eq!([tally.attempt(), tally.attempt()], [0, 1]);
        tally.confirm(0);
        tally.dead_letter(&text(0, 0, 0));
        tally.dead_letter(&text(1, 1, 0));
        assert_eq!((tally.sums().dead_lettered, tally.sums().lost, tally.sums().duplicated), (2, 0, 0));
        tally.confirm(1);
        assert_eq!(tally.sums().lost, 0, "its confirmation came later");
        tally.arrive(&text(0, 0, 0));
        tally.dead_letter("no JSON");
        let sums = tally.sums();
        assert_eq!((sums.received, sums.duplicated, sums.foreign), (0, 1, 1));
    }
}
