//! Units leave: because a caller says so, or because the oldest make room under a resident budget.
//!
//! A unit leaves by MOVE into staging, where the next fill finds its pages ready to be written; or, when copying is cheaper
//! (see `policy`), in batches by one process_madvise(MADV_DONTNEED), because each call interrupts every CPU that runs a
//! thread of this process.
//!
//! *Locks*: none. *Threads*: any, handlers too.

use crate::counters::add;
use crate::mapping;
use crate::policy::Method;
use crate::region::Region;
use crate::residence::{BATCH_UNITS, Residence};
use crate::source::Table;
use crate::states::State;
use std::ops::Range;
use std::time::Instant;

/// What leaves by one MOVE, bytes at most.
const RUN_BYTES: usize = 1 << 20;
/// And units at most.
const RUN_UNITS: usize = 8;

/// `unit` was filled and settled by the caller: the oldest leaves if the budget is used up.
pub fn arrived(region: &Region, unit: usize, table: Table) {
    let Some(residence) = &region.residence else { return };
    let (turn, Some(oldest)) = residence.enter(unit) else { return };
    let timed = region.policy.is_watching().then(Instant::now);
    let (method, count) = match region.policy.method() {
        Method::Copy if residence.batch() > 1 => {
            (Method::Copy, release_batch(region, residence, unit, (turn, oldest), table))
        }
        Method::Move => (Method::Move, release_run(region, residence, unit, (turn, oldest), table)),
        method => (method, usize::from(release(region, oldest, method, table))),
    };
    if let Some(start) = timed {
        region.policy.released(method, count, start.elapsed());
    }
}

/// Claim a unit that is to leave; false: somebody fills it just now, and will put it in the ring again.
fn claim(region: &Region, unit: usize) -> bool {
    let state = region.states.get(unit);
    let ours = state != State::Filling && region.states.claim(unit, state);
    add(&region.counters.evicted_units, usize::from(ours && state == State::Present));
    ours
}

fn release(region: &Region, unit: usize, method: Method, table: Table) -> bool {
    let ours = claim(region, unit);
    if ours {
        empty(region, unit, method == Method::Move, table);
        left(region, unit, table);
    }
    ours
}

/// Drop the pages of a unit that the caller owns, or recycle them.
fn empty(region: &Region, unit: usize, recycle: bool, table: Table) {
    let range = region.unit_range(unit);
    let start = region.base + range.start;
    let stock = region.stock.as_ref().filter(|_| recycle && range.len() == region.unit);
    // SAFETY: the unit is claimed by the caller and its pages are clean copies of the source (mode "r").
    if stock.is_some_and(|stock| unsafe { stock.move_out(start, region.handles.staging(table)) }) {
        return;
    }
    match &region.file {
        Some(file) => mapping::punch(file.number(table), &range),
        None => drop(mapping::advise(start, range.len(), libc::MADV_DONTNEED)),
    }
}

fn left(region: &Region, unit: usize, table: Table) {
    region.settle_from(table, unit, State::Absent);
}

/// The oldest unit, and those after it that lie behind it in memory too: a scan's leave by one MOVE, because each interrupts
/// every CPU that runs a thread of this process. Returns how many left.
fn release_run(
    region: &Region,
    residence: &Residence,
    came: usize,
    (turn, oldest): (usize, usize),
    table: Table,
) -> usize {
    if !claim(region, oldest) {
        return 0;
    }
    let most = (RUN_BYTES / region.unit).min(residence.batch()).min(RUN_UNITS);
    let follows = |after: &usize| {
        let unit = oldest + after;
        unit != came && unit < region.states.len() && residence.take(turn + after, unit) && claim(region, unit)
    };
    let units = oldest..oldest + (1..most).take_while(follows).count() + 1;
    let start = region.base + units.start * region.unit;
    let stock =
        region.stock.as_ref().filter(|_| units.len() > 1 && region.unit_range(units.end - 1).len() == region.unit);
    // SAFETY: the units are claimed by this thread and their pages are clean copies of the source (mode "r").
    let moved = stock
        .is_some_and(|stock| unsafe { stock.move_run_out(start, units.len() as u32, region.handles.staging(table)) });
    for unit in units.clone() {
        if !moved {
            empty(region, unit, true, table);
        }
        left(region, unit, table);
    }
    units.len()
}

/// The oldest unit and those after it, in one call; returns how many left.
fn release_batch(
    region: &Region,
    residence: &Residence,
    came: usize,
    (turn, oldest): (usize, usize),
    table: Table,
) -> usize {
    let mut units = [0; BATCH_UNITS];
    let mut count = 0;
    let next = (1..residence.batch()).filter_map(|after| residence.swap(turn + after, 0));
    // The ring may hold the unit that came more than once: it stays, or its toucher would ask for ever.
    for unit in std::iter::once(oldest).chain(next).filter(|unit| *unit != came && claim(region, *unit)) {
        units[count] = unit;
        count += 1;
    }
    let units = &mut units[..count];
    units.sort_unstable();
    drop_all(region, units);
    for unit in units.iter() {
        left(region, *unit, table);
    }
    count
}

/// Drop the pages of sorted units that the caller owns.
fn drop_all(region: &Region, units: &[usize]) {
    let mut ranges = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH_UNITS];
    let mut count = 0;
    for unit in units {
        let range = region.unit_range(*unit);
        let start = region.base + range.start;
        if count > 0 && ranges[count - 1].iov_base as usize + ranges[count - 1].iov_len == start {
            ranges[count - 1].iov_len += range.len();
        } else {
            ranges[count] = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: range.len() };
            count += 1;
        }
    }
    let ranges = &ranges[..count];
    if !drop_at_once(ranges) {
        for range in ranges {
            let _ = mapping::advise(range.iov_base as usize, range.iov_len, libc::MADV_DONTNEED);
        }
    }
}

/// Several ranges in one call (docs/facts.md, Filling); false: the kernel cannot (before 6.15), or did not do all.
fn drop_at_once(ranges: &[libc::iovec]) -> bool {
    const PIDFD_SELF_PROCESS: libc::c_int = -10001;
    if ranges.len() < 2 {
        return false;
    }
    let bytes: usize = ranges.iter().map(|range| range.iov_len).sum();
    // SAFETY: the ranges are units of a region of ours whose pages their owner wants gone.
    let done = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            PIDFD_SELF_PROCESS,
            ranges.as_ptr(),
            ranges.len(),
            libc::MADV_DONTNEED,
            0,
        )
    };
    usize::try_from(done) == Ok(bytes)
}

/// How long one eviction waits in all for units that are being filled: a toucher goes on a moment before its reader has
/// settled the unit, while a slow source may hold one for long.
pub const SETTLING: std::time::Duration = std::time::Duration::from_millis(100);

/// How often the state of a unit is looked at that a pager fills.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_micros(200);

/// A caller wants these units gone; returns how many were there. Small ones leave in batches. Engine threads.
pub fn evict(region: &Region, units: Range<usize>, patience: Instant) -> usize {
    let one_by_one = region.stock.is_some() || region.file.is_some();
    let step = if one_by_one { 1 } else { BATCH_UNITS };
    units.clone().step_by(step).map(|first| evict_few(region, first..(first + step).min(units.end), patience)).sum()
}

fn evict_few(region: &Region, units: Range<usize>, patience: Instant) -> usize {
    let mut ours = [0; BATCH_UNITS];
    let mut count = 0;
    for unit in units {
        while region.states.get(unit) == State::Filling && Instant::now() < patience {
            // A pager tells nobody when it is done.
            region.states.wait_while_filling(unit, if region.away.is_some() { LOOK_AGAIN } else { SETTLING });
        }
        if region.states.claim(unit, State::Present) {
            ours[count] = unit;
            count += 1;
        }
    }
    match &ours[..count] {
        [unit] => empty(region, *unit, true, Table::Engine),
        units => drop_all(region, units),
    }
    ours[..count].iter().for_each(|unit| left(region, *unit, Table::Engine));
    add(&region.counters.evicted_units, count);
    count
}
