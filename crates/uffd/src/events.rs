//! Messages of a userfaultfd: reading them raw, looking at a fault cheaply, decoding the rest.
//!
//! *Blocks on*: [`Handle::read_messages`] sleeps on a blocking descriptor until there is a message; closing the
//! descriptor elsewhere does not wake it.

use crate::abi::*;
use crate::flags::bit_set;
use crate::{Errno, Handle};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

bit_set!(
    /// What kind of fault it was. Neither `WP` nor `MINOR` (nor `RWP`) means missing.
    FaultFlags {
        /// The access was a write.
        WRITE = 1,
        /// A write-protected page was written (comes with `WRITE`).
        WP = 2,
        /// The page is in the page cache but not mapped here.
        MINOR = 4,
        /// A read-write-protected page was touched (Linux 7.2).
        RWP = 8,
    }
);

impl FaultFlags {
    /// True when the page is not there at all.
    #[inline]
    pub const fn is_missing(self) -> bool {
        self.0 & (Self::WP.0 | Self::MINOR.0 | Self::RWP.0) == 0
    }
}

/// A page fault, as a message tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The address: of the page, or exact with `EXACT_ADDRESS`.
    pub address: usize,
    /// What kind of access.
    pub flags: FaultFlags,
    /// The thread, as numbered in its own pid namespace; 0 without `THREAD_ID`. It may be of a foreign process.
    pub tid: i32,
}

/// A decoded message.
#[derive(Debug)]
pub enum Event {
    /// Somebody touched a page. He waits until it is resolved; signals make him ask again, so expect duplicates.
    PageFault {
        /// The address: of the page, or exact with `EXACT_ADDRESS`.
        address: usize,
        /// What kind of access.
        flags: FaultFlags,
        /// The thread, with `THREAD_ID`.
        thread: Option<i32>,
    },
    /// The process forked. The descriptor serves the child; dropping it gives the child silent zeros.
    Fork {
        /// The child's userfaultfd, handshake done, features as the parent's.
        fd: OwnedFd,
    },
    /// A range was moved, its registration with it.
    Remap {
        /// Old address.
        from: usize,
        /// New address.
        to: usize,
        /// Bytes.
        len: usize,
    },
    /// Pages of the range are about to be dropped: the sender goes on when this has been read.
    Remove {
        /// First byte.
        start: usize,
        /// Address after the last.
        end: usize,
    },
    /// The range was unmapped.
    Unmap {
        /// First byte.
        start: usize,
        /// Address after the last.
        end: usize,
    },
    /// A message this crate has no name for.
    Unknown(u8),
}

impl UffdMsg {
    /// An empty message, to make buffers of.
    pub const ZERO: Self = Self { event: 0, reserved1: 0, reserved2: 0, reserved3: 0, arg: [0; 3] };

    /// The fault, if this message is one. Cheap, signal-safe.
    #[inline]
    pub const fn fault(&self) -> Option<Fault> {
        if self.event != UFFD_EVENT_PAGEFAULT {
            return None;
        }
        let address = self.arg[1] as usize;
        Some(Fault { address, flags: FaultFlags(self.arg[0]), tid: first_half(self.arg[2]) as i32 })
    }

    /// Decodes the message, taking ownership of the descriptor a FORK message brings.
    ///
    /// # Safety
    /// The message came from [`Handle::read_messages`] in this process and is decoded once: a second decoding of a
    /// FORK message would own the same descriptor twice. (Not decoding one leaks it.)
    pub unsafe fn decode(&self) -> Event {
        let [first, second, third] = self.arg.map(|word| word as usize);
        match self.event {
            UFFD_EVENT_PAGEFAULT => {
                let tid = first_half(self.arg[2]) as i32;
                let flags = FaultFlags(self.arg[0]);
                Event::PageFault { address: second, flags, thread: (tid != 0).then_some(tid) }
            }
            UFFD_EVENT_FORK => {
                // SAFETY: read(2) has installed this descriptor for us, and the caller decodes the message only once.
                Event::Fork { fd: unsafe { OwnedFd::from_raw_fd(first_half(self.arg[0]) as RawFd) } }
            }
            UFFD_EVENT_REMAP => Event::Remap { from: first, to: second, len: third },
            UFFD_EVENT_REMOVE => Event::Remove { start: first, end: second },
            UFFD_EVENT_UNMAP => Event::Unmap { start: first, end: second },
            other => Event::Unknown(other),
        }
    }
}

/// The 32-bit field at the beginning of a word of the union, in either byte order.
#[inline]
const fn first_half(word: u64) -> u32 {
    let bytes = word.to_ne_bytes();
    u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

impl Handle {
    /// Reads as many messages as are there and fit; returns how many. Allocates nothing, so signal handlers may call it.
    ///
    /// Fault messages come before events even if the event is older. Pass each message to [`UffdMsg::decode`] or look
    /// at it with [`UffdMsg::fault`]; a FORK message that is thrown away leaks a descriptor.
    ///
    /// # Errors
    /// EAGAIN: nothing there, on a nonblocking descriptor. EINVAL: empty buffer, or no handshake yet. EINTR: a signal.
    #[inline]
    pub fn read_messages(self, messages: &mut [UffdMsg]) -> Result<usize, Errno> {
        let size = size_of::<UffdMsg>();
        // SAFETY: the buffer is exclusively borrowed, as long as said, and any bytes make a valid message.
        let got = unsafe { libc::read(self.as_raw_fd(), messages.as_mut_ptr().cast(), size_of_val(messages)) };
        if got < 0 { Err(Errno::last()) } else { Ok(got as usize / size) }
    }

    /// Reads the messages that are there, at most 64, and decodes them all, so that no descriptor can be lost.
    ///
    /// Nothing is allocated before the read: a thread of this process that forks holds malloc's locks until its event
    /// was read (glibc takes them around the system call), and would otherwise wait for us while we wait for it.
    ///
    /// # Errors
    /// As [`Handle::read_messages`].
    pub fn read_events(self) -> Result<Vec<Event>, Errno> {
        let mut messages = [UffdMsg::ZERO; 64];
        let count = self.read_messages(&mut messages)?;
        // SAFETY: each message was read just now and is decoded exactly once.
        Ok(messages[..count].iter().map(|message| unsafe { message.decode() }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(event: u8, arg: [u64; 3]) -> UffdMsg {
        UffdMsg { event, arg, ..UffdMsg::ZERO }
    }

    #[test]
    fn fault_reads_the_three_fields() {
        let fault = message(UFFD_EVENT_PAGEFAULT, [3, 0x7000, 42]).fault().expect("a fault");
        assert_eq!(fault.address, 0x7000);
        assert_eq!(fault.flags, FaultFlags::WRITE | FaultFlags::WP);
        assert!(!fault.flags.is_missing());
        assert!(message(UFFD_EVENT_REMOVE, [1, 2, 3]).fault().is_none());
    }

    #[test]
    fn decode_names_ranges_by_event() {
        let decode = |event, arg| {
            // SAFETY: none of these is a FORK message.
            unsafe { message(event, arg).decode() }
        };
        assert!(matches!(decode(UFFD_EVENT_REMAP, [1, 2, 3]), Event::Remap { from: 1, to: 2, len: 3 }));
        assert!(matches!(decode(UFFD_EVENT_REMOVE, [1, 2, 0]), Event::Remove { start: 1, end: 2 }));
        assert!(matches!(decode(UFFD_EVENT_UNMAP, [1, 2, 0]), Event::Unmap { start: 1, end: 2 }));
        assert!(matches!(decode(0x77, [1, 2, 0]), Event::Unknown(0x77)));
        assert!(matches!(decode(UFFD_EVENT_PAGEFAULT, [0, 4096, 0]), Event::PageFault { thread: None, .. }));
    }
}
