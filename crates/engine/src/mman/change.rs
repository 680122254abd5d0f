//! Marks become registrations, one mapping after the other, with the gate closed.
//!
//! *Locks*: the gate and `book`, held by the change. *Threads*: the root thread.

use crate::flagged::gate;
use crate::flagged::view::{Act, Resolver};
use crate::mman::ledger::{Kernel, Ledger, Marks};
use crate::mman::resolvers::give_holes_back;
use crate::mman::switch::Switch;
use crate::mman::{Book, Mman, News};
use crate::table::CHUNK;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use uffd::{Errno, Handle, Maps, RegisterModes};

/// One change of marks.
pub struct Change<'a> {
    /// Everything there is one of.
    pub mman: &'static Mman,
    /// What is changed.
    pub book: &'a mut Book,
    /// Mappings of this process.
    pub maps: Maps,
    moves: Vec<(Range<usize>, usize)>,
}

impl Mman {
    /// Run a change: on the root thread, with the gate closed and everything known that has happened so far.
    ///
    /// # Errors
    /// Those of `work`; and /proc that cannot be read.
    pub fn change<T>(&'static self, work: impl FnOnce(&mut Change<'_>) -> T + Send + 'static) -> T
    where
        T: From<Errno> + Send + 'static,
    {
        self.engine.root.run(move || {
            let maps = match Maps::open() {
                Ok(maps) => maps,
                Err(errno) => return T::from(errno),
            };
            let closed = gate::close();
            let mut book = self.book();
            let mut change = Change { mman: self, book: &mut book, maps, moves: vec![] };
            let answer = work(&mut change);
            let moves = std::mem::take(&mut change.moves);
            self.drop_own_news(&moves);
            self.publish(&book);
            drop(book);
            drop(closed);
            answer
        })
    }

    /// Events that our own moves of twins have sent; all of them were read before the moves returned.
    fn drop_own_news(&self, moves: &[(Range<usize>, usize)]) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        for (hole, twin) in moves {
            let (len, twin_range) = (hole.len(), *twin..twin + hole.len());
            for own in [
                News::Moved { from: hole.start, to: *twin, len },
                News::Moved { from: *twin, to: hole.start, len },
                News::Unmapped(twin_range),
                News::Unmapped(hole.clone()),
            ] {
                if let Some(index) = news.iter().position(|one| *one == own) {
                    news.remove(index);
                }
            }
        }
    }

    /// Note in the ledger what happened to a mapping.
    pub(super) fn apply(&self, ledger: &mut Ledger, news: News) {
        match news {
            News::Unmapped(range) => {
                for (piece, marks) in ledger.carve(range) {
                    self.nobody_waits(&marks, &piece);
                    // The news may be older than a mapping that somebody has put there since, and marked.
                    for kept in self.registered(&piece) {
                        if self.has_registered(&marks, kept.start) {
                            ledger.put(kept, marks.clone());
                        }
                    }
                }
            }
            News::Moved { from, to, len } => {
                ledger.carve(to..to + len);
                for (piece, marks) in ledger.pieces(from..from + len) {
                    let Some(marks) = marks.filter(|_| self.is_registered(to)) else { continue };
                    self.nobody_waits(&marks, &piece);
                    let shift = to.wrapping_sub(from);
                    let resolver = self.moved_resolver(&marks.resolver, shift);
                    give_holes_back(&marks.resolver.region, &piece, shift);
                    let there = piece.start.wrapping_add(shift)..piece.end.wrapping_add(shift);
                    ledger.put(there, Marks { resolver, ..marks });
                }
            }
        }
    }

    /// Whoever waits there asks again, and is told by the mapping that is there now.
    fn nobody_waits(&self, marks: &Marks, range: &Range<usize>) {
        if let Some(owner) = marks.owner {
            if let Some(descriptor) = self.descriptor(owner.id) {
                descriptor.forget(range);
            }
            let _ = owner.handles.engine.wake(range.start, range.len());
        }
    }
}

impl Change<'_> {
    /// The mappings of `range` in order: each as far as it lies inside, with whether it is private anonymous memory; and
    /// whether there are holes.
    ///
    /// # Errors
    /// Whatever `visit` gives, at once; those before it have been visited.
    pub fn each_mapping(
        &mut self,
        range: Range<usize>,
        mut visit: impl FnMut(&mut Self, Range<usize>, bool) -> Result<(), Errno>,
    ) -> Result<bool, Errno> {
        let (mut at, mut holes) = (range.start, false);
        while at < range.end {
            let Some(vma) = self.maps.at_or_above(at)?.filter(|vma| vma.start < range.end) else {
                return Ok(true);
            };
            holes |= vma.start > at;
            let piece = vma.start.max(at)..vma.end.min(range.end);
            at = piece.end;
            visit(self, piece, vma.is_private_anonymous())?;
        }
        Ok(holes)
    }

    /// Change the marks of (a part of) one mapping, and the registrations with them.
    ///
    /// # Errors
    /// The kernel's. Pieces before the one that failed are changed.
    pub fn mark(&mut self, range: Range<usize>, anonymous: bool, edit: impl Fn(&mut Marks)) -> Result<(), Errno> {
        let mut fresh: Option<Arc<Resolver>> = None;
        for (piece, marks) in self.book.ledger.pieces(range.clone()) {
            // A mapping that is new here: news of the end of the old one is on its way.
            let old = marks.filter(|marks| self.is_current(marks, piece.start, anonymous)).unwrap_or_else(|| {
                let resolver = fresh.get_or_insert_with(|| self.mman.resolver(Act::Raise, &range)).clone();
                Marks::none(anonymous, resolver)
            });
            let mut new = old.clone();
            edit(&mut new);
            new.kernel = new.wanted(self.book.policy);
            self.register(&piece, &old, &mut new)?;
            self.book.ledger.put(piece, new);
        }
        Ok(())
    }

    /// Are these the marks of the mapping that is at `address` now, which is `anonymous` or not?
    pub(super) fn is_current(&self, marks: &Marks, address: usize, anonymous: bool) -> bool {
        let same_kind = marks.anonymous == anonymous;
        same_kind && (marks.kernel == Kernel::Nothing || self.mman.has_registered(marks, address))
    }

    fn register(&mut self, piece: &Range<usize>, old: &Marks, new: &mut Marks) -> Result<(), Errno> {
        let (was_armed, is_armed) = (old.kernel.is_armed(), new.kernel.is_armed());
        // While a range changes hands, and unless its new owner follows, no child may have it: it would read zeros.
        if is_armed && !old.denied && !(was_armed && new.is_inheritable()) {
            new.had_dontfork = self.deny_fork(piece)?;
            new.denied = true;
        }
        let registered = match self.register_pages(piece, old, new) {
            Err(_) if !new.anonymous && new.kernel == Kernel::Tracked => {
                new.kernel = Kernel::Nothing; // memory that may not be written, an older kernel: nobody tells what becomes of it
                Ok(())
            }
            answer => answer,
        };
        if let Err(errno) = registered {
            if new.denied && !old.denied && !new.had_dontfork {
                advise(piece, libc::MADV_DOFORK)?;
            }
            return Err(errno);
        }
        if old.kernel == Kernel::Descriptor && new.kernel != Kernel::Descriptor {
            self.mman.nobody_waits(old, piece);
        }
        if was_armed && !is_armed {
            give_holes_back(&old.resolver.region, piece, 0);
        }
        if new.denied && (!is_armed || new.is_inheritable()) {
            if !new.had_dontfork {
                advise(piece, libc::MADV_DOFORK)?;
            }
            new.denied = false;
        }
        Ok(())
    }

    fn register_pages(&mut self, piece: &Range<usize>, old: &Marks, new: &Marks) -> Result<(), Errno> {
        let flags = self.mman.flags.engine;
        let (before, after) = (old.handle(flags), new.handle(flags));
        // SAFETY: the caller named this memory, and asked for its missing pages to fault, or not to.
        let register = |fd: Handle, modes| unsafe { fd.register(piece.start, piece.len(), modes) }.map(|_| ());
        // SAFETY: as above; only where missing pages are to be zeros afterwards.
        let unregister = |fd: Handle| unsafe { fd.unregister(piece.start, piece.len()) };
        match (before, old.kernel, new.kernel, after) {
            (_, before, after, _) if before == after => Ok(()),
            (Some(from), Kernel::Signal | Kernel::Descriptor, Kernel::Signal | Kernel::Descriptor, Some(to)) => {
                let switch = Switch { from, to, maps: &self.maps, moves: RefCell::default() };
                let switched = switch.run(piece.clone());
                self.moves.append(&mut switch.moves.into_inner());
                switched
            }
            // Zeros until now, so there is no gap to close.
            (Some(from), Kernel::Tracked, Kernel::Signal | Kernel::Descriptor, Some(to)) => {
                unregister(from)?;
                register(to, RegisterModes::MISSING)
            }
            (_, _, Kernel::Signal | Kernel::Descriptor, Some(to)) => register(to, RegisterModes::MISSING),
            // Write protection that nobody asks for: the kernel only tells what becomes of the mapping.
            (Some(from), Kernel::Signal | Kernel::Descriptor, Kernel::Tracked, Some(to)) => {
                unregister(from)?;
                register(to, RegisterModes::WP)
            }
            (_, _, Kernel::Tracked, Some(to)) => register(to, RegisterModes::WP),
            (Some(from), _, Kernel::Nothing, _) => unregister(from),
            _ => Ok(()),
        }
    }

    /// Keep a range out of forked children; answers whether the caller had done so. The kernel has no call that tells, but
    /// flags that differ split a mapping: a part of one is marked, and one looks.
    fn deny_fork(&self, piece: &Range<usize>) -> Result<bool, Errno> {
        let bounds = || Ok(self.maps.at(piece.start)?.map_or(piece.clone(), |vma| vma.start..vma.end));
        let before = bounds()?;
        if before != *piece {
            advise(piece, libc::MADV_DONTFORK)?;
            return Ok(bounds()? == before);
        }
        let middle = middle_of(piece);
        if middle <= piece.start {
            let had = has_dontfork(piece.start);
            advise(piece, libc::MADV_DONTFORK)?;
            return Ok(had);
        }
        advise(&(piece.start..middle), libc::MADV_DONTFORK)?;
        let now = bounds()?;
        advise(&(middle..piece.end), libc::MADV_DONTFORK).inspect_err(|_| {
            if now != before {
                let _ = advise(&(piece.start..middle), libc::MADV_DOFORK);
            }
        })?;
        Ok(now == before)
    }

    /// The caller itself keeps this out of children.
    pub fn note_dontfork(&mut self, range: Range<usize>) {
        for (piece, marks) in self.book.ledger.carve(range) {
            self.book.ledger.put(piece, Marks { had_dontfork: true, ..marks });
        }
    }

    /// Mappings grow in place without an event, and their new end faults as the rest does: note it. Looks at the ranges that
    /// end in `near`.
    pub fn absorb(&mut self, near: Range<usize>) -> Result<(), Errno> {
        let grown: Vec<_> = self.book.ledger.iter().map(|(range, marks)| (range, marks.clone())).collect();
        for (range, marks) in grown.iter().filter(|(_, marks)| marks.kernel == Kernel::Nothing) {
            // Nobody tells when such a mapping goes.
            let there = self.maps.at(range.start)?.is_some_and(|vma| vma.is_private_anonymous() == marks.anonymous);
            if !there {
                self.book.ledger.carve(range.clone());
            }
        }
        for (index, (range, marks)) in grown.iter().enumerate() {
            if marks.kernel == Kernel::Nothing || !(near.start..=near.end).contains(&range.end) {
                continue;
            }
            let limit = grown.get(index + 1).map_or(usize::MAX, |(next, _)| next.start);
            let end = self.maps.at(range.end - 1)?.map_or(range.end, |vma| vma.end.min(limit));
            if end > range.end {
                let tail = range.end..end;
                let act =
                    if matches!(marks.resolver.act, Act::Source) { Act::Raise } else { marks.resolver.act.clone() };
                let resolver = self.mman.resolver(act, &tail);
                self.book.ledger.put(tail, Marks { resolver, ..marks.clone() });
            }
        }
        Ok(())
    }
}

fn advise(range: &Range<usize>, advice: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the advices used here change what a fork does, not what is in memory.
    let done = unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), advice) };
    match Errno::last() {
        _ if done == 0 => Ok(()),
        Errno(libc::EAGAIN) => Err(Errno(libc::ENOMEM)), // madvise's word for no room for another mapping
        errno => Err(errno),
    }
}

/// Where a range is cut in two without cutting a huge page: at a multiple of 2 MiB if there is one inside, in the middle of a
/// range that is too small for a huge page, and not at all (its start) between the two.
fn middle_of(piece: &Range<usize>) -> usize {
    let near = piece.start + piece.len() / 2;
    let boundary = near / CHUNK * CHUNK;
    if boundary > piece.start {
        return boundary;
    }
    let above = boundary + CHUNK;
    match above < piece.end {
        true => above,
        false if piece.len() < CHUNK => near / uffd::page_size() * uffd::page_size(),
        false => piece.start,
    }
}

/// For what cannot be cut: "dc" in the flags of its mapping (proc(5)).
fn has_dontfork(address: usize) -> bool {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let mut inside = false;
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if inside {
                return flags.split_ascii_whitespace().any(|flag| flag == "dc");
            }
        } else if let Some((start, end)) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')) {
            let bound = |text| usize::from_str_radix(text, 16).unwrap_or(0);
            inside = (bound(start)..bound(end)).contains(&address);
        }
    }
    false
}
