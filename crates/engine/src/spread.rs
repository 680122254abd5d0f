//! One reader for a lane, or one on each CPU? A reader on the toucher's CPU is ten times as cheap as one elsewhere, and one
//! reader can follow one toucher. Where several take turns, a reader on each CPU serves whoever faults there; but all of them
//! are woken for each fault, so a lone toucher is better off with one (docs/facts.md, Delivery).
//!
//! *Locks*: none; races make a guess worse and nothing else. *Threads*: engine threads.
//! *Blocks on*: [`Spread::wait_for`] sleeps until it is the caller's turn to read.

use crate::futex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// One reader, which follows its toucher.
    Follow = 0,
    /// One on each CPU.
    PerCpu = 1,
}

/// The touchers of a lane, as far as it matters.
#[derive(Default)]
pub struct Spread {
    mode: AtomicU32,
    last: AtomicI32,
    faults: AtomicU32,
    turns: AtomicU32,
    /// Has it been decided for good?
    decided: AtomicBool,
}

/// Faults between two decisions.
const WINDOW: u32 = 128;
/// From so many changes of toucher in a window on there are several, and below so many one.
const MANY: u32 = 32;
const FEW: u32 = 4;

impl Spread {
    /// Who reads now.
    #[must_use]
    pub fn mode(&self) -> Mode {
        if self.mode.load(Ordering::SeqCst) == Mode::PerCpu as u32 { Mode::PerCpu } else { Mode::Follow }
    }

    /// It stays as it is.
    pub fn decide(&self) {
        self.decided.store(true, Ordering::SeqCst);
    }

    /// `thread` faulted: the mode that would be better from now on, if it is another one.
    pub fn note(&self, thread: i32) -> Option<Mode> {
        if self.decided.load(Ordering::Relaxed) {
            return None;
        }
        if self.last.load(Ordering::Relaxed) != thread {
            self.last.store(thread, Ordering::Relaxed);
            self.turns.fetch_add(1, Ordering::Relaxed);
        }
        if self.faults.fetch_add(1, Ordering::Relaxed) + 1 < WINDOW {
            return None;
        }
        self.faults.store(0, Ordering::Relaxed);
        match (self.mode(), self.turns.swap(0, Ordering::Relaxed)) {
            (Mode::Follow, MANY..) => Some(Mode::PerCpu),
            (Mode::PerCpu, ..FEW) => Some(Mode::Follow),
            _ => None,
        }
    }

    /// Let the readers of `mode` read from now on; those of the other one stop when they have served what they have read.
    pub fn change(&self, mode: Mode) {
        self.mode.store(mode as u32, Ordering::SeqCst);
        futex::wake_all(&self.mode);
    }

    /// Sleep until it is `mode`.
    pub fn wait_for(&self, mode: Mode) {
        while self.mode() != mode {
            futex::wait(&self.mode, 1 - mode as u32, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touchers_that_take_turns_get_a_reader_on_each_cpu_until_one_is_left() {
        let spread = Spread::default();
        let decided = |threads: &[i32]| threads.iter().cycle().take(256).find_map(|thread| spread.note(*thread));
        assert_eq!(decided(&[7]), None);
        assert_eq!(decided(&[7, 8]), Some(Mode::PerCpu));
        spread.change(Mode::PerCpu);
        assert_eq!(decided(&[7, 7, 8]), None);
        assert_eq!(decided(&[9]).or(decided(&[9])), Some(Mode::Follow));
    }

    #[test]
    fn a_reader_waits_for_its_mode() {
        let spread = Spread::default();
        std::thread::scope(|scope| {
            scope.spawn(|| spread.wait_for(Mode::PerCpu));
            spread.change(Mode::PerCpu);
        });
        spread.wait_for(Mode::PerCpu);
    }
}
