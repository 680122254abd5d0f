//! Small experiments on fresh pages of our own, each ending in "works" or an errno.
//!
//! A page is touched only where it is known to be present, or in a child that shares this memory and has a SIGBUS
//! handler of its own. *Blocks on*: the child, which dies at its first touch.

use super::Trial;
use crate::{
    Categories, Errno, Features, MoveMode, OpenOptions, Outcome, PagemapScan, ProtectMode, RegisterModes, ScanQuery,
    Userfaultfd, Wake, page_size,
};

/// Fresh private pages, unmapped when dropped.
struct Pages {
    address: usize,
    bytes: usize,
}

impl Pages {
    fn new(count: usize) -> Result<Self, Errno> {
        let bytes = count * page_size();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice cannot touch memory that exists.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if address == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(Self { address: address as usize, bytes }) }
    }

    /// Writes one byte; the caller knows that the page is not lazy.
    fn store(&self, value: u8) {
        // SAFETY: the mapping is ours, alive and writable; volatile, for its meaning is the page fault.
        unsafe { (self.address as *mut u8).write_volatile(value) }
    }

    /// Reads one byte; the caller knows that the page is present.
    fn load(&self) -> u8 {
        // SAFETY: as in `store`.
        unsafe { (self.address as *const u8).read_volatile() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.address as *mut libc::c_void, self.bytes) };
    }
}

/// One page registered with a descriptor of its own; the descriptor is dropped first.
struct Armed {
    fd: Userfaultfd,
    page: Pages,
}

impl Armed {
    fn new(features: Features, modes: RegisterModes) -> Result<Self, Errno> {
        let fd = open(features)?;
        let page = Pages::new(1)?;
        // SAFETY: the page is ours and nobody else knows it.
        unsafe { fd.handle().register(page.address, page.bytes, modes)? };
        Ok(Self { fd, page })
    }
}

fn open(features: Features) -> Result<Userfaultfd, Errno> {
    let options = OpenOptions { user_mode_only: true, nonblocking: true, ..OpenOptions::default() };
    Userfaultfd::open_with(options, features).map_err(|error| error.errno())
}

/// The trial a resolving operation made.
fn trial(outcome: Outcome) -> Trial {
    outcome.errno().map_or(Ok(()), Err)
}

fn expect(condition: bool) -> Trial {
    if condition { Ok(()) } else { Err(Errno(libc::EIO)) }
}

pub(super) fn event_fork() -> Trial {
    open(Features::EVENT_FORK).map(drop)
}

pub(super) fn move_pages() -> Trial {
    let armed = Armed::new(Features::MOVE, RegisterModes::MISSING)?;
    let source = Pages::new(1)?;
    source.store(0x5a);
    // SAFETY: both pages are ours and nothing relies on the contents of the source.
    let outcome =
        unsafe { armed.fd.handle().move_pages(armed.page.address, source.address, source.bytes, MoveMode::NONE) };
    trial(outcome)?;
    expect(armed.page.load() == 0x5a)
}

fn poisoned() -> Result<Armed, Errno> {
    let armed = Armed::new(Features::POISON, RegisterModes::MISSING)?;
    trial(armed.fd.handle().poison(armed.page.address, armed.page.bytes, Wake::Yes))?;
    Ok(armed)
}

pub(super) fn poison() -> Trial {
    let armed = poisoned()?;
    let address = armed.page.address as *mut libc::c_void;
    // SAFETY: populating a page of ours changes nothing we rely on; poison makes it fail.
    let result = unsafe { libc::madvise(address, armed.page.bytes, libc::MADV_POPULATE_READ) };
    expect(result == -1 && Errno::last() == Errno(libc::EHWPOISON))
}

pub(super) fn pagemap_scan() -> Trial {
    let page = Pages::new(1)?;
    page.store(1);
    let found = PagemapScan::open_self()?.collect(page.address..page.address + page.bytes, &ScanQuery::default())?;
    expect(found.len() == 1 && Categories(found[0].categories).contains(Categories::PRESENT))
}

pub(super) fn write_tracking() -> Trial {
    let armed = Armed::new(Features::WP_ASYNC, RegisterModes::WP)?;
    let page = &armed.page;
    page.store(1);
    trial(armed.fd.handle().write_protect(page.address, page.bytes, ProtectMode::PROTECT))?;
    let scan = PagemapScan::open_self()?;
    let query = ScanQuery { all_of: Categories::WRITTEN, ..ScanQuery::default() };
    let written = || scan.collect(page.address..page.address + page.bytes, &query).map(|found| !found.is_empty());
    expect(!written()?)?;
    page.store(2);
    expect(written()?)
}

/// What `si_code` a poisoned page gives: BUS_MCEERR_AR, or BUS_ADRERR on kernels without memory-failure handling.
///
/// The child shares the address space but not the signal handlers (CLONE_VM without CLONE_SIGHAND), so there is no copy
/// of page tables, no COW to spoil later moves, no FORK event, and the process never sees the signal.
pub(super) fn poison_signal_code() -> Option<i32> {
    let armed = poisoned().ok()?;
    let stack = Pages::new(16).ok()?;
    let top = (stack.address + stack.bytes) as *mut libc::c_void;
    let page = armed.page.address as *mut libc::c_void;
    // SAFETY: the child runs on a stack of its own while this thread waits (CLONE_VFORK), makes only raw system calls,
    // and ends by _exit; the stack grows down on every machine this crate knows.
    let child = unsafe { libc::clone(touch_and_exit, top, libc::CLONE_VM | libc::CLONE_VFORK, page) };
    if child < 0 {
        return None;
    }
    let mut status = 0;
    // SAFETY: the child is ours, has no exit signal (hence __WALL), and nobody else waits for such children.
    let waited = unsafe { libc::waitpid(child, &mut status, libc::__WALL) };
    let code = if waited == child && libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 0 };
    (code != 0).then_some(code)
}

/// The child: sets its handler, lets SIGBUS through, touches the page.
extern "C" fn touch_and_exit(page: *mut libc::c_void) -> libc::c_int {
    // SAFETY: zero is a valid sigaction and a valid, empty sigset; the calls change this child's signals only; the page
    // is mapped and poisoned, so that the load ends in the handler, which does not return.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = note_and_exit as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        let mut bus: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut bus, libc::SIGBUS);
        libc::sigprocmask(libc::SIG_UNBLOCK, &bus, std::ptr::null_mut());
        page.cast::<u8>().read_volatile();
        libc::_exit(0)
    }
}

extern "C" fn note_and_exit(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler; _exit ends the child without running anything, with
    // the code as its status.
    unsafe { libc::_exit((*info).si_code) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CopyMode;

    #[test]
    fn copy_makes_a_lazy_page_readable() {
        let Ok(armed) = Armed::new(Features::NONE, RegisterModes::MISSING) else {
            eprintln!("skipped: userfaultfd is refused here");
            return;
        };
        let bytes = vec![7u8; page_size()];
        let (dst, src) = (armed.page.address, bytes.as_ptr() as usize);
        assert_eq!(armed.fd.handle().copy(dst, src, bytes.len(), CopyMode::NONE), Outcome::Done);
        assert_eq!(armed.page.load(), 7);
    }
}
