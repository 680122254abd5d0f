//! Does the pager still answer? One that is stopped, or stuck, is killed: then another takes over.
//!
//! While somebody waits, the pager's own clock answers what takes too long and says that it looks. So whoever waits although it
//! does not look waits for nobody. What the kernel has of a descriptor tells whether somebody does.
//!
//! *Threads*: the watcher.

use super::owner::Pager;
use crate::futex::now_ns;
use crate::proc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often the watcher looks.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How long a pager may take to say that it runs.
const START_LIMIT: Duration = Duration::from_secs(20);
/// A pager may take so long to look, whatever a touch may wait: its threads need their turns of the CPU.
const LEAST: Duration = Duration::from_millis(500);
/// Looks that were so late say nothing: this process was stopped itself.
const LATE: Duration = Duration::from_millis(500);

/// What is remembered between two looks.
#[derive(Default)]
pub struct Suspicion {
    /// Messages that nobody reads: how many were read when it began.
    unread: Option<(u64, Instant)>,
    /// Somebody waits, and the pager does not look.
    silent: Option<Instant>,
    last: Option<Instant>,
}

/// How often to look.
pub fn look_every(pager: &Pager) -> Duration {
    (shortest(pager) / 8).clamp(LOOK.0, LOOK.1)
}

/// The shortest time that a touch may wait in one of its regions.
fn shortest(pager: &Pager) -> Duration {
    let state = pager.state();
    let timeouts = state.regions.iter().map(|entry| Duration::from_nanos(entry.attach.timeout_ns));
    timeouts.min().unwrap_or(LOOK.1 * 8)
}

/// Should it be killed?
pub fn hangs(pager: &Pager, seen: &mut Suspicion) -> bool {
    let (now, limit) = (Instant::now(), shortest(pager).max(LEAST));
    let starting = pager.state().running.as_ref().map(|running| (running.started, running.since.elapsed()));
    let was_stopped = seen.last.is_some_and(|last| now - last > look_every(pager) + LATE);
    seen.last = Some(now);
    if was_stopped {
        (seen.unread, seen.silent) = (None, None);
        return false;
    }
    match starting {
        Some((false, since)) => since > START_LIMIT,
        Some((true, _)) => is_silent(pager, seen, now, limit),
        None => false,
    }
}

fn is_silent(pager: &Pager, seen: &mut Suspicion, now: Instant, limit: Duration) -> bool {
    let header = pager.kept.header;
    let (unread, waiting) = waiting(pager);
    let alive = header.alive_ns.load(Ordering::SeqCst);
    let stale = alive != 0 && now_ns().saturating_sub(alive) > limit.as_nanos() as u64;
    if waiting == 0 && !pager.state().is_waiting() {
        (seen.unread, seen.silent) = (None, None);
        return false;
    }
    let reads = header.reads.load(Ordering::SeqCst);
    match seen.unread {
        _ if unread == 0 => seen.unread = None,
        Some((before, _)) if before == reads => {}
        _ => seen.unread = Some((reads, now)),
    }
    if alive != 0 {
        seen.silent = None;
    }
    let silent = alive == 0 && now - *seen.silent.get_or_insert(now) > limit;
    stale || silent || seen.unread.is_some_and(|(_, since)| now - since > limit)
}

/// Messages that nobody has read, and those whose threads still wait (fdinfo in this thread's descriptor table).
fn waiting(pager: &Pager) -> (u64, u64) {
    let mut room = [0; 512];
    let file = proc::open(format_args!("/proc/thread-self/fdinfo/{}", pager.kept.handle.as_raw_fd()));
    let text = file.as_ref().and_then(|file| proc::read(file, &mut room)).unwrap_or_default();
    let number = |name: &[u8]| {
        let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
        std::str::from_utf8(line.trim_ascii()).ok()?.parse().ok()
    };
    (number(b"pending:").unwrap_or(0), number(b"total:").unwrap_or(0))
}
