//! A failed page becomes an exception in the thread that touched it (law 4; recipe: docs/facts.md, A failed page as an exception).
//!
//! `raise` runs inside the SIGBUS handler. A thread that holds the GIL raises in itself, there and then: it is in the
//! middle of a load or store and so inside no lock of the interpreter. Another thread asks the helper thread, which takes
//! the GIL, and waits for it at most 200 ms.
//!
//! *Locks*: none in the handler. *GIL*: the helper only.

use crate::enter::{self, enter};
use crate::errors::{self, remote_error, said_of};
use crate::gil::{holds_gil, ident, known_to_python};
use crate::{gil, kept, overdue, raised};
use engine::cause::Kind;
use engine::engine::Engine;
use engine::error::Error;
use engine::latch::Why;
use engine::source::Cause;
use engine::threads::Root;
use pyo3::ffi;
use pyo3::prelude::*;
use std::borrow::Cow;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The exception of each [`Kind`], kept alive for good.
static CLASSES: [AtomicPtr<ffi::PyObject>; 3] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 3];
/// The main thread, which raises for threads that Python does not know.
static MAIN_THREAD: AtomicU64 = AtomicU64::new(0);

/// How long a thread without the GIL waits for the helper.
const HELPER_LIMIT: Duration = Duration::from_millis(200);

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const ASKED: u32 = 2;
const DONE: u32 = 3;
const ABANDONED: u32 = 4;

struct Request {
    state: AtomicU32,
    thread: AtomicU64,
    /// Whose failure it is: nothing is raised for one that is over.
    latched: AtomicI32,
    /// What to raise there.
    class: AtomicPtr<ffi::PyObject>,
    /// The ticket of what a source raised, which may go on as itself, plus one; 0: none.
    ticket: AtomicU64,
}

static REQUESTS: [Request; 64] = [const {
    Request {
        state: AtomicU32::new(FREE),
        thread: AtomicU64::new(0),
        latched: AtomicI32::new(0),
        class: AtomicPtr::new(std::ptr::null_mut()),
        ticket: AtomicU64::new(0),
    }
}; 64];
/// What resolvers raised, by thread. Locked only with the GIL held.
static RESOLVER_ERRORS: Mutex<Vec<(u64, Py<PyAny>)>> = Mutex::new(Vec::new());
/// The process whose helper runs; a forked child has none until it starts its own.
static HELPER_OF: AtomicI32 = AtomicI32::new(0);

/// Called once at import, with the ident of the main thread (whoever imports).
#[pyfunction]
fn set_exceptions(py: Python<'_>, main_thread: u64) -> PyResult<()> {
    gil::find_symbols();
    MAIN_THREAD.store(main_thread, Ordering::Release);
    for (kind, name) in [(Kind::Page, "PageError"), (Kind::Purged, "PagePurged"), (Kind::UserFault, "UserFault")] {
        let class = errors::module(py)?.getattr(name)?;
        CLASSES[kind as usize].store(class.unbind().into_ptr(), Ordering::Release);
    }
    engine::expose::set_raise(raise);
    engine::language::set_hooks(&GIL);
    Ok(())
}

/// Is this the main thread, which alone runs handlers of signals?
pub fn is_main() -> bool {
    ident() == MAIN_THREAD.load(Ordering::Acquire)
}

/// The exception that `kind` becomes.
fn class_of(kind: Kind) -> *mut ffi::PyObject {
    CLASSES[kind as usize].load(Ordering::Acquire)
}

/// What the engine may ask about the GIL.
static GIL: engine::language::Hooks =
    engine::language::Hooks { holds_lock: holds_gil, without_lock: give_way, can_be_had };

/// In a touch that waits: let others run Python meanwhile.
fn give_way(work: &mut dyn FnMut()) {
    let had_failed = engine::latch::is_this_latched();
    gil::without_gil(work);
    if !had_failed {
        raise_pending();
    }
}

fn can_be_had(limit: std::time::Duration) -> bool {
    known_to_python() && gil::is_only_interpreter() || gil_can_be_had(limit)
}

/// In the SIGBUS handler: see the module.
fn raise(why: Why) -> bool {
    match why {
        Why::Failed(kind) | Why::FailedAgain(kind) if holds_gil() => {
            // SAFETY: this thread holds the GIL.
            unsafe { set_pending(kind, why) };
        }
        Why::Failed(kind) if gil::is_finalizing() && is_main() => {
            // SAFETY: this thread finalizes the interpreter, and nobody else has the GIL any more; the helper neither.
            enter::with_gil_at_the_end(|| unsafe { set_pending(kind, why) });
        }
        Why::Failed(kind) => {
            let thread = if known_to_python() { ident() } else { MAIN_THREAD.load(Ordering::Acquire) };
            ask_helper(thread, class_of(kind), HELPER_LIMIT);
        }
        // SAFETY: may be called from any thread and without the GIL; the function is a plain one. The main thread runs it
        // right after it has raised KeyboardInterrupt. A full queue means a latch that ends by its age.
        Why::Interrupted => drop(unsafe { ffi::Py_AddPendingCall(Some(interrupt_has_raised), std::ptr::null_mut()) }),
        Why::FailedAgain(_) | Why::Nothing => {}
    }
    known_to_python()
}

/// Raise what has failed in this thread, which has taken the GIL back since. The helper may not have had the GIL in time; or has,
/// and CPython 3.11 and 3.12, which keep one note for all threads, took it down for another. The GIL is held, and stays so until
/// the interpreter looks.
fn raise_pending() {
    if let Some(failure) = engine::latch::pending().filter(|failure| failure.error.cause != Cause::Interrupted) {
        // SAFETY: this thread holds the GIL.
        unsafe { set_pending(failure.kind, Why::Failed(failure.kind)) };
    }
}

/// Have the calling thread raise what its latch tells, or `kind` where there was no latch left.
///
/// # Safety
/// The calling thread holds the GIL.
unsafe fn set_pending(kind: Kind, why: Why) {
    // SAFETY: as the caller promises.
    let py = unsafe { Python::assume_attached() };
    let itself = engine::latch::pending().and_then(|failure| kept::itself_of(py, failure.error.cause));
    if itself.is_some() && is_main() && why == Why::FailedAgain(kind) {
        return; // its pending call comes: one is enough
    }
    // SAFETY: as the caller promises.
    unsafe { raise_in(ident(), class_of(kind), itself.as_ref()) };
}

/// Raise in `thread` the exception `class`, or `itself`, what a source raised to end the process.
///
/// # Safety
/// The GIL is held, and the classes live during the call.
unsafe fn raise_in(thread: u64, class: *mut ffi::PyObject, itself: Option<&Py<PyAny>>) {
    // CPython 3.11 makes an exit of status 0 of a SystemExit that is only a class; a pending call raises the object, but in the
    // main thread only.
    if itself.is_some() && thread == MAIN_THREAD.load(Ordering::Acquire) {
        // SAFETY: may be called from any thread.
        let is_asked = unsafe { ffi::Py_AddPendingCall(Some(raise_itself), std::ptr::null_mut()) } == 0;
        if is_asked {
            return;
        }
    }
    // SAFETY: the GIL is held; the class lives during the call, which takes a reference of its own. A thread that ended meanwhile
    // is not found: fine.
    unsafe { ffi::PyThreadState_SetAsyncExc(thread as _, itself.map_or(class, Py::as_ptr)) };
}

/// Raise what a source raised to end the process, unless it has surfaced elsewhere.
extern "C" fn raise_itself(_: *mut std::ffi::c_void) -> std::ffi::c_int {
    // SAFETY: pending calls run with the GIL held.
    let py = unsafe { Python::assume_attached() };
    let Some(failure) = engine::latch::pending() else { return 0 };
    let Some(class) = kept::itself_of(py, failure.error.cause) else { return 0 };
    match class.call0(py) {
        Ok(value) => PyErr::from_value(value.into_bound(py)).restore(py),
        Err(problem) => problem.restore(py),
    }
    -1
}

/// The interrupted call is over: the thread's touches wait for their pages again.
extern "C" fn interrupt_has_raised(_: *mut std::ffi::c_void) -> std::ffi::c_int {
    // SAFETY: pending calls run with the GIL held.
    let py = unsafe { Python::assume_attached() };
    if let Some(failure) = engine::latch::take() {
        py.detach(|| rearm(failure.region));
    }
    0
}

/// Can the GIL be had within `limit`, or does its holder wait for the thread that asks? Any thread, in a signal handler.
pub fn gil_can_be_had(limit: Duration) -> bool {
    ask_helper(0, std::ptr::null_mut(), limit)
}

/// How often the helper was asked to take the GIL once, and up to which time it has.
static WANTED: AtomicU64 = AtomicU64::new(0);
static HAD: AtomicU64 = AtomicU64::new(0);

/// Have the helper take the GIL once; answers a ticket at once. Any thread.
pub fn ask_for_gil() -> u64 {
    let ticket = WANTED.fetch_add(1, Ordering::AcqRel) + 1;
    gil::HELPER.ring();
    ticket
}

/// Has it had the GIL since?
pub fn gil_was_had(ticket: u64) -> bool {
    HAD.load(Ordering::Acquire) >= ticket
}

/// True if somebody asked.
fn take_gil_once() -> bool {
    let wanted = WANTED.load(Ordering::Acquire);
    let asked = HAD.load(Ordering::Acquire) < wanted;
    if asked {
        enter(|_| ());
        HAD.store(wanted, Ordering::Release);
    }
    asked
}

/// Have the helper take the GIL and raise `class` in `thread`; without a class it only takes the GIL. True: done.
fn ask_helper(thread: u64, class: *mut ffi::PyObject, limit: Duration) -> bool {
    let free =
        |request: &&Request| request.state.compare_exchange(FREE, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    let Some(request) = REQUESTS.iter().find(free) else { return false };
    request.thread.store(thread, Ordering::Relaxed);
    request.latched.store(engine::threads::thread_id(), Ordering::Relaxed);
    request.class.store(class, Ordering::Relaxed);
    request.ticket.store(ticket_of_this_thread(), Ordering::Relaxed);
    request.state.store(ASKED, Ordering::Release);
    gil::HELPER.ring();
    let start = Instant::now();
    while request.state.load(Ordering::Acquire) == ASKED && start.elapsed() < limit && !gil::is_finalizing() {
        engine::futex::wait(&request.state, ASKED, Some(limit));
    }
    let done = request.state.compare_exchange(ASKED, ABANDONED, Ordering::AcqRel, Ordering::Acquire).is_err();
    if done {
        request.state.store(FREE, Ordering::Release);
    }
    done
}

fn ticket_of_this_thread() -> u64 {
    match engine::latch::pending().map(|failure| failure.error.cause) {
        Some(Cause::Raised(raised)) => u64::from(raised.ticket) + 1,
        _ => 0,
    }
}

/// Start the helper of this process, if it does not run. Needs no GIL.
pub fn ensure_helper() -> Result<(), Error> {
    // SAFETY: no preconditions.
    let process = unsafe { libc::getpid() };
    if HELPER_OF.swap(process, Ordering::AcqRel) == process {
        return Ok(());
    }
    for request in &REQUESTS {
        request.state.store(FREE, Ordering::Release);
    }
    let started = Root::get().and_then(|root| root.spawn("userfault-raise", help));
    if started.is_err() {
        HELPER_OF.store(0, Ordering::Release);
    }
    started
}

fn help() {
    enter::stay_known();
    while !gil::is_finalizing() {
        let rung = gil::HELPER.rung();
        // Those who wait for an answer come first.
        if REQUESTS.iter().all(|request| !answer(request)) && !take_gil_once() {
            gil::HELPER.wait(rung, overdue::tick().into_iter().chain(kept::tick()).min());
            overdue::look();
            raised::look();
        }
    }
}

/// True if there was something to do.
fn answer(request: &Request) -> bool {
    let state = request.state.load(Ordering::Acquire);
    if state != ASKED && state != ABANDONED {
        return false;
    }
    let thread = request.thread.load(Ordering::Relaxed);
    let class = request.class.load(Ordering::Relaxed);
    let latched = request.latched.load(Ordering::Relaxed);
    let ticket = request.ticket.load(Ordering::Relaxed).checked_sub(1).and_then(|ticket| u32::try_from(ticket).ok());
    enter(|py| {
        if class.is_null() || !engine::latch::is_latched(latched) {
            return;
        }
        let itself = ticket.and_then(|ticket| kept::itself_under(py, ticket));
        // SAFETY: the GIL is held; exception classes are never freed.
        unsafe { raise_in(thread, class, itself.as_ref()) };
    });
    if request.state.compare_exchange(ASKED, DONE, Ordering::AcqRel, Ordering::Acquire).is_err() {
        request.state.store(FREE, Ordering::Release);
    }
    engine::futex::wake_all(&request.state);
    true
}

type Taken = (String, i64, Option<i32>, Cow<'static, str>, usize, Option<Py<PyAny>>, Option<Py<PyAny>>);

/// The details of the calling thread's failure, and its latch is open again: (source, offset, errno, text, address, class,
/// what a Python source raised).
///
/// The exception has surfaced, so the pages that showed the pattern become holes at once: a second touch raises again
/// instead of reading it. (Where no exception object is ever made, the keeper does it a little later.)
#[pyfunction]
fn take_failure(py: Python<'_>) -> Option<Taken> {
    let failure = engine::latch::take().or_else(engine::failure::orphan)?;
    if engine::latch::another_is_latched() {
        // CPython 3.11 and 3.12 keep one note for all threads that some exception waits, and the thread whose exception was
        // raised took it down: put it up again for the others.
        // SAFETY: the GIL is held; NULL only takes back what this thread would raise once more for the same failure.
        unsafe { ffi::PyThreadState_SetAsyncExc(ident() as _, std::ptr::null_mut()) };
    }
    let name = py.detach(|| rearm(failure.region)).unwrap_or_else(|| "a closed Region".into());
    let errno = match failure.error.cause {
        Cause::Os(errno) => Some(errno),
        _ => None,
    };
    let offset = i64::try_from(failure.error.offset).unwrap_or(-1);
    let class = class_of(failure.kind);
    // SAFETY: the GIL is held; the exception classes are never freed.
    let class = (!class.is_null()).then(|| unsafe { Bound::from_borrowed_ptr(py, class) }.unbind());
    let class = kept::itself_of(py, failure.error.cause).or(class);
    let raised = match failure.error.cause {
        Cause::Raised(raised) => kept::take(py, raised),
        Cause::Remote(remote) => Some(remote_error(py, remote)),
        _ => None,
    };
    Some((name, offset, errno, said_of(failure.error.cause), failure.address, class, raised))
}

/// Re-arm every region (one call may have failed in several); the name of the source of the one with this number.
fn rearm(number: u64) -> Option<String> {
    let engine = Engine::current()?;
    let mut name = None;
    let mut failed = Vec::new();
    engine.table.for_each(|region| {
        if region.id == number {
            name = Some(region.source_name.clone());
        }
        if region.shows_pattern() {
            failed.push(region);
        }
    });
    if !failed.is_empty() {
        engine.root.run(move || failed.iter().for_each(|region| engine::keeper::rearm_all(region)));
    }
    name.or_else(|| engine.name_of_closed(number))
}

/// The exception that a resolver raised in this thread, and nothing is kept of it.
#[pyfunction]
fn take_resolver_error(py: Python<'_>) -> Option<Py<PyAny>> {
    let _ = py; // says that the GIL is held
    let mut raised = RESOLVER_ERRORS.lock().unwrap_or_else(PoisonError::into_inner);
    let index = raised.iter().position(|(thread, _)| *thread == ident())?;
    Some(raised.swap_remove(index).1)
}

/// Keep what a resolver raised in the calling thread until its `UserFault` picks it up.
pub fn keep_resolver_error(py: Python<'_>, error: PyErr) {
    let older = take_resolver_error(py); // dropped last: what its destructors do must not find the lock taken
    let value = error.into_value(py).into_any();
    RESOLVER_ERRORS.lock().unwrap_or_else(PoisonError::into_inner).push((ident(), value));
    drop(older);
}

/// Turn every page of every region that shows the error pattern back into a hole.
#[pyfunction]
fn rearm_failed(py: Python<'_>) {
    py.detach(|| rearm(0));
}

/// A moment: pass it to [`failed_since`].
#[pyfunction]
fn failure_epoch() -> u64 {
    engine::expose::EXPOSURES.now().into()
}

/// May a page of any region have shown the error pattern since then?
#[pyfunction]
fn failed_since(epoch: u64) -> bool {
    engine::expose::EXPOSURES.any_since(epoch.into())
}

/// Take back an exception that was set for this thread and has not surfaced, and open its latch.
#[pyfunction]
fn drop_pending_error() {
    gil::drop_pending();
}

/// Our SIGBUS handler back in front; SIGINT ends waits if `interrupt_raises`.
#[pyfunction]
fn refresh_handlers(interrupt_raises: bool) {
    engine::signal::ensure_front();
    engine::interrupt::set_raises(interrupt_raises);
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(set_exceptions, module)?)?;
    module.add_function(wrap_pyfunction!(take_failure, module)?)?;
    module.add_function(wrap_pyfunction!(take_resolver_error, module)?)?;
    module.add_function(wrap_pyfunction!(failure_epoch, module)?)?;
    module.add_function(wrap_pyfunction!(failed_since, module)?)?;
    module.add_function(wrap_pyfunction!(rearm_failed, module)?)?;
    module.add_function(wrap_pyfunction!(drop_pending_error, module)?)?;
    module.add_function(wrap_pyfunction!(refresh_handlers, module)?)
}
