//! What the kernel has registered where, and with whom. It has no call that tells: operations that change nothing are tried.
//!
//! They go through a userfaultfd that has no events: those of others would have to be read first, and the pump asks too.
//!
//! *Locks*: none; who asks whether marks are current has closed the gate. *Threads*: any engine thread.

use crate::mman::Mman;
use crate::mman::ledger::{Kernel, Marks};
use std::ops::Range;
use uffd::{CopyMode, Errno, Handle, Maps, Outcome, ProtectMode, RegisterModes};

impl Mman {
    /// The parts of a range that are registered with a userfaultfd.
    pub(super) fn registered(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        let Ok(maps) = Maps::open() else { return vec![] };
        let (mut at, mut found) = (range.start, vec![]);
        while let Ok(Some(vma)) = maps.at_or_above(at)
            && vma.start < range.end
        {
            let piece = vma.start.max(at)..vma.end.min(range.end);
            at = piece.end;
            if self.is_registered(piece.start) {
                found.push(piece);
            }
            if at >= range.end {
                break;
            }
        }
        found
    }

    /// Is the mapping at `address` registered with any userfaultfd? A COPY from nowhere says ENOENT if not; else it fails for
    /// want of bytes.
    pub(super) fn is_registered(&self, address: usize) -> bool {
        let copied = self.ask(|fd| fd.copy(address, 0, uffd::page_size(), CopyMode::DONTWAKE));
        copied != Outcome::Failed(Errno(libc::ENOENT))
    }

    /// Is it registered for write protection, as what is only tracked? Lifting what nobody protects is no change, and ENOENT
    /// where missing pages are told of.
    fn is_tracked(&self, address: usize) -> bool {
        self.ask(|fd| fd.write_protect(address, uffd::page_size(), ProtectMode::UNPROTECT)) == Outcome::Done
    }

    /// Is the page at `address` registered as these marks say? Registering again what is registered is no change, and what is
    /// somebody else's is EBUSY. But another mode would replace that of our own: it is looked at first.
    pub(super) fn has_registered(&self, marks: &Marks, address: usize) -> bool {
        let tracked = marks.kernel == Kernel::Tracked;
        let modes = if tracked { RegisterModes::WP } else { RegisterModes::MISSING };
        let fd = marks.handle(self.flags.engine);
        // SAFETY: no change, as said: the page was seen to be registered in this mode, and the gate is closed.
        let again = |fd: Handle| unsafe { fd.register(address, uffd::page_size(), modes) };
        self.is_registered(address) && self.is_tracked(address) == tracked && fd.is_some_and(|fd| again(fd).is_ok())
    }

    fn ask(&self, question: impl Fn(Handle) -> Outcome) -> Outcome {
        loop {
            match question(self.engine.signal.engine) {
                Outcome::Retry => std::thread::yield_now(),
                outcome => return outcome,
            }
        }
    }
}
