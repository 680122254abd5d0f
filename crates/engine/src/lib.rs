//! The fault engine: faults to pages, with no Python in it.
//!
//! A module may use those above it in this list, none below (a test checks it).
//!
//! ```text
//! futex      wait and wake on a word, callable from a signal handler
//! sync       atomics and waiting, which loom replaces where every order of events is tried
//! slots      up to 64 slots, handed out one at a time
//! bits       which pages of a region show the error pattern: set from signal handlers, swept by the keeper
//! exposures  how often the error pattern was shown, exact for those who look meanwhile
//! counters   one counter for each ending of a fault, and the rest of the statistics
//! cause      why bytes could not be had
//! error      what can go wrong outside a fault
//! shared     memory that an owner shares with its pager
//! scratch    working memory of one fill
//! proc       files of /proc, read without allocating
//! say        one line on standard error, from anywhere
//! identity   which file a descriptor's number means
//! cpus       which CPUs a thread may run on
//! interrupt  Ctrl-C while a page is awaited
//! language   the language above and its lock
//! threads    engine threads and their own descriptor table
//! image      the format at rest
//! source     where pages come from
//! states     absent, filling, present: one byte a unit
//! table      address -> region, without a lock
//! mapping    fresh address space of our own
//! policy     COPY or MOVE
//! residence  which units came when
//! readahead  sequential detection
//! spread     one reader for a lane, or one on each CPU
//! reserve    memory put by for answering faults by errors
//! stock      staging pages, recycled
//! region     one range we mapped
//! nest       which thread fills what, in the middle of a touch
//! failure    what is known about pages that could not be had
//! latch      threads with an error on its way
//! expose     a page that cannot be had: the error pattern, and an exception
//! fill       one unit, from source to page
//! evict      units leave: on request, or under a resident budget
//! queue      work for the worker pool
//! engine     everything there is one of
//! serve      one fault, from message to ending
//! directed   a signal to one thread that waits for a page
//! looks      what a thread that waits for a page does
//! flagged    memory of the caller's that can fault: who is told of what
//! called     sources that are code of the language above, run by whoever touches
//! keeper     deadlines, re-arming
//! signal     delivery in the touching thread
//! thread     delivery to readers
//! workers    slow reads, prefetch, populate
//! pager      regions served by another process, and serving those of another
//! fork       what a forked child gets
//! volatile   pinning and unpinning
//! choices    what a caller chose, checked
//! open       regions come and go
//! mman       the calls of 2014
//! ```

pub mod futex;
pub mod sync;
pub mod slots;
pub mod bits;
pub mod exposures;
pub mod counters;
pub mod cause;
pub mod error;
pub mod shared;
pub mod scratch;
pub mod proc;
pub mod say;
pub mod identity;
pub mod cpus;
pub mod interrupt;
pub mod language;
pub mod threads;
pub mod image;
pub mod source;
pub mod states;
pub mod table;
pub mod mapping;
pub mod policy;
pub mod residence;
pub mod readahead;
pub mod spread;
pub mod reserve;
pub mod stock;
pub mod region;
pub mod nest;
pub mod failure;
pub mod latch;
pub mod expose;
pub mod fill;
pub mod evict;
pub mod queue;
pub mod engine;
pub mod serve;
pub mod directed;
pub mod looks;
pub mod flagged;
pub mod called;
pub mod keeper;
pub mod signal;
pub mod thread;
pub mod workers;
pub mod pager;
pub mod fork;
pub mod volatile;
pub mod choices;
pub mod open;
pub mod mman;
