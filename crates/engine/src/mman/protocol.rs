//! What is written to a descriptor of 2014: a protocol of 8 bytes, then commands as 16-byte ranges.
//!
//! *Locks*: none. *Threads*: any.

use std::ops::Range;
use uffd::Errno;

/// The protocol of the handshake.
pub const PROTOCOL: u64 = 0xAA;
/// What is read back after another one was asked for.
pub const UNKNOWN_PROTOCOL: u64 = u64::MAX;

/// A command written to a running descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Wake those whose faults were read.
    Wake(Range<usize>),
    /// Register.
    Register(Range<usize>),
    /// Unregister.
    Unregister(Range<usize>),
}

/// What is to be done after a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing: so many bytes were taken.
    Taken(usize),
    /// This, and then 16 bytes were taken.
    Do(Command),
}

/// Eight bytes of what was written.
pub(super) fn word(bytes: &[u8], at: usize) -> Result<u64, Errno> {
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_ne_bytes);
    word.ok_or(Errno(libc::EINVAL))
}

/// The command is in the low two bits of the start.
pub(super) fn parse(start: u64, end: u64) -> Result<Command, Errno> {
    let page = uffd::page_size() as u64;
    let (command, start) = (start & 3, start & !3);
    if !start.is_multiple_of(page) || !end.is_multiple_of(page) || command == 3 {
        return Err(Errno(libc::EINVAL));
    }
    let range = check_range(start as usize, end as usize)?;
    Ok(match command {
        0 => Command::Wake(range),
        1 => Command::Register(range),
        _ => Command::Unregister(range),
    })
}

/// ERANGE for an empty range, ENOMEM for one that ends outside of user memory.
///
/// # Errors
/// As said; EINVAL for bounds that are not those of pages.
pub fn check_range(start: usize, end: usize) -> Result<Range<usize>, Errno> {
    if !start.is_multiple_of(uffd::page_size()) || !end.is_multiple_of(uffd::page_size()) {
        return Err(Errno(libc::EINVAL));
    }
    if start >= end {
        return Err(Errno(libc::ERANGE));
    }
    if end > USER_END {
        return Err(Errno(libc::ENOMEM));
    }
    Ok(start..end)
}

/// TASK_SIZE of 48-bit addresses: x86-64 leaves out the last page.
#[cfg(target_arch = "x86_64")]
const USER_END: usize = (1 << 47) - 4096;
#[cfg(not(target_arch = "x86_64"))]
const USER_END: usize = 1 << 48;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_checked() {
        assert_eq!(parse(0x1000, 0x2000), Ok(Command::Wake(0x1000..0x2000)));
        assert_eq!(parse(0x1001, 0x2000), Ok(Command::Register(0x1000..0x2000)));
        assert_eq!(parse(0x1002, 0x2000), Ok(Command::Unregister(0x1000..0x2000)));
        assert_eq!(parse(0x1003, 0x2000), Err(Errno(libc::EINVAL)));
        assert_eq!(parse(0x1004, 0x2000), Err(Errno(libc::EINVAL)));
        assert_eq!(parse(0x1000, 0x1000), Err(Errno(libc::ERANGE)));
        assert_eq!(parse(0x1000, 1 << 62), Err(Errno(libc::ENOMEM)));
    }
}
