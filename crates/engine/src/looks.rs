//! What a thread that waits for a page does, as far as /proc tells: is it in user code, and where there?
//!
//! *Locks*: none. *Threads*: engine threads. *Blocks on*: [`comes_to_wait_in_user_code`] until that is known.

use crate::directed::{self, Place};
use crate::proc;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// What a thread does, as far as /proc tells.
pub enum Doing {
    /// It waits in user code.
    Waits(Place),
    /// It waits in a system call, or is none of ours, or nobody can tell.
    Other,
    /// It runs: it is on its way to sleep, or it spins in a system call over a signal that it cannot handle there.
    Runs,
}

/// What a reader knows of the threads that it told last.
#[derive(Default)]
pub struct Looks {
    known: [Option<(i32, OwnedFd)>; 4],
    next: usize,
}

/// Looks at a thread that runs, before somebody with more time looks.
const TRIES: usize = 20;

impl Looks {
    fn open(&mut self, thread: i32) -> usize {
        self.next = (self.next + 1) % self.known.len();
        self.known[self.next] = proc::open(format_args!("/proc/self/task/{thread}/syscall")).map(|file| (thread, file));
        self.next
    }

    /// What this thread does now; a thread that runs is given a moment to come to rest.
    pub fn at(&mut self, thread: i32) -> Doing {
        self.in_so_many(TRIES, thread)
    }

    /// What this thread does right now.
    pub fn at_once(&mut self, thread: i32) -> Doing {
        self.in_so_many(1, thread)
    }

    fn in_so_many(&mut self, tries: usize, thread: i32) -> Doing {
        let known = self.known.iter().position(|known| known.as_ref().is_some_and(|(id, _)| *id == thread));
        let mut index = known.unwrap_or_else(|| self.open(thread));
        for _ in 0..tries {
            let mut room = [0; 256];
            let Some((_, file)) = &self.known[index] else { return Doing::Other };
            match proc::read(file, &mut room) {
                Some(text) if text.first() == Some(&b'r') => {}
                Some(text) => return place_in(text).map_or(Doing::Other, Doing::Waits),
                None => {
                    // Of a thread that is gone; the number may be another's by now.
                    self.known[index] = None;
                    index = self.open(thread);
                }
            }
            // SAFETY: sched_yield has no preconditions.
            unsafe { libc::sched_yield() };
        }
        Doing::Runs
    }
}

/// "-1 STACK INSTRUCTION" (proc(5)): it waits outside any system call. Threads of the kernel's have neither.
fn place_in(text: &[u8]) -> Option<Place> {
    let text = std::str::from_utf8(text).ok()?;
    let (stack, instruction) = text.strip_prefix("-1 0x")?.trim_ascii_end().split_once(" 0x")?;
    let place = Place {
        instruction: usize::from_str_radix(instruction, 16).ok()?,
        stack: usize::from_str_radix(stack, 16).ok()?,
    };
    (place.instruction != 0 && place.stack != 0).then_some(place)
}

/// Does a thread block the signal that it would be told by? Asked once for each.
pub fn blocks_signal(thread: i32) -> bool {
    let Some(file) = proc::open(format_args!("/proc/self/task/{thread}/status")) else { return true };
    let mut room = [0; 4096];
    let status = proc::read(&file, &mut room).unwrap_or_default();
    let mask = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"SigBlk:"));
    let mask = mask.and_then(|mask| std::str::from_utf8(mask.trim_ascii()).ok());
    let bit = 1u64 << (directed::signal() - 1).clamp(0, 63);
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_none_or(|mask| mask & bit != 0)
}

/// A thread that has used this much time while it was said to run spins in a system call: on its way to sleep it needs none.
const SPUN: Duration = Duration::from_millis(1);
/// One whose time cannot be read, and that was not seen to come to rest in this time, is taken for one that spins.
const NEVER_RESTS: Duration = Duration::from_secs(1);

/// Does a thread that runs come to wait in user code? Takes the time that it takes to know: one that others keep from the CPUs on
/// its way to sleep may hold the language's lock, and nobody who needs that must answer it.
#[must_use]
pub fn comes_to_wait_in_user_code(thread: i32) -> bool {
    let (began, before) = (Instant::now(), time_used(thread));
    let mut looks = Looks::default();
    loop {
        match looks.at(thread) {
            Doing::Waits(_) => return true,
            Doing::Other => return false,
            Doing::Runs => std::thread::sleep(SPUN),
        }
        if spins(before, time_used(thread), began.elapsed()) {
            return false;
        }
    }
}

fn spins(before: Option<Duration>, now: Option<Duration>, watched: Duration) -> bool {
    match before.zip(now) {
        Some((before, now)) => now.saturating_sub(before) > SPUN,
        None => watched > NEVER_RESTS,
    }
}

/// Processor time of a thread (the first number of its schedstat), where the kernel tells.
fn time_used(thread: i32) -> Option<Duration> {
    let mut room = [0; 128];
    let told = proc::open(format_args!("/proc/self/task/{thread}/schedstat"))?;
    let first = proc::read(&told, &mut room)?.split(|byte| *byte == b' ').next()?;
    // A kernel that does not count says 0.
    let nanoseconds = std::str::from_utf8(first).ok()?.parse().ok().filter(|spent| *spent > 0)?;
    Some(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_in_user_code_has_a_place_and_one_in_a_system_call_has_none() {
        let place = Place { instruction: 0x7f12, stack: 0x7ffe };
        assert_eq!(place_in(b"-1 0x7ffe 0x7f12\n"), Some(place));
        for other in ["0 0x3 0x7f 0x1 0x0 0x0 0x0 0x7ffe 0x7f12\n", "running\n", "-1 0x0 0x0\n", ""] {
            assert_eq!(place_in(other.as_bytes()), None, "{other:?}");
        }
    }

    #[test]
    fn a_thread_that_gets_no_cpu_does_not_spin() {
        let (ms, minute) = (|count| Some(Duration::from_millis(count)), Duration::from_secs(60));
        assert!(!spins(ms(5), ms(5), minute));
        assert!(spins(ms(5), ms(8), Duration::ZERO));
        assert!(spins(None, None, minute) && !spins(None, None, Duration::ZERO));
    }

    #[test]
    fn a_thread_that_spins_does_not_come_to_rest_and_one_that_is_gone_is_no_toucher() {
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let stop = &stop;
            scope.spawn(move || {
                tell.send(crate::threads::thread_id()).unwrap();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {}
            });
            assert!(!comes_to_wait_in_user_code(told.recv().unwrap()));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(!comes_to_wait_in_user_code(i32::MAX));
    }
}
