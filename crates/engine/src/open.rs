//! Regions come and go; the engine starts with the first.
//!
//! *Locks*: `STARTING` while the engine starts. *Threads*: application threads, which must not hold the GIL here.
//! *Blocks on*: the root thread; [`Owned::close`] up to two seconds for faults in flight.

use crate::choices::{self, DEFAULT_UNIT};
use crate::counters::{Counters, Snapshot, add};
use crate::engine::{Abilities, Engine};
use crate::error::Error;
use crate::mapping;
use crate::pager::opening::{self, Served};
use crate::pager::owner::Pager;
use crate::queue::Bulk;
use crate::region::{Delivery, Handles, Mode, Options, Parts, Region, SharedFile, mapped_bytes};
use crate::residence::Residence;
use crate::source::{Reading, ScratchNeeds, Source};
use crate::table::Pin;
use crate::threads::{Root, drop_left, leave};
use crate::{called, evict, failure, fork, keeper, latch, signal, thread, volatile, workers};
use std::ops::Range;
use std::os::fd::IntoRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use uffd::{Features, Handle, OpenOptions, RegisterModes, Userfaultfd};

/// Fault descriptors; regions are spread over them. Each has a reader from its first region on, which follows its toucher: as
/// How long a close waits for those who use the region before it asks who keeps it.
const AT_ONCE: Duration = Duration::from_millis(2);
/// many touchers as lanes have one to themselves.
const LANES: usize = 16;
/// Workers that fill one range ahead, at most: a prefetch never has them all.
const BULK_WORKERS: usize = 4;
/// The same where they only wait for code of the language above.
const CALLED_BULK_WORKERS: usize = 8;
/// From this unit on evicted pages are kept for the next fill even without a resident budget.
const STAGED_FROM: usize = 256 << 10;

/// The engine of this process, started if need be.
///
/// # Errors
/// [`Error::Refused`] when this process may not have a userfaultfd.
pub fn engine() -> Result<&'static Engine, Error> {
    if let Some(engine) = Engine::current() {
        return Ok(engine);
    }
    fork::hook();
    let _starting = fork::STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    match Engine::current() {
        Some(engine) => Ok(engine),
        None => start(),
    }
}

fn start() -> Result<&'static Engine, Error> {
    uffd::page_size();
    let (signal, kernel_faults, supported) = signal_descriptor()?;
    let root = Root::get()?;
    let lanes = root.run(move || open_lanes(!kernel_faults))?;
    let abilities = Abilities {
        can_move: supported.contains(Features::MOVE),
        can_poison: supported.contains(Features::POISON),
        kernel_faults,
    };
    // Leaked: faults are answered until the process ends.
    let engine: &'static Engine =
        Box::leak(Box::new(Engine::new(root, lanes, signal, abilities, workers::start_another)?));
    failure::make_room();
    latch::make_room();
    keeper::start(engine)?;
    for _ in 0..2 {
        workers::start(engine)?;
    }
    engine.install();
    Ok(engine)
}

/// The SIGBUS descriptor in the application's table; whether faults of system calls may be served; all features.
fn signal_descriptor() -> Result<(Userfaultfd, bool, Features), Error> {
    let supported = uffd::supported_features().map_err(Error::of_open)?;
    let full = OpenOptions::default();
    let user = OpenOptions { user_mode_only: true, ..full };
    match Userfaultfd::open_with(full, Features::SIGBUS) {
        Ok(fd) => Ok((fd, true, supported)),
        Err(_) => {
            Userfaultfd::open_with(user, Features::SIGBUS).map(|fd| (fd, false, supported)).map_err(Error::of_open)
        }
    }
}

/// On the root thread, so that the descriptors are in the engine's table only.
fn open_lanes(user_mode_only: bool) -> Result<Vec<Handle>, Error> {
    let options = OpenOptions { user_mode_only, ..OpenOptions::default() };
    let lane = || {
        let fd = Userfaultfd::open_with(options, Features::THREAD_ID).map_err(Error::of_open)?;
        Ok(Handle::from_raw(fd.into_owned().into_raw_fd()))
    };
    (0..LANES).map(|_| lane()).collect()
}

/// A region as its owner holds it.
pub struct Owned {
    pin: Option<Pin<Region>>,
    /// Of delivery to a process: which.
    pager: Option<Arc<Pager>>,
    engine: &'static Engine,
    generation: u32,
}

/// Map `source`.
///
/// # Errors
/// [`Error::Invalid`] for options that make no sense together, [`Error::Refused`], [`Error::Os`]; [`Error::Page`] and
/// [`Error::Closed`] where a pager cannot have the source, or is gone.
pub fn open(source: Arc<dyn Source>, mut options: Options, served: Option<Served>) -> Result<Owned, Error> {
    drop_left();
    let engine = engine()?;
    if served.is_some() != (options.delivery == Delivery::Process) {
        return Err(Error::Invalid("delivery=\"process\" needs a pager, and nothing else does".into()));
    }
    let unit = choices::check(engine, &*source, &mut options)?;
    let len =
        usize::try_from(source.len()).map_err(|_| Error::Invalid("the source is longer than memory can be".into()))?;
    let bytes = mapped_bytes(len);
    let away = served.as_ref().map(|served| opening::away(served, bytes.div_ceil(unit), bytes)).transpose()?;
    let (base, file) = map(engine, bytes, &options)?;
    // After the mapping: a range that does not fit must not leave a reader behind, with its stack and arena.
    let lane = if source.is_called() { engine.next_called_lane() } else { engine.next_lane() };
    if options.delivery == Delivery::Thread {
        thread::start(engine, lane).inspect_err(|_| mapping::unmap(base, bytes))?;
    }
    let handles = match options.delivery {
        Delivery::Signal => engine.signal_handles(),
        Delivery::Thread if source.is_called() => engine.lane_handles(lane),
        Delivery::Thread => Handles { engine: engine.lanes[lane].handle, ..engine.signal_handles() },
        Delivery::Process => {
            let handle = served.as_ref().map_or(engine.signal.engine, |served| served.pager.handle());
            Handles { engine: handle, ..engine.signal_handles() }
        }
    };
    let modes =
        if options.shared { RegisterModes::MISSING.union(RegisterModes::MINOR) } else { RegisterModes::MISSING };
    // SAFETY: a fresh mapping of our own that nobody knows yet.
    let registered = engine.root.run(move || unsafe { handles.engine.register(base, bytes, modes) });
    registered
        .map_err(|errno| Error::Os { what: format!("registering {bytes} bytes with userfaultfd"), errno })
        .and_then(|_| mapping::open(base, bytes))
        .inspect_err(|_| mapping::unmap(base, bytes))?;
    if source.is_called() {
        ready_for_called(engine, lane, options.delivery).inspect_err(|_| mapping::unmap(base, bytes))?;
    }
    // What is called may keep its buffer for long, or a view of it for good: staging is not for that. Nor has a pager any.
    let is_elsewhere = source.is_called() || options.delivery == Delivery::Process;
    let recycles = (options.resident > 0 || options.huge || unit >= STAGED_FROM) && !is_elsewhere;
    let stock = if recycles && engine.abilities.can_move && !options.shared {
        engine.stock(unit, options.huge).ok()
    } else {
        None
    };
    let scratch = engine.pool(unit, ScratchNeeds { slow: source.is_called(), ..source.needs() });
    signal::ensure_front();
    let id = engine.next_region();
    let source_is_volatile = source.offers().is_some();
    let (away, part_at) = away.unzip();
    let region = Region::new(Parts { id, base, unit, options, source, file, handles, lane, stock, scratch, away });
    let pin = engine.table.insert(base, bytes, Box::new(region));
    let pager = served.as_ref().map(|served| served.pager.clone());
    let owned = Owned { pin: Some(pin), pager, engine, generation: fork::generation() };
    if let (Some(served), Some(part_at)) = (served, part_at) {
        opening::attach(owned.get()?, served, part_at)?;
    }
    if source_is_volatile {
        volatile::begin(owned.get()?)?;
    }
    Ok(owned)
}

/// Its code will run in handlers of whoever touches.
fn ready_for_called(engine: &'static Engine, lane: usize, delivery: Delivery) -> Result<(), Error> {
    match delivery {
        Delivery::Thread if !called::install() => Err(Error::Unsupported(
            "every real-time signal of this process has a handler, and touches of a Python source need one: \
             free one, or use delivery=\"signal\""
                .into(),
        )),
        Delivery::Thread => {
            // Who tells a toucher wakes it, on whatever CPU is idle: one reader would follow it from one to the other.
            thread::spread_out(engine, lane);
            engine.lanes[lane].spread.decide();
            Ok(())
        }
        Delivery::Process => Ok(()), // a pager runs it over there
        Delivery::Signal => {
            signal::need_own_stack();
            Ok(())
        }
    }
}

fn map(engine: &Engine, bytes: usize, options: &Options) -> Result<(usize, Option<SharedFile>), Error> {
    if !options.shared {
        return Ok((mapping::map_private(bytes, options.huge)?, None));
    }
    let (base, application) = mapping::map_shared(bytes)?;
    match engine.root.adopt(&application) {
        Ok(engine) => Ok((base, Some(SharedFile { application, engine }))),
        Err(error) => {
            mapping::unmap(base, bytes);
            Err(error)
        }
    }
}

impl Owned {
    /// The region.
    ///
    /// # Errors
    /// [`Error::Closed`] when it was closed, or belongs to the parent of this process.
    pub fn get(&self) -> Result<&Pin<Region>, Error> {
        if self.is_foreign() {
            return Err(foreign());
        }
        self.pin.as_ref().ok_or_else(|| Error::Closed("the Region is closed".into()))
    }

    /// Does it belong to another process?
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.generation != fork::generation()
    }

    /// Start filling `bytes` (offsets) in the background; with `awaited` the answer can be waited for.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn fill(&self, bytes: Range<usize>, awaited: bool) -> Result<Arc<Bulk>, Error> {
        let region = self.get()?;
        let units = within_budget(region, region.units_touching(bytes), awaited)?;
        let bulk = Bulk::new(region.clone(), units.clone(), awaited);
        if let Some(pager) = &self.pager {
            pager.fill(&bulk, workers::runs_without(region, units, awaited));
            return Ok(bulk);
        }
        let is_called = region.source.is_called();
        let shares = units.len().clamp(1, if is_called { CALLED_BULK_WORKERS } else { BULK_WORKERS });
        let hinted = units.start * region.unit..(units.end * region.unit).min(region.len);
        region.source.hint(hinted.start as u64..hinted.end as u64);
        let lacks = if is_called { self.engine.queue.lacks(shares) } else { 0 };
        let all_busy = self.engine.queue.push_bulk(&bulk, shares);
        (0..lacks.max(usize::from(all_busy))).for_each(|_| workers::start_another(self.engine));
        Ok(bulk)
    }

    /// Give back the memory of whole units inside `bytes`; returns how many units.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a region that may hold modified pages, [`Error::Closed`].
    pub fn evict(&self, bytes: Range<usize>) -> Result<usize, Error> {
        let region = self.get()?.clone();
        if region.options.mode != Mode::Read {
            return Err(Error::Invalid(
                "evict needs mode=\"r\": this region may hold modified pages, and those are never dropped".into(),
            ));
        }
        let start = bytes.start.div_ceil(region.unit);
        let stop = if bytes.end >= region.len { region.states.len() } else { bytes.end / region.unit };
        Ok(self.engine.root.run(move || {
            let patience = Instant::now() + evict::SETTLING;
            evict::evict(&region, start..stop.max(start), patience)
        }))
    }

    /// Turn pages that show the error pattern back into holes, now.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn rearm(&self) -> Result<(), Error> {
        let region = self.get()?.clone();
        if region.shows_pattern() {
            self.engine.root.run(move || keeper::rearm_all(&region));
        }
        Ok(())
    }

    /// Take the region down and unmap it. Twice is fine; in a forked child nothing happens.
    pub fn close(&mut self) {
        if self.is_foreign() {
            // The pin counts in the parent's table, a copy of which this process leaks.
            std::mem::forget(self.pin.take());
            return;
        }
        let Some(pin) = self.pin.take() else { return };
        pin.closing.store(true, Ordering::Release);
        let engine = self.engine;
        engine.keep_name(&pin);
        if let Some(pager) = self.pager.take()
            && !pager.detach(&pin)
        {
            // The range must not become another region's while the pager may put a page of this one there.
            return drop(engine.root.spawn("userfault-reap", move || {
                while !pager.wait_detached(&pin, Duration::from_secs(60)) {}
                leave(Box::new(Owned { pin: Some(pin), pager: None, engine, generation: fork::generation() }));
            }));
        }
        let (base, mapped, handle) = (pin.base, pin.mapped, pin.handles.engine);
        let retired = engine.table.retire(pin, base, mapped);
        let reclaimed = engine.table.reclaim(retired, AT_ONCE).or_else(|retired| {
            // Who copies from it (`Region.read`) may wait in the kernel for a page that left meanwhile, and nobody brings it now:
            // he gets EFAULT. There are no views, so nobody else can.
            mapping::forbid(base, mapped);
            let _ = engine.root.run(move || handle.wake(base, mapped));
            engine.table.reclaim(retired, Duration::from_secs(2))
        });
        match reclaimed {
            Ok(region) => drop(engine.root.run(move || take_down(engine, region))),
            // Where no thread can be started the region stays mapped: nobody can reach it any more.
            Err(retired) => drop(engine.root.spawn("userfault-reap", move || {
                // A source still reads for it; whenever it comes back, the region goes.
                let mut retired = retired;
                loop {
                    match engine.table.reclaim(retired, Duration::from_secs(1)) {
                        Ok(region) => return leave(take_down(engine, region)),
                        Err(again) => retired = again,
                    }
                }
            })),
        }
        drop_left();
    }
}

/// What can be there at once: more of a prefetch would only push out its beginning, and a populate cannot be had.
fn within_budget(region: &Region, units: Range<usize>, awaited: bool) -> Result<Range<usize>, Error> {
    let most = region.residence.as_ref().map_or(usize::MAX, Residence::units);
    if awaited && units.len() > most {
        return Err(Error::Invalid(format!(
            "{} units of {} bytes cannot all be there: resident={} keeps {most}; populate or read less at a time",
            units.len(),
            region.unit,
            region.options.resident
        )));
    }
    Ok(units.start..units.end.min(units.start.saturating_add(most)))
}

/// What is said of a region of the parent.
#[must_use]
pub fn foreign() -> Error {
    Error::Closed("this Region belongs to the process this one was forked from; open it again here".into())
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.close();
    }
}

/// On an engine thread, which must not drop the region itself: its source and its file belong to the application.
fn take_down(engine: &Engine, region: Box<Region>) -> Box<Region> {
    merge(&engine.closed, &region.counters.snapshot());
    region.unmap();
    region
}

fn merge(into: &Counters, from: &Snapshot) {
    let n = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    add(&into.faults, n(from.faults));
    add(&into.resolved, n(from.resolved));
    add(&into.coalesced, n(from.coalesced));
    add(&into.poisoned, n(from.poisoned));
    add(&into.torn_down, n(from.torn_down));
    add(&into.requeued, n(from.requeued));
}

/// Everything at once into ordinary memory, for machines without userfaultfd. The caller owns the mapping.
///
/// # Errors
/// [`Error::Page`] when the source fails, [`Error::Os`] when there is no memory.
pub fn load_eagerly(source: &dyn Source) -> Result<(usize, usize), Error> {
    let len =
        usize::try_from(source.len()).map_err(|_| Error::Invalid("the source is longer than memory can be".into()))?;
    let bytes = mapped_bytes(len);
    let base = mapping::map_ordinary(bytes)?;
    let mut scratch = crate::scratch::Scratch::new(DEFAULT_UNIT, source.needs());
    for at in (0..len).step_by(DEFAULT_UNIT) {
        let piece = DEFAULT_UNIT.min(len - at);
        // SAFETY: a part of the fresh mapping above.
        let out = unsafe { std::slice::from_raw_parts_mut((base + at) as *mut u8, piece) };
        let mut how = Reading::plain(&mut scratch);
        if let Err(error) = source.read_into(at as u64, out, &mut how) {
            mapping::unmap(base, bytes);
            return Err(Error::Page { source_name: source.name(), error });
        }
    }
    Ok((base, bytes))
}

/// What works for regions of this process.
///
/// # Errors
/// As [`engine`].
pub fn abilities() -> Result<Abilities, Error> {
    engine().map(|engine| engine.abilities)
}
