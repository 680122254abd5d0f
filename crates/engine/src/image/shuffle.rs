//! Bytes of items put in order of their place in the item, and back: all first bytes, all second bytes, and so on.
//!
//! One loop, compiled twice: as the compiler sees fit for any CPU, and for AVX2, which is looked for at run time. What
//! the compiler makes of it undoes 46 GB in a second for items of 2 and 4 bytes, 19 GB for 8 (without AVX2: 47, 5 and
//! 5), where intrinsics by hand were no faster and zstd gives 1 to 4: `docs/facts.md`, Filling.

/// Undo: `out` gets whole items, number `first` and on, of those whose bytes lie in `planes`, `stride` of each place.
///
/// # Panics
/// When `planes` does not hold them, or `item_bytes` is 0.
pub fn unshuffle(planes: &[u8], stride: usize, first: usize, out: &mut [u8], item_bytes: usize) {
    match item_bytes {
        2 => of_width::<2, false>(planes, stride, first, out),
        4 => of_width::<4, false>(planes, stride, first, out),
        8 => of_width::<8, false>(planes, stride, first, out),
        _ => any_width(planes, stride, first, out, item_bytes),
    }
}

/// The opposite: `out`, as long as `items`, gets the bytes of whole items by their places.
///
/// # Panics
/// When the lengths differ, or `item_bytes` is 0.
pub fn shuffle(items: &[u8], out: &mut [u8], item_bytes: usize) {
    assert_eq!(items.len(), out.len(), "shuffled bytes are as many as they were");
    let stride = items.len() / item_bytes;
    match item_bytes {
        2 => of_width::<2, true>(items, stride, 0, out),
        4 => of_width::<4, true>(items, stride, 0, out),
        8 => of_width::<8, true>(items, stride, 0, out),
        _ => {
            for place in 0..item_bytes {
                let plane = &mut out[place * stride..(place + 1) * stride];
                plane.iter_mut().zip(items.iter().skip(place).step_by(item_bytes)).for_each(|(to, from)| *to = *from);
            }
        }
    }
}

fn any_width(planes: &[u8], stride: usize, first: usize, out: &mut [u8], item_bytes: usize) {
    let items = out.len() / item_bytes;
    for place in 0..item_bytes {
        let plane = &planes[place * stride + first..][..items];
        out.iter_mut().skip(place).step_by(item_bytes).zip(plane).for_each(|(to, from)| *to = *from);
    }
}

fn of_width<const WIDTH: usize, const FORTH: bool>(from: &[u8], stride: usize, first: usize, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has what the function was compiled for.
        return unsafe { with_avx2::<WIDTH, FORTH>(from, stride, first, out) };
    }
    plain::<WIDTH, FORTH>(from, stride, first, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<const WIDTH: usize, const FORTH: bool>(from: &[u8], stride: usize, first: usize, out: &mut [u8]) {
    plain::<WIDTH, FORTH>(from, stride, first, out);
}

// Always, so that each of its two callers compiles it anew.
#[inline(always)]
fn plain<const WIDTH: usize, const FORTH: bool>(from: &[u8], stride: usize, first: usize, out: &mut [u8]) {
    if FORTH {
        for place in 0..WIDTH {
            let plane = &mut out[place * stride..(place + 1) * stride];
            plane.iter_mut().zip(from.chunks_exact(WIDTH)).for_each(|(to, item)| *to = item[place]);
        }
        return;
    }
    let items = out.len() / WIDTH;
    let planes: [&[u8]; WIDTH] = std::array::from_fn(|place| &from[place * stride + first..][..items]);
    for (number, item) in out.chunks_exact_mut(WIDTH).enumerate() {
        for place in 0..WIDTH {
            item[place] = planes[place][number];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    /// What the words say, a byte at a time.
    fn naive(items: &[u8], item_bytes: usize) -> Vec<u8> {
        let count = items.len() / item_bytes;
        (0..items.len()).map(|at| items[at % count.max(1) * item_bytes + at / count.max(1)]).collect()
    }

    #[test]
    fn any_width_and_count_is_as_the_naive_version_has_it_and_comes_back() {
        let mut random = Random(41);
        for round in 0..3000 {
            let item_bytes = if round % 2 == 0 { [2, 4, 8][round / 2 % 3] } else { 1 + random.below(40) };
            let count = random.below([3, 40, 700][round % 3]);
            let items: Vec<u8> = (0..count * item_bytes).map(|_| random.next() as u8).collect();
            let mut shuffled = vec![0xEE; items.len()];
            shuffle(&items, &mut shuffled, item_bytes);
            assert!(shuffled == naive(&items, item_bytes), "{count} items of {item_bytes} bytes");
            let first = random.below(count + 1);
            let some = random.below(count - first + 1);
            let mut back = vec![0xEE; some * item_bytes];
            unshuffle(&shuffled, count, first, &mut back, item_bytes);
            assert!(back == items[first * item_bytes..][..back.len()], "items {first} and {some} on of {count}");
        }
    }

    #[test]
    fn both_compilations_give_the_same() {
        let mut random = Random(42);
        let items: Vec<u8> = (0..8 * 999).map(|_| random.next() as u8).collect();
        let (mut portable, mut chosen) = (vec![0; items.len()], vec![1; items.len()]);
        plain::<8, true>(&items, 999, 0, &mut portable);
        shuffle(&items, &mut chosen, 8);
        assert!(portable == chosen);
        let (mut portable_back, mut chosen_back) = (vec![0; items.len()], vec![1; items.len()]);
        plain::<8, false>(&portable, 999, 0, &mut portable_back);
        unshuffle(&chosen, 999, 0, &mut chosen_back, 8);
        assert!(portable_back == items && chosen_back == items);
    }
}
