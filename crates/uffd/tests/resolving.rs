//! The operations that bring pages, and the outcomes they have.

mod support;

use support::*;
use uffd::{
    ContinueMode, CopyMode, Errno, FaultFlags, Features, MoveMode, Outcome, ProtectMode, RegisterModes, Wake, page_size,
};

#[test]
fn copy_answers_the_fault_that_was_read() {
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(2, RegisterModes::MISSING, Features::THREAD_ID) else { return };
    let page = memory.page(1);
    let touched = toucher(move || {
        // SAFETY: gettid touches no memory.
        (load(page + 5), unsafe { libc::gettid() })
    });
    let fault = next_fault(fd.handle());
    assert_eq!((fault.address, fault.flags), (page, FaultFlags::NONE));
    assert!(fault.flags.is_missing());
    assert_eq!(fd.handle().copy(page, filled(7, 1).as_ptr() as usize, page_size(), CopyMode::NONE), Outcome::Done);
    let (value, tid) = touched.recv_timeout(SOON).unwrap();
    assert_eq!((value, tid), (7, fault.tid));
}

#[test]
fn exact_address_names_the_byte() {
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(1, RegisterModes::MISSING, Features::EXACT_ADDRESS) else { return };
    let page = memory.page(0);
    let touched = toucher(move || store(page + 123, 1));
    let fault = next_fault(fd.handle());
    assert_eq!((fault.address, fault.flags), (page + 123, FaultFlags::WRITE));
    assert!(fd.handle().zeropage(page, page_size(), Wake::Yes).is_done());
    touched.recv_timeout(SOON).unwrap();
}

#[test]
fn copy_over_present_pages_is_partial_and_then_exists() {
    let Some((fd, memory)) = armed(4, RegisterModes::MISSING, Features::NONE) else { return };
    let (handle, bytes, page) = (fd.handle(), filled(1, 4), page_size());
    let source = bytes.as_ptr() as usize;
    assert_eq!(handle.copy(memory.page(2), source, page, CopyMode::NONE), Outcome::Done);
    assert_eq!(handle.copy(memory.at, source, 4 * page, CopyMode::NONE), Outcome::Partial(2 * page));
    assert_eq!(handle.copy(memory.page(2), source, 2 * page, CopyMode::NONE), Outcome::Exists);
    assert_eq!(handle.copy(memory.page(3), source, page, CopyMode::NONE), Outcome::Done);
}

#[test]
fn copy_with_bad_arguments_fails_with_the_errno() {
    let Some((fd, memory)) = armed(1, RegisterModes::MISSING, Features::NONE) else { return };
    let (handle, bytes, page) = (fd.handle(), filled(1, 1), page_size());
    let source = bytes.as_ptr() as usize;
    let failed = |errno| Outcome::Failed(Errno(errno));
    assert_eq!(handle.copy(memory.at + 1, source, page, CopyMode::NONE), failed(libc::EINVAL));
    assert_eq!(handle.copy(memory.at, source, 0, CopyMode::NONE), failed(libc::EINVAL));
    assert_eq!(handle.copy(memory.at, source, page, CopyMode(1 << 9)), failed(libc::EINVAL));
    assert_eq!(handle.copy(memory.at, source, page, CopyMode::WP), failed(libc::EINVAL));
    assert_eq!(handle.copy(memory.at, 0x10, page, CopyMode::NONE), failed(libc::EFAULT));
    let elsewhere = Memory::private(1);
    assert_eq!(handle.copy(elsewhere.at, source, page, CopyMode::NONE), failed(libc::ENOENT));
}

#[test]
fn exists_wakes_nobody_until_wake_does() {
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(1, RegisterModes::MISSING, Features::NONE) else { return };
    let (handle, page, bytes) = (fd.handle(), memory.page(0), filled(3, 1));
    let touched = toucher(move || load(page));
    next_fault(handle);
    let source = bytes.as_ptr() as usize;
    assert_eq!(handle.copy(page, source, memory.len, CopyMode::DONTWAKE), Outcome::Done);
    assert_eq!(handle.copy(page, source, memory.len, CopyMode::NONE), Outcome::Exists);
    assert!(touched.recv_timeout(A_WHILE).is_err(), "woken by an operation that did nothing");
    handle.wake(page, memory.len).unwrap();
    assert_eq!(touched.recv_timeout(SOON), Ok(3));
}

#[test]
fn wake_without_a_page_brings_a_new_message() {
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(1, RegisterModes::MISSING, Features::NONE) else { return };
    let (handle, page) = (fd.handle(), memory.page(0));
    let touched = toucher(move || load(page));
    next_fault(handle);
    handle.wake(page, memory.len).unwrap();
    assert_eq!(next_fault(handle).address, page);
    assert!(handle.zeropage(page, memory.len, Wake::Yes).is_done());
    assert_eq!(touched.recv_timeout(SOON), Ok(0));
}

#[test]
fn poison_is_lifted_by_copy_only() {
    let Some((fd, memory)) = armed(1, RegisterModes::MISSING, Features::POISON) else { return };
    let (handle, bytes) = (fd.handle(), filled(4, 1));
    assert_eq!(handle.poison(memory.at, memory.len, Wake::Yes), Outcome::Done);
    assert_eq!(memory.advise(libc::MADV_POPULATE_READ), Err(Errno(libc::EHWPOISON)));
    assert_eq!(handle.poison(memory.at, memory.len, Wake::Yes), Outcome::Exists);
    assert_eq!(handle.zeropage(memory.at, memory.len, Wake::Yes), Outcome::Exists);
    assert_eq!(handle.copy(memory.at, bytes.as_ptr() as usize, memory.len, CopyMode::NONE), Outcome::Done);
    assert_eq!(memory.load(0), 4);
}

#[test]
fn move_takes_the_page_away_from_its_source() {
    let Some((fd, memory)) = armed(2, RegisterModes::MISSING, Features::MOVE) else { return };
    let source = Memory::private(2);
    (0..2).for_each(|page| source.store(page, 8));
    // SAFETY: the source is ours and wanted empty.
    let outcome = unsafe { fd.handle().move_pages(memory.at, source.at, source.len, MoveMode::NONE) };
    assert_eq!(outcome, Outcome::Done);
    assert_eq!((memory.load(1), source.load(1)), (8, 0));
}

#[test]
fn move_meets_holes_present_pages_and_shared_memory() {
    let Some((fd, memory)) = armed(4, RegisterModes::MISSING, Features::MOVE) else { return };
    let (source, page) = (Memory::private(4), page_size());
    // SAFETY: the sources are ours and wanted empty.
    let moved = |to: usize, from: usize, len, mode| unsafe { fd.handle().move_pages(to, from, len, mode) };
    assert_eq!(moved(memory.at, source.at, page, MoveMode::NONE), Outcome::Failed(Errno(libc::ENOENT)));
    assert_eq!(moved(memory.at, source.at, page, MoveMode::ALLOW_SRC_HOLES), Outcome::Done);
    source.store(0, 1);
    source.store(1, 2);
    assert_eq!(moved(memory.at, source.at, 4 * page, MoveMode::NONE), Outcome::Partial(2 * page));
    source.store(2, 3);
    assert_eq!(moved(memory.at, source.page(2), page, MoveMode::NONE), Outcome::Exists);
    let shared = Memory::map(1, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
    shared.store(0, 1);
    assert_eq!(moved(memory.page(3), shared.at, page, MoveMode::NONE), Outcome::Failed(Errno(libc::EINVAL)));
}

#[test]
fn continue_answers_a_minor_fault() {
    let _limit = Limit::seconds(20);
    let Some(fd) = open(Features::MINOR_SHMEM) else { return };
    let file = memfd(2);
    let (memory, page) = (Memory::map(3, libc::MAP_SHARED, file), page_size());
    register(&fd, &memory, RegisterModes::MINOR | RegisterModes::MISSING).unwrap();
    // SAFETY: one page of ours is written to a file of ours.
    unsafe { libc::pwrite(file, filled(6, 1).as_ptr().cast(), page, 0) };
    let (handle, address) = (fd.handle(), memory.page(0));
    let touched = toucher(move || load(address));
    let fault = next_fault(handle);
    assert_eq!((fault.address, fault.flags), (address, FaultFlags::MINOR));
    assert_eq!(handle.continue_(address, page, ContinueMode::NONE), Outcome::Done);
    assert_eq!(touched.recv_timeout(SOON), Ok(6));
    let failed = |errno| Outcome::Failed(Errno(errno));
    assert_eq!(handle.continue_(address, page, ContinueMode::NONE), Outcome::Exists);
    assert_eq!(handle.continue_(memory.page(1), page, ContinueMode::NONE), failed(libc::EFAULT), "not in the cache");
    assert_eq!(handle.continue_(memory.page(2), page, ContinueMode::NONE), failed(libc::EINVAL), "beyond the end");
}

#[test]
fn write_protection_stops_a_writer_until_it_is_lifted() {
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(1, RegisterModes::WP, Features::NONE) else { return };
    memory.store(0, 1);
    let (handle, page) = (fd.handle(), memory.page(0));
    assert_eq!(handle.write_protect(page, memory.len, ProtectMode::PROTECT), Outcome::Done);
    assert_eq!(memory.load(0), 1, "reading is free");
    let touched = toucher(move || store(page, 2));
    let fault = next_fault(handle);
    assert_eq!(fault.flags, FaultFlags::WRITE | FaultFlags::WP);
    assert_eq!(memory.load(0), 1);
    assert_eq!(handle.write_protect(page, memory.len, ProtectMode::UNPROTECT), Outcome::Done);
    touched.recv_timeout(SOON).unwrap();
    assert_eq!(memory.load(0), 2);
}

#[test]
fn write_protect_of_unregistered_memory_fails() {
    let Some(fd) = open(Features::NONE) else { return };
    let memory = Memory::private(1);
    let outcome = fd.handle().write_protect(memory.at, memory.len, ProtectMode::PROTECT);
    assert_eq!(outcome, Outcome::Failed(Errno(libc::ENOENT)));
}
