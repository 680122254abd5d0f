//! PAGEMAP_SCAN, and write tracking without faults.

mod support;

use support::*;
use uffd::{
    Categories, Errno, Features, PagemapRegion, PagemapScan, ProtectMode, RegisterModes, ScanFlags, ScanQuery,
    page_size,
};

fn written() -> ScanQuery {
    ScanQuery { all_of: Categories::WRITTEN, report: Categories::WRITTEN, ..ScanQuery::default() }
}

fn first_pages(memory: &Memory, found: &[PagemapRegion]) -> Vec<usize> {
    found
        .iter()
        .flat_map(|r| (r.start as usize..r.end as usize).step_by(page_size()))
        .map(|a| (a - memory.at) / page_size())
        .collect()
}

#[test]
fn scan_finds_exactly_the_pages_written_since() {
    let Some((fd, memory)) = armed(16, RegisterModes::WP, Features::WP_ASYNC) else { return };
    let scan = PagemapScan::open_self().unwrap();
    let all = memory.at..memory.at + memory.len;
    assert!(fd.handle().write_protect(memory.at, memory.len, ProtectMode::PROTECT).is_done());
    assert!(scan.collect(all.clone(), &written()).unwrap().is_empty());
    for page in [2, 3, 9] {
        memory.store(page, 1);
    }
    let take = ScanQuery { flags: ScanFlags::WP_MATCHING | ScanFlags::CHECK_WPASYNC, ..written() };
    assert_eq!(first_pages(&memory, &scan.collect(all.clone(), &take).unwrap()), [2, 3, 9]);
    assert!(scan.collect(all.clone(), &written()).unwrap().is_empty(), "protected again by the scan");
    memory.store(9, 2);
    assert_eq!(first_pages(&memory, &scan.collect(all, &written()).unwrap()), [9]);
    assert!(fd.handle().read_events().is_err(), "no message was made");
}

#[test]
fn scan_stops_where_the_array_or_the_count_ends() {
    let Ok(scan) = PagemapScan::open_self() else { return };
    let memory = Memory::private(8);
    (0..8).step_by(2).for_each(|page| memory.store(page, 1));
    let present = ScanQuery { all_of: Categories::PRESENT, report: Categories::PRESENT, ..ScanQuery::default() };
    let range = memory.at..memory.at + memory.len;
    let mut two = [PagemapRegion::default(); 2];
    let Ok(scanned) = scan.scan(range.clone(), &present, &mut two) else {
        eprintln!("skipped: no PAGEMAP_SCAN");
        return;
    };
    assert_eq!(scanned.regions, 2);
    assert!(scanned.walk_end > memory.page(2) && scanned.walk_end <= memory.page(4));
    assert_eq!(first_pages(&memory, &scan.collect(range.clone(), &present).unwrap()), [0, 2, 4, 6]);
    let three = ScanQuery { max_pages: 3, ..present };
    assert_eq!(first_pages(&memory, &scan.collect(range, &three).unwrap()), [0, 2, 4]);
}

#[test]
fn scan_refuses_bad_queries() {
    let (Ok(scan), memory) = (PagemapScan::open_self(), Memory::private(1)) else { return };
    let range = memory.at..memory.at + memory.len;
    let refused = |query: ScanQuery, start: usize| scan.collect(start..range.end, &query).unwrap_err();
    assert_eq!(refused(ScanQuery::default(), memory.at + 1), Errno(libc::EINVAL));
    assert_eq!(
        refused(ScanQuery { flags: ScanFlags(1 << 30), ..ScanQuery::default() }, memory.at),
        Errno(libc::EINVAL)
    );
    let check = ScanQuery { flags: ScanFlags::CHECK_WPASYNC | ScanFlags::WP_MATCHING, ..written() };
    assert_eq!(refused(check, memory.at), Errno(libc::EPERM));
}

#[test]
fn scan_of_another_process_needs_it_to_exist() {
    assert!(matches!(PagemapScan::open_pid(i32::MAX), Err(Errno(libc::ENOENT))));
}
