//! What a forked child gets of flagged memory: tombstones where the parent's pages fault, and none of its descriptors.
//!
//! *Threads*: in the child its only one, inside fork(2): system calls only, no allocation.

use super::view::{self, Armed};
use crate::error::Error;
use crate::say::say;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

/// Application-side descriptor numbers, to be closed in a child: its copies drive the parent's memory.
const NUMBERS: usize = 4096;
static OURS: [AtomicI32; NUMBERS] = [const { AtomicI32::new(-1) }; NUMBERS];
static FORGET: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

static SETTLE: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

/// Tell what brings the view up to date.
pub fn set_settle(settle: fn()) {
    SETTLE.store(settle as *mut (), Ordering::Release);
}

/// Tell what else is to be forgotten in a child.
pub fn set_forget(forget: fn()) {
    FORGET.store(forget as *mut (), Ordering::Release);
}

/// What is done about ranges that follow, before a fork and after it; in the child it answers whether they do.
pub struct Hooks {
    /// Last before the fork.
    pub before: fn(),
    /// First after it, in the parent.
    pub in_parent: fn(),
    /// First after it, in the child.
    pub in_child: fn() -> bool,
}

static FOLLOW: OnceLock<Hooks> = OnceLock::new();

/// Set them, once and for all.
pub fn set_follow(hooks: Hooks) {
    let _ = FOLLOW.set(hooks); // those of an earlier process of this line are the same
}

/// A fork is about to happen; nobody changes marks.
pub fn before() {
    // What was unmapped must not be given a tombstone: something else may stand there.
    let settle = SETTLE.load(Ordering::Acquire);
    if !settle.is_null() {
        // SAFETY: `set_settle` stored a `fn()`, and it was seen non-null.
        unsafe { std::mem::transmute::<*mut (), fn()>(settle)() };
    }
    FOLLOW.get().inspect(|hooks| (hooks.before)());
}

/// It has happened.
pub fn in_parent() {
    FOLLOW.get().inspect(|hooks| (hooks.in_parent)());
}

/// In the child of a child that follows: ranges of the one before are not here.
pub fn in_grandchild(entomb: impl Fn(usize, usize)) {
    view::for_each_followed(|range| entomb(range.start, range.len()));
}

/// A SIGBUS in a child that follows: its parent did not answer.
pub fn explain_unanswered(address: usize) {
    let mut followed = false;
    view::for_each_followed(|range| followed |= range.contains(&address));
    if followed {
        say_unanswered(address);
    }
}

/// The line about it.
pub fn say_unanswered(address: usize) {
    say(format_args!(
        "userfault: this forked process touched memory at {address:#x}, and its parent gave no page (fork=\"follow\")\n"
    ));
}

/// Close this number in a forked child.
///
/// # Errors
/// EMFILE: there is room for 4096.
pub fn keep_number(number: i32) -> Result<(), Error> {
    let free = |slot: &&AtomicI32| slot.compare_exchange(-1, number, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    OURS.iter().find(free).map(|_| ()).ok_or_else(|| Error::Os {
        what: format!("keeping more than {NUMBERS} userfaultfds"),
        errno: uffd::Errno(libc::EMFILE),
    })
}

/// It is closed.
pub fn drop_number(number: i32) {
    if let Some(slot) = OURS.iter().find(|slot| slot.load(Ordering::Acquire) == number) {
        slot.store(-1, Ordering::Release);
    }
}

/// In the child: `entomb` each range whose holes fault in the parent, unless it follows; `close` each number, forget the rest.
pub fn in_child(entomb: impl Fn(usize, usize), close: impl Fn(i32)) {
    let follows = FOLLOW.get().is_some_and(|hooks| (hooks.in_child)());
    view::for_each(|entry| {
        if entry.follow && follows {
            // SAFETY: a child of this child is not to have it; nothing in memory changes.
            unsafe { libc::madvise(entry.range.start as *mut libc::c_void, entry.range.len(), libc::MADV_DONTFORK) };
        } else if !matches!(entry.armed, Armed::No) {
            entomb(entry.range.start, entry.range.len());
        }
    });
    for slot in &OURS {
        let number = slot.swap(-1, Ordering::AcqRel);
        if number >= 0 {
            close(number);
        }
    }
    view::forget(follows);
    super::gate::reset();
    let forget = FORGET.load(Ordering::Acquire);
    if !forget.is_null() {
        // SAFETY: `set_forget` stored a `fn()`, and it was seen non-null.
        unsafe { std::mem::transmute::<*mut (), fn()>(forget)() };
    }
}
