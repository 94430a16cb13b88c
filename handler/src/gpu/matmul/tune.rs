//! Which algorithm is the fastest, by the clock. Never during capture: it waits for the stream.

use super::{Case, Matmuls, Operands};
use crate::gpu::{error::Result, event::Event};

impl Matmuls {
    /// Times up to `at_most` of the heuristics' results for a case, back to back with the same operands, and prefers
    /// the fastest from now on. Gives their milliseconds in the heuristics' order, infinite where one failed. Not
    /// during capture: it waits for the stream. Overwrites `out`.
    ///
    /// # Safety
    /// As for [`Matmuls::run`].
    #[allow(clippy::too_many_arguments)]
    pub(crate) unsafe fn tune(
        &mut self,
        case: &Case,
        a: u64,
        w: u64,
        out: u64,
        bias: Option<u64>,
        onto: Option<u64>,
        at_most: usize,
    ) -> Result<Vec<f32>> {
        let at = Operands { a, w, out, bias, onto };
        let queue = self.queue;
        let plan = self.plan(case, &at)?;
        let (start, end) = (Event::timed()?, Event::timed()?);
        let mut times = Vec::new();
        let mut failure = None;
        for index in 0..plan.algorithms.len().min(at_most) {
            // SAFETY: as the caller promises.
            let time = unsafe { plan.time(&queue, index, &at, &start, &end) };
            times.push(time.unwrap_or_else(|error| {
                failure = Some(error);
                f32::INFINITY
            }));
        }
        let fastest = times.iter().enumerate().min_by(|x, y| x.1.total_cmp(y.1));
        match (fastest, failure) {
            (Some((_, time)), Some(error)) if time.is_infinite() => return Err(error),
            (Some((index, _)), _) => {
                if let Some(plan) = self.plans.get_mut(case) {
                    plan.index = index;
                    self.preferred.insert(*case, plan.algorithms[index].data);
                }
            }
            (None, _) => {}
        }
        Ok(times)
    }
}
