//! A resolver runs in the thread that touched. It may touch other lazy memory, which calls a resolver in turn; it must not
//! touch the page it is there to resolve, and there is an end to nesting.
//!
//! A page that came while its resolver ran may be gone again when the resolver returns, dropped by a third: that is no fault of
//! the resolver's, so whoever moves pages notes here which have come.
//!
//! *Locks*: none. *Threads*: an entry belongs to one thread, in its signal handler; any thread notes a page.

use std::ops::Range;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// Threads with a resolver running.
const THREADS: usize = 4096;
/// Resolvers within resolvers.
const DEPTH: usize = 8;

/// More than there are readers of a lane, each of which may hold one.
const OLD_MESSAGES: usize = 16;

struct Stack {
    thread: AtomicI32,
    depth: AtomicUsize,
    /// Messages since the last one began that say the thread waits for what it resolves itself.
    asked: AtomicUsize,
    /// Addresses of first pages; with [`CAME`] once the page has come.
    pages: [AtomicUsize; DEPTH],
    /// Where their memory ends.
    ends: [AtomicUsize; DEPTH],
}

static STACKS: [Stack; THREADS] = [const {
    Stack {
        thread: AtomicI32::new(0),
        depth: AtomicUsize::new(0),
        asked: AtomicUsize::new(0),
        pages: [const { AtomicUsize::new(0) }; DEPTH],
        ends: [const { AtomicUsize::new(0) }; DEPTH],
    }
}; THREADS];

/// Threads in it: nobody searches while it is 0.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Nobody was ever in those from here on.
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// No part of the address of a page.
const CAME: usize = 1;

/// Pages have come, by whoever's doing.
pub fn note_arrival(range: &Range<usize>) {
    if USED.load(Ordering::Acquire) == 0 {
        return;
    }
    for stack in ever_used() {
        let depth = stack.depth.load(Ordering::Acquire).min(DEPTH);
        for page in stack.pages[..depth].iter().filter(|page| range.contains(&page.load(Ordering::Relaxed))) {
            page.fetch_or(CAME, Ordering::Relaxed);
        }
    }
}

fn ever_used() -> &'static [Stack] {
    &STACKS[..HIGHEST.load(Ordering::Acquire)]
}

/// One resolver is running in this thread as long as this lives.
pub struct Nested(&'static Stack);

/// Begin to resolve the pages of `memory` in `thread`, the calling one. `None`: the first is being resolved by this thread
/// already, or the nesting is too deep.
#[must_use]
pub fn begin(thread: i32, memory: &Range<usize>) -> Option<Nested> {
    let stack = find(thread).or_else(|| claim(thread))?;
    let depth = stack.depth.load(Ordering::Relaxed);
    if depth == DEPTH || stack.holds(memory.start) {
        return None;
    }
    stack.pages[depth].store(memory.start, Ordering::Relaxed);
    stack.ends[depth].store(memory.end, Ordering::Relaxed);
    stack.asked.store(0, Ordering::Relaxed);
    stack.depth.store(depth + 1, Ordering::Release);
    Some(Nested(stack))
}

fn find(thread: i32) -> Option<&'static Stack> {
    let used = USED.load(Ordering::Acquire) > 0;
    if used { ever_used().iter().find(|stack| stack.thread.load(Ordering::Relaxed) == thread) } else { None }
}

fn claim(thread: i32) -> Option<&'static Stack> {
    let free = |stack: &&Stack| {
        stack.thread.load(Ordering::Relaxed) == 0
            && stack.thread.compare_exchange(0, thread, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    let (index, stack) = STACKS.iter().enumerate().find(|(_, stack)| free(stack))?;
    HIGHEST.fetch_max(index + 1, Ordering::AcqRel);
    USED.fetch_add(1, Ordering::AcqRel);
    Some(stack)
}

/// Is a resolver running in this thread, the calling one?
#[must_use]
pub fn is_running(thread: i32) -> bool {
    find(thread).is_some()
}

/// Is this thread resolving that page? Any thread may ask.
#[must_use]
pub fn resolves(thread: i32, page: usize) -> bool {
    find(thread).is_some_and(|stack| stack.holds(page))
}

/// A message says that this thread waits for a page which it resolves. The first few may be old: read late, of the touch that it
/// is resolving just now. Whoever really waits asks again each time it is woken. True: it does.
#[must_use]
pub fn asks_itself(thread: i32, page: usize) -> bool {
    let asked = |stack: &Stack| stack.asked.fetch_add(1, Ordering::Relaxed);
    find(thread).filter(|stack| stack.holds(page)).is_some_and(|stack| asked(stack) >= OLD_MESSAGES)
}

/// Is this thread resolving pages of that memory? Any thread may ask.
#[must_use]
pub fn resolves_some_of(thread: i32, memory: &Range<usize>) -> bool {
    find(thread).is_some_and(|stack| stack.open().any(|pages| memory.contains(&pages.start)))
}

impl Stack {
    fn open(&self) -> impl Iterator<Item = Range<usize>> {
        let depth = self.depth.load(Ordering::Acquire).min(DEPTH);
        let open = self.pages[..depth].iter().zip(&self.ends);
        open.map(|(first, end)| first.load(Ordering::Relaxed) & !CAME..end.load(Ordering::Relaxed))
    }

    fn holds(&self, page: usize) -> bool {
        self.open().any(|pages| pages.contains(&page))
    }
}

impl Nested {
    /// Has the page come since?
    #[must_use]
    pub fn has_come(&self) -> bool {
        let depth = self.0.depth.load(Ordering::Relaxed);
        self.0.pages[depth - 1].load(Ordering::Relaxed) & CAME != 0
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        if self.0.depth.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.thread.store(0, Ordering::Release);
            USED.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_resolved_once_at_a_time_and_nesting_ends() {
        let page = |number: usize| number * 4096..(number + 1) * 4096;
        let nested: Vec<_> = (0..DEPTH).map(|number| begin(800_001, &page(number)).unwrap()).collect();
        assert!(begin(800_001, &page(1)).is_none());
        assert!(begin(800_001, &page(77)).is_none());
        assert!(begin(800_002, &page(1)).is_some());
        drop(nested);
        let nested = begin(800_001, &page(1)).unwrap();
        note_arrival(&(8192..1 << 20));
        assert!(!nested.has_come());
        note_arrival(&(0..8192));
        assert!(nested.has_come());
        assert!(begin(800_001, &page(1)).is_none());
        drop(nested);
        let _nested = begin(800_001, &(4096..3 * 4096)).unwrap();
        assert!((0..OLD_MESSAGES).all(|_| !asks_itself(800_001, 8192) && !asks_itself(800_001, 0)));
        assert!(asks_itself(800_001, 8192) && !asks_itself(800_003, 8192));
        assert_eq!([0, 1, 2, 3].map(|number| resolves(800_001, number * 4096)), [false, true, true, false]);
        assert!(resolves_some_of(800_001, &(0..5 * 4096)));
        assert!(!resolves_some_of(800_001, &(3 * 4096..5 * 4096)) && !resolves_some_of(800_003, &(0..5 * 4096)));
    }
}
