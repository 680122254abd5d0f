//! Events of the address space, and what they do to operations meanwhile.

mod support;

use std::sync::{Mutex, PoisonError};
use support::*;
use uffd::{CopyMode, Event, Features, Outcome, RegisterModes, Userfaultfd, page_size};

#[test]
fn remove_makes_operations_retry_until_it_is_read() {
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(2, RegisterModes::MISSING, Features::EVENT_REMOVE) else { return };
    let (handle, bytes) = (fd.handle(), filled(5, 1));
    let copy = |page| handle.copy(page, bytes.as_ptr() as usize, page_size(), CopyMode::NONE);
    assert_eq!(copy(memory.page(0)), Outcome::Done);
    let (at, len, last) = (memory.at, memory.len, memory.page(1));
    let advised = toucher(move || {
        let memory = std::mem::ManuallyDrop::new(Memory { at, len });
        memory.advise(libc::MADV_DONTNEED)
    });
    while copy(last) != Outcome::Retry {
        std::thread::yield_now();
        assert!(advised.try_recv().is_err(), "madvise went through without its event being read");
    }
    assert_eq!(memory.load(0), 5, "still present before the event is read");
    let events = next_events(handle);
    assert!(matches!(events[..], [Event::Remove { start, end }] if (start, end) == (at, at + len)), "{events:?}");
    assert_eq!(advised.recv_timeout(SOON), Ok(Ok(())));
    assert_eq!(copy(memory.page(0)), Outcome::Done, "gone afterwards");
}

#[test]
fn unmap_is_told_after_the_deed() {
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(2, RegisterModes::MISSING, Features::EVENT_UNMAP) else { return };
    let (at, len) = (memory.at, memory.len);
    // Dropping unmaps, and waits until the event is read.
    let unmapped = toucher(move || drop(memory));
    let events = next_events(fd.handle());
    assert!(matches!(events[..], [Event::Unmap { start, end }] if (start, end) == (at, at + len)), "{events:?}");
    unmapped.recv_timeout(SOON).unwrap();
}

#[test]
fn remap_carries_the_registration_along() {
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(1, RegisterModes::MISSING, Features::EVENT_REMAP) else { return };
    let memory = std::mem::ManuallyDrop::new(memory);
    let target = Memory::private(1);
    let (from, to, len) = (memory.at, target.at, memory.len);
    let moved = toucher(move || {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both ranges are ours; the target's old page goes.
        unsafe { libc::mremap(from as *mut libc::c_void, len, len, flags, to as *mut libc::c_void) as usize }
    });
    let events = next_events(fd.handle());
    match events[..] {
        [Event::Remap { from: old, to: new, len: bytes }, ..] => assert_eq!((old, new, bytes), (from, to, len)),
        _ => panic!("{events:?}"),
    }
    assert_eq!(moved.recv_timeout(SOON), Ok(to));
    let touched = toucher(move || load(to));
    assert_eq!(next_fault(fd.handle()).address, to);
    assert!(fd.handle().copy(to, filled(2, 1).as_ptr() as usize, len, CopyMode::NONE).is_done());
    assert_eq!(touched.recv_timeout(SOON), Ok(2));
}

/// A child made by fork with EVENT_FORK, which runs `act` and must not allocate in it; and its descriptor.
fn fork_followed(fd: &Userfaultfd, act: extern "C" fn(usize), argument: usize) -> (i32, Userfaultfd) {
    let forked = toucher(move || {
        // SAFETY: the child calls nothing but `act` and _exit, neither of which takes a lock.
        match unsafe { libc::fork() } {
            0 => {
                act(argument);
                // SAFETY: ends the child without running anything of ours.
                unsafe { libc::_exit(0) }
            }
            pid => pid,
        }
    });
    let mut events = next_events(fd.handle());
    let Some(Event::Fork { fd: child }) = events.pop() else { panic!("{events:?}") };
    (forked.recv_timeout(SOON).expect("fork went through"), Userfaultfd::from_owned(child))
}

fn exit_status(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: waits for a child of ours.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status
}

extern "C" fn exit_with_the_byte(page: usize) {
    // SAFETY: ends the child.
    unsafe { libc::_exit(load(page).into()) }
}

extern "C" fn sleep_long(_: usize) {
    // SAFETY: sleeps; bounded, for a test that fails would leave us behind.
    unsafe { libc::sleep(20) };
}

/// A fork is told to every descriptor of the process that asked for it: such tests go one by one.
static ONE_FORK_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn fork_event_owns_a_descriptor_for_the_child() {
    let _turn = ONE_FORK_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(1, RegisterModes::MISSING, Features::EVENT_FORK) else { return };
    let (pid, child) = fork_followed(&fd, exit_with_the_byte, memory.at);
    assert_eq!(next_fault(child.handle()).address, memory.at);
    assert!(child.handle().copy(memory.at, filled(33, 1).as_ptr() as usize, memory.len, CopyMode::NONE).is_done());
    let status = exit_status(pid);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 33, "{status:#x}");
}

#[test]
fn operations_on_a_dead_process_say_gone() {
    let _turn = ONE_FORK_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(1, RegisterModes::MISSING, Features::EVENT_FORK) else { return };
    let (pid, child) = fork_followed(&fd, sleep_long, 0);
    // SAFETY: kills a child of ours.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    exit_status(pid);
    let (handle, bytes) = (child.handle(), filled(1, 1));
    assert_eq!(handle.copy(memory.at, bytes.as_ptr() as usize, memory.len, CopyMode::NONE), Outcome::Gone);
    assert_eq!(handle.zeropage(memory.at, memory.len, uffd::Wake::Yes), Outcome::Gone);
    assert_eq!(handle.wake(memory.at, memory.len), Ok(()));
}
