//! A filter gives back any stretch of what it was given, and believes no record that it would not write itself.

use super::super::testing::Random;
use super::*;

#[test]
fn any_stretch_of_any_frame_comes_back() {
    let mut random = Random(43);
    for round in 0..4000 {
        let item = [2, 4, 8, 3, 12, 255, 2 + random.below(30) as u32][round % 7];
        let block = item + random.below([1, 40, 3000][round % 3]) as u32;
        let start = [0, 128, 1, random.below(5000) as u64][round % 4];
        let filter = Filter::new(item, block, start).unwrap();
        let at = random.below(5) as u64 * u64::from(block);
        let data: Vec<u8> = (0..random.below(5 * block as usize + 9)).map(|_| random.next() as u8).collect();
        let mut shuffled = vec![0xEE; data.len()];
        filter.apply(at, &data, &mut shuffled);
        let within = random.below(data.len() + 1);
        let mut out = vec![0xEE; random.below(data.len() - within + 1)];
        filter.undo(at, &shuffled, within, &mut out);
        assert!(
            out == data[within..][..out.len()],
            "{filter:?} at {at}, {} bytes at {within} of {}",
            out.len(),
            data.len()
        );
    }
}

#[test]
fn a_header_shifts_no_item() {
    // Two blocks of 16 with a header of 6: five bytes stay at the front of no block, and items of 4 go on through both.
    let filter = Filter::new(4, 16, 6).unwrap();
    let data: Vec<u8> = (0..32).collect();
    let mut shuffled = vec![0; 32];
    filter.apply(0, &data, &mut shuffled);
    let first = [0, 1, 2, 3, 4, 5, 6, 10, 7, 11, 8, 12, 9, 13, 14, 15];
    let second = [16, 17, 18, 22, 26, 19, 23, 27, 20, 24, 28, 21, 25, 29, 30, 31];
    assert_eq!(shuffled, [first, second].concat());
}

#[test]
fn blocks_without_a_whole_item_stay_as_they_are() {
    let filter = Filter::new(255, 255, 128).unwrap();
    let data: Vec<u8> = (0..250).collect();
    let mut shuffled = vec![0; 250];
    filter.apply(0, &data, &mut shuffled);
    assert_eq!(shuffled, data);
}

#[test]
fn a_record_says_what_it_was_made_of_and_no_bit_of_it_can_flip() {
    for numbers in [(4, 65_536, 128), (255, 255, u64::MAX), (2, 2, 0), (8, 64 << 20, 1 << 40)] {
        let filter = Filter::new(numbers.0, numbers.1, numbers.2).unwrap();
        let frame = filter.frame();
        assert!(is_filter(&frame[..16].try_into().unwrap()));
        assert_eq!(Filter::parse(&frame, FILTER_BYTES), Ok(filter));
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame;
            damaged[bit / 8] ^= 1 << (bit % 8);
            let known = is_filter(&damaged[..16].try_into().unwrap());
            assert!(!known || Filter::parse(&damaged, FILTER_BYTES) != Ok(filter), "bit {bit}");
        }
    }
}

#[test]
fn records_of_other_versions_and_impossible_ones_are_refused_by_name() {
    let frame = Filter::new(4, 65_536, 128).unwrap().frame();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = frame;
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        Filter::parse(&changed, FILTER_BYTES).unwrap_err()
    };
    assert_eq!(with(16, &[2]), FilterFault::Version { found: 2 });
    assert_eq!(with(17, &[7]), FilterFault::Kind { found: 7 });
    assert_eq!(with(18, &[1]), FilterFault::Malformed);
    assert_eq!(with(28, &[1]), FilterFault::Malformed);
    for item_bytes in [0, 1, 256, u32::MAX] {
        assert_eq!(with(20, &item_bytes.to_le_bytes()), FilterFault::Item { item_bytes });
    }
    for block_bytes in [0, 3, MAX_BLOCK_BYTES + 1, u32::MAX] {
        assert_eq!(with(24, &block_bytes.to_le_bytes()), FilterFault::Block { block_bytes, item_bytes: 4 });
    }
    assert_eq!(Filter::parse(&frame[..39], 39), Err(FilterFault::Malformed));
    assert_eq!(Filter::parse(&frame, 41), Err(FilterFault::Malformed));
    assert_eq!(Filter::parse(&frame[..16], 16), Err(FilterFault::Malformed));
}
