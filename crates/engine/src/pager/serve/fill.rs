//! From a source to pages of another process: COPY and ZEROPAGE, which is all that works from here (law 11).
//!
//! *Threads*: servers. *Blocks on*: the source.

use super::Server;
use super::table::Served;
use crate::cause::{Cause, SourceError};
use crate::counters::{Counters, add, counted};
use crate::fill::Stop;
use crate::scratch::{Scratch, ScratchNeeds};
use crate::source::{Extent, Reading, Source};
use std::ops::Range;
use uffd::{CopyMode, Errno, Outcome, Wake};

/// Working memory of one thread, for the shapes that it met last.
#[derive(Default)]
pub struct Bench(Vec<(usize, ScratchNeeds, Box<Scratch>)>);

/// Shapes kept.
const SHAPES: usize = 4;

impl Bench {
    /// For fills of so many bytes.
    fn scratch(&mut self, bytes: usize, needs: ScratchNeeds) -> &mut Scratch {
        let known = self.0.iter().position(|(size, known, _)| *size == bytes && *known == needs);
        let at = known.unwrap_or_else(|| {
            if self.0.len() == SHAPES {
                self.0.remove(0);
            }
            self.0.push((bytes, needs, Box::new(Scratch::new(bytes, needs))));
            self.0.len() - 1
        });
        &mut self.0[at].2
    }
}

/// Repetitions without progress before a fault is put off.
const TRIES: usize = 64;

/// One fill.
pub struct Fill<'a> {
    /// The pager.
    pub server: &'a Server,
    /// The region.
    pub served: &'a Served,
    /// Its source.
    pub source: &'a dyn Source,
    /// This thread's working memory.
    pub bench: &'a mut Bench,
}

impl Fill<'_> {
    fn counters(&self) -> &Counters {
        &self.served.part.counters
    }

    /// Fill these bytes, whole pages; the source may end inside the last one.
    pub fn range(&mut self, bytes: Range<usize>) -> Result<(), Stop> {
        let end = bytes.end.min(self.served.len);
        let mut at = bytes.start;
        while at < end {
            at += self.extent(at, end - at)?;
        }
        if end <= bytes.start && !bytes.is_empty() {
            self.zeros(bytes.start, bytes.len())?; // an empty source still has its one page
        }
        Ok(())
    }

    fn extent(&mut self, at: usize, left: usize) -> Result<usize, Stop> {
        let page = uffd::page_size();
        let scratch = self.bench.scratch(left.next_multiple_of(self.served.unit), self.source.needs());
        let mut how = Reading::plain(scratch);
        let extent = self.source.extent(at as u64, left, &mut how);
        let whole = |bytes: usize| if bytes >= left { left } else { bytes / page * page };
        match extent {
            Extent::Zero(bytes) if whole(bytes) > 0 => {
                self.zeros(at, whole(bytes).next_multiple_of(page))?;
                Ok(whole(bytes))
            }
            Extent::Memory(address, bytes) if whole(bytes) >= page => {
                let bytes = whole(bytes) / page * page;
                self.copy(at, address, bytes)?;
                Ok(bytes)
            }
            Extent::Zero(bytes) | Extent::Memory(_, bytes) | Extent::Data(bytes) => {
                let bytes = bytes.max(1).next_multiple_of(page).min(left);
                self.data(at, bytes)?;
                Ok(bytes)
            }
        }
    }

    fn data(&mut self, at: usize, bytes: usize) -> Result<(), Stop> {
        let padded = bytes.next_multiple_of(uffd::page_size());
        let scratch = self.bench.scratch(padded.next_multiple_of(self.served.unit), self.source.needs());
        let buffer = scratch.unit.address();
        // SAFETY: this thread's own scratch, at least `padded` bytes, which nobody else reaches.
        let out = unsafe { std::slice::from_raw_parts_mut(buffer as *mut u8, padded) };
        let mut how = Reading::plain(scratch);
        let outcome = self.source.read_into(at as u64, &mut out[..bytes], &mut how);
        let tally = std::mem::take(&mut scratch.tally);
        add(&self.counters().frames_decoded, tally.decoded);
        add(&self.counters().frames_found, tally.found);
        add(&self.counters().source_retries, tally.repeated);
        outcome?;
        out[bytes..].fill(0);
        self.copy(at, buffer, padded)
    }

    fn copy(&self, at: usize, from: usize, bytes: usize) -> Result<(), Stop> {
        let counter = &self.counters().copied_bytes;
        let handle = self.server.handle;
        self.install(at, bytes, |dst, done, left| {
            counted(counter, left, || handle.copy(dst, from + done, left, CopyMode::NONE))
        })
    }

    fn zeros(&self, at: usize, bytes: usize) -> Result<(), Stop> {
        let counter = &self.counters().zero_bytes;
        let handle = self.server.handle;
        self.install(at, bytes, |dst, _, left| counted(counter, left, || handle.zeropage(dst, left, Wake::Yes)))
    }

    fn install(&self, at: usize, bytes: usize, step: impl Fn(usize, usize, usize) -> Outcome) -> Result<(), Stop> {
        let served = self.served;
        let done = served.while_live(|| served.part.installing(|| self.each_hole(at, bytes, step)));
        done.unwrap_or(Err(Stop::Gone))
    }

    /// Drive one operation over a range; pages that are there are stepped over, and whoever waits for them is woken.
    fn each_hole(&self, at: usize, bytes: usize, step: impl Fn(usize, usize, usize) -> Outcome) -> Result<(), Stop> {
        let page = uffd::page_size();
        let (mut done, mut tries, mut most) = (0, 0, bytes);
        while done < bytes {
            let address = self.served.base + at + done;
            let size = most.min(bytes - done);
            match step(address, done, size) {
                Outcome::Done => done += size,
                Outcome::Partial(more) => (done, tries) = (done + more, 0),
                Outcome::Exists => {
                    let _ = self.server.handle.wake(address, page);
                    done += page;
                }
                Outcome::Retry if tries < TRIES => {
                    tries += 1;
                    add(&self.counters().retries, 1);
                    std::thread::yield_now();
                }
                Outcome::Retry => return Err(Stop::Deferred),
                // The range spans mappings, because the owner changed the protection of a part (mprotect).
                Outcome::Failed(Errno(libc::ENOENT)) if size > page => most = page,
                Outcome::Gone => return Err(Stop::Gone),
                Outcome::Failed(Errno(errno)) => {
                    return Err(Stop::Failed(SourceError::new((at + done) as u64, Cause::Os(errno))));
                }
            }
        }
        Ok(())
    }
}
