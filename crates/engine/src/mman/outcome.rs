//! How a call of 2014 ends: an errno as the proposal says, and what was wrong in words.

use uffd::Errno;

/// An errno with what was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// As the proposal says.
    pub errno: Errno,
    /// For people. Empty where there is only the errno; `Failed::looked_up` then looks.
    pub why: String,
}

/// How a change ended.
pub struct Ended(pub Result<(), Failed>);

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Self { errno, why: String::new() }
    }
}

impl From<Errno> for Ended {
    fn from(errno: Errno) -> Self {
        Self(Err(errno.into()))
    }
}

impl From<Result<(), Errno>> for Ended {
    fn from(result: Result<(), Errno>) -> Self {
        Self(result.map_err(Failed::from))
    }
}

/// An errno and the reason.
pub(super) fn failed(errno: i32, why: impl Into<String>) -> Failed {
    Failed { errno: Errno(errno), why: why.into() }
}
