//! How long one pin or discard waits for others, and what ends it.
//!
//! *Locks*: none. *Threads*: application threads. *Blocks on*: the clock.

use crate::error::Error;
use crate::region::Region;
use crate::source::{Cause, SourceError};
use std::time::{Duration, Instant};
use uffd::Errno;

/// How often it asks whether it shall go on.
const LOOK_UP: Duration = Duration::from_millis(50);
/// How long it sleeps: about as long as it has waited.
const SHORTEST_WAIT: Duration = Duration::from_micros(50);
const LONGEST_WAIT: Duration = Duration::from_millis(5);

/// One that waits.
pub(super) struct Wait<'a> {
    region: &'a Region,
    since: Instant,
    looked: Instant,
    /// Shall it end?
    interrupted: &'a mut dyn FnMut() -> bool,
}

impl<'a> Wait<'a> {
    /// From now on.
    pub fn new(region: &'a Region, interrupted: &'a mut dyn FnMut() -> bool) -> Self {
        let now = Instant::now();
        Self { region, since: now, looked: now, interrupted }
    }

    /// What it waits for makes progress: its time begins again.
    pub fn begin_again(&mut self) {
        self.since = Instant::now();
    }

    /// Sleep for a moment.
    ///
    /// # Errors
    /// [`Error::Os`]: ETIMEDOUT. As [`Wait::look_up`].
    pub fn pause(&mut self, page: usize, what: &str) -> Result<(), Error> {
        let waited = self.since.elapsed();
        if waited > self.region.options.timeout {
            return Err(Error::Os { what: what.into(), errno: Errno(libc::ETIMEDOUT) });
        }
        self.look_up(page)?;
        std::thread::sleep(waited.clamp(SHORTEST_WAIT, LONGEST_WAIT));
        Ok(())
    }

    /// Every now and then: shall it go on?
    ///
    /// # Errors
    /// [`Error::Closed`]: the region is being closed. [`Error::Page`]: interrupted.
    pub fn look_up(&mut self, page: usize) -> Result<(), Error> {
        if self.region.is_closing() {
            return Err(Error::Closed("the Region was closed while it was pinned".into()));
        }
        if self.looked.elapsed() > LOOK_UP {
            self.looked = Instant::now();
            if (self.interrupted)() {
                let error = SourceError::new((page * uffd::page_size()) as u64, Cause::Interrupted);
                return Err(Error::Page { source_name: self.region.source_name.clone(), error });
            }
        }
        Ok(())
    }
}
