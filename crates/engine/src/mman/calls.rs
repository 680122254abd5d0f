//! The calls, as they were spelled.
//!
//! *Locks*: see the room. *Threads*: application threads, without the language's lock. *Blocks on*: the root thread, and a
//! moment on who resolves just now.

use crate::flagged::gate;
use crate::flagged::view::Act;
use crate::mman::Mman;
use crate::mman::change::Change;
use crate::mman::ledger::{Marks, Policy};
use crate::mman::outcome::failed;
pub use crate::mman::outcome::{Ended, Failed};
use crate::mman::resolvers::give_holes_back;
use crate::mman::why::Wanted;
use crate::source::Source;
use crate::threads::drop_left;
use std::ops::Range;
use std::sync::Arc;
use uffd::Errno;

/// One line of `ranges()`.
#[derive(Clone, Debug)]
pub struct RangeInfo {
    /// Its addresses.
    pub range: Range<usize>,
    /// MADV_USERFAULT or PROT_USERFAULT?
    pub flagged: bool,
    /// Registered with.
    pub owner: Option<u64>,
    /// Kept out of forked children?
    pub denied: bool,
    /// Do children's faults come here?
    pub follow: bool,
    /// "raise", "default", "callable" or "source".
    pub resolver: &'static str,
}

/// Whole pages, or EINVAL for a start that is none; the length is rounded up.
///
/// # Errors
/// EINVAL.
pub fn whole_pages(start: usize, length: usize) -> Result<Range<usize>, Failed> {
    let page = uffd::page_size();
    if !start.is_multiple_of(page) {
        return Err(failed(
            libc::EINVAL,
            format!(
                "{start:#x} is not the start of a page of {page} bytes (memory of bytearray and numpy starts inside one); use \
                 mman.anonymous(length)"
            ),
        ));
    }
    let end = length.checked_next_multiple_of(page).and_then(|length| start.checked_add(length));
    end.map(|end| start..end).ok_or_else(|| failed(libc::EINVAL, "the range wraps around the end of memory"))
}

impl Mman {
    /// Do something to the marks, on the root thread.
    pub(super) fn act(
        &'static self,
        work: impl FnOnce(&mut Change<'_>) -> Result<(), Failed> + Send + 'static,
    ) -> Result<(), Failed> {
        let ended = self.change(|change| Ended(work(change))).0;
        drop_left(); // regions of resolvers that are gone
        ended
    }

    /// `madvise(MADV_USERFAULT)`, with what forked children get, or `MADV_NOUSERFAULT`. What follows wants
    /// [`Mman::check_follow`] first.
    ///
    /// # Errors
    /// EINVAL, ENOMEM for holes (the rest is done), and what the kernel refuses.
    pub fn set_flag(&'static self, range: Range<usize>, on: bool, follow: bool) -> Result<(), Failed> {
        let given = range.clone();
        self.act(move |change| {
            if change.book.policy != Policy::Madvise {
                let other = "use mprotect(PROT_USERFAULT) under policy \"mprotect\"; \"register-only\" has no flag";
                return Err(failed(libc::EINVAL, format!("the policy is not \"madvise\": {other}")));
            }
            change.absorb(range.clone())?;
            flag(change, range, on, follow)
        })
        .map_err(|failed| failed.looked_up(Wanted::Flag, &given))
    }

    /// `mprotect`, with or without PROT_USERFAULT.
    ///
    /// # Errors
    /// As mprotect(2); EINVAL for the flag where memory cannot fault, or under another policy.
    pub fn protect(&'static self, range: Range<usize>, protection: i32, on: bool) -> Result<(), Failed> {
        let given = range.clone();
        self.act(move |change| {
            let flags = change.book.policy == Policy::Mprotect;
            if on && !flags {
                return Err(failed(libc::EINVAL, "PROT_USERFAULT needs mman.set_policy(\"mprotect\")"));
            }
            change.absorb(range.clone())?;
            let mut hole = false;
            change
                .each_mapping(range.clone(), |change, piece, anonymous| {
                    hole |= piece.start > range.start && change.maps.at(piece.start - 1)?.is_none();
                    if hole || (on && !anonymous) {
                        return Err(Errno(if hole { libc::ENOMEM } else { libc::EINVAL }));
                    }
                    let flag = |change: &mut Change<'_>, piece, on| match flags && anonymous {
                        true => change.mark(piece, anonymous, |marks| marks.flagged = on),
                        false => Ok(()),
                    };
                    let before = change.book.ledger.pieces(piece.clone());
                    // The flag is there before the protection and goes after it: a call that fails in between has then not
                    // shown a page of zeros, nor forgotten what a SIGBUS leads to.
                    if on {
                        flag(change, piece.clone(), true)?;
                    }
                    // SAFETY: what the caller asked for, on memory that it named.
                    let done = unsafe { libc::mprotect(piece.start as *mut libc::c_void, piece.len(), protection) };
                    let errno = Errno::last();
                    if done == 0 {
                        return if on { Ok(()) } else { flag(change, piece, false) };
                    }
                    let fresh = |(piece, marks): (Range<usize>, Option<Marks>)| {
                        (on && !marks.is_some_and(|marks| marks.flagged)).then_some(piece)
                    };
                    before.into_iter().filter_map(fresh).try_for_each(|piece| flag(change, piece, false))?;
                    Err(errno)
                })
                .map_err(Failed::from)
                .and_then(no_holes)
        })
        .map_err(|failed| failed.looked_up(Wanted::Protection { flag: on }, &given))
    }

    /// Choose the policy, while nothing is marked.
    ///
    /// # Errors
    /// EBUSY.
    pub fn set_policy(&'static self, policy: Policy) -> Result<(), Failed> {
        self.act(move |change| {
            change.absorb(0..usize::MAX)?;
            if let Some((first, _)) = change.book.ledger.iter().next() {
                let why = format!(
                    "memory is flagged or registered (mman.ranges() shows it; the first is {} bytes at {:#x}): clear flags, {}, \
                     or unmap it",
                    first.len(),
                    first.start,
                    match change.book.policy {
                        Policy::RegisterOnly => "unregister it (after close() by registering it once more)",
                        _ => "close descriptors",
                    }
                );
                return Err(failed(libc::EBUSY, why));
            }
            change.book.policy = policy;
            Ok(())
        })
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.book().policy
    }

    /// What a SIGBUS in `range` leads to. All of it must be flagged.
    ///
    /// # Errors
    /// EINVAL.
    pub fn on_sigbus(
        &'static self,
        range: Range<usize>,
        act: Act,
        source: Option<Arc<dyn Source>>,
    ) -> Result<(), Failed> {
        if let Some(source) = &source {
            check_source(&**source, range.len())?;
        }
        if matches!(act, Act::Call(_)) {
            crate::signal::need_own_stack();
        }
        self.act(move |change| {
            if change.book.policy == Policy::RegisterOnly {
                return Err(failed(libc::EINVAL, "policy \"register-only\" has no SIGBUS side"));
            }
            change.absorb(range.clone())?;
            let pieces = change.book.ledger.pieces(range.clone());
            let unflagged = |marks: &Option<Marks>| !marks.as_ref().is_some_and(|marks| marks.flagged);
            let first = pieces.iter().find(|(_, marks)| unflagged(marks)).map(|(piece, _)| piece.start);
            if let Some(at) = first.or(pieces.is_empty().then_some(range.start)) {
                let why =
                    format!("{at:#x} is not flagged, and all of the range has to be: madvise(MADV_USERFAULT) first");
                return Err(failed(libc::EINVAL, why));
            }
            let resolver = match source {
                Some(source) => change.mman.resolver_at(act, range.start, source),
                None => change.mman.resolver(act, &range),
            };
            for (piece, marks) in pieces {
                let Some(marks) = marks else { continue };
                give_holes_back(&marks.resolver.region, &piece, 0);
                change.book.ledger.put(piece, Marks { resolver: resolver.clone(), ..marks });
            }
            Ok(())
        })
    }

    /// Another advice, as the kernel does it; DOFORK and DONTFORK where they meet our own.
    ///
    /// # Errors
    /// The kernel's; EINVAL for MADV_DOFORK on memory that is denied to children.
    pub fn advise(&'static self, range: Range<usize>, advice: i32) -> Result<(), Failed> {
        if advice == libc::MADV_DOFORK || advice == libc::MADV_DONTFORK {
            let marked = range.clone();
            self.act(move |change| meet_fork_advice(change, marked, advice))?;
        }
        // Advice that waits for pages must not keep a change waiting; all other must not meet one: dropping pages would take
        // away the marks that a change of owner puts into holes for its time.
        let waits = matches!(advice, libc::MADV_POPULATE_READ | libc::MADV_POPULATE_WRITE | libc::MADV_WILLNEED);
        let inside = (!waits).then(gate::enter);
        // SAFETY: what the caller asked for, on memory that it named.
        let done = unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), advice) };
        let errno = Errno::last();
        drop(inside);
        if done == 0 { Ok(()) } else { Err(Failed::from(errno).looked_up(Wanted::Advice, &range)) }
    }

    /// Everything that is flagged or registered.
    pub fn ranges(&'static self) -> Vec<RangeInfo> {
        struct Found(Vec<RangeInfo>);
        impl From<Errno> for Found {
            fn from(_: Errno) -> Self {
                Self(vec![])
            }
        }
        let info = |(range, marks): (Range<usize>, &Marks)| RangeInfo {
            range,
            flagged: marks.flagged,
            owner: marks.owner.map(|owner| owner.id),
            denied: marks.denied,
            follow: marks.is_inheritable(),
            resolver: match marks.resolver.act {
                Act::Raise => "raise",
                Act::Default => "default",
                Act::Call(_) => "callable",
                Act::Source => "source",
            },
        };
        let list = move |change: &mut Change<'_>| {
            let _ = change.absorb(0..usize::MAX);
            Found(change.book.ledger.iter().map(info).collect())
        };
        self.change(list).0
    }
}

fn no_holes(holes: bool) -> Result<(), Failed> {
    if holes { Err(Errno(libc::ENOMEM).into()) } else { Ok(()) }
}

fn flag(change: &mut Change<'_>, range: Range<usize>, on: bool, follow: bool) -> Result<(), Failed> {
    let visited = change.each_mapping(range, |change, piece, anonymous| {
        if !anonymous {
            return Err(Errno(libc::EINVAL));
        }
        change.mark(piece, anonymous, |marks| (marks.flagged, marks.follow) = (on, follow))
    });
    visited.map_err(Failed::from).and_then(no_holes)
}

fn meet_fork_advice(change: &mut Change<'_>, range: Range<usize>, advice: i32) -> Result<(), Failed> {
    for (piece, marks) in change.book.ledger.pieces(range) {
        let Some(marks) = marks.filter(|marks| marks.denied || marks.follow) else { continue };
        if advice == libc::MADV_DONTFORK && marks.is_inheritable() {
            change.mark(piece.clone(), marks.anonymous, |marks| marks.follow = false)?;
        }
        if !marks.denied && advice == libc::MADV_DOFORK {
            continue;
        }
        if advice == libc::MADV_DOFORK {
            let why = "its holes fault: a forked child would read zeros there; MADV_NOUSERFAULT first";
            return Err(failed(libc::EINVAL, why));
        }
        change.note_dontfork(piece);
    }
    Ok(())
}

fn check_source(source: &dyn Source, bytes: usize) -> Result<(), Failed> {
    if !source.signal_safe() {
        let why = format!("{}: it would run inside a signal handler", source.signal_unsafe_reason());
        return Err(failed(libc::EINVAL, why));
    }
    let short = source.len().checked_next_multiple_of(uffd::page_size() as u64).is_some_and(|len| len < bytes as u64);
    if short {
        return Err(failed(libc::EINVAL, format!("the source has {} bytes, the range {bytes}", source.len())));
    }
    Ok(())
}
