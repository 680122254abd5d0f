//! Delivery in the touching thread: the SIGBUS handler, and what it shares with thread delivery: a failed page ends in a
//! SIGBUS there too.
//!
//! Rules, each seen to matter (docs/facts.md, SIGBUS handlers): all signals blocked inside; errno kept; no allocation, no lock that the
//! interrupted thread may hold, no thread-local; foreign *fault* addresses are passed on; a SIGBUS that somebody *sent*
//! (si_code <= 0) while regions live is a chained handler's raise() and is ignored, unless we did the chaining.
//!
//! *Locks*: none. *Threads*: any application thread.

use crate::called;
use crate::counters::{Ending, add};
use crate::directed::Interrupted;
use crate::engine::Engine;
use crate::evict;
use crate::expose::{announce, expose, show};
use crate::failure::{self, Failure};
use crate::fill::{Stop, Who, fill_unit};
use crate::flagged::view::{self, Act, Armed};
use crate::flagged::{self, Called, gate, is_repeated};
use crate::latch::{is_latched, is_this_latched};
use crate::mapping::is_poisoned;
use crate::nest;
use crate::region::{Delivery, Region};
use crate::serve::{help, read_ahead};
use crate::source::{Cause, Patience, SourceError, Table};
use crate::states::State;
use crate::table::Pin;
use crate::threads::{KeepErrno, Root, Uncancelled, thread_id};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

type Action = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

struct Previous(std::cell::UnsafeCell<MaybeUninit<libc::sigaction>>);
// SAFETY: written under INSTALLING before our handler is (re)installed, read by handlers after that.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(std::cell::UnsafeCell::new(MaybeUninit::zeroed()));
static INSTALLING: Mutex<()> = Mutex::new(());
/// The thread whose foreign fault was passed on last: a SIGBUS it raises now is the passed-on handler's last word.
static CHAINED: AtomicI32 = AtomicI32::new(0);

/// Keep everybody from installing the handler: for the time of a fork.
pub fn hold_install() -> MutexGuard<'static, ()> {
    INSTALLING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does the handler run on the interrupted thread's own stack? An alternate one (faulthandler's has 16 KiB) is too small for
/// resolvers of the language above.
static OWN_STACK: AtomicBool = AtomicBool::new(false);

/// From now on resolvers of the language above may run in the handler.
pub fn need_own_stack() {
    OWN_STACK.store(true, Ordering::Release);
    ensure_front();
}

/// Put our SIGBUS handler in front, if it is not. Called whenever a region is opened and at `checked()`.
pub fn ensure_front() {
    let _installing = hold_install();
    let flags = libc::SA_SIGINFO | if OWN_STACK.load(Ordering::Acquire) { 0 } else { libc::SA_ONSTACK };
    // SAFETY: sigaction reads and writes our structures; PREVIOUS is written only here, under the lock, and a handler
    // that reads it meanwhile sees the old or the new foreign action, both of which stay valid.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut current);
        let is_ours = current.sa_sigaction == handler as *const () as usize;
        if is_ours && current.sa_flags & libc::SA_ONSTACK == flags & libc::SA_ONSTACK {
            return;
        }
        if !is_ours {
            (*PREVIOUS.0.get()).write(current);
        }
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = handler as *const () as usize;
        ours.sa_flags = flags;
        libc::sigfillset(&raw mut ours.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const ours, std::ptr::null_mut());
    }
}

extern "C-unwind" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let _errno = KeepErrno::new();
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code > 0 {
        flagged::fork::explain_unanswered(address);
    }
    let Some(engine) = Engine::current() else { return chain(signal, info, context) };
    if code <= 0 {
        if CHAINED.load(Ordering::Relaxed) == thread_id() {
            give_up();
        }
        return;
    }
    match engine.table.pin(address).filter(|region| region.contains(address)) {
        // SAFETY: the kernel passes the context of this handler.
        Some(region) => touch(engine, &region, region.page_of(address), &unsafe { Interrupted::of(context) }),
        None if view::is_used() && touch_flagged(engine, address, context) => {}
        None => chain(signal, info, context),
    }
}

/// The default action, at once when the instruction runs again.
fn give_up() {
    // SAFETY: resets the action and raises a signal, both async-signal-safe.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
        libc::raise(libc::SIGBUS);
    }
}

/// Not ours: what was there before decides.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: PREVIOUS was written before our handler was installed.
    let previous = unsafe { (*PREVIOUS.0.get()).assume_init_ref() };
    let handler = previous.sa_sigaction;
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // SAFETY: a fault cannot be ignored: the default action takes it when the instruction runs again.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        return;
    }
    CHAINED.store(thread_id(), Ordering::Relaxed);
    // SAFETY: the previous action was installed by somebody as a handler of this signature (SA_SIGINFO tells which).
    unsafe {
        if previous.sa_flags & libc::SA_SIGINFO != 0 {
            std::mem::transmute::<usize, Action>(handler)(signal, info, context);
        } else {
            std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler)(signal);
        }
    }
}

fn touch(engine: &'static Engine, region: &Pin<Region>, page: usize, interrupted: &Interrupted) {
    let _uncancelled = Uncancelled::new();
    if region.options.delivery != Delivery::Signal {
        // A SIGBUS comes of pages that were poisoned by whoever read the fault, and of nothing else; it was counted there.
        let latched = SourceError::new((page * uffd::page_size()) as u64, Cause::Latched);
        let told = region.away.as_ref().and_then(|away| away.failure(region.id, page));
        let noted = told.map(|error| Failure::of(region, page, error));
        let noted = noted.or_else(|| failure::find(region.id, region.page_address(page)));
        return expose(region, page, noted.unwrap_or(Failure::of(region, page, latched)));
    }
    if region.source.is_called() {
        return called::serve_signal(engine, region, page, interrupted);
    }
    if let Some(failure) = serve_touch(engine, region, page) {
        expose(region, page, failure);
    }
}

/// Get the page here and now, or say why not.
fn serve_touch(engine: &'static Engine, region: &Region, page: usize) -> Option<Failure> {
    region.counters.begin();
    let resolved = resolve(engine, region, page);
    region.counters.end(*resolved.as_ref().unwrap_or(&Ending::Poisoned));
    resolved.err().map(|error| Failure::of(region, page, error))
}

/// A touch of memory that the caller flagged, or had flagged a moment ago. False: not ours.
fn touch_flagged(engine: &'static Engine, address: usize, context: *mut libc::c_void) -> bool {
    let _uncancelled = Uncancelled::new();
    let inside = gate::enter();
    let Some(entry) = view::find(address) else {
        drop(inside);
        let again = is_repeated(thread_id(), address);
        if !again {
            flagged::ask_for_a_look(); // unflagged since, or the mapping grew: the instruction will tell
        }
        return !again;
    };
    if entry.follow && Root::current().is_none() {
        // A child of a bare clone(2): no hook ran in it, and all that is known here is its parent's.
        drop(inside);
        flagged::fork::say_unanswered(address);
        return false;
    }
    let region = &*entry.resolver.region;
    let page = region.page_of(address);
    let error = SourceError::new((page * uffd::page_size()) as u64, Cause::Unresolved);
    match (&entry.armed, &entry.resolver.act) {
        (Armed::Signal, Act::Default) => return false,
        (Armed::Signal, Act::Raise) => raise_in(inside, region, address, Failure::of(region, page, error)),
        (Armed::Signal, Act::Source) => {
            if let Some(failure) = serve_touch(engine, region, page) {
                raise_in(inside, region, address, failure);
            }
        }
        (Armed::Signal, Act::Call(token)) => {
            drop(inside);
            call(&entry, token.0, address, context);
        }
        // A SIGBUS although a descriptor has the faults, or nobody: of a change that is over, or poison of a fault that was
        // not answered in time.
        (Armed::Descriptor | Armed::No, _) if is_poisoned(address) => {
            let noted = failure::find(region.id, region.page_address(page));
            raise_in(inside, region, address, noted.unwrap_or(Failure::of(region, page, error)));
        }
        (Armed::Descriptor, _) => {}
        (Armed::No, _) => return !is_repeated(thread_id(), address),
    }
    true
}

/// Show the pattern while nobody changes whose fault it is; raise after that, because it may wait for the language's lock.
fn raise_in(inside: gate::Inside, region: &Region, address: usize, failure: Failure) {
    let page = region.page_of(address);
    let shown = show(region, page, &failure);
    drop(inside);
    if shown {
        announce(Failure { address, ..failure });
    }
}

/// A page that was dropped as often as this as soon as it had come is dropped by its own resolver.
const MOST_REPEATS: u32 = 1000;

/// Have a resolver of the language above put a page there (the first paragraph of the proposal of 2014, literally).
fn call(entry: &view::Entry, token: usize, address: usize, context: *mut libc::c_void) {
    let region = &*entry.resolver.region;
    let page = region.page_of(address);
    let failed = |cause| Failure::of(region, page, SourceError::new((page * uffd::page_size()) as u64, cause));
    let thread = thread_id();
    let memory = region.page_address(page)..region.page_address(page) + uffd::page_size();
    let (called, cause, came) = match nest::begin(thread, &memory) {
        None => (Called::TooLate, Cause::Recursion, false),
        Some(_) if is_latched(thread) => (Called::TooLate, Cause::Latched, false),
        // SAFETY: the kernel passes the context of this handler.
        Some(nested) => match unsafe { Interrupted::of(context) }.with_its_mask(|| flagged::call(token, address)) {
            Called::TooLate => (Called::TooLate, Cause::Timeout, false),
            called => (called, Cause::Resolver, nested.has_come()),
        },
    };
    // It did its duty, and a third has dropped the page since: the instruction asks again.
    if came && called == Called::Returned && flagged::repeats(thread, address) < MOST_REPEATS {
        return;
    }
    let inside = gate::enter();
    let still_ours = view::find(address).is_some_and(|entry| matches!(entry.armed, Armed::Signal));
    let absent = still_ours && !region.has_page(page);
    let shown = absent && show(region, page, &failed(cause));
    drop(inside);
    if shown || called == Called::Raised {
        announce(Failure { address, ..failed(cause) });
    }
}

/// How long one sleep in the handler lasts before it looks around.
const SLICE: Duration = Duration::from_millis(5);

const IN_HANDLER: Who = Who { table: Table::Application, patience: Patience::Wait };

fn resolve(engine: &'static Engine, region: &Region, page: usize) -> Result<Ending, SourceError> {
    let unit = region.unit_of_page(page);
    let here = (page * uffd::page_size()) as u64;
    let error = |cause| SourceError::new(here, cause);
    if is_this_latched() {
        return Err(error(Cause::Latched));
    }
    let mut started = None;
    loop {
        let state = region.states.get(unit);
        if state == State::Filling {
            read_ahead(engine, region, unit);
            if help(region, unit, IN_HANDLER) {
                continue;
            }
            let began = *started.get_or_insert_with(Instant::now);
            if region.states.wait_while_filling(unit, SLICE) != State::Filling {
                return Ok(Ending::Coalesced); // the instruction asks again if the page is not there after all
            }
            if began.elapsed() > region.options.timeout {
                return Err(error(Cause::Timeout));
            }
            if interrupted() {
                return Err(error(Cause::Interrupted));
            }
            continue;
        }
        if state == State::Present && region.has_page(page) {
            return Ok(Ending::Coalesced);
        }
        if region.states.claim(unit, state) {
            return fill(engine, region, page, unit);
        }
    }
}

fn fill(engine: &'static Engine, region: &Region, page: usize, unit: usize) -> Result<Ending, SourceError> {
    read_ahead(engine, region, unit);
    let outcome = fill_unit(region, unit, Some(page), IN_HANDLER);
    region.settle_from(Table::Application, unit, if outcome == Ok(true) { State::Present } else { State::Absent });
    if outcome.is_ok() {
        evict::arrived(region, unit, Table::Application);
    }
    match outcome {
        Ok(_) => {
            add(&region.counters.demand_units, 1);
            Ok(Ending::Resolved)
        }
        Err(Stop::Failed(error)) => {
            add(&region.counters.source_errors, 1);
            Err(error)
        }
        // The kernel gets nowhere at the moment: the instruction asks again.
        Err(_) => Ok(Ending::Coalesced),
    }
}

/// Ctrl-C waits while we do: all signals are blocked here. Only the main thread gets a KeyboardInterrupt.
fn interrupted() -> bool {
    // SAFETY: sigpending fills our set; getpid has no preconditions.
    unsafe {
        let mut pending: libc::sigset_t = std::mem::zeroed();
        crate::interrupt::is_expected()
            && thread_id() == libc::getpid()
            && libc::sigpending(&raw mut pending) == 0
            && libc::sigismember(&raw const pending, libc::SIGINT) == 1
    }
}
