//! There is no pager any more: each fault is answered by an error, page by page, as it comes. Poisoning all that is missing at
//! once would cost page tables for a terabyte of holes.
//!
//! *Threads*: the watcher. *Blocks on*: poll(2) on the userfaultfd, which does not block by itself any more.

use super::owner::Pager;
use super::wire;
use crate::cause::{Cause, SourceError};
use crate::counters::Ending;
use crate::latch::is_latched;
use crate::say::abort_with;
use crate::serve::refuse;
use std::sync::Arc;
use uffd::{Fault, UffdMsg};

/// One round; true: it is over, the pager is closed.
pub fn mourn(pager: &Arc<Pager>) -> bool {
    let handle = pager.kept.handle;
    // SAFETY: a flag of our own descriptor; the only other reader is dead.
    unsafe { libc::fcntl(handle.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    let mut messages = [UffdMsg::ZERO; 32];
    loop {
        let state = pager.state();
        if state.closing && state.regions.is_empty() {
            return true;
        }
        let leaving: Vec<u64> =
            state.regions.iter().filter(|entry| entry.detaching).map(|entry| entry.attach.region).collect();
        let how = state.lost.unwrap_or(0);
        drop(state);
        if !leaving.is_empty() {
            leaving.into_iter().for_each(|region| pager.detached(region));
            pager.news.ring_all();
            continue;
        }
        wire::wait_readable([handle.as_raw_fd(), pager.bell], None);
        let mut word = 0u64;
        // SAFETY: eight bytes of room.
        unsafe { libc::read(pager.bell, (&raw mut word).cast(), size_of::<u64>()) };
        match handle.read_messages(&mut messages) {
            Ok(count) => {
                messages[..count].iter().filter_map(UffdMsg::fault).for_each(|fault| answer(pager, &fault, how))
            }
            Err(errno) if wire::is_later(errno) => {}
            Err(errno) => abort_with(format_args!(
                "userfault: reading faults of a lost pager failed ({}): stopping, because the alternative is a hang or zeros\n",
                errno.0
            )),
        }
    }
}

fn answer(pager: &Pager, fault: &Fault, how: i32) {
    let Some(region) = pager.engine.table.pin(fault.address).filter(|region| region.contains(fault.address)) else {
        return;
    };
    region.counters.begin();
    let page = region.page_of(fault.address);
    let cause = if is_latched(fault.tid) { Cause::Latched } else { Cause::PagerLost(how) };
    let ending = if region.is_closing() {
        Ending::TornDown
    } else {
        refuse(&region, page, SourceError::new((page * uffd::page_size()) as u64, cause))
    };
    region.counters.end(ending);
}
