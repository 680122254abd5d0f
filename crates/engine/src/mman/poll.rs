//! A descriptor number with chosen poll bits: one end of a pair of sockets. It is readable while a byte lies in it, and not
//! writable while its way out is full.
//!
//! *Locks*: none; the owner has one. *Threads*: both kinds, each with the numbers of its own table.

use crate::error::Error;
use crate::source::Table;
use crate::threads::Root;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The pair.
pub struct PollPair {
    /// What the application polls, and its other end: in the application's table...
    application: [OwnedFd; 2],
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
        let engine = [root.adopt(&application[0])?, root.adopt(&application[1])?];
        Ok(Self { application, engine, readable: false, writable: true })
    }

    /// What the application polls.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.application[0].as_raw_fd()
    }

    /// Set both bits.
    pub fn show(&mut self, readable: bool, writable: bool, table: Table) {
        let [near, far] = match table {
            Table::Application => [self.application[0].as_raw_fd(), self.application[1].as_raw_fd()],
            Table::Engine => self.engine,
        };
        if readable != self.readable {
            if readable {
                send(far, 1)
            } else {
                drain(near)
            }
            self.readable = readable;
        }
        if writable != self.writable {
            if writable {
                drain(far)
            } else {
                send(near, usize::MAX)
            }
            self.writable = writable;
        }
    }
}

impl Drop for PollPair {
    fn drop(&mut self) {
        if let Some(root) = Root::current() {
            self.engine.iter().for_each(|end| root.close(*end));
        }
    }
}

/// One byte, or as many as fit.
fn send(end: RawFd, bytes: usize) {
    let block = [0u8; 4096];
    let mut left = bytes;
    while left > 0 {
        // SAFETY: bytes of ours.
        let sent = unsafe { libc::send(end, block.as_ptr().cast(), left.min(block.len()), libc::MSG_NOSIGNAL) };
        if sent <= 0 {
            return;
        }
        left -= sent as usize;
    }
}

fn drain(end: RawFd) {
    let mut block = [0u8; 4096];
    // SAFETY: room for so many bytes.
    while unsafe { libc::recv(end, block.as_mut_ptr().cast(), block.len(), 0) } > 0 {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(pair: &PollPair) -> (bool, bool) {
        let mut watch = libc::pollfd { fd: pair.number(), events: libc::POLLIN | libc::POLLOUT, revents: 0 };
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
