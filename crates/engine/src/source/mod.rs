//! Where pages come from: the [`Source`] trait and the sources that come with the engine.
//!
//! *Locks*: none here; a source that keeps one must be `!signal_safe`.
//! *Threads*: every method may be called from many threads at once.
//! *Blocks on*: only sources whose [`Latency`] is `MayBlock` wait for anything slower than the page cache.

use std::time::Duration;

pub mod bytes;
pub mod fd;
pub mod file;
pub mod image;
pub mod layers;
pub mod remote;
pub mod stored;
pub mod volatile;
pub mod zero;

pub use crate::cause::{Cause, SourceError};

/// Whether reading may wait for something slower than memory.
///
/// A `Fast` source is read by the thread that received the fault; a `MayBlock` one is handed to the worker pool, so
/// that one slow page never keeps another region waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// Memory, the page cache, or decoding of either.
    Fast,
    /// A disk, a network, a retry, somebody else's code.
    MayBlock,
}

/// What lies at the start of a range of a source, as far as it is cheap to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// This many bytes are known to be zero: nothing is read, nothing decoded.
    Zero(usize),
    /// This many bytes lie in memory at this address, which stays mapped as long as the source lives: the kernel copies
    /// them straight to their place (`UFFDIO_COPY`), where a bad address is an errno and not a signal.
    Memory(usize, usize),
    /// This many bytes must be read with [`Source::read_into`].
    Data(usize),
}

/// How a read may behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Only what the page cache has; otherwise [`Cause::WouldBlock`].
    NoWait,
    /// Take the time it takes.
    Wait,
}

/// Whose table of file descriptors the calling thread uses (see `threads.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The application's: signal handlers run there.
    Application,
    /// The engine's own: reader, worker and keeper threads run there.
    Engine,
}

/// The limit of a read that nobody limits.
const NO_LIMIT: Duration = Duration::from_secs(1 << 30);
/// The memory of a read whose bytes go to none that faults.
const NOWHERE: (usize, usize) = (0, 0);

/// Everything a read needs besides the source: how to behave, and memory that was allocated beforehand.
pub struct Reading<'a> {
    /// May it wait?
    pub patience: Patience,
    /// Which descriptor table is the caller's?
    pub table: Table,
    /// Nobody waits for it any longer than this.
    pub limit: Duration,
    /// From and to which address the bytes will go: code that touches that memory to get them would wait for itself.
    pub own: (usize, usize),
    /// Buffers and decoder, owned by the caller for the duration of the read.
    pub scratch: &'a mut Scratch,
}

impl<'a> Reading<'a> {
    /// One of an application thread that waits as long as it takes, into memory that does not fault.
    #[must_use]
    pub fn plain(scratch: &'a mut Scratch) -> Self {
        Self { patience: Patience::Wait, table: Table::Application, limit: NO_LIMIT, own: NOWHERE, scratch }
    }
}

/// Something that can say what bytes a range of memory holds.
///
/// Two methods are required; all offsets and lengths are bytes. A read fills *all* of the buffer or fails: a short
/// answer is an error, never zeros.
pub trait Source: Send + Sync {
    /// The length in bytes; fixed for the life of the source.
    fn len(&self) -> u64;

    /// Fill `out` with the bytes at `offset`. `offset + out.len() <= self.len()` is guaranteed by the caller.
    ///
    /// # Errors
    /// [`SourceError`] says which byte could not be had and why. What was written to `out` by then is ignored.
    fn read_into(&self, offset: u64, out: &mut [u8], how: &mut Reading<'_>) -> Result<(), SourceError>;

    /// What lies at `offset`, for at most `len` bytes (`len > 0`, within the source). Must not block or allocate.
    ///
    /// # Errors
    /// As [`Source::read_into`]; `WouldBlock` is not allowed here: answer `Data` instead.
    fn extent(&self, _offset: u64, len: usize, _how: &mut Reading<'_>) -> Extent {
        Extent::Data(len)
    }

    /// Is a zero-length source.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One name for people: `File('/data/a.bin', 0, 4096)`.
    fn name(&self) -> String;

    /// The unit (bytes filled per fault) that suits this source; a power of two times the page size, or 0: no wish.
    fn preferred_unit(&self) -> usize {
        0
    }

    /// May it wait?
    fn latency(&self) -> Latency {
        Latency::Fast
    }

    /// May [`Source::read_into`] and [`Source::extent`] run inside a signal handler: no allocation, no lock, no
    /// thread-local that is made on first use, at most 4 KiB of stack?
    fn signal_safe(&self) -> bool {
        false
    }

    /// Why it is not signal safe, for the error message.
    fn signal_unsafe_reason(&self) -> String {
        format!("{} may wait or allocate", self.name())
    }

    /// If a unit fails, can a part of it still be had? Files: yes, page by page; images: no, a frame is bad as a whole.
    fn page_granular(&self) -> bool {
        false
    }

    /// Is reading ahead worth the work of another thread? Images: yes (decoding); memory: no.
    fn readahead_helps(&self) -> bool {
        self.latency() == Latency::MayBlock
    }

    /// What [`Scratch`] must hold for this source.
    fn needs(&self) -> ScratchNeeds {
        ScratchNeeds::default()
    }

    /// Is it code of the language above? Then it runs where that may: in the thread that touched, or on its workers.
    fn is_called(&self) -> bool {
        false
    }

    /// How many bytes one read of many likes to have; 0: no wish.
    fn piece(&self) -> usize {
        0
    }

    /// These bytes will be wanted soon. Must not wait.
    fn hint(&self, _bytes: std::ops::Range<u64>) {}

    /// Of volatile memory: which pages the kernel may take.
    fn offers(&self) -> Option<&std::sync::Arc<volatile::Offers>> {
        None
    }
}

pub use crate::scratch::{Scratch, ScratchNeeds};
