//! One fault, from message to ending: what readers and workers have in common. Engine threads only.

use crate::counters::{Ending, add};
use crate::engine::Engine;
use crate::evict;
use crate::failure::{Failure, record};
use crate::fill::{Stop, Who, fill_unit};
use crate::queue::FaultJob;
use crate::region::Region;
use crate::source::{Cause, Patience, SourceError, Table};
use crate::states::State;
use crate::table::Pin;
use std::time::{Duration, Instant};

/// How an engine thread reads.
#[must_use]
pub fn engine_thread(patience: Patience) -> Who {
    Who { table: Table::Engine, patience }
}

/// Fill the claimed unit of `page` for a demand fault and end it. `Err`: it has to wait, and the unit stays claimed.
///
/// # Errors
/// Only [`Stop::WouldBlock`] and [`Stop::Deferred`].
pub fn demand(region: &Region, page: usize, who: Who) -> Result<Ending, Stop> {
    let unit = region.unit_of_page(page);
    match fill_unit(region, unit, Some(page), who) {
        Ok(whole) => {
            add(&region.counters.demand_units, 1);
            region.settle(unit, if whole { State::Present } else { State::Absent });
            evict::arrived(region, unit, Table::Engine);
            Ok(Ending::Resolved)
        }
        Err(Stop::Gone) => {
            region.settle(unit, State::Absent);
            Ok(Ending::TornDown)
        }
        Err(Stop::Failed(error)) => {
            add(&region.counters.source_errors, 1);
            // Ownership goes first: the toucher, once poisoned, may want the page re-armed before we run again. Its
            // neighbours are woken last: woken before the poison, the toucher would only ask again.
            region.states.settle(unit, State::Absent);
            region.forget_waits(unit);
            let ending = refuse(region, page, error);
            region.wake_unit(unit);
            Ok(ending)
        }
        Err(wait) => Err(wait),
    }
}

/// A fault on `unit`: have others begin what a scan will want next, while this thread fills.
pub fn read_ahead(engine: &Engine, region: &Region, unit: usize) {
    let Some(stream) = region.readahead.note(unit, region.states.len()) else { return };
    add(&region.counters.readaheads, 1);
    if !engine.queue.push_ahead(region, stream) {
        region.readahead.part(stream);
    }
}

/// A unit that is filled out of turn, bytes at most.
const MOST_HELP: usize = 2 << 20;

/// Somebody else fills `unit`, which was read ahead: fill one behind it meanwhile. A scan then has as many threads decoding
/// as there are; one that only waited would gain nothing by reading ahead. False: there is none.
pub fn help(region: &Region, unit: usize, who: Who) -> bool {
    if region.unit > MOST_HELP {
        return false; // whoever reads faults here is not to keep others waiting for long
    }
    let free = |unit: &usize| region.states.get(*unit) == State::Absent && region.states.claim(*unit, State::Absent);
    let Some(unit) = region.readahead.behind(unit).find(free) else { return false };
    let outcome = fill_unit(region, unit, None, who);
    let state = if outcome == Ok(true) { State::Present } else { State::Absent };
    region.settle_from(who.table, unit, state);
    if outcome.is_ok() {
        evict::arrived(region, unit, who.table);
        add(&region.counters.helped_units, 1);
    }
    outcome.is_ok()
}

/// Answer a fault by an error.
pub fn refuse(region: &Region, page: usize, error: SourceError) -> Ending {
    if error.cause != Cause::Latched {
        record(Failure::of(region, page, error));
    }
    if !region.poison(page) {
        return Ending::Coalesced; // it is there after all
    }
    Ending::Poisoned
}

/// Between 250 us and 2 ms: how long an EAGAIN is put off (design law 10).
fn deferral(deferrals: u32) -> Duration {
    Duration::from_micros(250) * 2u32.pow(deferrals.min(3))
}

/// Hand a fault to the pool; its unit is claimed.
pub fn dispatch(engine: &'static Engine, region: &Pin<Region>, page: usize, thread: i32, stop: Stop, deferrals: u32) {
    let after = (stop == Stop::Deferred).then(|| Instant::now() + deferral(deferrals));
    add(if after.is_some() { &region.counters.deferred } else { &region.counters.dispatched }, 1);
    let job = FaultJob { region: region.clone(), page, thread, after, deferrals };
    if engine.queue.push_fault(job) {
        (engine.start_worker)(engine);
    }
}
