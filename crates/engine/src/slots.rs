//! Up to 64 slots of something, handed out one at a time: a bit each.
//!
//! *Locks*: none, one word. *Threads*: any, handlers too.

use crate::sync::{AtomicU64, Ordering};

/// Which slots may be taken. What a thread did with a slot before it put it back is seen by whoever takes it next.
pub struct Slots(AtomicU64);

impl Slots {
    /// The slots `0..count` may be taken.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self(AtomicU64::new(if count >= 64 { u64::MAX } else { (1 << count) - 1 }))
    }

    /// Take one; nobody else has it until it is put back.
    #[must_use]
    pub fn take(&self) -> Option<u32> {
        loop {
            let bits = self.0.load(Ordering::Relaxed);
            if bits == 0 {
                return None;
            }
            let bit = bits.trailing_zeros();
            if self.0.compare_exchange_weak(bits, bits & !(1 << bit), Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Some(bit);
            }
        }
    }

    /// Take `count` in a row, at most 32; the first of them.
    #[must_use]
    pub fn take_run(&self, count: u32) -> Option<u32> {
        let run = (1u64 << count.min(32)) - 1;
        loop {
            let bits = self.0.load(Ordering::Relaxed);
            let first = (0..=64 - count.min(32)).find(|first| bits >> first & run == run)?;
            let left = bits & !(run << first);
            if self.0.compare_exchange_weak(bits, left, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Some(first);
            }
        }
    }

    /// Put back a slot that was taken, here or from another set.
    pub fn put(&self, slot: u32) {
        self.0.fetch_or(1 << slot, Ordering::Release);
    }

    /// How many may be taken, for statistics.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed).count_ones()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_taken_whole_or_not_at_all() {
        let slots = Slots::new(10);
        assert_eq!(
            (slots.take(), slots.take_run(4), slots.take_run(6), slots.take_run(5)),
            (Some(0), Some(1), None, Some(5))
        );
        slots.put(2);
        slots.put(4);
        assert_eq!((slots.take_run(2), slots.take_run(1), slots.count()), (None, Some(2), 1));
        assert_eq!(Slots::new(64).take_run(32), Some(0));
    }

    #[test]
    fn each_slot_is_given_once_and_again_when_it_is_back() {
        for count in [0, 1, 63, 64] {
            let slots = Slots::new(count);
            let taken: Vec<_> = std::iter::from_fn(|| slots.take()).collect();
            assert_eq!(taken, (0..count as u32).collect::<Vec<_>>());
            taken.iter().for_each(|slot| slots.put(*slot));
            assert_eq!(slots.count() as usize, count);
        }
    }
}
