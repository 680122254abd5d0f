//! Volatile memory as a source: zeros at first, and after that nothing but what stands in the pages. A page that the
//! kernel took while it was offered is an error, or is read from another source.
//!
//! *Locks*: `gate`, by application threads that pin and unpin, never on the fault path and not while a refill is read. *Threads*: the states of pages
//! from anywhere, handlers too. *Blocks on*: the refill, if there is one.

use super::{Cause, Extent, Latency, Reading, ScratchNeeds, Source, SourceError};
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is known of one page. Only whoever holds the gate moves it between `Untouched`, `Pinned` and `Offered`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Page {
    /// The shared zero page stands there, as far as we know: nothing to take.
    Untouched = 0,
    /// Written, and not the kernel's to take.
    Pinned = 1,
    /// The kernel may take it. Absent now: it has.
    Offered = 2,
    /// The kernel took it. What stands there, if anything, is the error pattern.
    Lost = 3,
    /// Lost, and the error pattern is just being dropped.
    Dropping = 4,
    /// Lost, and being put in order by a pin.
    Pinning = 5,
    /// The kernel took it, and the refill's bytes (and what was written since) stand there.
    Refilled = 6,
    /// Being put in order by a pin, while a touch brings the refill's bytes: what stands there then is contents.
    Arrived = 7,
}

impl Page {
    fn from(byte: u8) -> Self {
        use Page::{Arrived, Dropping, Lost, Offered, Pinned, Pinning, Refilled, Untouched};
        [Untouched, Pinned, Offered, Lost, Dropping, Pinning, Refilled, Arrived][usize::from(byte)]
    }
}

/// Pages that a thread pins while it reads the refill, without the gate. Until it is over nobody else pins or discards any of them.
#[derive(Debug)]
pub struct Renewal {
    /// Who.
    pub thread: i32,
    /// Which.
    pub pages: Range<usize>,
    /// How many of them it has read.
    pub read: Arc<AtomicUsize>,
}

/// The states of all pages of a volatile region.
pub struct Offers {
    pages: Box<[AtomicU8]>,
    gate: Mutex<Vec<Renewal>>,
    /// What lost pages are read from.
    pub refill: Option<Arc<dyn Source>>,
}

impl Offers {
    fn new(pages: usize, refill: Option<Arc<dyn Source>>) -> Self {
        Self { pages: (0..pages).map(|_| AtomicU8::new(0)).collect(), gate: Mutex::default(), refill }
    }

    /// One pin or unpin at a time; and those that read a refill just now.
    pub fn gate(&self) -> MutexGuard<'_, Vec<Renewal>> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state now.
    #[must_use]
    pub fn get(&self, page: usize) -> Page {
        Page::from(self.pages[page].load(Ordering::SeqCst))
    }

    /// Set the state, whatever it was.
    pub fn set(&self, page: usize, to: Page) {
        self.pages[page].store(to as u8, Ordering::SeqCst);
    }

    /// Set the state of a page that nobody else changes now, or where nobody else's word counts; a system call that follows
    /// puts it before everything.
    pub fn settle(&self, page: usize, to: Page) {
        self.pages[page].store(to as u8, Ordering::Release);
    }

    /// The state of the first of some pages, above none, and where the pages in that state end.
    #[must_use]
    pub fn run(&self, pages: Range<usize>) -> (Page, usize) {
        let state = self.pages[pages.start].load(Ordering::SeqCst);
        let same = self.pages[pages.clone()].iter().take_while(|page| page.load(Ordering::SeqCst) == state);
        (Page::from(state), pages.start + same.count())
    }

    /// From one state to another; false: it was in a third.
    pub fn swap(&self, page: usize, from: Page, to: Page) -> bool {
        self.pages[page].compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Its contents are gone. Nothing happens to a page that was pinned meanwhile: it has its contents.
    pub fn lose(&self, page: usize) -> bool {
        self.swap(page, Page::Offered, Page::Lost) || self.swap(page, Page::Refilled, Page::Lost)
    }

    /// The error pattern is put there. Whatever a touch of it brought does not stand there any more, or never will.
    pub fn spoil(&self, page: usize) {
        if !self.lose(page) {
            self.swap(page, Page::Arrived, Page::Pinning);
        }
    }

    /// Drop what stands in a page, if that is the error pattern; a pin waits meanwhile.
    pub fn drop_pattern(&self, page: usize, drop: impl FnOnce()) {
        if self.swap(page, Page::Lost, Page::Dropping) {
            drop();
            self.set(page, Page::Lost);
        }
    }

    /// Contents stand in a page that was noted as lost: what noted it was late. A pin says it all the same.
    pub fn find(&self, page: usize) {
        self.swap(page, Page::Lost, Page::Refilled);
    }

    /// The bytes of a lost page are about to be put there again.
    fn refilled(&self, page: usize) {
        loop {
            match self.get(page) {
                Page::Dropping => std::thread::yield_now(),
                from @ (Page::Offered | Page::Lost) if !self.swap(page, from, Page::Refilled) => {}
                Page::Pinning if !self.swap(page, Page::Pinning, Page::Arrived) => {}
                _ => return,
            }
        }
    }
}

/// The source.
pub struct Volatile {
    len: u64,
    offers: Arc<Offers>,
}

impl Volatile {
    /// `len` bytes that begin as zeros; pages that the kernel takes come from `refill`, at the same offsets.
    ///
    /// # Errors
    /// A sentence, when that cannot be.
    pub fn new(len: u64, refill: Option<Arc<dyn Source>>) -> Result<Self, String> {
        if let Some(refill) = refill.as_ref().filter(|refill| refill.len() < len) {
            return Err(format!("the refill has {} bytes, fewer than the buffer's {len}", refill.len()));
        }
        let pages = usize::try_from(len).map_err(|_| "the buffer is longer than memory can be".to_owned())?;
        let pages = pages.max(1).div_ceil(uffd::page_size());
        if pages > MOST_PAGES {
            return Err(format!("{len} bytes are more than a volatile buffer can have"));
        }
        Ok(Self { len, offers: Arc::new(Offers::new(pages, refill)) })
    }
}

/// 16 TiB of pages of 4 KiB: each has a byte of state, which must be had at once.
const MOST_PAGES: usize = 1 << 32;

impl Source for Volatile {
    fn len(&self) -> u64 {
        self.len
    }

    /// Called for absent pages only, one at a time: the unit is a page. What is volatile and absent is lost, and noted before the
    /// refill is read: by then the page may have been pinned and unpinned again.
    fn read_into(&self, offset: u64, out: &mut [u8], how: &mut Reading<'_>) -> Result<(), SourceError> {
        let page = offset as usize / uffd::page_size();
        self.offers.swap(page, Page::Offered, Page::Lost);
        if matches!(self.offers.get(page), Page::Untouched | Page::Pinned) {
            out.fill(0); // it was pinned since this fault began
            return Ok(());
        }
        let refill = self.offers.refill.as_ref().ok_or_else(|| SourceError::new(offset, Cause::Purged))?;
        refill.read_into(offset, out, how).inspect(|()| self.offers.refilled(page))
    }

    fn extent(&self, offset: u64, len: usize, _how: &mut Reading<'_>) -> Extent {
        match self.offers.get(offset as usize / uffd::page_size()) {
            Page::Untouched => Extent::Zero(len),
            _ => Extent::Data(len),
        }
    }

    fn name(&self) -> String {
        match &self.offers.refill {
            Some(refill) => format!("VolatileBuffer({}, refill={})", self.len, refill.name()),
            None => format!("VolatileBuffer({})", self.len),
        }
    }

    fn preferred_unit(&self) -> usize {
        uffd::page_size()
    }

    fn latency(&self) -> Latency {
        self.offers.refill.as_ref().map_or(Latency::Fast, |refill| refill.latency())
    }

    fn signal_safe(&self) -> bool {
        self.offers.refill.as_ref().is_none_or(|refill| refill.signal_safe())
    }

    fn signal_unsafe_reason(&self) -> String {
        self.offers.refill.as_ref().map_or_else(String::new, |refill| refill.signal_unsafe_reason())
    }

    fn readahead_helps(&self) -> bool {
        false
    }

    fn is_called(&self) -> bool {
        self.offers.refill.as_ref().is_some_and(|refill| refill.is_called())
    }

    fn needs(&self) -> ScratchNeeds {
        self.offers.refill.as_ref().map_or_else(ScratchNeeds::default, |refill| refill.needs())
    }

    fn offers(&self) -> Option<&Arc<Offers>> {
        Some(&self.offers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::layers::read_plainly;

    #[test]
    fn an_absent_page_is_zeros_until_it_was_offered() {
        let page = uffd::page_size();
        let source = Volatile::new(3 * page as u64 + 5, None).unwrap();
        let mut out = vec![1; page];
        read_plainly(&source, 0, &mut out).unwrap();
        assert_eq!(out, vec![0; page]);
        source.offers.set(1, Page::Offered);
        let error = read_plainly(&source, page as u64, &mut out).unwrap_err();
        assert_eq!(error, SourceError::new(page as u64, Cause::Purged));
        assert_eq!(source.offers.get(1), Page::Lost);
        assert_eq!(source.offers.pages.len(), 4);
    }

    #[test]
    fn a_refill_gives_the_bytes_and_the_loss_is_remembered() {
        let page = uffd::page_size();
        let refill = Arc::new(crate::source::zero::Zero::new(page as u64));
        let source = Volatile::new(page as u64, Some(refill.clone())).unwrap();
        source.offers.set(0, Page::Offered);
        read_plainly(&source, 0, &mut vec![1; page]).unwrap();
        assert_eq!(source.offers.get(0), Page::Refilled);
        assert!(Volatile::new(page as u64 + 1, Some(refill)).is_err());
    }

    #[test]
    fn only_the_pattern_of_a_lost_page_is_dropped() {
        let offers = Offers::new(1, None);
        for state in [Page::Untouched, Page::Pinned, Page::Offered, Page::Refilled, Page::Pinning, Page::Arrived] {
            offers.set(0, state);
            offers.drop_pattern(0, || panic!("{state:?} holds somebody's bytes"));
        }
        offers.set(0, Page::Lost);
        let mut dropped = false;
        offers.drop_pattern(0, || dropped = offers.get(0) == Page::Dropping);
        assert!(dropped && offers.get(0) == Page::Lost);
    }
}
