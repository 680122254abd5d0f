//! While it changes who gets the faults of a range, nobody may resolve one: a page that came in between two looks would be
//! taken for a hole. Whoever resolves is *inside* for the time of one operation; a change closes the gate and waits until
//! nobody is inside.
//!
//! *Locks*: one change at a time. *Threads*: any, signal handlers too. *Blocks on*: each other, for one operation.

use crate::futex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// Odd while closed.
static SEQUENCE: AtomicU32 = AtomicU32::new(0);
static INSIDE: AtomicU32 = AtomicU32::new(0);
static CHANGING: Mutex<()> = Mutex::new(());
/// Sleeps are cut into slices: a lost wake-up costs no more.
const SLICE: Duration = Duration::from_millis(5);

/// Proof that the gate stays open.
pub struct Inside(());

impl Drop for Inside {
    fn drop(&mut self) {
        leave();
    }
}

fn leave() {
    if INSIDE.fetch_sub(1, Ordering::SeqCst) == 1 && !SEQUENCE.load(Ordering::SeqCst).is_multiple_of(2) {
        futex::wake_all(&INSIDE);
    }
}

/// Go in; waits while the gate is closed.
#[must_use]
pub fn enter() -> Inside {
    loop {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        let sequence = SEQUENCE.load(Ordering::SeqCst);
        if sequence.is_multiple_of(2) {
            return Inside(());
        }
        leave();
        futex::wait(&SEQUENCE, sequence, Some(SLICE));
    }
}

/// Go in, unless the gate is closed: for those whom a change may wait for.
#[must_use]
pub fn try_enter() -> Option<Inside> {
    INSIDE.fetch_add(1, Ordering::SeqCst);
    if SEQUENCE.load(Ordering::SeqCst).is_multiple_of(2) {
        return Some(Inside(()));
    }
    leave();
    None
}

/// The gate, closed.
pub struct Closed {
    _changing: MutexGuard<'static, ()>,
}

impl Drop for Closed {
    fn drop(&mut self) {
        SEQUENCE.fetch_add(1, Ordering::SeqCst);
        futex::wake_all(&SEQUENCE);
    }
}

/// Close it and wait until nobody is inside. The caller must not be inside, nor touch memory that may fault.
#[must_use]
pub fn close() -> Closed {
    close_with(CHANGING.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The same, unless somebody else is at it.
#[must_use]
pub fn try_close() -> Option<Closed> {
    match CHANGING.try_lock() {
        Ok(changing) => Some(close_with(changing)),
        Err(TryLockError::Poisoned(changing)) => Some(close_with(changing.into_inner())),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn close_with(changing: MutexGuard<'static, ()>) -> Closed {
    SEQUENCE.fetch_add(1, Ordering::SeqCst);
    loop {
        let inside = INSIDE.load(Ordering::SeqCst);
        if inside == 0 {
            return Closed { _changing: changing };
        }
        futex::wait(&INSIDE, inside, Some(SLICE));
    }
}

/// Keep everybody from changing anything: for the time of a fork.
pub fn hold() -> MutexGuard<'static, ()> {
    CHANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In a forked child: those who were inside are not there.
pub fn reset() {
    INSIDE.store(0, Ordering::SeqCst);
    SEQUENCE.store(0, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn nobody_is_inside_while_it_is_closed() {
        let (inside, rounds) = (AtomicUsize::new(0), 2000);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..rounds {
                        let _inside = enter();
                        inside.fetch_add(1, Ordering::SeqCst);
                        std::hint::spin_loop();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..200 {
                    let _closed = close();
                    assert_eq!(inside.load(Ordering::SeqCst), 0);
                }
            });
        });
    }
}
