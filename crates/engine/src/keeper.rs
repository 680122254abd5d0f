//! The keeper thread: answers faults whose deadline has passed, turns failed pages back into holes, lets poison expire.
//! Asleep as long as nothing waits and nothing failed.
//!
//! *Locks*: a region's `waits`, `poisoned`, `rearm`. *Threads*: one engine thread. *Blocks on*: [`ATTENTION`].

use crate::called;
use crate::cause::Kind;
use crate::counters::Ending;
use crate::engine::Engine;
use crate::error::Error;
use crate::flagged::is_still_there;
use crate::futex::{ALARM, ATTENTION};
use crate::region::{A_LITTLE, Delivery, REARM_PACE, Region};
use crate::reserve;
use crate::serve::refuse;
use crate::source::{Cause, SourceError};
use crate::states::State;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Poison that nobody touches in user code is lifted after this.
const POISON_LIFE: Duration = Duration::from_secs(1);
/// How soon memory is put by again while there is none to be had.
const TOP_UP: Duration = Duration::from_millis(100);
/// A page that cannot be hidden at once is tried so often.
const SWEEPS: usize = 200;
/// A region without a failure for this long starts at the first pace again.
const CALM: Duration = Duration::from_secs(1);

/// Start it.
///
/// # Errors
/// When no thread can be started.
pub fn start(engine: &'static Engine) -> Result<(), Error> {
    engine.root.spawn("userfault-keep", move || {
        loop {
            let rung = ATTENTION.rung();
            ALARM.clear();
            crate::flagged::look_if_asked();
            let mut due = round(engine).into_iter().chain(called::look_for_lost(engine)).min();
            reserve::fill(engine.signal.engine);
            if reserve::is_short() {
                due = due.into_iter().chain([Instant::now() + TOP_UP]).min();
            }
            let limit = due.map(|due| due.saturating_duration_since(Instant::now()));
            ALARM.set(limit);
            ATTENTION.wait(rung, limit);
        }
    })
}

/// Look after every region; answers when to look again.
fn round(engine: &Engine) -> Option<Instant> {
    let mut next: Option<Instant> = None;
    engine.table.for_each(|region| {
        let due = [deadlines(&region), expire_poison(&region), rearm_when_due(&region)];
        next = due.into_iter().flatten().chain(next).min();
    });
    next
}

fn deadlines(region: &Region) -> Option<Instant> {
    for wait in region.waits.take_due(Instant::now()) {
        let error = SourceError::new((wait.page * uffd::page_size()) as u64, Cause::Timeout);
        // The fault itself is ended by whoever still reads for it; this only frees the toucher.
        let _: Ending = refuse(region, wait.page, error);
    }
    region.waits.next_deadline()
}

fn expire_poison(region: &Region) -> Option<Instant> {
    for page in region.poisoned_since(POISON_LIFE) {
        owning(region, page, || {
            region.lift_poison(page);
        });
    }
    region.has_poison().then(|| Instant::now() + POISON_LIFE / 4)
}

fn rearm_when_due(region: &Region) -> Option<Instant> {
    if region.exposed.is_empty() {
        return None;
    }
    let now = Instant::now();
    let mut rearm = region.rearm.lock().unwrap_or_else(PoisonError::into_inner);
    match rearm.due {
        None => {
            rearm.due = Some(now + rearm.pace);
            rearm.due
        }
        Some(due) if due > now && due - now <= REARM_PACE.end => Some(due),
        Some(due) => {
            rearm.pace = if now > due + CALM { REARM_PACE.start } else { (rearm.pace * 2).min(REARM_PACE.end) };
            rearm.due = None;
            drop(rearm);
            rearm_all(region);
            (!region.exposed.is_empty()).then(|| Instant::now() + REARM_PACE.start)
        }
    }
}

/// Turn every page that shows the error pattern back into a hole. Also called at the end of `checked()`, by way of the
/// engine's threads.
pub fn rearm_all(region: &Region) {
    // Two threads do this, the keeper and the root: who finds a page taken out by the other must not go on before it is a
    // hole, or its toucher would read the pattern once more without an error.
    let _one = region.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
    region.wait_for_showing(A_LITTLE);
    for _ in 0..SWEEPS {
        let mut kept = false;
        region.exposed.sweep(|page| {
            let hidden = owning(region, page, || region.hide(page)) || hide_beside_fill(region, page);
            kept |= !hidden;
            hidden
        });
        if !kept {
            break;
        }
        std::thread::sleep(REARM_PACE.start); // a fill has just ended and is about to give up the unit
    }
    region.wait_for_hiding();
}

/// A fill that takes long must not keep the pattern in sight. With signal delivery, and where a pager fills, which puts no
/// page where one is, whoever takes a page out of `exposed` may drop it; else the poison's record tells that the fill has not replaced the pattern yet.
fn hide_beside_fill(region: &Region, page: usize) -> bool {
    if region.options.delivery != Delivery::Thread {
        region.drop_page(page);
        return true;
    }
    region.lift_poison(page)
}

/// Do something to a page while owning its unit; false: somebody else owns it now.
fn owning(region: &Region, page: usize, work: impl FnOnce()) -> bool {
    if region.options.kind == Kind::UserFault && !is_still_there(region.id, region.page_address(page)) {
        region.forget_poison(page..page + 1);
        return true; // it is somebody else's memory now
    }
    let unit = region.unit_of_page(page);
    let state = region.states.get(unit);
    if state == State::Filling || !region.states.claim(unit, state) {
        return false;
    }
    work();
    region.settle(unit, state);
    true
}
