//! Memory, descriptors and touching threads for the tests against the running kernel.
//!
//! A page that never comes stops its toucher inside a load; so every test holds a [`Limit`], which ends the process.

#![allow(dead_code)] // each test file is a crate of its own and uses a part

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use uffd::{Errno, Event, Fault, Features, Handle, OpenOptions, RegisterModes, UffdMsg, Userfaultfd, page_size};

/// Ends the process when a test takes too long: a hang is a failure with a name.
pub struct Limit(Arc<AtomicBool>);

impl Limit {
    pub fn seconds(seconds: u64) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let (seen, name) = (done.clone(), std::thread::current().name().unwrap_or("?").to_owned());
        std::thread::spawn(move || {
            let end = Instant::now() + Duration::from_secs(seconds);
            while !seen.load(Ordering::SeqCst) {
                if Instant::now() > end {
                    eprintln!("{name} did not end within {seconds} s");
                    std::process::abort();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self(done)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A mapping, unmapped when dropped.
pub struct Memory {
    pub at: usize,
    pub len: usize,
}

impl Memory {
    /// Private anonymous pages.
    pub fn private(pages: usize) -> Self {
        Self::map(pages, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    pub fn map(pages: usize, flags: i32, fd: i32) -> Self {
        let len = pages * page_size();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes touches nothing that exists.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED, "mmap: {}", Errno::last());
        Self { at: at as usize, len }
    }

    pub fn page(&self, index: usize) -> usize {
        self.at + index * page_size()
    }

    pub fn load(&self, index: usize) -> u8 {
        load(self.page(index))
    }

    pub fn store(&self, index: usize, value: u8) {
        store(self.page(index), value);
    }

    pub fn advise(&self, advice: i32) -> Result<(), Errno> {
        // SAFETY: the mapping is ours; the tests that drop its pages want that.
        let result = unsafe { libc::madvise(self.at as *mut libc::c_void, self.len, advice) };
        if result == 0 { Ok(()) } else { Err(Errno::last()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and its touchers have ended.
        unsafe { libc::munmap(self.at as *mut libc::c_void, self.len) };
    }
}

pub fn load(address: usize) -> u8 {
    // SAFETY: tests pass addresses inside a live mapping.
    unsafe { (address as *const u8).read_volatile() }
}

pub fn store(address: usize, value: u8) {
    // SAFETY: as for `load`.
    unsafe { (address as *mut u8).write_volatile(value) }
}

/// An empty memfd of so many pages, or `None` where there is none.
pub fn memfd(pages: usize) -> i32 {
    // SAFETY: a NUL-terminated name and flags.
    let fd = unsafe { libc::memfd_create(c"uffd-test".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    assert!(fd >= 0, "memfd_create: {}", Errno::last());
    // SAFETY: plain numbers.
    unsafe { libc::ftruncate(fd, (pages * page_size()) as libc::off_t) };
    fd
}

/// A descriptor, or the reason why the test is skipped.
pub fn open(features: Features) -> Option<Userfaultfd> {
    let options = OpenOptions { nonblocking: true, user_mode_only: true, ..OpenOptions::default() };
    Userfaultfd::open_with(options, features).map_err(|why| eprintln!("skipped: {why}")).ok()
}

/// A descriptor with so many private pages registered.
pub fn armed(pages: usize, modes: RegisterModes, features: Features) -> Option<(Userfaultfd, Memory)> {
    let (fd, memory) = (open(features)?, Memory::private(pages));
    register(&fd, &memory, modes).expect("register");
    Some((fd, memory))
}

pub fn register(fd: &Userfaultfd, memory: &Memory, modes: RegisterModes) -> Result<uffd::Ioctls, Errno> {
    // SAFETY: the test owns the memory and touches it in threads that are answered.
    unsafe { fd.handle().register(memory.at, memory.len, modes) }
}

/// Runs `touch` in a thread; the receiver gets its result when it is through.
pub fn toucher<T: Send + 'static>(touch: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (send, receive) = channel();
    std::thread::spawn(move || send.send(touch()));
    receive
}

/// Long enough to believe that a thread sleeps.
pub const A_WHILE: Duration = Duration::from_millis(50);
/// Longer than any answer takes.
pub const SOON: Duration = Duration::from_secs(5);

fn wait_readable(handle: Handle) {
    let mut poll = libc::pollfd { fd: handle.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live pollfd.
    let ready = unsafe { libc::poll(&mut poll, 1, SOON.as_millis() as i32) };
    assert_eq!((ready, poll.revents), (1, libc::POLLIN), "nothing to read");
}

/// The next message, which must be a fault.
pub fn next_fault(handle: Handle) -> Fault {
    wait_readable(handle);
    let mut message = [UffdMsg::ZERO];
    assert_eq!(handle.read_messages(&mut message), Ok(1));
    message[0].fault().expect("a fault message")
}

/// All messages that are there, decoded; waits for the first.
pub fn next_events(handle: Handle) -> Vec<Event> {
    wait_readable(handle);
    handle.read_events().expect("events")
}

/// A page of one byte value.
pub fn filled(value: u8, pages: usize) -> Vec<u8> {
    vec![value; pages * page_size()]
}
