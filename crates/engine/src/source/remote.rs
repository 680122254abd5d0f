//! A source that another process reads: here it has a length and a name only.

use super::{Cause, Latency, Reading, Source, SourceError};

/// What the owner of a region knows of a source that its pager reads.
pub struct Remote {
    length: u64,
    name: String,
    unit: usize,
}

impl Remote {
    /// `unit`: its wish, 0: none.
    #[must_use]
    pub fn new(length: u64, name: String, unit: usize) -> Self {
        Self { length, name, unit }
    }
}

impl Source for Remote {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_into(&self, offset: u64, _out: &mut [u8], _how: &mut Reading<'_>) -> Result<(), SourceError> {
        Err(SourceError::new(offset, Cause::Os(libc::EOPNOTSUPP)))
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn preferred_unit(&self) -> usize {
        self.unit
    }

    fn latency(&self) -> Latency {
        Latency::MayBlock
    }

    fn readahead_helps(&self) -> bool {
        false
    }

    fn signal_unsafe_reason(&self) -> String {
        "a pager process reads it".into()
    }
}
