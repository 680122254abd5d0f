//! Opening, the handshake, counters, the probe.

mod support;

use std::os::fd::AsRawFd;
use support::*;
use uffd::{
    Capabilities, Errno, Features, OpenError, OpenOptions, RegisterModes, UffdMsg, Userfaultfd, Via, supported_features,
};

const EINVAL: Errno = Errno(libc::EINVAL);

fn unshaken() -> Option<Userfaultfd> {
    let options = OpenOptions { nonblocking: true, user_mode_only: true, ..OpenOptions::default() };
    Userfaultfd::open(options).map_err(|why| eprintln!("skipped: {why}")).ok()
}

#[test]
fn descriptor_before_the_handshake_refuses_everything() {
    let Some(fd) = unshaken() else { return };
    assert_eq!(fd.handle().read_messages(&mut [UffdMsg::ZERO]), Err(EINVAL));
    assert_eq!(register(&fd, &Memory::private(1), RegisterModes::MISSING), Err(EINVAL));
}

#[test]
fn second_handshake_fails_and_leaves_the_descriptor_working() {
    let Some(fd) = unshaken() else { return };
    let all = fd.handshake(Features::THREAD_ID).unwrap();
    assert!(all.contains(Features::THREAD_ID));
    assert_eq!(all, supported_features().unwrap());
    assert_eq!(fd.handshake(Features::NONE), Err(EINVAL));
    register(&fd, &Memory::private(1), RegisterModes::MISSING).unwrap();
    assert_eq!(fd.handle().fdinfo().unwrap().features, Features::THREAD_ID);
}

#[test]
fn unknown_feature_is_named_in_the_error() {
    if unshaken().is_none() {
        return;
    }
    let options = OpenOptions { user_mode_only: true, ..OpenOptions::default() };
    let wanted = Features(1 << 40) | Features::THREAD_ID;
    match Userfaultfd::open_with(options, wanted) {
        Err(OpenError::Unsupported { missing, .. }) => assert_eq!(missing, Features(1 << 40)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn descriptor_is_close_on_exec_by_either_door() {
    for via in [Via::Auto, Via::Syscall, Via::Device] {
        let options = OpenOptions { user_mode_only: true, nonblocking: true, via };
        let Ok(fd) = Userfaultfd::open(options) else { continue };
        // SAFETY: reading flags of a descriptor.
        let (flags, status) =
            unsafe { (libc::fcntl(fd.as_raw_fd(), libc::F_GETFD), libc::fcntl(fd.as_raw_fd(), libc::F_GETFL)) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        assert_eq!(status & libc::O_NONBLOCK, libc::O_NONBLOCK);
    }
}

#[test]
fn refusal_tells_both_errnos_and_one_command() {
    let refused = OpenError::Refused {
        device: Some(Errno(libc::EACCES)),
        syscall: Some(Errno(libc::EPERM)),
        user_mode_only: false,
    };
    let text = refused.to_string();
    assert!(text.contains("/dev/userfaultfd EACCES") && text.contains("userfaultfd(2) EPERM"), "{text}");
    assert!(refused.hint().is_some_and(|hint| hint.contains("/dev/userfaultfd")));
    assert_eq!(refused.errno(), Errno(libc::EPERM));
}

#[test]
fn clone_keeps_the_registration_alive() {
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(1, RegisterModes::MISSING, Features::NONE) else { return };
    let kept = fd.try_clone().unwrap();
    drop(fd);
    let page = memory.page(0);
    let touched = toucher(move || load(page));
    assert_eq!(next_fault(kept.handle()).address, page);
    assert!(kept.handle().copy(page, filled(9, 1).as_ptr() as usize, memory.len, uffd::CopyMode::NONE).is_done());
    assert_eq!(touched.recv_timeout(SOON), Ok(9));
}

#[test]
fn last_close_wakes_the_waiter_with_zeros() {
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(1, RegisterModes::MISSING, Features::NONE) else { return };
    let page = memory.page(0);
    let touched = toucher(move || load(page));
    next_fault(fd.handle());
    drop(fd);
    assert_eq!(touched.recv_timeout(SOON), Ok(0));
}

#[test]
fn fdinfo_counts_unread_and_waiting_faults() {
    let _limit = Limit::seconds(20);
    let Some((fd, memory)) = armed(2, RegisterModes::MISSING, Features::NONE) else { return };
    let handle = fd.handle();
    let touched: Vec<_> = [memory.page(0), memory.page(1)].map(|page| toucher(move || load(page))).into();
    while handle.fdinfo().unwrap().pending < 2 {
        std::thread::yield_now();
    }
    next_fault(handle);
    let info = handle.fdinfo().unwrap();
    assert_eq!((info.pending, info.total, info.initialised), (1, 2, true));
    assert!(handle.zeropage(memory.at, memory.len, uffd::Wake::Yes).is_done());
    for receiver in touched {
        assert_eq!(receiver.recv_timeout(SOON), Ok(0));
    }
    assert_eq!(handle.fdinfo().unwrap().total, 0);
}

#[test]
fn probe_agrees_with_itself_from_many_threads() {
    let _limit = Limit::seconds(20);
    let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(Capabilities::probe)).collect();
    for thread in threads {
        let found = thread.join().unwrap();
        if let Ok(features) = found.features {
            assert_eq!(found.move_pages.is_ok(), features.contains(Features::MOVE), "{found:?}");
            assert_eq!(found.poison.is_ok(), features.contains(Features::POISON), "{found:?}");
            assert_eq!(found.poison_signal_code.is_some(), found.poison.is_ok(), "{found:?}");
        }
        assert!(found.kernel_faults() || found.hint.is_some(), "{found:?}");
    }
}
