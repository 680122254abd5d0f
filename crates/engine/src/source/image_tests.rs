//! An image gives the bytes that were packed, for any request, and never others.

use super::*;
use crate::image::frame::zero_frame;
use crate::image::testing::{Entry, Random, image, table};
use crate::scratch::Tally;
use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};

/// A file in memory, and the handle that an image reads it by.
pub(super) fn open(bytes: &[u8]) -> (File, Result<ImageSource, ImageError>) {
    // SAFETY: the name is a C string; the result is checked before it is owned.
    let fd = unsafe { libc::memfd_create(c"image".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just made, and nobody else's.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(bytes).unwrap();
    let handle = FileHandle::new(OwnedFd::from(file.try_clone().unwrap())).unwrap();
    (file, ImageSource::open(handle, "test"))
}

pub(super) fn read(
    source: &ImageSource,
    scratch: &mut Scratch,
    offset: u64,
    bytes: usize,
) -> Result<Vec<u8>, SourceError> {
    let mut out = vec![0xEE; bytes];
    let mut how = Reading::plain(scratch);
    source.read_into(offset, &mut out, &mut how).map(|()| out)
}

fn extent(source: &ImageSource, scratch: &mut Scratch, offset: u64, bytes: usize) -> Extent {
    source.extent(offset, bytes, &mut Reading::plain(scratch))
}

/// Frames of 64 KiB, a run of zeros over three of them, and a short end.
fn sample() -> (Vec<u8>, Vec<u8>) {
    let mut random = Random(7);
    let (a, zeros, b, c) = (random.bytes(65_536), vec![0; 3 << 16], random.bytes(65_536), random.bytes(999));
    let pieces: [&[u8]; 4] = [&a, &zeros, &b, &c];
    (pieces.concat(), image(&pieces, true))
}

#[test]
fn any_request_gives_the_bytes_that_were_packed() {
    let (good, bytes) = sample();
    let source = open(&bytes).1.unwrap();
    assert_eq!((source.len(), source.preferred_unit()), (good.len() as u64, 65_536));
    let mut scratch = Scratch::new(65_536, source.needs());
    let mut random = Random(8);
    for _ in 0..2000 {
        let start = random.below(good.len());
        let bytes = 1 + random.below(good.len() - start);
        let got = read(&source, &mut scratch, start as u64, bytes).unwrap();
        assert!(got == good[start..start + bytes], "{bytes} bytes at {start}");
    }
}

#[test]
fn a_whole_frame_is_decoded_in_place_and_a_part_leaves_the_frame_behind() {
    let (_, bytes) = sample();
    let source = open(&bytes).1.unwrap();
    let mut scratch = Scratch::new(65_536, source.needs());
    read(&source, &mut scratch, 0, 65_536).unwrap();
    assert_eq!(scratch.frame_tag, None);
    assert_eq!(std::mem::take(&mut scratch.tally), Tally { decoded: 1, found: 0, repeated: 0 });
    read(&source, &mut scratch, 4096, 4096).unwrap();
    read(&source, &mut scratch, 0, 4096).unwrap();
    assert_eq!(std::mem::take(&mut scratch.tally), Tally { decoded: 1, found: 1, repeated: 0 });
    read(&source, &mut scratch, 65_536, 3 << 16).unwrap();
    assert_eq!(scratch.tally, Tally::default(), "zeros decode nothing");
}

#[test]
fn extents_name_runs_of_zeros() {
    let (good, bytes) = sample();
    let source = open(&bytes).1.unwrap();
    let mut scratch = Scratch::new(65_536, source.needs());
    let all = good.len();
    let zeros_end = 4 << 16;
    assert_eq!(extent(&source, &mut scratch, 0, all), Extent::Data(65_536));
    assert_eq!(extent(&source, &mut scratch, 100, 200), Extent::Data(200));
    assert_eq!(extent(&source, &mut scratch, 65_536, all - 65_536), Extent::Zero(3 << 16));
    assert_eq!(extent(&source, &mut scratch, 70_000, 10), Extent::Zero(10));
    assert_eq!(extent(&source, &mut scratch, zeros_end, all - zeros_end as usize), Extent::Data(65_536 + 999));
    assert_eq!(extent(&source, &mut scratch, all as u64 - 1, 1), Extent::Data(1));
}

#[test]
fn adjoining_frames_of_zeros_are_one_extent() {
    let zeros = vec![0; 8192];
    let source = open(&image(&[&zeros, b"", &zeros, &zeros, b"end"], true)).1.unwrap();
    let mut scratch = Scratch::new(4096, source.needs());
    assert_eq!(extent(&source, &mut scratch, 0, 24_579), Extent::Zero(24_576));
    assert_eq!(extent(&source, &mut scratch, 8190, 24_579 - 8190), Extent::Zero(24_576 - 8190));
}

#[test]
fn a_frame_that_only_has_the_size_of_zeros_is_data() {
    for bytes in [4096_u32, 40 << 20] {
        let mut ones = zero_frame(bytes);
        let first = ones.len() - 4 * bytes.div_ceil(128 << 10) as usize;
        ones[first + 3..].iter_mut().step_by(4).for_each(|byte| *byte = 1);
        let entry = Entry { compressed: ones.len() as u32, decoded: bytes, checksum: 0 };
        ones.extend(table(&[entry], false));
        let source = open(&ones).1.unwrap();
        let mut scratch = Scratch::new(4096, source.needs());
        assert_eq!(extent(&source, &mut scratch, 0, 4096), Extent::Data(4096));
        assert_eq!(read(&source, &mut scratch, 96, 4000).unwrap(), vec![1; 4000]);
    }
}

#[test]
fn a_long_run_of_zeros_needs_no_scratch_for_it() {
    let zeros = vec![0; 64 << 20];
    let source = open(&image(&[&zeros, &[1; 4096]], true)).1.unwrap();
    assert!(source.needs().frame_bytes <= 4096, "{:?}", source.needs());
    assert_eq!(source.preferred_unit(), 4096);
}

#[test]
fn damage_says_where_and_why() {
    let (good, bytes) = sample();
    let (file, source) = open(&bytes);
    let source = source.unwrap();
    let mut scratch = Scratch::new(65_536, source.needs());
    let frame = source.index.find(4 << 16).unwrap();
    let damage = |at: u64, byte: u8| std::os::unix::fs::FileExt::write_all_at(&file, &[byte], at).unwrap();
    damage(frame.offset, 0);
    let error = read(&source, &mut scratch, frame.decoded_offset + 9, 10).unwrap_err();
    assert_eq!(error, SourceError::new(frame.decoded_offset, Cause::Corrupt));
    assert_eq!(scratch.frame_tag, None);
    damage(frame.offset, bytes[frame.offset as usize]);
    assert_eq!(read(&source, &mut scratch, frame.decoded_offset, 9).unwrap(), good[4 << 16..][..9]);
    file.set_len(frame.offset + 5).unwrap();
    let error = read(&source, &mut scratch, 5 << 16, 999).unwrap_err();
    assert_eq!(error, SourceError::new(5 << 16, Cause::Short));
}

#[test]
fn a_wrong_checksum_is_told_from_damage() {
    let (_, mut bytes) = sample();
    // Without the guard, that is with another table behind the same frames.
    let entries_end = bytes.len() - 9 - 12;
    let mut entries = bytes[entries_end - 4 * 12..entries_end].to_vec();
    entries[4 * 12 - 1] ^= 1;
    bytes.truncate(entries_end - 4 * 12 - 8 - 24);
    bytes.extend(crate::image::table::finish(&entries, None));
    let source = open(&bytes).1.unwrap();
    let mut scratch = Scratch::new(65_536, source.needs());
    let error = read(&source, &mut scratch, (5 << 16) + 5, 1).unwrap_err();
    assert_eq!(error, SourceError::new(5 << 16, Cause::Checksum));
    assert!(read(&source, &mut scratch, 0, 5 << 16).is_ok());
}

#[test]
fn a_scratch_of_another_shape_is_an_error_and_no_panic() {
    let (_, bytes) = sample();
    let source = open(&bytes).1.unwrap();
    let mut scratch = Scratch::new(4096, ScratchNeeds::default());
    assert_eq!(read(&source, &mut scratch, 0, 10).unwrap_err().cause, Cause::Os(libc::ENOMEM));
}

#[test]
fn damaged_images_never_give_other_bytes() {
    let (good, bytes) = sample();
    let mut random = Random(0xBAD);
    for round in 0..1500 {
        let mut damaged = bytes.clone();
        let from = if round % 2 == 0 { damaged.len() - 89 } else { 0 };
        let at = from + random.below(damaged.len() - from);
        damaged[at] ^= 1 << random.below(8);
        let Ok(source) = open(&damaged).1 else { continue };
        let mut scratch = Scratch::new(65_536, source.needs());
        let mut offset = 0;
        while offset < source.len() {
            let bytes = usize::try_from(source.len() - offset).unwrap().min(1 + random.below(200_000));
            let start = offset as usize;
            match extent(&source, &mut scratch, offset, bytes) {
                Extent::Zero(zeros) => {
                    assert!(good.get(start..start + zeros).is_some_and(|had| had.iter().all(|b| *b == 0)))
                }
                _ => match read(&source, &mut scratch, offset, bytes) {
                    Ok(got) => assert!(good.get(start..start + bytes) == Some(&got[..]), "round {round}"),
                    Err(_) => break,
                },
            }
            offset += bytes as u64;
        }
    }
}
