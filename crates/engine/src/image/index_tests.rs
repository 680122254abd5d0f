//! The index finds what was packed, and refuses everything else with what and where.

use super::super::frame::{FrameFault, decode, zero_frame};
use super::super::testing::{Entry, Random, filtered, image, index, table};
use super::*;

fn entry(compressed: u32, decoded: u32) -> Entry {
    Entry { compressed, decoded, checksum: 0 }
}

/// Frames of random bytes (never read by these tests) with this table behind them.
fn file(data_bytes: usize, entries: &[Entry]) -> Vec<u8> {
    let mut bytes = ZSTD_MAGIC.to_le_bytes().to_vec();
    bytes.resize(data_bytes, 0);
    bytes.extend(table(entries, false));
    bytes
}

#[test]
fn finds_every_byte_of_odd_frames() {
    let mut random = Random(42);
    let pieces: Vec<Vec<u8>> = [1, 4096, 0, 0, 777, 65_536, 0, 3].iter().map(|bytes| random.bytes(*bytes)).collect();
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    for checksums in [true, false] {
        let bytes = image(&pieces, checksums);
        let index = index(&bytes).unwrap();
        assert_eq!(
            index.frame_count() as usize,
            pieces.len() + usize::from(checksums),
            "a guard only beside checksums"
        );
        assert_eq!(index.has_checksums(), checksums);
        assert_eq!(index.common_frame_bytes(), 0);
        for offset in 0..index.decoded_bytes() {
            let frame = index.find(offset).unwrap();
            assert!((frame.decoded_offset..frame.decoded_end()).contains(&offset));
            assert_eq!(frame.checksum.is_some(), checksums);
        }
        assert_eq!(index.find(index.decoded_bytes()), None);
    }
}

#[test]
fn an_image_of_nothing_opens() {
    let bytes = table(&[], true);
    let index = index(&bytes).unwrap();
    assert_eq!((index.frame_count(), index.decoded_bytes(), index.find(0)), (0, 0, None));
}

#[test]
fn frames_of_a_skippable_kind_are_passed_over() {
    let data = vec![0x50, 0x2A, 0x4D, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    let body = image(&[b"hello"], false);
    let frame_bytes = body.len() - 8 - 8 - 9;
    let mut bytes = data.clone();
    bytes.extend(&body[..frame_bytes]);
    bytes.extend(table(&[entry(12, 0), entry(frame_bytes as u32, 5)], false));
    let index = index(&bytes).unwrap();
    assert_eq!(index.find(0).unwrap().number, 1);
}

#[test]
fn the_common_frame_size_allows_runs_of_zeros_and_a_short_end() {
    let mut random = Random(1);
    let (one, zeros, end) = (random.bytes(65_536), vec![0; 65_536 * 5], random.bytes(100));
    let unit = |pieces: &[&[u8]]| index(&image(pieces, true)).unwrap().natural_unit(4096);
    assert_eq!(unit(&[&zeros, &one, &zeros, &one, &one, &end]), 65_536);
    assert_eq!(unit(&[&zeros]), 0);
    assert_eq!(unit(&[&one, &end, &one]), 0);
    assert_eq!(unit(&[&one[..6000], &one[..6000]]), 0);
    assert_eq!(unit(&[&one[..2048], &one[..2048]]), 0, "smaller than a page");
}

#[test]
fn refuses_what_is_not_an_image() {
    assert!(matches!(index(b""), Err(ImageError::NotZstd { magic: 0 })));
    assert!(matches!(index(b"hello, world, this is text"), Err(ImageError::NotZstd { .. })));
    let plain = zero_frame(100_000);
    let error = index(&plain).unwrap_err();
    assert!(error.to_string().contains("zstd -dc FILE | userfault pack - -o OUT"), "{error}");
    assert!(matches!(index(&plain[..6]), Err(ImageError::NoSeekTable { file_bytes: 6 })));
}

#[test]
fn refuses_every_truncation() {
    let bytes = image(&[&[1; 5000], &[0; 4096], &[2; 100]], true);
    for length in 0..bytes.len() {
        assert!(index(&bytes[..length]).is_err(), "cut to {length} bytes");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(index(&longer).is_err());
}

#[test]
fn refuses_lies_about_sizes() {
    let good = |entries: &[Entry]| index(&file(100, entries));
    assert!(good(&[entry(40, 5), entry(60, 7)]).is_ok());
    assert!(matches!(good(&[entry(40, 5)]), Err(ImageError::Unaccounted { frames_end: 40, table_offset: 100 })));
    assert!(matches!(
        good(&[entry(40, 5), entry(61, 5)]),
        Err(ImageError::FrameBeyondTable { frame: 1, offset: 40, .. })
    ));
    assert!(matches!(good(&[entry(u32::MAX, 5)]), Err(ImageError::FrameBeyondTable { frame: 0, .. })));
    assert!(matches!(
        good(&[entry(100, 5), entry(0, 5)]),
        Err(ImageError::FrameTooSmall { frame: 1, offset: 100, .. })
    ));
    assert!(matches!(good(&[entry(100, 24 << 17)]), Err(ImageError::Bomb { possible_bytes: 3_014_656, .. })));
    assert!(matches!(good(&[entry(100, u32::MAX)]), Err(ImageError::Bomb { .. })));
    let large = index(&file(5000, &[entry(5000, MAX_FRAME_BYTES + 1)]));
    assert!(matches!(large, Err(ImageError::FrameTooLarge { frame: 0, .. })), "{large:?}");
}

#[test]
fn refuses_lies_about_counts_without_memory_for_them() {
    for frames in [1, 2, 1000, MAX_FRAMES, MAX_FRAMES + 1, u32::MAX] {
        let mut bytes = file(50, &[]);
        let at = bytes.len() - 9;
        bytes[at..at + 4].copy_from_slice(&frames.to_le_bytes());
        assert!(index(&bytes).is_err(), "{frames} frames");
        // A sparse file that is large enough for the claim, but holds no entries.
        let size = 17 * u64::from(frames) + 1000;
        let sparse = Index::read(size, &|offset, out: &mut [u8]| {
            out.fill(0);
            match offset {
                0 => out.copy_from_slice(&ZSTD_MAGIC.to_le_bytes()),
                _ if offset == size - 9 => out.copy_from_slice(&bytes[at..]),
                _ => {}
            }
            Ok(())
        });
        assert!(sparse.is_err());
    }
}

#[test]
fn refuses_reserved_bits_and_a_wrong_table_header() {
    let mut bytes = file(50, &[entry(50, 5)]);
    let descriptor = bytes.len() - 5;
    for bit in 2..7 {
        bytes[descriptor] = 1 << bit;
        assert!(matches!(index(&bytes), Err(ImageError::Reserved { .. })));
    }
    bytes[descriptor] = 0x80;
    assert!(index(&bytes).is_err(), "entries of another size");
    bytes[descriptor] = 3;
    assert!(index(&bytes).is_ok(), "two bits are free");
    bytes[50] ^= 1;
    assert!(matches!(index(&bytes), Err(ImageError::TableHeader { offset: 50, .. })));
}

/// Decode all of an image; the bytes, or that something is wrong with it.
fn restore(bytes: &[u8], decoder: &mut zstd_safe::DCtx<'static>) -> Result<Vec<u8>, ImageError> {
    let index = index(bytes)?;
    let mut out = vec![0; index.decoded_bytes() as usize];
    for frame in index.frames() {
        let (from, to) = (frame.offset as usize, frame.decoded_offset as usize);
        let compressed = &bytes[from..from + frame.compressed_bytes as usize];
        let target = &mut out[to..to + frame.decoded_bytes as usize];
        decode(decoder, compressed, target, frame.checksum).map_err(|fault| ImageError::Frame {
            frame: frame.number,
            offset: frame.offset,
            decoded_offset: frame.decoded_offset,
            fault,
        })?;
    }
    Ok(out)
}

#[test]
fn damage_is_an_error_or_harmless_but_never_other_bytes() {
    let mut random = Random(0x5EED);
    let pieces: Vec<Vec<u8>> = vec![random.bytes(5000), vec![0; 300_000], random.bytes(1), random.bytes(70_000)];
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    let (good, bytes) = (pieces.concat(), image(&pieces, true));
    let mut decoder = zstd_safe::DCtx::create();
    let mut refused = 0;
    for round in 0..6000 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + random.below(3) {
            // The table is small and the most dangerous: half of the hits go there.
            let from = if round % 2 == 0 { damaged.len() - 77 } else { 0 };
            let at = from + random.below(damaged.len() - from);
            damaged[at] ^= 1 << random.below(8);
        }
        if round % 5 == 0 {
            damaged.truncate(random.below(damaged.len()));
        }
        match restore(&damaged, &mut decoder) {
            Ok(restored) => assert!(restored == good, "round {round}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 5500, "{refused} of 6000 refused");
}

#[test]
fn no_bit_of_the_table_can_flip_unnoticed() {
    let bytes = image(&[&[1; 5000], &[0; 1 << 20], &[2; 5000]], true);
    let table_offset = bytes.len() - 8 - 4 * 12 - 9;
    for at in table_offset..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            let free = at == bytes.len() - 5 && bit < 2;
            assert_eq!(index(&damaged).is_ok(), free, "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn swapped_frames_are_caught_by_their_checksums() {
    let bytes = image(&[&[1; 5000], &[2; 5000]], true);
    let index = index(&bytes).unwrap();
    let (first, second) = (index.frame(0), index.frame(1));
    assert_eq!(first.compressed_bytes, second.compressed_bytes);
    let mut swapped = bytes.clone();
    swapped[..first.compressed_bytes as usize]
        .copy_from_slice(&bytes[second.offset as usize..][..second.compressed_bytes as usize]);
    let error = restore(&swapped, &mut zstd_safe::DCtx::create()).unwrap_err();
    assert!(matches!(error, ImageError::Frame { frame: 0, fault: FrameFault::Checksum { .. }, .. }), "{error}");
}

/// A filtered image of 200 KB in frames of 64 KiB, the filter's frame in it, and its table's entries.
fn shuffled() -> (Vec<u8>, usize, usize) {
    let data: Vec<u8> = (0..50_000u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
    let bytes = filtered(&data, 65_536, Filter::new(4, 65_536, 128).unwrap());
    let index = index(&bytes).unwrap();
    let record = index.frame(index.frame_count() - 2);
    assert_eq!(record.compressed_bytes, FILTER_BYTES);
    let entries = bytes.len() - 9 - index.frame_count() as usize * 12;
    (bytes, record.offset as usize, entries)
}

#[test]
fn a_filter_is_read_and_no_bit_of_it_can_flip_unnoticed() {
    let (bytes, at, _) = shuffled();
    assert_eq!(index(&bytes).unwrap().filter().unwrap().numbers(), (4, 65_536, 128));
    for bit in 0..FILTER_BYTES as usize * 8 {
        let mut damaged = bytes.clone();
        damaged[at + bit / 8] ^= 1 << (bit % 8);
        assert!(index(&damaged).is_err(), "byte {}, bit {}", bit / 8, bit % 8);
    }
}

#[test]
fn who_knows_no_filters_finds_the_table_damaged() {
    let (bytes, at, entries) = shuffled();
    let guard = &bytes[at + FILTER_BYTES as usize..][..GUARD_BYTES as usize];
    // What such a reader does: it passes over the filter and compares the guard with the entries alone.
    let digest = read_guard(guard.try_into().unwrap()).unwrap();
    assert_ne!(digest, xxhash_rust::xxh64::xxh64(&bytes[entries..bytes.len() - 9], 0));
}

#[test]
fn a_filter_anywhere_else_is_refused() {
    let (bytes, at, _) = shuffled();
    let record = &bytes[at..at + FILTER_BYTES as usize];
    let data = image(&[b"hello"], false);
    let frame = &data[..data.len() - 8 - 8 - 9];
    let (filter, hello) = (entry(FILTER_BYTES, 0), entry(frame.len() as u32, 5));
    // Without a guard; in the middle, as after a tool that appends; before a guard that knows nothing of it.
    let cases = [
        ([record, frame, &table(&[filter, hello], false)].concat(), "must be the last but one"),
        ([frame, record, &table(&[hello, filter], false)].concat(), "must be the last but one"),
        ([frame, record, frame, &table(&[hello, filter, hello], false)].concat(), "must be the last but one"),
        (
            {
                let entries = [(frame.len() as u32, 5), (FILTER_BYTES, 0)];
                let entries: Vec<u8> = entries.iter().flat_map(|e| super::super::table::entry(e.0, e.1, 0)).collect();
                [frame, record, &super::super::table::finish(&entries, None)].concat()
            },
            "is damaged",
        ),
    ];
    for (bytes, words) in cases {
        let error = index(&bytes).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_filter_that_does_not_fit_the_frames_is_refused() {
    let data = vec![7; 100_000];
    let refused = |frame_bytes, block, start| {
        let bytes = filtered(&data, frame_bytes, Filter::new(4, block, start).unwrap());
        index(&bytes).unwrap_err().to_string()
    };
    assert!(refused(65_536, 50_000, 0).contains("frame 1 begins at byte 65536"));
    assert!(refused(65_536, 65_536, 100_001).contains("items begin at byte 100001 of 100000"));
}
