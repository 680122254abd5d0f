//! REGISTER and UNREGISTER: what may be registered, and what happens to waiters.

mod support;

use support::*;
use uffd::{Errno, Features, Ioctls, RegisterModes, Wake, page_size};

const EINVAL: Result<Ioctls, Errno> = Err(Errno(libc::EINVAL));

#[test]
fn register_refuses_what_is_not_whole_pages_of_something() {
    let (Some(fd), memory) = (open(Features::NONE), Memory::private(4)) else { return };
    let (handle, page) = (fd.handle(), page_size());
    // SAFETY: all of these fail, but for the last, whose memory nobody touches.
    unsafe {
        assert_eq!(handle.register(memory.at + 1, page, RegisterModes::MISSING), EINVAL);
        assert_eq!(handle.register(memory.at, page - 1, RegisterModes::MISSING), EINVAL);
        assert_eq!(handle.register(memory.at, 0, RegisterModes::MISSING), EINVAL);
        assert_eq!(handle.register(memory.at, page, RegisterModes::NONE), EINVAL);
        assert_eq!(handle.register(memory.at, page, RegisterModes(1 << 20)), EINVAL);
        assert_eq!(handle.register(memory.at, page, RegisterModes::MINOR), EINVAL);
        assert!(handle.register(memory.at, page, RegisterModes::MISSING).is_ok());
    }
}

#[test]
fn register_grants_the_operations_of_private_memory() {
    let Some(fd) = open(Features::NONE) else { return };
    let granted = register(&fd, &Memory::private(1), RegisterModes::MISSING | RegisterModes::WP).unwrap();
    assert!(granted.contains(Ioctls::WAKE | Ioctls::COPY | Ioctls::ZEROPAGE | Ioctls::WRITEPROTECT));
    assert!(!granted.contains(Ioctls::CONTINUE));
}

#[test]
fn register_by_a_second_descriptor_is_busy() {
    let (Some((_fd, memory)), Some(other)) = (armed(2, RegisterModes::MISSING, Features::NONE), open(Features::NONE))
    else {
        return;
    };
    assert_eq!(register(&other, &memory, RegisterModes::MISSING), Err(Errno(libc::EBUSY)));
}

#[test]
fn register_of_a_write_sealed_file_is_forbidden() {
    let Some(fd) = open(Features::NONE) else { return };
    let file = memfd(1);
    // SAFETY: a descriptor of ours; the mapping is read-only, hence made by hand.
    let at = unsafe {
        libc::fcntl(file, libc::F_ADD_SEALS, libc::F_SEAL_WRITE);
        libc::mmap(std::ptr::null_mut(), page_size(), libc::PROT_READ, libc::MAP_SHARED, file, 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    let memory = Memory { at: at as usize, len: page_size() };
    assert_eq!(register(&fd, &memory, RegisterModes::MISSING), Err(Errno(libc::EPERM)));
}

#[test]
fn register_takes_all_mappings_or_none() {
    let Some(fd) = open(Features::NONE) else { return };
    let memory = Memory::private(3);
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    // SAFETY: the middle page of our own mapping is replaced by a file's, which cannot fault so.
    let replaced = unsafe {
        use std::os::fd::AsRawFd;
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        libc::mmap(memory.page(1) as *mut libc::c_void, page_size(), libc::PROT_READ, flags, file.as_raw_fd(), 0)
    };
    assert_ne!(replaced, libc::MAP_FAILED);
    assert_eq!(register(&fd, &memory, RegisterModes::MISSING), EINVAL);
    assert_eq!(memory.load(0), 0, "the first page was not registered");
}

#[test]
fn present_pages_never_fault() {
    let _limit = Limit::seconds(20);
    let Some(fd) = open(Features::NONE) else { return };
    let memory = Memory::private(1);
    memory.store(0, 5);
    register(&fd, &memory, RegisterModes::MISSING).unwrap();
    assert_eq!(memory.load(0), 5);
    assert_eq!(fd.handle().read_events().err(), Some(Errno(libc::EAGAIN)));
}

#[test]
fn unregister_wakes_a_missing_waiter_with_zeros() {
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(1, RegisterModes::MISSING, Features::NONE) else { return };
    let page = memory.page(0);
    let touched = toucher(move || load(page));
    next_fault(fd.handle());
    // SAFETY: that the page becomes zero is what the test looks for.
    unsafe { fd.handle().unregister(memory.at, memory.len).unwrap() };
    assert_eq!(touched.recv_timeout(SOON), Ok(0));
}

#[test]
fn unregister_by_a_second_descriptor_is_refused() {
    let _limit = Limit::seconds(20);
    let (Some((fd, memory)), Some(other)) = (armed(1, RegisterModes::MISSING, Features::NONE), open(Features::NONE))
    else {
        return;
    };
    // SAFETY: it fails; were it to succeed, the test would see no message.
    let result = unsafe { other.handle().unregister(memory.at, memory.len) };
    assert_eq!(result, Err(Errno(libc::EINVAL)));
    let page = memory.page(0);
    let touched = toucher(move || load(page));
    assert_eq!(next_fault(fd.handle()).address, page);
    assert!(fd.handle().zeropage(page, memory.len, Wake::Yes).is_done());
    assert_eq!(touched.recv_timeout(SOON), Ok(0));
}
