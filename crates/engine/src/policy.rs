//! COPY or MOVE, by measuring here and now: which is cheaper depends on the kernel, on the unit, and on how many threads of
//! this process run (a MOVE interrupts every CPU that runs one, docs/facts.md, Filling).
//!
//! Under a resident budget both ways are tried: the cost of a unit is its fill and its release. The cheaper one stays for a
//! while, the other is tried again ever more rarely, and at once when the chosen one has become dearer.
//!
//! *Locks*: none; races make a guess worse and nothing else. *Threads*: any, handlers too.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How the bytes of a unit get to their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Into the thread's own buffer, then UFFDIO_COPY.
    Copy,
    /// Into staging pages, then UFFDIO_MOVE.
    Move,
    /// Into the memory file, then UFFDIO_CONTINUE.
    Continue,
}

impl Method {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Method::Copy => "copy",
            Method::Move => "move",
            Method::Continue => "continue",
        }
    }
}

/// What decided the way of a region's whole units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is a memory file.
    Shared,
    /// The kernel cannot move, or staging was not to be had.
    CannotMove,
    /// A COPY would make small pages.
    Huge,
    /// There is no budget, so nothing leaves and nothing is measured: the unit decides.
    NoBudget,
    /// It is being measured.
    Trying,
    /// It was measured.
    Measured,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Why::Shared => "pages of a memory file are put into the file and mapped from there",
            Why::CannotMove => "moving wants Linux 6.8 and staging memory, and one of them is not to be had",
            Why::Huge => "a copy would make small pages of a huge one",
            Why::NoBudget => {
                "without a resident budget nothing is measured: units of 256 KiB and more are moved, where evict() left pages \
                 to move, and smaller ones copied"
            }
            Why::Trying => "both ways are being measured",
            Why::Measured => "measured as the cheaper way",
        })
    }
}

/// Until something was measured: from this size on a MOVE's saved copy outweighs its TLB flush on another CPU (docs/facts.md,
/// Filling).
const MOVE_FROM: usize = 256 << 10;
/// Fills between two looks at the other way: this often at first, and at last this rarely.
const FIRST_STAY: i64 = 256;
const LONGEST_STAY: i64 = 1 << 14;
/// MOVEs of one trial: few, they may cost many times as much as a COPY.
const MOVE_TRIAL: i64 = 8;
/// A choice that costs this much more than when it was made is looked at again, in percent.
const DEARER_PERCENT: u64 = 150;
/// While a choice stays, each so-manieth fill is timed.
const SAMPLE_EVERY: i64 = 8;

/// The running mean of what one way costs, nanoseconds per unit; 0: not known.
#[derive(Default)]
struct Cost {
    fill: AtomicU64,
    release: AtomicU64,
}

impl Cost {
    fn known(&self) -> Option<u64> {
        let (fill, release) = (self.fill.load(Relaxed), self.release.load(Relaxed));
        (fill > 0 && release > 0).then_some(fill + release)
    }
}

fn take_in(mean: &AtomicU64, sample: Duration) {
    let sample = u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX).clamp(1, 1 << 40);
    let old = mean.load(Relaxed);
    // A thread that lost its CPU in the middle says nothing about the cost: no sample counts for more than twice the mean.
    mean.store(if old == 0 { sample } else { (old * 7 + sample.min(2 * old)) / 8 }, Relaxed);
}

/// One region's choice.
pub struct Policy {
    fixed: Option<(Method, Why)>,
    batch: i64,
    copy: Cost,
    r#move: Cost,
    moves: AtomicBool,
    trying: AtomicBool,
    /// Fills left of this stay or trial.
    left: AtomicI64,
    stay: AtomicI64,
    /// What the chosen way cost when it was chosen.
    price: AtomicU64,
}

/// What the choice may depend on.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The region's unit, bytes.
    pub unit: usize,
    /// Are huge pages wanted?
    pub huge: bool,
    /// Is the region a memory file that others may map?
    pub shared: bool,
    /// Is there staging to move from?
    pub can_move: bool,
    /// Units released in one call after COPYs; 0: there is no budget, and nothing to measure.
    pub batch: usize,
}

impl Policy {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(choice: &Choice) -> Self {
        let moves = choice.huge || choice.unit >= MOVE_FROM;
        let by_unit = if moves { Method::Move } else { Method::Copy };
        let fixed = match choice {
            Choice { shared: true, .. } => Some((Method::Continue, Why::Shared)),
            Choice { batch: 0, .. } if !moves => Some((Method::Copy, Why::NoBudget)), // has no staging, and wants none
            Choice { can_move: false, .. } => Some((Method::Copy, Why::CannotMove)),
            Choice { huge: true, .. } => Some((Method::Move, Why::Huge)),
            Choice { batch: 0, .. } => Some((by_unit, Why::NoBudget)),
            _ => None,
        };
        let first_is_move = fixed.map_or(moves, |(method, _)| method == Method::Move);
        let policy = Self {
            fixed,
            batch: choice.batch as i64,
            copy: Cost::default(),
            r#move: Cost::default(),
            moves: AtomicBool::new(first_is_move),
            trying: AtomicBool::new(true),
            left: AtomicI64::new(0),
            stay: AtomicI64::new(FIRST_STAY),
            price: AtomicU64::new(0),
        };
        policy.left.store(policy.trial(), Relaxed);
        policy
    }

    /// The way of the next whole unit.
    #[must_use]
    pub fn method(&self) -> Method {
        let measured = || if self.moves.load(Relaxed) { Method::Move } else { Method::Copy };
        self.fixed.map_or_else(measured, |(method, _)| method)
    }

    /// Why that way.
    #[must_use]
    pub fn why(&self) -> Why {
        let measured = || if self.trying.load(Relaxed) { Why::Trying } else { Why::Measured };
        self.fixed.map_or_else(measured, |(_, why)| why)
    }

    /// Is the next fill or release worth timing?
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.fixed.is_none() && (self.trying.load(Relaxed) || self.left.load(Relaxed) % SAMPLE_EVERY == 0)
    }

    /// A unit was filled this way, in this time if it was timed.
    pub fn filled(&self, method: Method, spent: Option<Duration>) {
        if self.fixed.is_some() || method != self.method() {
            return; // no staged pages yet: says nothing about this way
        }
        let cost = self.cost(method);
        if let Some(spent) = spent {
            take_in(&cost.fill, spent);
        }
        let known = cost.known();
        let dearer = !self.trying.load(Relaxed)
            && known.is_some_and(|now| now * 100 > self.price.load(Relaxed) * DEARER_PERCENT)
            && self.price.load(Relaxed) > 0;
        if dearer {
            self.stay.store(FIRST_STAY, Relaxed);
            self.left.store(1, Relaxed);
        }
        if self.left.fetch_sub(1, Relaxed) == 1 {
            self.turn();
        }
    }

    /// So many units left by one call, after fills this way.
    pub fn released(&self, method: Method, units: usize, spent: Duration) {
        if units > 0 && self.fixed.is_none() {
            take_in(&self.cost(method).release, spent / u32::try_from(units).unwrap_or(u32::MAX));
        }
    }

    fn cost(&self, method: Method) -> &Cost {
        if method == Method::Move { &self.r#move } else { &self.copy }
    }

    fn trial(&self) -> i64 {
        // A trial of COPY has to see a whole batch leave.
        if self.moves.load(Relaxed) { MOVE_TRIAL } else { 2 * self.batch + 2 }
    }

    /// A stay or a trial is over.
    fn turn(&self) {
        let here = self.moves.load(Relaxed);
        match (self.copy.known(), self.r#move.known()) {
            (Some(copy), Some(r#move)) if self.trying.load(Relaxed) => self.settle(r#move < copy, copy.min(r#move)),
            // A stay is over, or only one way is known: try the other, if this one is known.
            (copy, r#move) => {
                let known = if here { r#move } else { copy }.is_some();
                self.moves.store(here != known, Relaxed);
                self.trying.store(true, Relaxed);
                self.left.store(self.trial(), Relaxed);
            }
        }
    }

    fn settle(&self, moves: bool, price: u64) {
        let stay = self.stay.load(Relaxed);
        self.moves.store(moves, Relaxed);
        self.price.store(price, Relaxed);
        self.left.store(stay, Relaxed);
        self.stay.store((stay * 2).min(LONGEST_STAY), Relaxed);
        self.trying.store(false, Relaxed);
    }

    /// What was measured, nanoseconds per unit, by COPY and by MOVE; 0: not measured.
    #[must_use]
    pub fn costs(&self) -> [u64; 2] {
        [&self.copy, &self.r#move].map(|cost| cost.known().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Choice = Choice { unit: 65536, huge: false, shared: false, can_move: true, batch: 0 };

    #[test]
    fn without_a_budget_small_units_are_copied_large_ones_moved_shared_ones_continued() {
        let says = |choice| (Policy::new(&choice).method(), Policy::new(&choice).why());
        assert_eq!(says(PLAIN), (Method::Copy, Why::NoBudget));
        assert_eq!(says(Choice { can_move: false, ..PLAIN }), (Method::Copy, Why::NoBudget));
        let large = Choice { unit: 1 << 20, ..PLAIN };
        assert_eq!(says(large), (Method::Move, Why::NoBudget));
        assert_eq!(says(Choice { can_move: false, ..large }), (Method::Copy, Why::CannotMove));
        assert_eq!(says(Choice { shared: true, ..large }), (Method::Continue, Why::Shared));
        assert_eq!(says(Choice { huge: true, unit: 2 << 20, batch: 2, ..PLAIN }), (Method::Move, Why::Huge));
        assert_eq!(says(Choice { batch: 2, ..large }), (Method::Move, Why::Trying));
    }

    /// Fill `count` units at these costs; how many of them were moved.
    fn play(policy: &Policy, count: usize, copy: Duration, moved: Duration) -> usize {
        let mut moves = 0;
        for _ in 0..count {
            let method = policy.method();
            let cost = if method == Method::Move { moved } else { copy };
            moves += usize::from(method == Method::Move);
            let watched = policy.is_watching();
            policy.filled(method, watched.then_some(cost));
            if watched {
                policy.released(method, 1, cost);
            }
        }
        moves
    }

    #[test]
    fn the_cheaper_way_is_found_whichever_it_is_and_the_other_is_tried_ever_more_rarely() {
        let (cheap, dear) = (Duration::from_micros(5), Duration::from_micros(20));
        let budget = Choice { batch: 16, ..PLAIN };
        let policy = Policy::new(&budget);
        assert!(play(&policy, 100_000, cheap, dear) < 300);
        let policy = Policy::new(&budget);
        assert!(play(&policy, 100_000, dear, cheap) > 99_000);
        assert_eq!(policy.costs(), [40_000, 10_000]);
        assert!(matches!(policy.why(), Why::Measured | Why::Trying));
    }

    #[test]
    fn a_choice_that_becomes_dear_is_made_again_soon() {
        let (cheap, dear) = (Duration::from_micros(5), Duration::from_micros(20));
        let policy = Policy::new(&Choice { batch: 16, ..PLAIN });
        play(&policy, 100_000, dear, cheap);
        assert_eq!(policy.method(), Method::Move);
        assert!(play(&policy, 10_000, cheap, 4 * dear) < 500);
    }

    #[test]
    fn fills_that_found_no_staged_pages_decide_nothing() {
        let policy = Policy::new(&Choice { unit: 1 << 20, batch: 4, ..PLAIN });
        for _ in 0..100 {
            policy.filled(Method::Copy, Some(Duration::from_nanos(1)));
        }
        assert_eq!((policy.method(), policy.costs()), (Method::Move, [0, 0]));
    }
}
