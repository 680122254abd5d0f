//! The calls on a descriptor: open, register, unregister, wake, close.
//!
//! *Threads*: application threads. *Blocks on*: the root thread.

use crate::error::Error;
use crate::flagged::fork::{drop_number, keep_number};
use crate::mman::descriptor::Descriptor;
use crate::mman::ledger::{Marks, Owner, Policy};
use crate::mman::outcome::{Failed, failed};
use crate::mman::protocol::check_range;
use crate::mman::why::{Wanted, bad_range};
use crate::mman::{Mman, share};
use crate::threads::Root;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use uffd::{Errno, Features, Handle, OpenError, OpenOptions, Userfaultfd};

impl Mman {
    /// `userfaultfd(flags)`, before its handshake.
    ///
    /// # Errors
    /// [`Error::Refused`]; EMFILE.
    pub fn open_descriptor(
        &'static self,
        nonblocking: bool,
        user_mode_only: bool,
        timeout: Option<Duration>,
    ) -> Result<Arc<Descriptor>, Error> {
        let options = OpenOptions { nonblocking: true, user_mode_only, ..OpenOptions::default() };
        let features = Features::EVENT_REMAP | Features::EVENT_UNMAP | Features::THREAD_ID | Features::EXACT_ADDRESS;
        // Only CAP_SYS_PTRACE may hear of forks. Nobody is told of any before a range is to follow them.
        let (fd, can_follow) = match Userfaultfd::open_with(options, features | Features::EVENT_FORK) {
            Err(OpenError::Handshake { errno: Errno(libc::EPERM), .. }) => {
                (Userfaultfd::open_with(options, features).map_err(Error::of_open)?, false)
            }
            opened => (opened.map_err(Error::of_open)?, true),
        };
        let (fd, handles) = share(self.engine.root, fd.into_owned())?;
        keep_number(fd.as_raw_fd())?;
        crate::mman::handover::install();
        let id = self.next_id();
        let descriptor = Arc::new(Descriptor::new(id, fd, handles, (nonblocking, user_mode_only, can_follow), timeout));
        self.descriptors().insert(id, descriptor.clone());
        self.watch(id, handles.engine)?;
        if can_follow {
            self.watch_forks(id, handles.engine)?;
        }
        Ok(descriptor)
    }

    /// Command 1: faults of flagged memory in `range` go to this descriptor.
    ///
    /// # Errors
    /// EINVAL, ERANGE, ENOMEM, EBUSY as the proposal says.
    pub fn register(&'static self, descriptor: &Descriptor, range: Range<usize>) -> Result<(), Failed> {
        let owner = owner_of(descriptor);
        self.set_owner(range, owner, Some(owner))
    }

    /// Command 2: not any more.
    ///
    /// # Errors
    /// As for [`Mman::register`].
    pub fn unregister(&'static self, descriptor: &Descriptor, range: Range<usize>) -> Result<(), Failed> {
        let owner = owner_of(descriptor);
        self.set_owner(range, owner, None)
    }

    fn set_owner(&'static self, range: Range<usize>, mine: Owner, new: Option<Owner>) -> Result<(), Failed> {
        let range = checked(range)?;
        let given = range.clone();
        self.act(move |change| {
            change.absorb(range.clone())?;
            match change.maps.at_or_above(range.start)? {
                None => return Err(failed(libc::ENOMEM, "nothing is mapped there or above: map it first")),
                Some(vma) if vma.start >= range.end => {
                    return Err(failed(libc::EINVAL, "nothing is mapped there: map it first"));
                }
                Some(_) => {}
            }
            let strict = change.book.policy == Policy::RegisterOnly;
            let mut taken_by = None;
            let foreign = |marks: &Marks| marks.owner.filter(|owner| owner.id != mine.id);
            let result = change.each_mapping(range, |change, piece, anonymous| {
                // Neighbours of two owners are two mappings, though the kernel may know them as one: those before are done.
                for (piece, marks) in change.book.ledger.pieces(piece) {
                    let there = |marks: &&Marks| change.is_current(marks, piece.start, anonymous);
                    if let Some(owner) = marks.as_ref().filter(there).and_then(foreign) {
                        taken_by = Some((piece.start, owner.id));
                        return Err(Errno(libc::EBUSY));
                    }
                    if strict && !anonymous {
                        return Err(Errno(libc::EINVAL));
                    }
                    change.mark(piece, anonymous, |marks| {
                        marks.owner = new;
                        marks.orphaned = false;
                    })?;
                }
                Ok(())
            });
            match (result, taken_by) {
                (Err(errno), Some((at, id))) => Err(failed(
                    errno.0,
                    format!("{at:#x} is registered with descriptor {id}: unregister it there first"),
                )),
                (result, _) => result.map(|_| ()).map_err(Failed::from),
            }
        })
        .map_err(|failed| failed.looked_up(Wanted::Registration, &given))
    }

    /// Command 0: wake those in `range` whose faults were read.
    ///
    /// # Errors
    /// ENOENT: there are none; ERANGE, ENOMEM, EINVAL for the range.
    pub fn wake(&self, descriptor: &Descriptor, range: Range<usize>) -> Result<(), Failed> {
        let range = checked(range)?;
        if !descriptor.forget_read(&range) {
            return Err(failed(libc::ENOENT, "no fault in the range was read and not woken yet"));
        }
        // Another userfaultfd would wake nobody, and say nothing.
        let copy = if descriptor.has_strayed() { descriptor.handles.replacement() } else { None };
        if let Some(copy) = copy {
            return Handle::from_raw(copy.as_raw_fd()).wake(range.start, range.len()).map_err(Failed::from);
        }
        loop {
            match descriptor.handles.application.wake(range.start, range.len()) {
                Err(Errno(libc::EBADF)) if descriptor.handles.restore() => {}
                answer => return answer.map_err(Failed::from),
            }
        }
    }

    /// Close a descriptor: who waits, and who touches a hole later, gets SIGBUS; never zeros.
    pub fn close(&'static self, descriptor: &Arc<Descriptor>) {
        if !descriptor.shut() {
            return;
        }
        let id = descriptor.id;
        self.close_children(id);
        let given_back = self.act(move |change| {
            let mine: Vec<_> = change
                .book
                .ledger
                .iter()
                .filter(|(_, marks)| marks.owner.is_some_and(|o| o.id == id))
                .map(|(range, marks)| (range, marks.anonymous))
                .collect();
            let orphan = change.book.policy == Policy::RegisterOnly;
            for (range, anonymous) in mine {
                change.mark(range, anonymous, |marks| {
                    marks.owner = None;
                    marks.orphaned = orphan;
                })?;
            }
            Ok(())
        });
        // If a range could not be given back the descriptor stays, and the pump answers its faults by errors: the last close
        // of a userfaultfd fills in zeros.
        if given_back.is_err() {
            descriptor.set_stuck();
            for info in self.ranges().into_iter().filter(|info| info.owner == Some(id)) {
                let _ = descriptor.handles.engine.wake(info.range.start, info.range.len());
            }
        } else {
            self.descriptors().remove(&id);
            drop_number(descriptor.handles.application.as_raw_fd());
            descriptor.close_copy();
            if let Some(root) = Root::current() {
                root.close(descriptor.handles.engine.as_raw_fd());
            }
        }
    }
}

fn checked(range: Range<usize>) -> Result<Range<usize>, Failed> {
    check_range(range.start, range.end).map_err(|errno| failed(errno.0, bad_range(range.start, range.end)))
}

fn owner_of(descriptor: &Descriptor) -> Owner {
    Owner { id: descriptor.id, handles: descriptor.handles, can_follow: descriptor.can_follow }
}
