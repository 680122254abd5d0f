//! What is read ahead of which accesses.

use super::*;

const PLAIN: Shape = Shape { helps: true, slow: false, unit: 65536, piece: 1, kept: usize::MAX };

/// All that a worker reads now.
fn read(ahead: &Readahead, stream: usize) -> Vec<usize> {
    std::iter::from_fn(|| ahead.next(stream)).flatten().collect()
}

fn noted(ahead: &Readahead, units: impl IntoIterator<Item = usize>) -> Vec<usize> {
    units.into_iter().filter_map(|unit| ahead.note(unit, 1000)).collect()
}

#[test]
fn a_scan_opens_a_window_that_grows_with_it_and_goes_on_while_it_is_used() {
    let ahead = Readahead::new(&PLAIN);
    assert_eq!(noted(&ahead, [0, 1, 2]), [0]);
    assert_eq!(ahead.behind(3), 4..7);
    assert_eq!(read(&ahead, 0), [3, 4, 5, 6]);
    assert_eq!(noted(&ahead, [4]), [], "more than half of it is left");
    assert_eq!(noted(&ahead, [5]), [0]);
    assert_eq!(read(&ahead, 0), (7..12).collect::<Vec<_>>());
    assert_eq!(noted(&ahead, [12]), [0]);
    assert_eq!(read(&ahead, 0), (13..26).collect::<Vec<_>>());
    assert_eq!(ahead.note(26, 30), Some(0));
    assert_eq!(read(&ahead, 0), [27, 28, 29]);
}

#[test]
fn a_fast_source_has_one_reader_which_reads_what_is_planned_meanwhile() {
    let ahead = Readahead::new(&PLAIN);
    assert_eq!(noted(&ahead, [0, 1, 2]), [0]);
    assert_eq!(ahead.next(0), Some(3..4));
    assert!(!ahead.wants_another(0));
    assert_eq!(noted(&ahead, [6]), [], "it has one");
    assert_eq!(ahead.next(0), Some(7..8), "past what the toucher has reached itself");
    assert_eq!(read(&ahead, 0).last(), Some(&13));
}

#[test]
fn a_slow_source_has_several_readers_and_is_read_in_pieces() {
    let ahead = Readahead::new(&Shape { slow: true, piece: 3, ..PLAIN });
    assert_eq!(noted(&ahead, 0..3), [0]);
    assert_eq!(ahead.next(0), Some(3..6));
    assert!(ahead.wants_another(0));
    assert_eq!((ahead.next(0), ahead.wants_another(0)), (Some(6..7), false), "nothing is left");
    assert_eq!(noted(&ahead, [6]), [0]);
}

#[test]
fn a_reader_that_leaves_early_is_replaced_at_the_next_fault() {
    let ahead = Readahead::new(&PLAIN);
    assert_eq!(noted(&ahead, 0..3), [0]);
    ahead.part(0);
    assert_eq!(noted(&ahead, [3]), [0]);
    assert_eq!(read(&ahead, 0), [4, 5, 6]);
}

#[test]
fn a_source_that_fails_is_not_read_ahead_until_the_scan_shows_itself_again_and_at_last_for_long() {
    let ahead = Readahead::new(&PLAIN);
    let mut asked = vec![];
    for unit in 0..200 {
        if let Some(stream) = ahead.note(unit, 1000) {
            asked.push(unit);
            assert!(ahead.next(stream).is_some());
            ahead.failed(stream);
            assert_eq!(ahead.behind(unit), unit + 1..unit + 1);
        }
    }
    assert_eq!(asked, [2, 4, 6, 8]);
}

#[test]
fn two_scans_of_one_region_are_both_seen_and_share_what_may_be_read() {
    let ahead = Readahead::new(&Shape { kept: 12, ..PLAIN });
    let asked = noted(&ahead, (0..3).flat_map(|at| [at, 500 + at]));
    let units: Vec<_> = asked.into_iter().map(|stream| read(&ahead, stream)).collect();
    assert_eq!(units, [vec![3, 4, 5, 6], vec![503, 504, 505]]);
}

#[test]
fn the_same_fault_of_another_thread_is_no_scan_of_its_own() {
    assert_eq!(noted(&Readahead::new(&PLAIN), [0, 0, 1, 1, 1, 2]), [0]);
}

#[test]
fn random_access_reads_nothing_ahead() {
    assert_eq!(noted(&Readahead::new(&PLAIN), [5, 900, 6, 70, 300, 301, 2, 90]), []);
}

/// Records in random order, of so many units each: how many units were read ahead and not used, of a hundred that were.
fn waste(length: usize) -> usize {
    let ahead = Readahead::new(&PLAIN);
    let (mut used, mut unused) = (0, 0);
    for record in (0..2000).map(|number| number * 7919 % 2000 * 100) {
        let mut filled = std::collections::HashSet::new();
        for unit in record..record + length {
            used += 1;
            // Whoever finds its unit read does not fault.
            if !filled.contains(&unit)
                && let Some(stream) = ahead.note(unit, 1_000_000)
            {
                filled.extend(read(&ahead, stream));
            }
        }
        unused += filled.iter().filter(|unit| **unit >= record + length).count();
    }
    100 * unused / used
}

#[test]
fn records_of_any_length_cost_little_that_is_not_used() {
    let wasted: Vec<usize> = (1..40).map(waste).collect();
    assert_eq!(wasted[..2], [0, 0]);
    assert!(wasted.iter().all(|percent| *percent <= 100 / REST_EACH), "{wasted:?}");
}

#[test]
fn memory_sources_never_ask_and_small_budgets_get_small_windows() {
    assert_eq!(noted(&Readahead::new(&Shape { helps: false, ..PLAIN }), 0..50), []);
    let ahead = Readahead::new(&Shape { kept: 8, ..PLAIN });
    let far = (0..200).filter_map(|unit| Some((unit, read(&ahead, ahead.note(unit, 1000)?))));
    assert!(far.into_iter().all(|(unit, units)| units.iter().all(|one| (1..=4).contains(&(one - unit)))));
}
