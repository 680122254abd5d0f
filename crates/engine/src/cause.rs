//! Why bytes could not be had. Plain data of fixed size: it is built inside signal handlers.

/// The reason a read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The kernel said so; the errno.
    Os(i32),
    /// The source ends before this byte, although it promised more (a truncated file).
    Short,
    /// The bytes do not match their checksum.
    Checksum,
    /// The compressed data is not what it should be.
    Corrupt,
    /// No answer within the deadline.
    Timeout,
    /// Somebody pressed Ctrl-C.
    Interrupted,
    /// An earlier error of the same thread has not been delivered yet.
    Latched,
    /// Not in the page cache, and waiting was not allowed: never leaves the engine.
    WouldBlock,
    /// A fault-injecting layer was told to fail here.
    Injected,
    /// The kernel took the page while it was volatile.
    Purged,
    /// A fault on memory of the caller's that nothing is there to resolve.
    Unresolved,
    /// A resolver touched the page that it was there to resolve, or resolvers within resolvers went too deep.
    Recursion,
    /// The caller's function that should have resolved a fault raised, or came back without having done so.
    Resolver,
    /// A source in the language above raised.
    Raised(Raised),
    /// The thread waits for itself: its source touched memory that the same source has to fill.
    OwnRegion,
    /// A source raised in the pager process, which says what.
    Remote(Remote),
    /// The pager process that served the page is gone and is not replaced: its wait status.
    PagerLost(i32),
}

/// What a pager said of a failure: in the memory that it shares, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Which of this process's pagers.
    pub pager: u16,
    /// Where in its memory.
    pub slot: u16,
    /// It is another failure's once this has changed.
    pub sequence: u32,
}

/// An exception of the language above, which keeps it under this number for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// Which.
    pub ticket: u32,
    /// Might the same read succeed a moment later?
    pub transient: bool,
}

impl Cause {
    /// Might the same read succeed a moment later?
    #[must_use]
    pub fn is_transient(self) -> bool {
        match self {
            Cause::Os(errno) => matches!(
                errno,
                libc::EIO
                    | libc::EAGAIN
                    | libc::EINTR
                    | libc::ETIMEDOUT
                    | libc::ECONNRESET
                    | libc::ENETUNREACH
                    | libc::ESTALE
            ),
            Cause::Timeout | Cause::Injected => true,
            Cause::Raised(raised) => raised.transient,
            _ => false,
        }
    }

    /// One line for people.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Cause::Os(_) => "the kernel returned an error",
            Cause::Short => "the source ends before this byte (was it truncated?)",
            Cause::Checksum => "the bytes do not match their checksum",
            Cause::Corrupt => "the compressed data is damaged",
            Cause::Timeout => "no answer within the deadline",
            Cause::Interrupted => "interrupted by Ctrl-C",
            Cause::Latched => "an earlier PageError of this thread was still on its way",
            Cause::WouldBlock => "the data is not in memory",
            Cause::Injected => "a fault-injecting layer failed this read on purpose",
            Cause::Purged => "the kernel took the page while it was unpinned",
            Cause::Unresolved => "no userfaultfd is registered there and no resolver was given for SIGBUS",
            Cause::Recursion => "its resolver touched memory that needs it in turn (the same page, or too deep)",
            Cause::Resolver => "the resolver did not put a page there",
            Cause::Raised(_) => "the source raised an exception",
            Cause::OwnRegion => {
                "the source touched memory that it has to fill itself, or sources within sources go too deep"
            }
            Cause::Remote(_) => "the source raised an exception in its pager process",
            Cause::PagerLost(_) => "the pager process that served it died and is not replaced",
        }
    }
}

/// Which exception a failure becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A page could not be had.
    Page,
    /// The kernel took a volatile page.
    Purged,
    /// Nobody resolved a fault on memory of the caller's (the 2014 interface).
    UserFault,
}

/// A failed read: the first byte that could not be had, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} at byte {offset}", cause.describe())]
pub struct SourceError {
    /// Offset in bytes within the source.
    pub offset: u64,
    /// The reason.
    pub cause: Cause,
}

impl SourceError {
    /// A failure at `offset`.
    #[must_use]
    pub fn new(offset: u64, cause: Cause) -> Self {
        Self { offset, cause }
    }
}
