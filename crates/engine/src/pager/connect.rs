//! A pager is had: a program of ours is started, or somebody who serves at a path of the file system is asked for one.
//!
//! *Threads*: the watcher. *Blocks on*: the start of a program; the one at a path for its first word, at most some seconds.

use super::spawn::{self, Child, Program};
use super::wire::{self, Frame, Kind};
use crate::error::Error;
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;
use uffd::Errno;

/// How a pager is had.
pub enum Start {
    /// A child of ours.
    Program(Program),
    /// Whoever listens there has a process for each of its clients.
    Path(CString),
}

/// How long one at a path may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Before another try where nobody listens.
const NOBODY: Duration = Duration::from_millis(200);

/// The process, and our end of the socket; `hello` is sent with these descriptors.
///
/// # Errors
/// [`Error::Os`].
pub fn start(start: &Start, hello: &Frame, descriptors: &[RawFd]) -> Result<(Child, OwnedFd), Error> {
    match start {
        Start::Program(program) => {
            let (socket, theirs) = wire::pair()?;
            let child = spawn::start(program, theirs.as_raw_fd(), output())?;
            // A fresh socket has room for one frame.
            let _ = wire::send(socket.as_raw_fd(), hello, descriptors);
            Ok((child, socket))
        }
        Start::Path(path) => {
            let asked = connect(path).and_then(|socket| ask(socket, hello, descriptors));
            asked.inspect_err(|_| std::thread::sleep(NOBODY))
        }
    }
}

/// Our standard error, where nobody has to drain it; else a pipe that Python reads, as in a notebook, would fill and stop the
/// pager while Python waits for it.
fn output() -> Option<RawFd> {
    // SAFETY: fills our structure.
    let kind = unsafe {
        let mut about: libc::stat = std::mem::zeroed();
        libc::fstat(2, &raw mut about);
        about.st_mode & libc::S_IFMT
    };
    // 1 is /dev/null in the engine's table.
    if matches!(kind, libc::S_IFREG | libc::S_IFCHR) { None } else { Some(1) }
}

fn connect(path: &CString) -> Result<OwnedFd, Error> {
    let failed = || Error::last_os(format!("connecting to the pager at {}", path.to_string_lossy()));
    let bytes = path.as_bytes_with_nul();
    // SAFETY: the address is ours, zeroed, and holds the path with its zero byte, whose length is looked at first; the
    // descriptor is new.
    unsafe {
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        if bytes.len() > address.sun_path.len() {
            return Err(Error::Invalid(format!("{}: too long for a socket", path.to_string_lossy())));
        }
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), address.sun_path.as_mut_ptr(), bytes.len());
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(failed());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        if libc::connect(fd, (&raw const address).cast(), len) != 0 {
            return Err(failed());
        }
        // Whoever serves us may put any bytes into our pages: only who could do so anyway.
        match wire::peer(&socket) {
            Some(peer) if peer.uid == libc::geteuid() || peer.uid == 0 => Ok(socket),
            _ => Err(Error::Invalid(format!("{} belongs to another user", path.to_string_lossy()))),
        }
    }
}

/// Its first word tells which process serves us.
fn ask(socket: OwnedFd, hello: &Frame, descriptors: &[RawFd]) -> Result<(Child, OwnedFd), Error> {
    let failed = |errno| Error::Os { what: "asking for a pager".into(), errno };
    wire::send(socket.as_raw_fd(), hello, descriptors).map_err(failed)?;
    let [answered] = wire::wait_readable([socket.as_raw_fd()], Some(ANSWER_LIMIT));
    let heard = if answered { wire::receive(socket.as_raw_fd()).map_err(failed)? } else { None };
    let Some((frame, _)) = heard.filter(|(frame, _)| frame.kind() == Some(Kind::Started)) else {
        return Err(failed(Errno(libc::ETIMEDOUT)));
    };
    let child = Child::another(frame.words[0] as i32)?;
    // SAFETY: a flag of our own socket.
    unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    Ok((child, socket))
}
