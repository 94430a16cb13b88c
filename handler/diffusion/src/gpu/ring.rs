//! Which pages are in a window when a pass over all of them uses them in order: the arithmetic of streaming, without a GPU.

/// Pages that are used in order, pass after pass, through a window with room for some of them. Page `p` goes to place `p % places`.
///
/// Positions count pages over all passes: position `pages * pass + page`.
#[derive(Debug)]
pub(super) struct Ring {
    pages: usize,
    /// The position that is, or will be, in each place.
    places: Vec<Option<usize>>,
    /// The first position of this pass.
    start: usize,
    /// The next position to copy.
    next: usize,
    /// Positions below are not used any more.
    passed: usize,
    /// Positions below have been waited for.
    awaited: usize,
}

/// What has to happen before a page can be used.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Moves {
    /// Pages to copy, in this order, after all work so far. Their places are free then.
    pub(super) copies: Vec<usize>,
    /// The page whose copy has to be waited for; those before it are there then, too.
    pub(super) awaited: Option<usize>,
}

impl Ring {
    pub(super) fn new(pages: usize, places: usize) -> Self {
        Self { pages, places: vec![None; places], start: 0, next: 0, passed: 0, awaited: 0 }
    }

    /// The place of a page.
    pub(super) fn place(&self, page: usize) -> usize {
        page % self.places.len().max(1)
    }

    /// Begins from nothing: what fills the window. To be waited for before the first pass.
    pub(super) fn fill(&mut self) -> Moves {
        *self = Self::new(self.pages, self.places.len());
        self.proceed(None)
    }

    /// The next work uses the pages from `first` to `last`, and none before `first` in this pass any more. None if one of them is not
    /// there: it was passed already, or the window is too small.
    pub(super) fn reach(&mut self, first: usize, last: usize) -> Option<Moves> {
        self.passed = self.passed.max(self.start + first);
        let moves = self.proceed(Some(self.start + last));
        let there = |page| self.places[self.place(page)] == Some(self.start + page);
        (first..=last).all(there).then_some(moves)
    }

    /// The pass is over. The window gets what the next one begins with.
    pub(super) fn end(&mut self) -> Moves {
        self.start += self.pages;
        self.passed = self.start;
        self.proceed(None)
    }

    /// Copies as far as places are free, and waits for a position, or for all.
    fn proceed(&mut self, until: Option<usize>) -> Moves {
        let mut moves = Moves::default();
        // Not further than the beginning of the next pass.
        while self.next < self.start + self.pages + self.places.len().min(self.pages) {
            let page = self.next % self.pages;
            let place = self.place(page);
            if self.places[place].is_some_and(|position| position >= self.passed) {
                break;
            }
            self.places[place] = Some(self.next);
            moves.copies.push(page);
            self.next += 1;
        }
        let until = until.map_or(self.next, |position| (position + 1).min(self.next));
        if until > self.awaited {
            self.awaited = until;
            moves.awaited = Some((until - 1) % self.pages);
        }
        moves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_filled_ahead_and_a_pass_ends_with_the_beginning_of_the_next() {
        let mut ring = Ring::new(6, 3);
        assert_eq!(ring.fill(), Moves { copies: vec![0, 1, 2], awaited: Some(2) });
        for _ in 0..3 {
            assert_eq!(ring.reach(0, 0), Some(Moves::default()));
            assert_eq!(ring.reach(1, 2), Some(Moves { copies: vec![3], awaited: None }));
            assert_eq!(ring.reach(3, 3), Some(Moves { copies: vec![4, 5], awaited: Some(3) }));
            assert_eq!(ring.reach(4, 5), Some(Moves { copies: vec![0], awaited: Some(5) }));
            assert_eq!(ring.reach(2, 2), None, "it was passed");
            assert_eq!(ring.end(), Moves { copies: vec![1, 2], awaited: Some(2) });
        }
        assert_eq!(ring.reach(0, 3), None, "the window is too small");
    }

    /// Any sizes and steps: each page that is used holds its own content.
    #[test]
    fn whatever_is_used_is_there() {
        let mut random = 1u64;
        let mut below = |most: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % most
        };
        for _ in 0..2000 {
            let (pages, places) = (1 + below(40), 1 + below(12));
            let mut ring = Ring::new(pages, places);
            let mut content = vec![None; places];
            let run = |moves: Moves, content: &mut Vec<Option<usize>>| {
                moves.copies.into_iter().for_each(|page| content[page % places] = Some(page));
            };
            run(ring.fill(), &mut content);
            for _ in 0..3 {
                let mut first = 0;
                loop {
                    first += below(4);
                    let last = first + below(places.min(4));
                    if last >= pages {
                        break;
                    }
                    run(ring.reach(first, last).expect("in order, and the window is wide enough"), &mut content);
                    (first..=last).for_each(|page| assert_eq!(content[page % places], Some(page)));
                }
                run(ring.end(), &mut content);
                let begins = 0..places.min(pages);
                begins.for_each(|page| assert_eq!(content[page], Some(page), "the next pass begins with these"));
            }
        }
    }
}
