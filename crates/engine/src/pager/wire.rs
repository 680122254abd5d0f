//! Frames of fixed size between an owner and its pager, over a SEQPACKET socket pair; some bring descriptors. What the owner tells
//! that has no fixed size (settings, a source) lies in a file of its own beside the frame; texts lie in the file that both share.
//!
//! *Locks*: none. *Threads*: any with the descriptor's table. *Blocks on*: [`receive`] of a blocking socket.

use crate::error::Error;
use crate::shared::VERSION;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use uffd::Errno;

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Owner: the file, the userfaultfd and the settings.
    Hello = 1,
    /// Owner: serve a region, of a source that is described in the file that comes with it; words: see [`Attach`].
    Attach,
    /// Owner: let go of a region.
    Detach,
    /// Owner: fill units; words: ticket, first, count.
    Fill,
    /// Pager: it runs; words: its process number.
    Started,
    /// Pager: the region is served; words: 1 and the code of a failure if it is not.
    Ready,
    /// Pager: no page will be put into the region any more.
    Detached,
    /// Pager: a `Fill` is over; words: ticket, 1 if it failed, offset, and the code of the failure.
    Done,
}

const KINDS: [Kind; 8] =
    [Kind::Hello, Kind::Attach, Kind::Detach, Kind::Fill, Kind::Started, Kind::Ready, Kind::Detached, Kind::Done];

/// One frame.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Frame {
    version: u32,
    kind: u32,
    /// Which region; 0: none.
    pub region: u64,
    /// By kind.
    pub words: [u64; 10],
}

impl Frame {
    /// One of this kind.
    #[must_use]
    pub fn new(kind: Kind, region: u64, given: &[u64]) -> Self {
        let mut words = [0; 10];
        words[..given.len()].copy_from_slice(given);
        Self { version: VERSION, kind: kind as u32, region, words }
    }

    /// Its kind; `None`: of another build.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        let known = KINDS.iter().find(|kind| **kind as u32 == self.kind);
        known.copied().filter(|_| self.version == VERSION)
    }
}

/// A region as its pager is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Attach {
    /// Its number.
    pub region: u64,
    /// First address, in the owner.
    pub base: u64,
    /// Bytes mapped.
    pub mapped: u64,
    /// Bytes of the source.
    pub len: u64,
    /// Bytes of a unit.
    pub unit: u64,
    /// Nanoseconds that a touch may wait.
    pub timeout_ns: u64,
    /// Where its part lies in the shared file.
    pub part_at: u64,
    /// It has no source any more: every page fails, because a pager ended with this status (plus 2^32); 0: it has one.
    pub lost: u64,
}

impl Attach {
    /// As a frame.
    #[must_use]
    pub fn frame(&self) -> Frame {
        let words = [self.base, self.mapped, self.len, self.unit, self.timeout_ns, self.part_at, self.lost];
        Frame::new(Kind::Attach, self.region, &words)
    }

    /// Can it be a region?
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let page = uffd::page_size() as u64;
        let whole = |word: u64| word.is_multiple_of(page) && word < 1 << 56;
        self.unit.is_power_of_two()
            && self.unit <= 64 << 20
            && [self.base, self.mapped, self.unit, self.part_at].into_iter().all(whole)
            && self.mapped > 0
            && self.len <= self.mapped
    }

    /// From one.
    #[must_use]
    pub fn of(frame: &Frame) -> Self {
        let [base, mapped, len, unit, timeout_ns, part_at, lost, ..] = frame.words;
        Self { region: frame.region, base, mapped, len, unit, timeout_ns, part_at, lost }
    }
}

/// Both ends, close-on-exec; the first does not block.
///
/// # Errors
/// [`Error::Os`].
pub fn pair() -> Result<(OwnedFd, OwnedFd), Error> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which are new and nobody else's; the flag is set on one of them.
    unsafe {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        if libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) != 0 {
            return Err(Error::last_os("making a socket pair for a pager"));
        }
        libc::fcntl(ends[0], libc::F_SETFL, libc::O_NONBLOCK);
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// Descriptors beside a frame.
const MOST: usize = 3;
const CONTROL: usize = 64;

#[repr(align(8))]
struct Control([u8; CONTROL]);

/// Send a frame, and descriptors with it.
///
/// # Errors
/// EAGAIN: there is no room now. EPIPE, ECONNRESET: the other side is gone.
pub fn send(socket: RawFd, frame: &Frame, descriptors: &[RawFd]) -> Result<(), Errno> {
    let mut control = Control([0; CONTROL]);
    let mut piece = libc::iovec { iov_base: std::ptr::from_ref(frame).cast_mut().cast(), iov_len: size_of::<Frame>() };
    // SAFETY: the message describes our frame and our control buffer, in which [`MOST`] descriptors have room.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        if !descriptors.is_empty() {
            let bytes = size_of_val(descriptors) as u32;
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(bytes) as _;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            std::ptr::copy_nonoverlapping(descriptors.as_ptr(), data, descriptors.len());
        }
        libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(Errno::last()) } else { Ok(()) }
}

/// Receive a frame, and the descriptors that came with it. `None`: the other side has closed.
///
/// # Errors
/// EAGAIN: nothing there, on a socket that does not block. EPROTO: no frame of this build.
pub fn receive(socket: RawFd) -> Result<Option<(Frame, Vec<OwnedFd>)>, Errno> {
    let mut control = Control([0; CONTROL]);
    let mut frame = Frame { version: 0, kind: 0, region: 0, words: [0; 10] };
    let mut piece = libc::iovec { iov_base: (&raw mut frame).cast(), iov_len: size_of::<Frame>() };
    let mut descriptors = Vec::new();
    // SAFETY: the message describes our frame and our control buffer; the kernel says how much of that it filled, and each
    // descriptor in it is new and ours.
    let got = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE((MOST * size_of::<RawFd>()) as u32) as _;
        let got = libc::recvmsg(socket, &raw mut message, libc::MSG_CMSG_CLOEXEC);
        if got < 0 {
            return Err(Errno::last());
        }
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let is_rights =
            |header: &libc::cmsghdr| header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS;
        if header.as_ref().is_some_and(is_rights) {
            let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for index in 0..bytes / size_of::<RawFd>() {
                descriptors.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
            }
        }
        got as usize
    };
    match got {
        0 => Ok(None),
        _ if got == size_of::<Frame>() && frame.kind().is_some() => Ok(Some((frame, descriptors))),
        _ => Err(Errno(libc::EPROTO)),
    }
}

/// Who is at the other end, in our numbers.
#[must_use]
pub fn peer(socket: &OwnedFd) -> Option<libc::ucred> {
    let mut about = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: fills our structure, of the length said.
    let failed = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut about).cast(), &raw mut len) };
    (failed == 0).then_some(about)
}

/// Wait until one of these is readable (or its other side is gone), or `limit` passed.
pub fn wait_readable<const N: usize>(descriptors: [RawFd; N], limit: Option<std::time::Duration>) -> [bool; N] {
    let mut polled = descriptors.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let limit = limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: the array is ours and as long as said.
    unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, limit) };
    polled.map(|one| one.revents != 0)
}

/// Errors of a read that mean «later».
pub fn is_later(errno: Errno) -> bool {
    matches!(errno, Errno(libc::EINTR | libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_and_its_descriptors_arrive() {
        let (ours, theirs) = pair().unwrap();
        assert_eq!(receive(ours.as_raw_fd()).unwrap_err(), Errno(libc::EAGAIN));
        let frame = Frame::new(Kind::Fill, 7, &[1, 2, 3]);
        send(theirs.as_raw_fd(), &frame, &[ours.as_raw_fd(), theirs.as_raw_fd()]).unwrap();
        let (got, descriptors) = receive(ours.as_raw_fd()).unwrap().unwrap();
        assert_eq!((got.kind(), got.region, got.words[2], descriptors.len()), (Some(Kind::Fill), 7, 3, 2));
        drop((theirs, descriptors));
        assert!(receive(ours.as_raw_fd()).unwrap().is_none());
    }
}
