//! Which algorithm is the fastest, by the clock. Never during capture: it waits for the stream.

use super::{Case, Matmuls, Operands};
use crate::gpu::{error::Result, event::Event};

/// How many of the heuristics' results are timed.
const TIMED: usize = 8;

impl Matmuls {
    /// Times the heuristics' first results for a case, back to back with the same operands, and prefers the fastest
    /// from now on. Not during capture: it waits for the stream. Overwrites `at.out`. An error if none could run.
    ///
    /// # Safety
    /// As for [`Matmuls::run`].
    pub(super) unsafe fn tune(&mut self, case: &Case, at: &Operands) -> Result<()> {
        let queue = self.queue;
        let plan = self.plan(case, at)?;
        let (start, end) = (Event::timed()?, Event::timed()?);
        let (mut fastest, mut failure) = (None, None);
        for index in 0..plan.algorithms.len().min(TIMED) {
            // SAFETY: as the caller promises.
            match unsafe { plan.time(&queue, index, at, &start, &end) } {
                Ok(time) if fastest.is_none_or(|(_, best)| time < best) => fastest = Some((index, time)),
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        let Some((index, _)) = fastest else { return failure.map_or(Ok(()), Err) };
        if let Some(plan) = self.plans.get_mut(case) {
            plan.index = index;
            self.preferred.insert(*case, plan.algorithms[index].data);
        }
        Ok(())
    }
}
