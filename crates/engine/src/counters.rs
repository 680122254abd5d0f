//! What happened, counted. Law 2: every fault that was read ends in exactly one of the endings.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use uffd::Outcome;

/// How a fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// We put the page there.
    Resolved,
    /// Somebody else did, or was about to.
    Coalesced,
    /// The page could not be had: an error was raised.
    Poisoned,
    /// Its region went away.
    TornDown,
    /// A pager had read it and died.
    Requeued,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The counters of one region, or of all closed ones. Relaxed: each is exact, their sums only when quiet.
        #[derive(Default)]
        #[repr(C)] // a pager counts in memory that it shares with us
        pub struct Counters {
            /// Faults read and not yet ended.
            pub in_flight: AtomicI64,
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        /// A copy of [`Counters`] at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Snapshot {
            /// Faults read and not yet ended.
            pub in_flight: i64,
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Read them all.
            #[must_use]
            pub fn snapshot(&self) -> Snapshot {
                Snapshot {
                    in_flight: self.in_flight.load(Ordering::Relaxed),
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }

        impl Snapshot {
            /// Names and values, in order, for the language above.
            #[must_use]
            pub fn fields(&self) -> Vec<(&'static str, i64)> {
                vec![
                    ("in_flight", self.in_flight),
                    $((stringify!($name), i64::try_from(self.$name).unwrap_or(i64::MAX)),)*
                ]
            }
        }
    };
}

counters! {
    /// Faults received: messages read, and signals taken.
    faults,
    /// Ended by our filling the page.
    resolved,
    /// Ended because somebody else filled it.
    coalesced,
    /// Ended with an error for the toucher.
    poisoned,
    /// Ended because the region was closed.
    torn_down,
    /// Lost with a pager and asked again.
    requeued,
    /// Units filled by demand.
    demand_units,
    /// Units filled ahead: prefetch, populate, readahead.
    prefetched_units,
    /// Units evicted.
    evicted_units,
    /// Bytes installed by UFFDIO_COPY.
    copied_bytes,
    /// Bytes installed by UFFDIO_MOVE.
    moved_bytes,
    /// Bytes installed by UFFDIO_ZEROPAGE.
    zero_bytes,
    /// Bytes installed by UFFDIO_CONTINUE.
    continued_bytes,
    /// MOVEs that were refused for good and became COPYs.
    move_fallbacks,
    /// Resolving calls that had to be repeated (EAGAIN, transient EBUSY).
    retries,
    /// Faults put off to the timer queue (EAGAIN without progress).
    deferred,
    /// Reads of the source that failed.
    source_errors,
    /// Reads that the source, or a layer around it, made again after a failure that may pass.
    source_retries,
    /// Pages that showed the error pattern to their toucher.
    exposed_pages,
    /// Faults handed to the worker pool.
    dispatched,
    /// Readahead requests made by sequential detection.
    readaheads,
    /// Units filled ahead by touchers that would have had to wait for another one.
    helped_units,
    /// Frames of an image decoded for it.
    frames_decoded,
    /// Parts of frames that were decoded already.
    frames_found,
}

/// The counters of a region: its own, or those that its pager counts in.
pub enum Counted {
    /// Ours.
    Own(Box<Counters>),
    /// In memory that the region keeps mapped as long as it lives.
    Shared(&'static Counters),
}

impl std::ops::Deref for Counted {
    type Target = Counters;
    fn deref(&self) -> &Counters {
        match self {
            Self::Own(counters) => counters,
            Self::Shared(counters) => counters,
        }
    }
}

/// Add to a counter.
pub fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// Count the bytes that an operation on `size` of them installs; pages that were there already are none of them. They are counted
/// before it and corrected after it: whoever it wakes finds its bytes counted.
pub fn counted(counter: &AtomicU64, size: usize, operation: impl FnOnce() -> Outcome) -> Outcome {
    counter.fetch_add(size as u64, Ordering::Relaxed);
    let outcome = operation();
    counter.fetch_sub((size - outcome.bytes(size)) as u64, Ordering::Relaxed);
    outcome
}

impl Counters {
    /// A fault was received.
    pub fn begin(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// It ended.
    pub fn end(&self, ending: Ending) {
        let counter = match ending {
            Ending::Resolved => &self.resolved,
            Ending::Coalesced => &self.coalesced,
            Ending::Poisoned => &self.poisoned,
            Ending::TornDown => &self.torn_down,
            Ending::Requeued => &self.requeued,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
