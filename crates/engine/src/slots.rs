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
