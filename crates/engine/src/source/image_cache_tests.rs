//! Images whose frames went through a filter, and frames that are wanted in parts: the same bytes, decoded once.

use super::tests::{open, read};
use super::*;
use crate::image::Filter;
use crate::image::testing::{Random, filtered, image};
use crate::scratch::Tally;

/// Numbers that change slowly, with zeros between and a header before.
fn numbers(bytes: usize) -> Vec<u8> {
    let mut data: Vec<u8> = (0..bytes as u32 / 4 + 1).flat_map(|n| (n / 3 + 0x4000_0000).to_le_bytes()).collect();
    data[bytes / 3..bytes / 2].fill(0);
    data.truncate(bytes);
    data
}

#[test]
fn a_filtered_image_gives_the_bytes_that_were_packed_for_any_request() {
    let good = numbers(400_001);
    let mut random = Random(17);
    for (item, block, start, frame) in [(4, 65_536, 128, 65_536), (8, 4096, 80, 65_536), (3, 5000, 7, 20_000)] {
        let bytes = filtered(&good, frame, Filter::new(item, block, start).unwrap());
        let source = open(&bytes).1.unwrap();
        let mut scratch = Scratch::new(65_536, source.needs());
        for round in 0..600 {
            let at = random.below(good.len()) / [1, 4096, frame][round % 3] * [1, 4096, frame][round % 3];
            let most = (good.len() - at).min([300, 65_536, 400_000][round / 3 % 3]);
            let got = read(&source, &mut scratch, at as u64, 1 + random.below(most)).unwrap();
            assert!(got == good[at..at + got.len()], "{} bytes at {at}, items of {item}", got.len());
        }
    }
}

#[test]
fn parts_of_a_frame_decode_it_once_whichever_region_and_thread_wants_them() {
    let good = numbers(1 << 20);
    for bytes in [image(&[&good], true), filtered(&good, 1 << 20, Filter::new(4, 65_536, 0).unwrap())] {
        let (file, first) = open(&bytes);
        let first = first.unwrap();
        let again = FileHandle::new(std::os::fd::OwnedFd::from(file.try_clone().unwrap())).unwrap();
        let second = ImageSource::open(again, "the same").unwrap();
        let decoded = std::sync::Mutex::new(Tally::default());
        std::thread::scope(|scope| {
            for (thread, source) in [&first, &second, &first, &second].into_iter().enumerate() {
                let (good, decoded) = (&good, &decoded);
                scope.spawn(move || {
                    let mut scratch = Scratch::new(65_536, source.needs());
                    for unit in (0..16).map(|unit| (unit + thread * 4) % 16) {
                        let got = read(source, &mut scratch, unit as u64 * 65_536, 65_536).unwrap();
                        assert!(got == good[unit * 65_536..][..65_536]);
                    }
                    let mut sum = decoded.lock().unwrap();
                    *sum = Tally {
                        decoded: sum.decoded + scratch.tally.decoded,
                        found: sum.found + scratch.tally.found,
                        repeated: 0,
                    };
                });
            }
        });
        let sum = decoded.into_inner().unwrap();
        assert_eq!(sum.decoded, 1, "{sum:?}");
        assert!(sum.found >= 40, "units of zeros aside, each of 64 reads: {sum:?}");
    }
}

#[test]
fn a_frame_that_is_damaged_is_not_kept() {
    let good = numbers(1 << 20);
    let bytes = image(&[&good], true);
    let (file, source) = open(&bytes);
    let source = source.unwrap();
    let write = |byte: u8| std::os::unix::fs::FileExt::write_all_at(&file, &[byte], 5000).unwrap();
    write(!bytes[5000]);
    let mut scratch = Scratch::new(65_536, source.needs());
    assert!(read(&source, &mut scratch, 0, 65_536).is_err() && read(&source, &mut scratch, 65_536, 65_536).is_err());
    write(bytes[5000]);
    assert!(read(&source, &mut scratch, 65_536, 65_536).unwrap() == good[65_536..131_072]);
    assert_eq!(scratch.tally, Tally { decoded: 3, found: 0, repeated: 0 });
}

#[test]
fn without_a_cache_the_scratch_does() {
    let good = numbers(300_000);
    let bytes = filtered(&good, 300_000, Filter::new(4, 100_000, 0).unwrap());
    let mut source = open(&bytes).1.unwrap();
    source.cache = None;
    let mut scratch = Scratch::new(65_536, source.needs());
    assert!(read(&source, &mut scratch, 10, 1000).unwrap() == good[10..1010]);
    assert!(read(&source, &mut scratch, 250_000, 1000).unwrap() == good[250_000..251_000]);
    assert_eq!(scratch.tally, Tally { decoded: 1, found: 1, repeated: 0 });
}
