//! What sources are told before a bulk is read: some take long over it, and one may never come back. A bulk waits for that as
//! long as a touch may, and no other region's does. Each region's are called one after the other, as its source may expect.
//!
//! *Locks*: `list`, for a few instructions. *Threads*: servers; the clock. *Blocks on*: sources.

use super::bulk::Bulk;
use super::table::Served;
use super::{Server, alarm};
use crate::futex::now_ns;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Servers that are at these at once: what comes while all are is read without.
const MOST: usize = 16;

/// All that have not come back.
#[derive(Default)]
pub struct Hints {
    list: Mutex<Vec<Hint>>,
}

struct Hint {
    bulk: Arc<Bulk>,
    deadline_ns: u64,
    how: How,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Waiting,
    Called,
    /// Its time is up: the bulk has gone on without it.
    Late,
}

impl Hint {
    fn is_of(&self, served: &Arc<Served>) -> bool {
        Arc::ptr_eq(&self.bulk.served, served)
    }
}

impl Hints {
    fn list(&self) -> MutexGuard<'_, Vec<Hint>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tell the source of this bulk first; false: there is nobody to do it.
    fn add(&self, bulk: &Arc<Bulk>) -> bool {
        let mut list = self.list();
        let hangs = list.iter().any(|hint| hint.how == How::Late && hint.is_of(&bulk.served));
        let is_full = list.iter().filter(|hint| hint.how != How::Waiting).count() >= MOST;
        if hangs || is_full {
            return false;
        }
        let deadline_ns = now_ns().saturating_add(bulk.served.timeout_ns);
        list.push(Hint { bulk: bulk.clone(), deadline_ns, how: How::Waiting });
        true
    }

    fn take(&self) -> Option<Arc<Bulk>> {
        let mut list = self.list();
        let at = next_of(&list)?;
        list[at].how = How::Called;
        Some(list[at].bulk.clone())
    }

    /// This one is over; false: its bulk has gone on.
    fn end(&self, bulk: &Arc<Bulk>) -> bool {
        let mut list = self.list();
        let at = list.iter().position(|hint| Arc::ptr_eq(&hint.bulk, bulk));
        at.map(|at| list.remove(at)).is_some_and(|hint| hint.how == How::Called)
    }

    /// Those whose time is up; with those that wait for the same source.
    fn overdue(&self, now_ns: u64) -> Vec<Arc<Bulk>> {
        let mut list = self.list();
        let mut late = Vec::new();
        for hint in list.iter_mut().filter(|hint| hint.how == How::Called && hint.deadline_ns <= now_ns) {
            hint.how = How::Late;
            late.push(hint.bulk.clone());
        }
        let hangs = |hint: &mut Hint| late.iter().any(|bulk| hint.is_of(&bulk.served));
        let is_out = |hint: &mut Hint| hint.how == How::Waiting && (hint.deadline_ns <= now_ns || hangs(hint));
        let behind: Vec<_> = list.extract_if(.., is_out).map(|hint| hint.bulk).collect();
        late.extend(behind);
        late
    }

    /// Does a bulk wait for one?
    pub fn is_busy(&self) -> bool {
        self.list().iter().any(|hint| hint.how != How::Late)
    }

    /// Could another server call one?
    pub fn is_waiting(&self) -> bool {
        next_of(&self.list()).is_some()
    }
}

/// The oldest whose source is at no other.
fn next_of(list: &[Hint]) -> Option<usize> {
    if list.iter().filter(|hint| hint.how != How::Waiting).count() >= MOST {
        return None;
    }
    let is_free = |hint: &Hint| !list.iter().any(|other| other.how != How::Waiting && other.is_of(&hint.bulk.served));
    list.iter().position(|hint| hint.how == How::Waiting && is_free(hint))
}

/// A bulk is to be read: its source hears of it, then others read.
pub fn begin(server: &Server, bulk: Arc<Bulk>) {
    if server.hints.add(&bulk) {
        server.work.ring();
        alarm::wake(server);
    } else {
        server.push(bulk);
    }
}

/// Tell one source; false: there is none to be told.
pub fn work(server: &Server) -> bool {
    let Some(bulk) = server.hints.take() else { return false };
    if let Ok(source) = bulk.served.source.as_ref()
        && bulk.served.is_live()
    {
        source.hint(bulk.hinted());
    }
    if server.hints.end(&bulk) {
        server.push(bulk);
    }
    true
}

/// The clock: bulks go on whose sources do not come back.
pub fn give_up(server: &Server, now_ns: u64) {
    server.hints.overdue(now_ns).into_iter().for_each(|bulk| server.push(bulk));
}
