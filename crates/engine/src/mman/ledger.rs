//! What the caller marked: an interval map of ranges and their marks. Pure bookkeeping; the kernel is asked elsewhere.

use crate::flagged::view::{Armed, Entry, Resolver};
use crate::region::Handles;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use uffd::Handle;

/// Which of the three interfaces that were discussed in 2014 is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Policy {
    /// A flag set by madvise and a registration; both are needed to reach a descriptor (option 3, as posted).
    #[default]
    Madvise,
    /// The same, with the flag set by mprotect (option 1).
    Mprotect,
    /// No flag: registration is all there is (option 2, what Linux 4.3 got).
    RegisterOnly,
}

/// A descriptor that owns ranges.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// Never used twice.
    pub id: u64,
    /// Its userfaultfd.
    pub handles: Handles,
    /// Does it hear of forks?
    pub can_follow: bool,
}

/// What the kernel was told of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Nothing.
    Nothing,
    /// Missing pages raise SIGBUS.
    Signal,
    /// Missing pages are messages of the owner's.
    Descriptor,
    /// Missing pages are zeros; the userfaultfd of flagged memory only tells when the mapping goes or moves.
    Tracked,
}

impl Kernel {
    /// Would a forked child read zeros where the parent faults?
    #[must_use]
    pub fn is_armed(self) -> bool {
        matches!(self, Kernel::Signal | Kernel::Descriptor)
    }
}

/// The marks of a range.
#[derive(Clone)]
pub struct Marks {
    /// Private anonymous memory: what can fault.
    pub anonymous: bool,
    /// MADV_USERFAULT or PROT_USERFAULT.
    pub flagged: bool,
    /// `fork="follow"` was asked for.
    pub follow: bool,
    /// Its descriptor was closed, under [`Policy::RegisterOnly`]: never zeros.
    pub orphaned: bool,
    /// Registered with.
    pub owner: Option<Owner>,
    /// What the kernel knows.
    pub kernel: Kernel,
    /// MADV_DONTFORK was set by us...
    pub denied: bool,
    /// ...and had been set by the caller before.
    pub had_dontfork: bool,
    /// What a SIGBUS leads to.
    pub resolver: Arc<Resolver>,
}

impl Marks {
    /// Which userfaultfd has the range; `flags` is that of flagged memory.
    #[must_use]
    pub fn handle(&self, flags: Handle) -> Option<Handle> {
        match self.kernel {
            Kernel::Nothing => None,
            // Not the owner's for a range that is only tracked: a fork would send its owner an event.
            Kernel::Signal | Kernel::Tracked => Some(flags),
            Kernel::Descriptor => self.owner.map(|owner| owner.handles.engine),
        }
    }

    /// No marks yet.
    #[must_use]
    pub fn none(anonymous: bool, resolver: Arc<Resolver>) -> Self {
        Self {
            anonymous,
            flagged: false,
            follow: false,
            orphaned: false,
            owner: None,
            kernel: Kernel::Nothing,
            denied: false,
            had_dontfork: false,
            resolver,
        }
    }

    /// What the kernel ought to know.
    #[must_use]
    pub fn wanted(&self, policy: Policy) -> Kernel {
        match (policy, self.flagged, self.owner) {
            _ if !self.anonymous => self.owner.map_or(Kernel::Nothing, |_| Kernel::Tracked),
            (Policy::RegisterOnly, _, Some(_)) => Kernel::Descriptor,
            (Policy::RegisterOnly, _, None) if self.orphaned => Kernel::Signal,
            (Policy::RegisterOnly, _, None) => Kernel::Nothing,
            (_, true, Some(_)) => Kernel::Descriptor,
            (_, true, None) => Kernel::Signal,
            (_, false, Some(_)) => Kernel::Tracked,
            (_, false, None) => Kernel::Nothing,
        }
    }

    /// May a forked child have it? Its faults reach a descriptor then that hears of forks, and the caller did not forbid it.
    #[must_use]
    pub fn is_inheritable(&self) -> bool {
        let hears = self.owner.is_some_and(|owner| owner.can_follow);
        self.follow && hears && self.kernel == Kernel::Descriptor && !self.had_dontfork
    }

    /// Nothing worth remembering.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.flagged && !self.orphaned && self.owner.is_none()
    }

    fn same(&self, other: &Self) -> bool {
        let plain =
            |m: &Self| (m.anonymous, m.flagged, m.orphaned, m.owner.map(|o| o.id), m.kernel, m.denied, m.had_dontfork);
        if self.follow != other.follow {
            return false;
        }
        plain(self) == plain(other) && Arc::ptr_eq(&self.resolver, &other.resolver)
    }

    fn armed(&self) -> Armed {
        match self.kernel {
            Kernel::Signal => Armed::Signal,
            Kernel::Descriptor => Armed::Descriptor,
            Kernel::Nothing | Kernel::Tracked => Armed::No,
        }
    }
}

/// Ranges with marks; those without are not in it.
#[derive(Default)]
pub struct Ledger {
    ranges: BTreeMap<usize, (usize, Marks)>,
}

impl Ledger {
    /// All of `range` in order, marked or not.
    #[must_use]
    pub fn pieces(&self, range: Range<usize>) -> Vec<(Range<usize>, Option<Marks>)> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        let first = self.ranges.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        for (start, (end, marks)) in self.ranges.range(first..range.end) {
            let (start, end) = ((*start).max(range.start), (*end).min(range.end));
            if start >= end {
                continue;
            }
            if at < start {
                pieces.push((at..start, None));
            }
            pieces.push((start..end, Some(marks.clone())));
            at = end;
        }
        if at < range.end {
            pieces.push((at..range.end, None));
        }
        pieces
    }

    /// Everything that is marked.
    pub fn iter(&self) -> impl Iterator<Item = (Range<usize>, &Marks)> {
        self.ranges.iter().map(|(start, (end, marks))| (*start..*end, marks))
    }

    /// Take what is marked out of `range`.
    pub fn carve(&mut self, range: Range<usize>) -> Vec<(Range<usize>, Marks)> {
        let carved: Vec<_> = self.pieces(range.clone()).into_iter().filter_map(|(r, m)| Some((r, m?))).collect();
        let Some(first) = carved.first() else { return carved };
        let inside = self.ranges.range(..=first.0.start).next_back().map_or(first.0.start, |(start, _)| *start);
        let touched: Vec<usize> = self.ranges.range(inside..range.end).map(|(start, _)| *start).collect();
        for start in touched {
            let Some((end, marks)) = self.ranges.remove(&start) else { continue };
            if start < range.start {
                self.ranges.insert(start, (end.min(range.start), marks.clone()));
            }
            if end > range.end {
                self.ranges.insert(range.end.max(start), (end, marks));
            }
        }
        carved
    }

    /// Give `range` these marks, whatever it had; empty ones are not kept. Neighbours with the same marks become one.
    pub fn put(&mut self, range: Range<usize>, marks: Marks) {
        self.carve(range.clone());
        if marks.is_empty() || range.is_empty() {
            return;
        }
        let mut whole = range;
        if let Some((end, next)) = self.ranges.get(&whole.end)
            && next.same(&marks)
        {
            let end = *end;
            self.ranges.remove(&whole.end);
            whole.end = end;
        }
        let before = self.ranges.range(..whole.start).next_back().map(|(start, (end, marks))| (*start, *end, marks));
        if let Some((start, end, previous)) = before
            && end == whole.start
            && previous.same(&marks)
        {
            whole.start = start;
        }
        self.ranges.insert(whole.start, (whole.end, marks));
    }

    /// What signal handlers are shown.
    #[must_use]
    pub fn view(&self) -> Vec<Entry> {
        let entry = |(range, marks): (Range<usize>, &Marks)| Entry {
            range,
            armed: marks.armed(),
            follow: marks.is_inheritable(),
            descriptor: marks.owner.map(|owner| owner.handles),
            resolver: marks.resolver.clone(),
        };
        self.iter().map(entry).collect()
    }
}
