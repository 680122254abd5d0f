//! What was mapped is gone when a later step fails. A seccomp filter on one thread makes system calls fail.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use engine::mapping::{map_ordinary, map_private, map_shared};
use engine::stock::Stock;
use std::sync::{Mutex, PoisonError};
use uffd::{Features, OpenOptions, Userfaultfd};

/// Bytes of one mapping, and how often it is tried: leaks would be seen beside what threads and allocators map.
const BYTES: usize = 256 << 20;
const TRIES: usize = 16;

/// Tests measure the whole process, so one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A system call that is to fail with ENOMEM when one of its arguments has one of these bits.
#[derive(Clone, Copy)]
struct Refused {
    call: libc::c_long,
    argument: u32,
    value: Value,
}

#[derive(Clone, Copy)]
enum Value {
    Is(u32),
    HasBit(u32),
}

const NO_DONTFORK: Refused =
    Refused { call: libc::SYS_madvise, argument: 2, value: Value::Is(libc::MADV_DONTFORK as u32) };
const NO_FIXED: Refused = Refused { call: libc::SYS_mmap, argument: 3, value: Value::HasBit(libc::MAP_FIXED as u32) };
const NO_ACCESS: Refused =
    Refused { call: libc::SYS_mprotect, argument: 2, value: Value::Is((libc::PROT_READ | libc::PROT_WRITE) as u32) };
const NO_REGISTER: Refused =
    Refused { call: libc::SYS_ioctl, argument: 1, value: Value::Is(uffd::abi::UFFDIO_REGISTER) };

/// Where struct seccomp_data has the low half of an argument (little-endian).
const fn place_of(argument: u32) -> u32 {
    16 + 8 * argument
}

fn instruction(code: u32, jump: (u8, u8), k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: jump.0, jf: jump.1, k }
}

/// From here on, in this thread.
fn refuse(refused: Refused) {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let jump = libc::BPF_JMP | libc::BPF_K;
    let (test, k) = match refused.value {
        Value::Is(value) => (jump | libc::BPF_JEQ, value),
        Value::HasBit(bit) => (jump | libc::BPF_JSET, bit),
    };
    let mut program = [
        instruction(load, (0, 0), 0),
        instruction(jump | libc::BPF_JEQ, (0, 3), refused.call as u32),
        instruction(load, (0, 0), place_of(refused.argument)),
        instruction(test, (0, 1), k),
        instruction(libc::BPF_RET, (0, 0), libc::SECCOMP_RET_ERRNO | libc::ENOMEM as u32),
        instruction(libc::BPF_RET, (0, 0), libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program is valid for the calls, which change this thread alone.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
}

/// A descriptor, or the reason why the test is skipped.
fn open() -> Option<Userfaultfd> {
    let options = OpenOptions { user_mode_only: true, ..OpenOptions::default() };
    Userfaultfd::open_with(options, Features::NONE).map_err(|why| eprintln!("skipped: {why}")).ok()
}

/// Address space of this process, bytes.
fn mapped() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').next().unwrap().parse::<usize>().unwrap() * uffd::page_size()
}

/// Try in a thread where a system call is refused; how much more is mapped after it.
fn growth(refused: Refused, work: impl Fn() + Sync) -> isize {
    std::thread::scope(|scope| {
        let measure = || {
            refuse(refused);
            let before = mapped();
            (0..TRIES).for_each(|_| work());
            mapped() as isize - before as isize
        };
        scope.spawn(measure).join().unwrap()
    })
}

#[test]
fn mappings_that_cannot_be_finished_are_unmapped() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let check = |refused, work: fn()| {
        let grown = growth(refused, work);
        assert!(grown < BYTES as isize, "{} MiB more are mapped", grown >> 20);
    };
    check(NO_DONTFORK, || drop(map_private(BYTES, false).unwrap_err()));
    check(NO_DONTFORK, || drop(map_shared(BYTES).unwrap_err()));
    check(NO_FIXED, || drop(map_shared(BYTES).unwrap_err()));
    check(NO_ACCESS, || drop(map_ordinary(BYTES).unwrap_err()));
}

#[test]
fn staging_that_cannot_be_registered_is_unmapped() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(uffd) = open() else { return };
    let handle = uffd.handle();
    let unit = 64 << 20; // two slots
    for refused in [NO_REGISTER, NO_ACCESS] {
        let grown = growth(refused, || drop(Stock::new(unit, false, handle).map(|_| ()).unwrap_err()));
        assert!(grown < 2 * unit as isize, "{} MiB more are mapped", grown >> 20);
    }
}

#[test]
fn a_slot_that_cannot_be_registered_again_is_empty_and_never_named_again() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(uffd) = open() else { return };
    let handle = uffd.handle();
    let unit = 2 << 20; // sixteen slots
    let stock = Stock::new(unit, true, handle).unwrap();
    let start = stock.take_hole().map(|slot| (stock.address(&slot), stock.put_hole(slot)).0).unwrap();
    growth(NO_REGISTER, || assert!(stock.make_fresh(handle).is_none()));
    assert!(!engine::mapping::is_resident(start));
    assert!(stock.take_hole().is_none());
    assert!(stock.take_populated().is_none());
    let before = mapped();
    drop(stock);
    assert!(before - mapped() >= 16 * unit, "staging is given back");
}
