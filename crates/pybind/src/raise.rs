//! A failed page becomes an exception in the thread that touched it (law 4; recipe: docs/facts.md, A failed page as an exception).
//!
//! `raise` runs inside the SIGBUS handler. A thread that holds the GIL raises in itself, there and then: it is in the
//! middle of a load or store and so inside no lock of the interpreter. Another thread asks the helper thread, which takes
//! the GIL, and waits for it at most 200 ms.
//!
//! *Locks*: none in the handler. *GIL*: not taken by the handler.

use crate::gil::{holds_gil, ident, known_to_python};
use crate::{enter, gil, helper, pending, surface};
use engine::latch::Why;
use engine::source::Cause;
use pyo3::ffi;
use pyo3::prelude::*;
use std::time::Duration;

/// How long a thread without the GIL waits for the helper.
const HELPER_LIMIT: Duration = Duration::from_millis(200);

/// Called once at import, with the ident of the main thread (whoever imports).
#[pyfunction]
fn set_exceptions(py: Python<'_>, main_thread: u64) -> PyResult<()> {
    gil::find_symbols();
    pending::find_classes(py, main_thread)?;
    engine::expose::set_raise(raise);
    engine::language::set_hooks(&GIL);
    Ok(())
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
    known_to_python() && gil::is_only_interpreter() || helper::gil_can_be_had(limit)
}

/// In the SIGBUS handler: see the module.
fn raise(why: Why) -> bool {
    match why {
        Why::Failed(kind) | Why::FailedAgain(kind) if holds_gil() => {
            // SAFETY: this thread holds the GIL.
            unsafe { pending::set(kind, why) };
        }
        Why::Failed(kind) if gil::is_finalizing() && pending::is_main() => {
            // SAFETY: this thread finalizes the interpreter, and nobody else has the GIL any more; the helper neither.
            enter::with_gil_at_the_end(|| unsafe { pending::set(kind, why) });
        }
        Why::Failed(kind) => {
            let thread = if known_to_python() { ident() } else { pending::main_thread() };
            helper::ask(thread, pending::surfacing_of(kind), HELPER_LIMIT);
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
        unsafe { pending::set(failure.kind, Why::Failed(failure.kind)) };
    }
}

/// The interrupted call is over: the thread's touches wait for their pages again.
extern "C" fn interrupt_has_raised(_: *mut std::ffi::c_void) -> std::ffi::c_int {
    // SAFETY: pending calls run with the GIL held.
    let py = unsafe { Python::assume_attached() };
    if let Some(failure) = engine::latch::take() {
        py.detach(|| surface::rearm(failure.region));
    }
    0
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
    module.add_function(wrap_pyfunction!(failure_epoch, module)?)?;
    module.add_function(wrap_pyfunction!(failed_since, module)?)?;
    module.add_function(wrap_pyfunction!(drop_pending_error, module)?)?;
    module.add_function(wrap_pyfunction!(refresh_handlers, module)?)
}
