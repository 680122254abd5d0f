//! Who wants a frame gets it, decoded once, whatever others want at the same time.

use super::*;
use std::sync::atomic::AtomicUsize;

/// Alone with its memory.
fn of(frame_bytes: usize) -> Option<FrameCache> {
    FrameCache::new(frame_bytes, Box::leak(Box::new(Shelves::new(CACHE_BYTES * 2))))
}

fn key(number: u64) -> Key {
    Key { file: [number; 5], digest: 0 }
}

/// Fill the frame with its number if need be; was that so?
fn want(cache: &FrameCache, frame: u32) -> Option<bool> {
    let (found, decoded) = match cache.find(frame) {
        Some(found) => (found, false),
        None => match cache.claim(frame, 4096) {
            Claim::Found(found) => (found, false),
            Claim::Decode(mut room) => {
                room.bytes_mut(4096).fill(frame as u8);
                (room.fill(), true)
            }
            Claim::Full => return None,
        },
    };
    assert!(found.bytes(4096).iter().all(|byte| *byte == frame as u8), "the bytes of another frame");
    Some(decoded)
}

#[test]
fn a_frame_is_decoded_once_and_the_one_not_wanted_longest_goes_first() {
    let cache = of(CACHE_BYTES / 2).unwrap();
    let decoded: Vec<_> = [1, 1, 2, 1, 3, 1, 2].iter().map(|frame| want(&cache, *frame).unwrap()).collect();
    assert_eq!(decoded, [true, false, true, false, true, false, true]);
}

#[test]
fn what_was_not_filled_is_not_found() {
    let cache = of(4096).unwrap();
    let Claim::Decode(mut room) = cache.claim(7, 4096) else { panic!("an empty cache has room") };
    room.bytes_mut(10).fill(1);
    drop(room);
    assert!(cache.find(7).is_none());
    assert_eq!(want(&cache, 7), Some(true));
}

#[test]
fn a_frame_that_is_looked_at_is_not_taken_away() {
    let cache = of(CACHE_BYTES).unwrap();
    want(&cache, 1);
    let held = cache.find(1).unwrap();
    assert_eq!(want(&cache, 2), None, "one slot, and somebody reads it");
    drop(held);
    assert_eq!(want(&cache, 2), Some(true));
}

#[test]
fn a_frame_larger_than_a_slot_has_no_room() {
    let cache = of(4096).unwrap();
    assert!(matches!(cache.claim(1, 4097), Claim::Full));
}

#[test]
fn memory_is_bounded() {
    for (frame_bytes, count) in [(4096, MOST_SLOTS), (2 << 20, 16), (20 << 20, 1), (128 << 20, 1)] {
        assert_eq!(of(frame_bytes).unwrap().shelf.slots().len(), count);
    }
    assert!(of(0).is_none());
}

#[test]
fn regions_of_one_image_share_it_as_long_as_one_lives() {
    let (first, second) = (FrameCache::of(key(1), 4096).unwrap(), FrameCache::of(key(1), 4096).unwrap());
    assert!(Arc::ptr_eq(&first, &second));
    assert!(!Arc::ptr_eq(&first, &FrameCache::of(key(2), 4096).unwrap()));
    want(&first, 3);
    assert_eq!(want(&second, 3), Some(false));
    drop((first, second));
    assert_eq!(want(&FrameCache::of(key(1), 4096).unwrap(), 3), Some(true));
}

#[test]
fn threads_that_want_the_same_frames_decode_each_once() {
    let cache = of(4096).unwrap();
    let decoded = AtomicUsize::new(0);
    let barrier = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for frame in 0..MOST_SLOTS as u32 {
                    barrier.wait();
                    decoded.fetch_add(usize::from(want(&cache, frame).unwrap()), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(decoded.into_inner(), MOST_SLOTS);
}

#[test]
fn threads_that_want_more_than_fits_never_see_another_frames_bytes() {
    let cache = of(CACHE_BYTES / 3).unwrap();
    std::thread::scope(|scope| {
        for seed in 1..5 {
            let cache = &cache;
            scope.spawn(move || {
                let mut random = super::super::testing::Random(seed);
                for _ in 0..3000 {
                    want(cache, random.below(8) as u32);
                }
            });
        }
    });
}

#[test]
fn who_holds_the_lock_for_ever_keeps_nobody() {
    let cache = of(4096).unwrap();
    cache.shelf.hold().store(true, Ordering::Relaxed);
    assert!(cache.find(1).is_none() && matches!(cache.claim(1, 1), Claim::Full));
}

#[test]
fn a_decoding_that_never_ends_is_waited_for_with_patience_and_no_longer() {
    let cache = of(4096).unwrap();
    let room = cache.claim(1, 4096);
    let start = Instant::now();
    assert!(cache.find(1).is_none());
    assert!((PATIENCE..PATIENCE * 20).contains(&start.elapsed()));
    drop(room);
}

#[test]
fn all_images_together_stay_within_the_limit_and_what_was_not_wanted_longest_is_given_back() {
    let shelves: &'static Shelves = Box::leak(Box::new(Shelves::new(4 << 20)));
    let caches: Vec<_> = (0..6).map(|_| FrameCache::new(1 << 20, shelves).unwrap()).collect();
    let resident = |cache: &FrameCache, slot| crate::mapping::is_resident(cache.shelf.start_of(slot));
    for cache in &caches {
        assert_eq!(want(cache, 1), Some(true));
        assert!(shelves.bytes() <= 4 << 20);
    }
    let kept: Vec<_> = caches.iter().map(|cache| resident(cache, 0)).collect();
    assert_eq!(kept, [false, false, true, true, true, true]);
    assert_eq!(want(&caches[2], 1), Some(false), "and is wanted latest now");
    assert_eq!(want(&caches[0], 1), Some(true));
    let kept: Vec<_> = caches.iter().map(|cache| want(cache, 1) == Some(false)).collect();
    assert_eq!(kept[..3], [true, false, true]);
    drop(caches);
    assert_eq!(shelves.bytes(), 0);
    let again = FrameCache::new(2 << 20, shelves).unwrap();
    assert_eq!([1, 2, 3, 2].map(|frame| want(&again, frame)), [Some(true), Some(true), Some(true), Some(false)]);
    assert_eq!(shelves.bytes(), 4 << 20);
}

#[test]
fn a_frame_that_is_looked_at_is_not_taken_away_by_another_image() {
    let shelves: &'static Shelves = Box::leak(Box::new(Shelves::new(1 << 20)));
    let [first, second] = [(); 2].map(|()| FrameCache::new(1 << 20, shelves).unwrap());
    want(&first, 1);
    let held = first.find(1).unwrap();
    assert_eq!(want(&second, 1), None, "it decodes elsewhere");
    drop(held);
    assert_eq!(want(&second, 1), Some(true));
    assert_eq!(want(&first, 1), Some(true));
}

#[test]
fn images_that_take_from_each_other_get_their_own_frames() {
    let shelves: &'static Shelves = Box::leak(Box::new(Shelves::new(64 << 10)));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..50 {
                    let cache = FrameCache::new(8 << 10, shelves).unwrap();
                    for turn in 0..40 {
                        let _ = want(&cache, (turn * 7 + round) % 12); // looks at the bytes
                    }
                }
            });
        }
    });
    assert_eq!(shelves.bytes(), 0);
}
