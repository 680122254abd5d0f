//! Volatile memory as a source: zeros at first, and after that nothing but what stands in the pages. A page that the
//! kernel took while it was offered is an error, or is read from another source.
//!
//! *Locks*: `gate`, by application threads that pin and unpin, never on the fault path and not while a refill is read. *Threads*: the
//! states of pages from anywhere, handlers too. *Blocks on*: the refill, if there is one.

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
    /// Being put in order by a pin, and a touch has put the refill's bytes there: what stands there is contents.
    Arrived = 7,
    /// Somebody looks whether the kernel took it.
    Looking = 8,
    /// Lost, and a touch that has read the refill is putting its bytes there.
    Bringing = 9,
    /// Being put in order by a pin, and a touch is putting the refill's bytes there.
    Arriving = 10,
    /// Being put in order by a pin, which is putting bytes there just now.
    Placing = 11,
    /// Being put in order by a pin, and the error pattern is just being dropped.
    Clearing = 12,
    /// Offered, and lost and refilled before that, which is still to be told.
    Again = 13,
}

impl Page {
    fn from(byte: u8) -> Self {
        use Page::{Again, Arrived, Arriving, Bringing, Clearing, Dropping, Looking, Lost};
        use Page::{Offered, Pinned, Pinning, Placing, Refilled, Untouched};
        let first = [Untouched, Pinned, Offered, Lost, Dropping, Pinning, Refilled, Arrived];
        let rest = [Looking, Bringing, Arriving, Placing, Clearing, Again];
        *first.iter().chain(&rest).nth(usize::from(byte)).expect("each byte is a state's")
    }

    /// Is somebody at it, for a system call or two? Others wait.
    fn is_busy(self) -> bool {
        use Page::{Arriving, Bringing, Clearing, Dropping, Looking, Placing};
        matches!(self, Dropping | Looking | Bringing | Arriving | Placing | Clearing)
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

    /// The state of the first of some pages, above none, once nobody is busy with it, and where the pages in that state end.
    #[must_use]
    pub fn run(&self, pages: Range<usize>) -> (Page, usize) {
        let state = self.get_quiet(pages.start);
        let rest = &self.pages[pages.start + 1..pages.end];
        let same = rest.iter().take_while(|page| page.load(Ordering::SeqCst) == state as u8);
        (state, pages.start + 1 + same.count())
    }

    /// From one state to another; false: it was in a third.
    pub fn swap(&self, page: usize, from: Page, to: Page) -> bool {
        self.pages[page].compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// The state, once nobody is busy with the page.
    pub fn get_quiet(&self, page: usize) -> Page {
        loop {
            match self.get(page) {
                state if state.is_busy() => std::thread::yield_now(),
                state => return state,
            }
        }
    }

    /// The same as [`Offers::swap`], once nobody is busy with the page.
    pub fn swap_quiet(&self, page: usize, from: Page, to: Page) -> bool {
        while self.get_quiet(page) == from {
            if self.swap(page, from, to) {
                return true;
            }
        }
        false
    }

    /// The error pattern, or poison, was put into a page that was absent: its contents are gone. Nothing happens to one that was
    /// pinned meanwhile: it has its contents, or will.
    pub fn spoil(&self, page: usize) {
        let _ = self.swap(page, Page::Offered, Page::Lost) || self.swap(page, Page::Again, Page::Lost);
    }

    /// Drop what stands in a page, if that is the error pattern or poison.
    pub fn drop_pattern(&self, page: usize, drop: impl FnOnce()) {
        for (from, meanwhile) in [(Page::Lost, Page::Dropping), (Page::Pinning, Page::Clearing)] {
            if self.swap_quiet(page, from, meanwhile) {
                drop();
                self.set(page, from);
                return;
            }
        }
    }

    /// Somebody asks for a page as absent, perhaps a while ago. Is it not? What was the kernel's to take is lost then; what was not,
    /// somebody dropped behind our back (MADV_DONTNEED): `zero` makes it what it is after that.
    pub fn is_here(&self, page: usize, has_page: impl Fn() -> bool, zero: impl Fn()) -> bool {
        loop {
            let state = self.get_quiet(page);
            let may_be_taken = matches!(state, Page::Offered | Page::Again | Page::Refilled);
            if !may_be_taken && !matches!(state, Page::Untouched | Page::Pinned) {
                return false;
            }
            if self.swap(page, state, Page::Looking) {
                let has_it = has_page();
                if !has_it && !may_be_taken {
                    zero();
                }
                let is_lost = !has_it && may_be_taken;
                self.swap(page, Page::Looking, if is_lost { Page::Lost } else { state });
                return !is_lost;
            }
        }
    }

    /// A touch has read the refill and is about to put its bytes there; [`Offers::brought`] is the end of it. False: it is there.
    pub fn bring(&self, page: usize, has_page: impl Fn() -> bool, zero: impl Fn()) -> bool {
        while !self.is_here(page, &has_page, &zero) {
            let (state, to) = match self.get_quiet(page) {
                Page::Lost => (Page::Lost, Page::Bringing),
                Page::Pinning => (Page::Pinning, Page::Arriving),
                Page::Arrived => return false,
                _ => continue,
            };
            if self.swap(page, state, to) {
                return true;
            }
        }
        false
    }

    /// Is a touch bringing bytes? Then the page has none so far: what stands there is the error pattern, or poison.
    pub fn is_brought(&self, page: usize) -> bool {
        matches!(self.get(page), Page::Bringing | Page::Arriving)
    }

    /// They are there; or they are not, and never will.
    pub fn brought(&self, page: usize, is_there: bool) {
        let [refilled, arrived] = if is_there { [Page::Refilled, Page::Arrived] } else { [Page::Lost, Page::Pinning] };
        if !self.swap(page, Page::Bringing, refilled) {
            self.swap(page, Page::Arriving, arrived);
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

    /// Called for lost pages only, one at a time: the unit is a page ([`Offers::is_here`]).
    fn read_into(&self, offset: u64, out: &mut [u8], how: &mut Reading<'_>) -> Result<(), SourceError> {
        let refill = self.offers.refill.as_ref().ok_or_else(|| SourceError::new(offset, Cause::Purged))?;
        refill.read_into(offset, out, how)
    }

    fn extent(&self, _offset: u64, len: usize, _how: &mut Reading<'_>) -> Extent {
        Extent::Data(len)
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
    use std::cell::Cell;

    #[test]
    fn without_a_refill_a_lost_page_is_an_error() {
        let page = uffd::page_size();
        let source = Volatile::new(3 * page as u64 + 5, None).unwrap();
        let error = read_plainly(&source, page as u64, &mut vec![1; page]).unwrap_err();
        assert_eq!(error, SourceError::new(page as u64, Cause::Purged));
        assert_eq!(source.offers.pages.len(), 4);
    }

    #[test]
    fn what_was_offered_is_lost_once_it_is_seen_to_be_absent() {
        let offers = Offers::new(1, None);
        for (state, then) in [
            (Page::Untouched, Page::Untouched),
            (Page::Pinned, Page::Pinned),
            (Page::Offered, Page::Lost),
            (Page::Again, Page::Lost),
            (Page::Refilled, Page::Lost),
        ] {
            offers.set(0, state);
            assert!(offers.is_here(0, || true, || panic!("{state:?} is there")));
            assert_eq!(offers.get(0), state);
            let zeroed = Cell::new(false);
            assert_eq!(offers.is_here(0, || false, || zeroed.set(true)), zeroed.get(), "{state:?}");
            assert_eq!((offers.get(0), zeroed.get()), (then, state == then));
        }
    }

    #[test]
    fn a_refill_gives_the_bytes_and_the_loss_is_remembered() {
        let page = uffd::page_size();
        let refill = Arc::new(crate::source::zero::Zero::new(page as u64));
        let source = Volatile::new(page as u64, Some(refill.clone())).unwrap();
        source.offers.set(0, Page::Lost);
        read_plainly(&source, 0, &mut vec![1; page]).unwrap();
        for (is_there, then) in [(false, Page::Lost), (true, Page::Refilled)] {
            assert!(source.offers.bring(0, || false, || ()) && source.offers.is_brought(0));
            source.offers.brought(0, is_there);
            assert_eq!(source.offers.get(0), then);
        }
        assert!(!source.offers.bring(0, || true, || ()));
        assert!(Volatile::new(page as u64 + 1, Some(refill)).is_err());
    }

    #[test]
    fn only_the_pattern_of_a_lost_page_is_dropped() {
        let offers = Offers::new(1, None);
        for state in [Page::Untouched, Page::Pinned, Page::Offered, Page::Again, Page::Refilled, Page::Arrived] {
            offers.set(0, state);
            offers.drop_pattern(0, || panic!("{state:?} holds somebody's bytes"));
        }
        for (state, meanwhile) in [(Page::Lost, Page::Dropping), (Page::Pinning, Page::Clearing)] {
            offers.set(0, state);
            let mut dropped = false;
            offers.drop_pattern(0, || dropped = offers.get(0) == meanwhile);
            assert!(dropped && offers.get(0) == state);
        }
    }

    #[test]
    fn a_pin_hears_whether_a_touch_brought_its_page() {
        let offers = Offers::new(1, None);
        for (is_there, then) in [(false, Page::Pinning), (true, Page::Arrived)] {
            offers.set(0, Page::Pinning);
            assert!(offers.bring(0, || false, || ()) && offers.get(0) == Page::Arriving);
            offers.brought(0, is_there);
            assert_eq!(offers.get(0), then);
        }
    }
}
