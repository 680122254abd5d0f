//! The poll bits of a descriptor, those of 2014, and the number that has them.
//!
//! *Locks*: the descriptor's state, for a few bytes over a socket pair. *Threads*: the pump, and whoever calls.
//! *Blocks on*: the root thread, without the lock, when the number is made.

use super::{Descriptor, Phase, State};
use crate::error::Error;
use crate::mman::poll::PollPair;
use crate::source::Table;

impl Descriptor {
    /// A descriptor number whose poll bits are those of 2014: readable with an unread fault, writable with one that was read
    /// and not woken. Made when first asked for, and anew if the application has closed it.
    ///
    /// # Errors
    /// EMFILE; EBADF when closed.
    pub fn poll_number(&self) -> Result<i32, Error> {
        let closed = || Error::Closed("operation on a closed userfaultfd".into());
        let known = |state: &State| match state.phase {
            Phase::Closed => Err(closed()),
            _ => Ok(state.poll.as_ref().and_then(PollPair::number)),
        };
        if let Some(number) = known(&self.state())? {
            return Ok(number);
        }
        // Made and dropped without the lock: both need the root thread, which may just want it.
        let mut fresh = Some(PollPair::new()?);
        let mut state = self.state();
        let number = known(&state)?.or_else(|| {
            std::mem::swap(&mut state.poll, &mut fresh);
            state.show(Table::Application);
            state.poll.as_ref().and_then(PollPair::number)
        });
        drop(state);
        drop(fresh);
        number.ok_or_else(closed)
    }
}

impl State {
    /// Bring the poll bits up to date.
    pub(super) fn show(&mut self, table: Table) {
        let (unread, read) = self.waiters.counts();
        let readable = matches!(self.phase, Phase::Ack | Phase::Unknown) || unread > 0;
        let writable = self.phase == Phase::Ask || read > 0;
        if let Some(poll) = &mut self.poll {
            poll.show(readable, writable, table);
        }
    }
}
