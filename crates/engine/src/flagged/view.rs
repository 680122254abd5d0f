//! Who gets the faults of an address: a sorted list that is replaced as a whole, so that a signal handler reads it without
//! a lock.
//!
//! *Locks*: `RETIRED`, by those who replace. *Threads*: `find` from anywhere; `publish` by one thread at a time.

use crate::engine::Engine;
use crate::region::{Handles, Region};
use crate::table::Pin;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A callable of the language above. When the last is dropped its number waits in [`take_released`].
#[derive(Debug)]
pub struct Token(pub usize);

impl Drop for Token {
    fn drop(&mut self) {
        RELEASED.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
    }
}

static RELEASED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Numbers of tokens that nothing can call any more.
#[must_use]
pub fn take_released() -> Vec<usize> {
    let _no_fork = super::gate::hold(); // a child must not find the lock below taken
    std::mem::take(&mut *RELEASED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What a SIGBUS leads to.
#[derive(Clone, Debug)]
pub enum Act {
    /// An exception in the touching thread.
    Raise,
    /// The handler that was there before ours, or the default action.
    Default,
    /// A callable of the language above, in the touching thread.
    Call(Arc<Token>),
    /// A source, in the handler.
    Source,
}

/// What stands behind flagged memory.
pub struct Resolver {
    /// What to do.
    pub act: Act,
    /// Its failures and counters, and for [`Act::Source`] its fills. Its base may lie outside of what is flagged now.
    pub region: Pin<Region>,
    /// Is it among those that wait for their end?
    listed: AtomicBool,
}

impl Resolver {
    /// Put one together.
    #[must_use]
    pub fn new(act: Act, region: Pin<Region>) -> Self {
        Self { act, region, listed: AtomicBool::new(false) }
    }
}

/// Who is told of a fault.
#[derive(Clone, Copy, Debug)]
pub enum Armed {
    /// Nobody: a touch finds zeros.
    No,
    /// The touching thread, by SIGBUS.
    Signal,
    /// A descriptor.
    Descriptor,
}

/// One range.
#[derive(Clone)]
pub struct Entry {
    /// Its addresses.
    pub range: Range<usize>,
    /// Who is told.
    pub armed: Armed,
    /// A forked child has it too, and its faults go to a userfaultfd of its own.
    pub follow: bool,
    /// The descriptor it is registered with, armed or not.
    pub descriptor: Option<Handles>,
    /// What a SIGBUS leads to.
    pub resolver: Arc<Resolver>,
}

/// All ranges, as they were published last.
pub struct View(Vec<Entry>);

impl View {
    /// The range that holds `address`.
    #[must_use]
    pub fn find(&self, address: usize) -> Option<&Entry> {
        let index = self.0.partition_point(|entry| entry.range.end <= address);
        self.0.get(index).filter(|entry| entry.range.start <= address)
    }

    /// What has a part in `range`.
    #[must_use]
    pub fn within(&self, range: &Range<usize>) -> &[Entry] {
        let first = self.0.partition_point(|entry| entry.range.end <= range.start);
        let count = self.0[first..].iter().take_while(|entry| entry.range.start < range.end).count();
        &self.0[first..first + count]
    }
}

static EMPTY: View = View(Vec::new());

static VIEW: AtomicPtr<View> = AtomicPtr::new(std::ptr::null_mut());
static READERS: AtomicU32 = AtomicU32::new(0);

/// What was replaced and may still be in use.
struct Retired {
    #[expect(clippy::vec_box, reason = "readers hold the address that the box had")]
    views: Vec<Box<View>>,
    resolvers: Vec<Arc<Resolver>>,
}

static RETIRED: Mutex<Retired> = Mutex::new(Retired { views: Vec::new(), resolvers: Vec::new() });

/// Was there ever anything in it?
#[must_use]
pub fn is_used() -> bool {
    !VIEW.load(Ordering::Acquire).is_null()
}

/// Look at it. Takes no lock; what is replaced meanwhile stays until the look is over.
pub fn read<T>(look: impl FnOnce(&View) -> T) -> T {
    READERS.fetch_add(1, Ordering::SeqCst);
    let view = VIEW.load(Ordering::SeqCst);
    // SAFETY: null, or a box that is freed only after it was replaced and READERS was then seen at 0.
    let answer = look(unsafe { view.as_ref() }.unwrap_or(&EMPTY));
    READERS.fetch_sub(1, Ordering::SeqCst);
    answer
}

/// The range that holds `address`. Allocates nothing; dropping the answer frees nothing, because what is replaced is kept
/// until nobody else has it.
#[must_use]
pub fn find(address: usize) -> Option<Entry> {
    read(|view| view.find(address).cloned())
}

/// Visit every range. Takes no lock.
pub fn for_each(visit: impl FnMut(&Entry)) {
    read(|view| view.0.iter().for_each(visit));
}

/// Replace all of it; sorted, without overlaps.
pub fn publish(engine: &Engine, entries: Vec<Entry>) {
    debug_assert!(entries.windows(2).all(|two| two[0].range.end <= two[1].range.start));
    let mut retired = RETIRED.lock().unwrap_or_else(PoisonError::into_inner);
    let old = VIEW.swap(Box::into_raw(Box::new(View(entries))), Ordering::SeqCst);
    if !old.is_null() {
        // SAFETY: the pointer came from Box::into_raw here and was taken out just now.
        let old = unsafe { Box::from_raw(old) };
        for entry in &old.0 {
            if !entry.resolver.listed.swap(true, Ordering::Relaxed) {
                retired.resolvers.push(entry.resolver.clone());
            }
        }
        retired.views.push(old);
    }
    if READERS.load(Ordering::SeqCst) == 0 {
        retired.views.clear();
    }
    let known = std::mem::take(&mut retired.resolvers);
    let (unused, used): (Vec<_>, _) = known.into_iter().partition(|one| Arc::strong_count(one) == 1);
    retired.resolvers = used;
    drop(retired);
    unused.into_iter().filter_map(Arc::into_inner).for_each(|resolver| bury(engine, resolver));
}

fn bury(engine: &Engine, resolver: Resolver) {
    let retired = engine.table.retire(resolver.region, 0, 0);
    // The keeper may be looking at it; if it still is after a while, a few hundred bytes are lost.
    if let Ok(region) = engine.table.reclaim(retired, Duration::from_millis(100)) {
        crate::threads::leave(region);
    }
}

/// What a parent had flagged.
static DEAD: AtomicPtr<View> = AtomicPtr::new(std::ptr::null_mut());

/// Do the ranges of it that follow lead to the parent?
static FOLLOWING: AtomicBool = AtomicBool::new(false);

/// In a forked child: the ranges are the parent's, and those that follow are here, if so. The old list is leaked.
pub fn forget(following: bool) {
    READERS.store(0, Ordering::SeqCst);
    FOLLOWING.store(following, Ordering::SeqCst);
    let old = VIEW.swap(std::ptr::null_mut(), Ordering::SeqCst);
    if !old.is_null() {
        DEAD.store(old, Ordering::SeqCst);
    }
}

/// In a forked child: had its parent flagged this address?
#[must_use]
pub fn was_the_parents(address: usize) -> bool {
    // SAFETY: null, or a list that was leaked in `forget`.
    let dead = unsafe { DEAD.load(Ordering::SeqCst).as_ref() };
    let following = FOLLOWING.load(Ordering::SeqCst);
    let is_here = |entry: &Entry| matches!(entry.armed, Armed::No) || (entry.follow && following);
    let entombed = |entry: &Entry| !is_here(entry) && entry.range.contains(&address);
    dead.is_some_and(|view| view.0.iter().any(entombed))
}

/// In a forked child: visit the ranges whose faults go to the parent.
pub fn for_each_followed(mut visit: impl FnMut(&Range<usize>)) {
    // SAFETY: as above.
    let dead = unsafe { DEAD.load(Ordering::SeqCst).as_ref() };
    let Some(view) = dead.filter(|_| FOLLOWING.load(Ordering::SeqCst)) else { return };
    view.0.iter().filter(|entry| entry.follow).for_each(|entry| visit(&entry.range));
}
