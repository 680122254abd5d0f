//! A source of zeros: memory that costs nothing until it is written.

use super::{Extent, Reading, Source, SourceError};

/// `len` zero bytes.
pub struct Zero {
    len: u64,
}

impl Zero {
    /// Of this length in bytes.
    #[must_use]
    pub fn new(len: u64) -> Self {
        Self { len }
    }
}

impl Source for Zero {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_into(&self, _offset: u64, out: &mut [u8], _how: &mut Reading<'_>) -> Result<(), SourceError> {
        out.fill(0);
        Ok(())
    }

    fn extent(&self, _offset: u64, len: usize, _how: &mut Reading<'_>) -> Extent {
        Extent::Zero(len)
    }

    fn name(&self) -> String {
        format!("Zero({})", self.len)
    }

    fn signal_safe(&self) -> bool {
        true
    }
}
