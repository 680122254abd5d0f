//! Regions whose sources are being opened, each by a thread of the language above: some take long, and some never end. Meanwhile
//! the owner is heard, and all others are served.
//!
//! *Locks*: `list`, for a few instructions; the table's inside, so that a region that is let go is never attached after that.
//! *Threads*: the one that hears the owner; those that open; the clock.

use super::Server;
use crate::pager::wire::{Attach, Frame};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Sources that are opened at once, but for those that nobody waits for any more.
const MOST: usize = 128;
/// So many that do not end are too many threads: another pager shall try.
pub const MOST_OVER: usize = 128;
/// The least time that a source has to be opened, whatever a touch may wait: modules are imported for it.
const LEAST: Duration = Duration::from_secs(5);

/// A source to be opened.
pub struct Request {
    /// To be told with its end.
    pub number: u64,
    /// What describes the source.
    pub told: Vec<u8>,
}

/// All of them.
#[derive(Default)]
pub struct Opens {
    list: Mutex<List>,
}

#[derive(Default)]
pub(super) struct List {
    last: u64,
    open: Vec<Opening>,
    /// There is no thread for them yet.
    waiting: VecDeque<Request>,
}

/// One.
pub(super) struct Opening {
    number: u64,
    pub attach: Attach,
    deadline_ns: u64,
    /// What the owner wants filled, once there is a source.
    pub fills: Vec<Frame>,
    /// A thread is at it.
    begun: bool,
    wanted: Wanted,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// The owner waits.
    Now,
    /// Its time is up, and the owner has been told.
    Late,
    /// Its region is gone: its source is to be closed.
    Never,
}

/// How long opening the source of a region may take.
pub fn limit_ns(attach: &Attach) -> u64 {
    attach.timeout_ns.max(LEAST.as_nanos() as u64)
}

impl Opens {
    pub(super) fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, which has its turn with [`Opens::next`].
    pub fn add(&self, attach: Attach, told: Vec<u8>, now_ns: u64) {
        let mut list = self.list();
        list.last += 1;
        let (number, deadline_ns) = (list.last, now_ns.saturating_add(limit_ns(&attach)));
        list.open.push(Opening { number, attach, deadline_ns, fills: Vec::new(), begun: false, wanted: Wanted::Now });
        list.waiting.push_back(Request { number, told });
    }

    /// The next to be opened; `None`: there is none, or as many are being opened as may be.
    pub fn next(&self) -> Option<Request> {
        let mut list = self.list();
        if list.open.iter().filter(|opening| opening.begun && opening.wanted == Wanted::Now).count() >= MOST {
            return None;
        }
        while let Some(request) = list.waiting.pop_front() {
            if let Some(opening) = list.open.iter_mut().find(|opening| opening.number == request.number) {
                opening.begun = true;
                return Some(request);
            }
        }
        None
    }

    /// Which region it is for; `None`: nobody wants it any more.
    pub fn attach_of(&self, number: u64) -> Option<Attach> {
        let list = self.list();
        let found = list.open.iter().find(|opening| opening.number == number && opening.wanted != Wanted::Never);
        found.map(|opening| opening.attach)
    }

    /// The owner lets go of the region. What nobody has begun is dropped.
    pub fn abandon(&self, region: u64) {
        self.list().open.retain_mut(|opening| {
            let is_of_it = opening.attach.region == region;
            if is_of_it {
                opening.wanted = Wanted::Never;
                opening.fills.clear();
            }
            opening.begun || !is_of_it
        });
    }

    /// Units are wanted of a region without a source so far; false: it is not being opened.
    pub fn keep(&self, fill: &Frame) -> bool {
        let mut list = self.list();
        let is_it = |opening: &&mut Opening| opening.attach.region == fill.region && opening.wanted == Wanted::Now;
        list.open.iter_mut().find(is_it).map(|opening| opening.fills.push(*fill)).is_some()
    }

    /// Does the owner wait for any?
    pub fn is_busy(&self) -> bool {
        self.list().open.iter().any(|opening| opening.wanted == Wanted::Now)
    }

    /// Is there no thread yet for some?
    pub fn is_waiting(&self) -> bool {
        !self.list().waiting.is_empty()
    }

    /// Threads that open for nobody who waits.
    pub fn over(&self) -> usize {
        self.list().open.iter().filter(|opening| opening.begun && opening.wanted != Wanted::Now).count()
    }
}

impl List {
    /// One whose time is up, each once, and what waited for it. It goes on: its region may be there still when it ends.
    fn next_late(&mut self, now_ns: u64) -> Option<(Attach, bool, Vec<Frame>)> {
        let is_late = |opening: &&mut Opening| opening.wanted == Wanted::Now && opening.deadline_ns <= now_ns;
        let opening = self.open.iter_mut().find(is_late)?;
        opening.wanted = Wanted::Late;
        Some((opening.attach, opening.begun, std::mem::take(&mut opening.fills)))
    }

    /// This one has ended. `None`: nobody wants it any more.
    pub fn end(&mut self, number: u64) -> Option<Opening> {
        let at = self.open.iter().position(|opening| opening.number == number)?;
        Some(self.open.swap_remove(at)).filter(|opening| opening.wanted != Wanted::Never)
    }
}

impl Server {
    /// Those that take too long: their owners hear it. True: there were any.
    pub(super) fn refuse_late(&self, now_ns: u64) -> bool {
        let mut any = false;
        loop {
            let mut list = self.opens.list();
            let Some((attach, was_begun, fills)) = list.next_late(now_ns) else { return any };
            self.refuse_as(list, &attach, &fills, &too_long(&attach, was_begun));
            any = true;
        }
    }
}

fn too_long(attach: &Attach, was_begun: bool) -> String {
    let seconds = Duration::from_nanos(limit_ns(attach)).as_secs_f64();
    if was_begun {
        format!(
            "TimeoutError\0opening the source in the pager took longer than {seconds} s; give map() a longer timeout, or leave what \
             takes so long to read_into\0"
        )
    } else {
        format!(
            "TimeoutError\0the pager had no thread to open the source for {seconds} s: it is opening {MOST} others, which do not \
             end; give them a pager of their own (pager=uf.pager.Pager())\0"
        )
    }
}
