//! A descriptor number with chosen poll bits: one end of a pair of sockets. It is readable while a byte lies in it, and not
//! writable while its way out is full.
//!
//! The application may close everything, as daemons do, and open other files under the numbers: so each use looks whether the
//! numbers still mean the pair, and what they mean otherwise is neither written to nor closed.
//!
//! *Locks*: none; the owner has one. *Threads*: both kinds, each with the numbers of its own table.

use crate::error::Error;
use crate::identity::{Identity, identity};
use crate::source::Table;
use crate::threads::Root;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// The pair.
pub struct PollPair {
    /// What the application polls, and its other end: in the application's table...
    application: [Option<OwnedFd>; 2],
    /// (which files these were)
    identities: [Option<Identity>; 2],
    /// ...and in the engine's.
    engine: [RawFd; 2],
    readable: bool,
    writable: bool,
}

impl PollPair {
    /// A pair that is writable and not readable.
    ///
    /// # Errors
    /// EMFILE.
    pub fn new() -> Result<Self, Error> {
        let mut ends = [0; 2];
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: room for two descriptors.
        if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } != 0 {
            return Err(Error::last_os("making a pair of sockets to poll"));
        }
        // SAFETY: socketpair just made them and nobody else owns them.
        let application = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        let small: libc::c_int = 1; // the kernel makes it its minimum
        // SAFETY: an integer of the size said.
        unsafe {
            let size = size_of::<libc::c_int>() as libc::socklen_t;
            libc::setsockopt(ends[0], libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw const small).cast(), size);
        }
        let root = Root::get()?;
        let near = root.adopt(&application[0])?;
        let far = root.adopt(&application[1]).inspect_err(|_| root.close(near))?;
        let identities = [0, 1].map(|end| identity(application[end].as_raw_fd()));
        let application = application.map(Some);
        Ok(Self { application, identities, engine: [near, far], readable: false, writable: true })
    }

    /// What the application polls; `None`: it has closed that. Application threads.
    #[must_use]
    pub fn number(&self) -> Option<i32> {
        self.number_of(0)
    }

    fn number_of(&self, end: usize) -> Option<RawFd> {
        let number = self.application[end].as_ref()?.as_raw_fd();
        (identity(number) == self.identities[end]).then_some(number)
    }

    /// Use one end: by its number, or where that is another file's by a copy.
    fn with(&self, end: usize, table: Table, work: impl FnOnce(RawFd)) {
        if table == Table::Engine {
            return work(self.engine[end]);
        }
        match self.number_of(end) {
            Some(number) => work(number),
            None => {
                drop(Root::current().and_then(|root| root.borrow(self.engine[end])).inspect(|it| work(it.as_raw_fd())))
            }
        }
    }

    /// Set both bits.
    pub fn show(&mut self, readable: bool, writable: bool, table: Table) {
        const NEAR: usize = 0;
        const FAR: usize = 1;
        if readable != self.readable {
            self.with(if readable { FAR } else { NEAR }, table, |end| if readable { send(end, 1) } else { drain(end) });
            self.readable = readable;
        }
        if writable != self.writable {
            let fill = |end| send(end, usize::MAX);
            self.with(if writable { FAR } else { NEAR }, table, |end| if writable { drain(end) } else { fill(end) });
            self.writable = writable;
        }
    }
}

impl Drop for PollPair {
    fn drop(&mut self) {
        for end in 0..2 {
            if self.number_of(end).is_none() {
                self.application[end].take().map(IntoRawFd::into_raw_fd); // not ours to close
            }
        }
        if let Some(root) = Root::current() {
            self.engine.iter().for_each(|end| root.close(*end));
        }
    }
}

/// Whatever the number means: no signal, and no wait.
const QUIET: libc::c_int = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

/// One byte, or as many as fit.
fn send(end: RawFd, bytes: usize) {
    let block = [0u8; 4096];
    let mut left = bytes;
    while left > 0 {
        // SAFETY: bytes of ours.
        let sent = unsafe { libc::send(end, block.as_ptr().cast(), left.min(block.len()), QUIET) };
        if sent <= 0 {
            return;
        }
        left -= sent as usize;
    }
}

fn drain(end: RawFd) {
    let mut block = [0u8; 4096];
    // SAFETY: room for so many bytes.
    while unsafe { libc::recv(end, block.as_mut_ptr().cast(), block.len(), QUIET) } > 0 {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(pair: &PollPair) -> (bool, bool) {
        let mut watch = libc::pollfd { fd: pair.number().unwrap(), events: libc::POLLIN | libc::POLLOUT, revents: 0 };
        // SAFETY: one pollfd of ours.
        unsafe { libc::poll(&raw mut watch, 1, 0) };
        (watch.revents & libc::POLLIN != 0, watch.revents & libc::POLLOUT != 0)
    }

    #[test]
    fn every_combination_can_be_shown() {
        let mut pair = PollPair::new().unwrap();
        for (readable, writable) in [(false, true), (true, true), (true, false), (false, false), (true, true)] {
            pair.show(readable, writable, Table::Application);
            assert_eq!(bits(&pair), (readable, writable));
        }
    }
}
