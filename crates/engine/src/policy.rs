//! COPY or MOVE: one small function, meant to be replaced by one that measures.

/// How the bytes of a unit get to their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Into the thread's own buffer, then UFFDIO_COPY.
    Copy,
    /// Into staging pages, then UFFDIO_MOVE.
    Move,
    /// Into the memory file, then UFFDIO_CONTINUE.
    Continue,
}

/// What the choice may depend on.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// Bytes to be filled.
    pub bytes: usize,
    /// The region's unit, bytes.
    pub unit: usize,
    /// Are huge pages wanted?
    pub huge: bool,
    /// Is the region a memory file that others may map?
    pub shared: bool,
    /// Does the kernel have MOVE?
    pub can_move: bool,
}

/// From this size on MOVE wins even when its TLB flush has to reach another CPU (docs/facts.md, Filling).
const MOVE_FROM: usize = 256 << 10;

/// Choose. MOVE needs the whole unit, so a short last unit is copied.
#[must_use]
pub fn choose(choice: &Choice) -> Method {
    if choice.shared {
        return Method::Continue;
    }
    let whole = choice.bytes == choice.unit;
    if choice.can_move && whole && (choice.huge || choice.unit >= MOVE_FROM) { Method::Move } else { Method::Copy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_units_are_copied_large_ones_moved_shared_ones_continued() {
        let choice = Choice { bytes: 65536, unit: 65536, huge: false, shared: false, can_move: true };
        assert_eq!(choose(&choice), Method::Copy);
        let large = Choice { bytes: 1 << 20, unit: 1 << 20, ..choice };
        assert_eq!(choose(&large), Method::Move);
        assert_eq!(choose(&Choice { bytes: 4096, ..large }), Method::Copy);
        assert_eq!(choose(&Choice { can_move: false, ..large }), Method::Copy);
        assert_eq!(choose(&Choice { shared: true, ..large }), Method::Continue);
    }
}
