//! What wakes the clock, and the end that is left when it finds that nothing goes on.
//!
//! *Locks*: none. *Threads*: any.

use super::Server;
use crate::futex::{Bell, now_ns};
use crate::say::say;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often the clock looks while somebody waits.
pub const TICK: Duration = Duration::from_millis(5);
/// How a pager ends that cannot go on: another one can.
const STUCK: libc::c_int = 75;

/// The state of the clock.
#[derive(Default)]
pub struct Alarm {
    pub asleep: AtomicBool,
    pub bell: Bell,
    pub probing: AtomicBool,
    pub only_reads: AtomicBool,
}

/// Somebody waits: called for each message, so it costs a load where the clock ticks already.
pub fn wake(server: &Server) {
    if server.clock.asleep.load(Ordering::SeqCst) {
        server.header.alive_ns.store(now_ns(), Ordering::SeqCst);
        server.clock.bell.ring();
    }
}

/// End; the owner starts another pager.
pub fn give_up(why: std::fmt::Arguments<'_>) -> ! {
    say(why);
    // SAFETY: ends the process, without waiting for anybody.
    unsafe { libc::_exit(STUCK) }
}
