//! Who waits at a userfaultfd: those whose faults nobody has read yet, and those that were read and not woken.
//!
//! *Locks*: none; the owner has one. *Threads*: any.

use std::ops::Range;
use std::time::{Duration, Instant};

/// One thread that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Exact address it touched.
    pub address: usize,
    /// Which thread; 0 unknown.
    pub thread: i32,
    /// Since when.
    pub since: Instant,
    /// SIGINTs seen by then.
    pub interrupts: u32,
    /// Messages about it after the first.
    pub repeats: u32,
    /// When the language's lock was asked for because of it, and the ticket.
    pub asked: Option<(Instant, u64)>,
}

impl Waiting {
    /// One that begins.
    #[must_use]
    pub fn new(address: usize, thread: i32, since: Instant, interrupts: u32) -> Self {
        Self { address, thread, since, interrupts, repeats: 0, asked: None }
    }

    fn is_same(&self, other: &Self) -> bool {
        let page = |address: usize| address / uffd::page_size();
        self.thread != 0 && self.thread == other.thread && page(self.address) == page(other.address)
    }
}

/// All of them.
#[derive(Default)]
pub struct Waiters {
    unread: Vec<Waiting>,
    read: Vec<Waiting>,
    /// Woken without their page, and when: a server that only wakes would keep them for ever otherwise.
    in_vain: Vec<(Waiting, Instant)>,
}

/// Who was woken in vain asks again in this time.
const ASKS_AGAIN: Duration = Duration::from_millis(100);
/// More than this are not remembered: they may wait for longer than they were to.
const MOST_IN_VAIN: usize = 256;

impl Waiters {
    fn all(&mut self) -> impl Iterator<Item = &mut Waiting> {
        self.unread.iter_mut().chain(&mut self.read)
    }

    /// How many faults are unread, and read but not woken.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.unread.len(), self.read.len())
    }

    /// The one that this message repeats, the message counted: the same thread on the same page.
    pub fn repeat(&mut self, waiting: &Waiting) -> Option<Waiting> {
        let known = self.all().find(|known| known.is_same(waiting))?;
        known.repeats = known.repeats.saturating_add(1);
        Some(*known)
    }

    /// Does the thread of this one wait for its page still?
    #[must_use]
    pub fn knows(&self, waiting: &Waiting) -> bool {
        self.unread.iter().chain(&self.read).any(|known| known.is_same(waiting))
    }

    /// One more. If it was woken just now, in vain, it has waited for longer than this.
    pub fn add(&mut self, mut waiting: Waiting) {
        let same = |(known, at): &(Waiting, Instant)| known.is_same(&waiting) && waiting.since - *at < ASKS_AGAIN;
        if let Some(index) = self.in_vain.iter().position(same) {
            waiting.since = self.in_vain.swap_remove(index).0.since;
        }
        self.unread.push(waiting);
    }

    /// The newest that was not read about, which now is.
    pub fn read(&mut self) -> Option<Waiting> {
        let newest = self.unread.pop()?;
        self.read.push(newest);
        Some(newest)
    }

    /// Those who were read about in `range` wait no more. Of those whose page did not come (`came`) it is remembered since when they
    /// waited: they ask again. False: there are none.
    pub fn forget_read(&mut self, range: &Range<usize>, now: Instant, came: impl Fn(&Waiting) -> bool) -> bool {
        let (woken, read): (Vec<_>, _) = self.read.iter().partition(|waiting| range.contains(&waiting.address));
        self.read = read;
        self.in_vain.retain(|(_, at)| now.duration_since(*at) < ASKS_AGAIN);
        let room = MOST_IN_VAIN.saturating_sub(self.in_vain.len());
        self.in_vain.extend(woken.iter().filter(|waiting| !came(waiting)).take(room).map(|waiting| (*waiting, now)));
        !woken.is_empty()
    }

    /// Nobody waits in `range` any more.
    pub fn forget(&mut self, range: &Range<usize>) {
        self.take(|waiting| range.contains(&waiting.address));
    }

    /// Nobody waits.
    pub fn clear(&mut self) {
        self.forget(&(0..usize::MAX));
    }

    /// Take out those for which `over` says so.
    pub fn take(&mut self, mut over: impl FnMut(&Waiting) -> bool) -> Vec<Waiting> {
        let mut taken = Vec::new();
        let mut stays = |waiting: &Waiting| {
            let is_over = over(waiting);
            if is_over {
                taken.push(*waiting);
            }
            !is_over
        };
        self.unread.retain(&mut stays);
        self.read.retain(&mut stays);
        taken
    }

    /// Note that the language's lock was asked for because of those who have waited for `after`.
    pub fn ask(&mut self, now: Instant, after: Duration, ask: impl FnOnce() -> u64) {
        let mut due = self.all().filter(|it| it.asked.is_none() && now.duration_since(it.since) >= after).peekable();
        if due.peek().is_some() {
            let asked = Some((now, ask()));
            due.for_each(|waiting| waiting.asked = asked);
        }
    }

    /// When somebody will have waited for `limit`, or first for `after`, if the lock was not asked for.
    #[must_use]
    pub fn next_deadline(&self, after: Duration, limit: Duration) -> Option<Instant> {
        let due = |waiting: &Waiting| waiting.since + if waiting.asked.is_none() { after } else { limit };
        self.unread.iter().chain(&self.read).map(due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_is_woken_in_vain_has_waited_since_the_first_time() {
        let (mut all, began) = (Waiters::default(), Instant::now());
        let mut since = |after: Duration, came: bool, again: Duration| {
            all.add(Waiting::new(4096, 1, began + after, 0));
            let waiting = all.read().unwrap();
            assert!(all.forget_read(&(4096..8192), began + again, |_| came));
            waiting.since - began
        };
        let ms = Duration::from_millis;
        assert_eq!(since(ms(0), false, ms(10)), ms(0));
        assert_eq!(since(ms(11), false, ms(50)), ms(0));
        assert_eq!(since(ms(51), true, ms(60)), ms(0));
        assert_eq!(since(ms(61), false, ms(70)), ms(61), "it had its page meanwhile");
        assert_eq!(since(ms(300), true, ms(301)), ms(300), "it did something else meanwhile");
    }

    #[test]
    fn the_lock_is_asked_for_once_and_then_the_limit_counts() {
        let (mut all, began) = (Waiters::default(), Instant::now());
        all.add(Waiting::new(4096, 1, began, 0));
        all.add(Waiting::new(8192, 2, began + SECOND, 0));
        assert_eq!(all.next_deadline(SECOND, 9 * SECOND), Some(began + SECOND));
        all.ask(began + SECOND, SECOND, || 7);
        assert_eq!(all.next_deadline(SECOND, 9 * SECOND), Some(began + 2 * SECOND));
        all.ask(began + 3 * SECOND, SECOND, || 8);
        all.ask(began + 4 * SECOND, SECOND, || unreachable!("both were asked for"));
        assert_eq!(all.next_deadline(SECOND, 9 * SECOND), Some(began + 9 * SECOND));
        let late = all.take(|waiting| waiting.thread == 1);
        assert_eq!(late[0].asked, Some((began + SECOND, 7)));
        assert_eq!(all.counts(), (1, 0));
    }
}
