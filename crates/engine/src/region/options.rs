//! What a caller chooses about a region.

use crate::cause::Kind;
use std::time::Duration;

/// How a fault reaches its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To fault readers; serves system calls too.
    Thread,
    /// To the touching thread itself, by SIGBUS; CPU accesses only.
    Signal,
    /// To a pager: another process that fills the pages.
    Process,
}

/// May the memory be changed?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No: pages may be dropped and had again.
    Read,
    /// Yes, in memory: a page that may have been modified is never dropped.
    Change,
}

/// What happens when a page cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// An exception in the touching thread.
    Raise,
    /// The process dies with one line.
    Abort,
}

/// What a caller chooses about a region.
#[derive(Clone, Debug)]
pub struct Options {
    /// How faults are delivered.
    pub delivery: Delivery,
    /// Bytes filled per fault; 0: the source's wish, or 64 KiB.
    pub unit: usize,
    /// 2 MiB units of whole huge pages.
    pub huge: bool,
    /// Bytes kept, the oldest leaving as others come; 0: all.
    pub resident: usize,
    /// May it be changed?
    pub mode: Mode,
    /// What if a page cannot be had?
    pub on_error: OnError,
    /// How long a fault may take.
    pub timeout: Duration,
    /// Pages in a memory file that other processes may map.
    pub shared: bool,
    /// Which exception a page that cannot be had becomes.
    pub kind: Kind,
}
