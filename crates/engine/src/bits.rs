//! A set of page numbers that a signal handler can add to: one bit a page, and one summary bit for each 4096 pages so
//! that sweeping a huge, nearly empty set is cheap.
//!
//! *Locks*: none. *Threads*: `insert` from any thread or handler; `sweep` from one thread at a time.

use crate::sync::{AtomicU64, AtomicUsize, Ordering, zeroed_words};

/// Words covered by one summary bit. Fewer for loom, which tries every order of looks at them.
const GROUP_WORDS: usize = if cfg!(loom) { 2 } else { 64 };
const GROUP_PAGES: usize = GROUP_WORDS * 64;

/// The set.
pub struct PageBits {
    leaves: Box<[AtomicU64]>,
    summary: Box<[AtomicU64]>,
    count: AtomicUsize,
}

impl PageBits {
    /// An empty set of pages `0..pages`.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        let groups = pages.div_ceil(GROUP_PAGES).max(1);
        Self {
            leaves: zeroed_words(groups * GROUP_WORDS),
            summary: zeroed_words(groups.div_ceil(64)),
            count: AtomicUsize::new(0),
        }
    }

    /// How many pages are in it, or a few more while some are put in.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Is it empty?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Add a page; true if the set was empty before.
    pub fn insert(&self, page: usize) -> bool {
        let bit = 1 << (page % 64);
        // Counted first: a page that is taken out before its insertion is over must not make the set look empty that
        // holds another one by now.
        let first = self.count.fetch_add(1, Ordering::AcqRel) == 0;
        if self.leaves[page / 64].fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        let group = page / GROUP_PAGES;
        self.summary[group / 64].fetch_or(1 << (group % 64), Ordering::AcqRel);
        first
    }

    /// Is this page in it?
    #[must_use]
    pub fn contains(&self, page: usize) -> bool {
        self.leaves[page / 64].load(Ordering::Acquire) & (1 << (page % 64)) != 0
    }

    /// Take a page out; true if it was there.
    pub fn remove(&self, page: usize) -> bool {
        let bit = 1 << (page % 64);
        let there = self.leaves[page / 64].fetch_and(!bit, Ordering::AcqRel) & bit != 0;
        if there {
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        there
    }

    /// Take each page out of the set and call `visit` for it; pages for which it answers false go back in. Out first: a
    /// page that comes back while it is visited stays in.
    pub fn sweep(&self, mut visit: impl FnMut(usize) -> bool) {
        for (index, word) in self.summary.iter().enumerate() {
            let groups = word.swap(0, Ordering::AcqRel);
            for bit in bits_of(groups) {
                let group = index * 64 + bit;
                if self.sweep_group(group, &mut visit) {
                    self.summary[index].fetch_or(1 << bit, Ordering::AcqRel);
                }
            }
        }
    }

    /// True if something stays in the group.
    fn sweep_group(&self, group: usize, visit: &mut impl FnMut(usize) -> bool) -> bool {
        let mut stays = false;
        for leaf in group * GROUP_WORDS..(group + 1) * GROUP_WORDS {
            for bit in bits_of(self.leaves[leaf].load(Ordering::Acquire)) {
                let page = leaf * 64 + bit;
                if self.remove(page) && !visit(page) {
                    self.insert(page);
                    stays = true;
                }
            }
        }
        stays
    }
}

fn bits_of(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (word != 0).then(|| {
            let bit = word.trailing_zeros() as usize;
            word &= word - 1;
            bit
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_visits_what_was_inserted_and_keeps_what_is_refused() {
        let set = PageBits::new(3 * GROUP_PAGES + 5);
        for page in [0, 63, 64, GROUP_PAGES, 3 * GROUP_PAGES + 4] {
            assert_eq!(set.insert(page), page == 0, "true for the first only");
            assert!(!set.insert(page));
        }
        let mut seen = vec![];
        set.sweep(|page| {
            seen.push(page);
            page != 64
        });
        assert_eq!(seen, [0, 63, 64, GROUP_PAGES, 3 * GROUP_PAGES + 4]);
        assert_eq!(set.len(), 1);
        assert!(set.contains(64));
        let mut again = vec![];
        set.sweep(|page| {
            again.push(page);
            true
        });
        assert_eq!(again, [64]);
        assert!(set.is_empty());
    }
}
