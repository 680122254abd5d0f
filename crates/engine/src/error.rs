//! What can go wrong in the engine outside a fault: one enum, one Python class for each variant.

use uffd::Errno;

/// An operation that was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No userfaultfd for this process.
    #[error("userfaultfd is not permitted here: {0}")]
    Refused(uffd::OpenError),
    /// The kernel lacks something the call needs.
    #[error("this kernel cannot do that: {0}")]
    Unsupported(String),
    /// A parameter makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A system call failed.
    #[error("{what}: {errno}")]
    Os {
        /// What was being done, to what.
        what: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The region was closed, or belongs to the process this one was forked from.
    #[error("{0}")]
    Closed(String),
    /// A page could not be had.
    #[error("{source_name}: {error}")]
    Page {
        /// The source.
        source_name: String,
        /// Offset and cause.
        error: crate::cause::SourceError,
    },
}

impl Error {
    /// A descriptor was refused, or the kernel lacks what it should do.
    #[must_use]
    pub fn of_open(error: uffd::OpenError) -> Self {
        let errno = error.errno();
        match error {
            uffd::OpenError::Refused { .. } if matches!(errno.0, libc::EMFILE | libc::ENFILE | libc::ENOMEM) => {
                let hint = error.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
                Error::Os { what: format!("making a userfaultfd{hint}"), errno }
            }
            uffd::OpenError::Refused { .. } => Error::Refused(error),
            _ => Error::Unsupported(error.to_string()),
        }
    }

    /// `what` failed with the calling thread's errno.
    #[must_use]
    pub fn last_os(what: impl Into<String>) -> Self {
        Error::Os { what: what.into(), errno: Errno::last() }
    }
}
