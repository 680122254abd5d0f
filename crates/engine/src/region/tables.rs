//! What a region has in both tables of descriptors, the application's and the engine's (see `threads.rs`).

use crate::identity::identity;
use crate::source::Table;
use crate::threads::Root;
use std::os::fd::{AsRawFd, OwnedFd};
use uffd::Handle;

/// The descriptor as each table numbers it.
#[derive(Clone, Copy, Debug)]
pub struct Handles {
    /// For code in a signal handler. For thread delivery: the process-wide SIGBUS descriptor, which resolves just as well.
    pub application: Handle,
    /// For the engine's threads.
    pub engine: Handle,
    /// What `application` is a copy of, in the engine's table: where it is brought back from.
    pub original: Handle,
}

impl Handles {
    /// One descriptor in both tables.
    #[must_use]
    pub fn of(application: Handle, engine: Handle) -> Self {
        Self { application, engine, original: engine }
    }

    /// That of staging, the SIGBUS descriptor, for a thread with this table.
    #[must_use]
    pub fn staging(&self, table: Table) -> Handle {
        match table {
            Table::Application => self.application,
            Table::Engine => self.original,
        }
    }

    /// The application closed all it could find, as by `os.closerange`: bring its copy back, under the same number. False:
    /// it cannot be had. Application threads, in signal handlers too.
    #[must_use]
    pub fn restore(&self) -> bool {
        Root::current().is_some_and(|root| root.restore(self.application.as_raw_fd(), self.original.as_raw_fd()))
    }

    /// The application closed its copy and gave the number to another file, which stays: a copy under another number, for
    /// the caller's next operation. `None`: the number is still ours, or a copy cannot be had. Application threads, in signal
    /// handlers too.
    #[must_use]
    pub fn replacement(&self) -> Option<OwnedFd> {
        let copy = Root::current()?.borrow(self.original.as_raw_fd())?;
        (identity(copy.as_raw_fd()) != identity(self.application.as_raw_fd())).then_some(copy)
    }
}

/// The memory file behind a shared region, in both tables.
pub struct SharedFile {
    /// The application's.
    pub application: OwnedFd,
    /// The engine's number.
    pub engine: i32,
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        if let Some(root) = Root::current() {
            root.close(self.engine);
        }
    }
}

impl SharedFile {
    /// The number for a thread with this table.
    #[must_use]
    pub fn number(&self, table: Table) -> i32 {
        match table {
            Table::Application => self.application.as_raw_fd(),
            Table::Engine => self.engine,
        }
    }
}
