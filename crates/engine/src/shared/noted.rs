//! Pages that a pager has poisoned, for its owner, by whom they expire: a bit a page, so that none is forgotten however many fail
//! between two looks; and a bit for each piece of those, so that a look costs little.
//!
//! *Locks*: none. *Threads*: servers and the clock note; the watcher takes.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const BITS: usize = u64::BITS as usize;
const PIECE_WORDS: usize = 64;
/// Pieces at most.
const PIECES: usize = PIECE_WORDS * BITS;

/// What lies before the bits of the pages.
#[repr(C)]
#[derive(Default)]
pub struct Noted {
    any: AtomicU32,
    pieces: Bits<PIECE_WORDS>,
}

#[repr(transparent)]
struct Bits<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Bits<N> {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }
}

/// Bytes of the bits of so many pages.
pub const fn noted_bytes(pages: usize) -> usize {
    pages.div_ceil(BITS) * size_of::<u64>()
}

/// Words of a piece.
fn piece_words(words: usize) -> usize {
    words.div_ceil(PIECES).max(1)
}

impl Noted {
    /// Pager: this page is poisoned, by now.
    pub fn note(&self, pages: &[AtomicU64], page: usize) {
        let word = page / BITS;
        let Some(bits) = pages.get(word) else { return };
        // In this order, and taken in the other: what is noted meanwhile is found the next time.
        bits.fetch_or(1 << (page % BITS), Ordering::SeqCst);
        let piece = word / piece_words(pages.len());
        self.pieces.0[piece / BITS].fetch_or(1 << (piece % BITS), Ordering::SeqCst);
        self.any.store(1, Ordering::SeqCst);
    }

    /// Owner: visit those noted since the last time.
    pub fn take(&self, pages: &[AtomicU64], mut visit: impl FnMut(usize)) {
        if self.any.load(Ordering::SeqCst) == 0 {
            return;
        }
        self.any.store(0, Ordering::SeqCst);
        let size = piece_words(pages.len());
        each_taken(&self.pieces.0, 0..PIECE_WORDS, |piece| {
            let first = (piece * size).min(pages.len());
            each_taken(pages, first..(first + size).min(pages.len()), &mut visit);
        });
    }
}

fn each_taken(words: &[AtomicU64], range: Range<usize>, mut visit: impl FnMut(usize)) {
    for word in range {
        if words[word].load(Ordering::SeqCst) == 0 {
            continue;
        }
        let mut bits = words[word].swap(0, Ordering::SeqCst);
        while bits != 0 {
            visit(word * BITS + bits.trailing_zeros() as usize);
            bits &= bits - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_is_taken_once_whatever_the_length() {
        for count in [1, 64, 300, 64 * PIECES + 65] {
            let words: Vec<AtomicU64> = (0..noted_bytes(count) / size_of::<u64>()).map(|_| AtomicU64::new(0)).collect();
            let noted = Noted::default();
            let given: Vec<usize> = (0..count).step_by((count / 100).max(1)).chain([count - 1]).collect();
            given.iter().for_each(|page| noted.note(&words, *page));
            noted.note(&words, words.len() * BITS); // of no region: nothing
            let mut taken = Vec::new();
            noted.take(&words, |page| taken.push(page));
            let mut wanted = given.clone();
            wanted.dedup();
            assert_eq!(taken, wanted);
            noted.take(&words, |page| panic!("page {page} again"));
        }
    }
}
