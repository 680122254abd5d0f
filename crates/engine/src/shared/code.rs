//! Causes as numbers, for the other process.

use crate::cause::{Cause, Remote};

const OS: u32 = 1;
pub(super) const REMOTE: u32 = 2;
const LOST: u32 = 3;
const PLAIN: [Cause; 9] = [
    Cause::Short,
    Cause::Checksum,
    Cause::Corrupt,
    Cause::Timeout,
    Cause::Interrupted,
    Cause::Latched,
    Cause::Injected,
    Cause::Purged,
    Cause::OwnRegion,
];
const FIRST_PLAIN: u32 = 16;

/// A cause as numbers.
#[must_use]
pub fn encode(cause: Cause) -> [u32; 3] {
    match cause {
        Cause::Os(errno) => [OS, errno as u32, 0],
        Cause::PagerLost(how) => [LOST, how as u32, 0],
        cause => {
            let known = PLAIN.iter().position(|plain| *plain == cause);
            [known.map_or(0, |at| FIRST_PLAIN + at as u32), 0, 0]
        }
    }
}

/// And back. What is not known is a remote failure without a text.
#[must_use]
pub fn decode(pager: u16, code: [u32; 3]) -> Cause {
    match code {
        [OS, errno, _] => Cause::Os(errno as i32),
        [LOST, how, _] => Cause::PagerLost(how as i32),
        [REMOTE, slot, sequence] => Cause::Remote(Remote { pager, slot: slot as u16, sequence }),
        [kind, ..] => {
            let plain = kind.checked_sub(FIRST_PLAIN).and_then(|at| PLAIN.get(at as usize));
            plain.copied().unwrap_or(Cause::Remote(Remote { pager, slot: u16::MAX, sequence: 0 }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_come_back_as_they_were() {
        for cause in PLAIN.into_iter().chain([Cause::Os(5), Cause::PagerLost(-9)]) {
            assert_eq!(decode(0, encode(cause)), cause);
        }
        assert!(matches!(decode(3, [99, 0, 0]), Cause::Remote(Remote { pager: 3, slot: u16::MAX, .. })));
    }
}
