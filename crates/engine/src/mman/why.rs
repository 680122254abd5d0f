//! Why a call failed, in words: the kernel has one errno for several rules, so this looks which of them was broken.
//!
//! Asked after a failure only: what /proc tells costs more than the calls themselves. If somebody has changed memory
//! meanwhile, nothing wrong is found, and no more is told than the errno.
//!
//! *Locks*: the book, for a moment. *Threads*: whoever called. *Blocks on*: the lock of the address space.

use crate::mman::descriptor::Phase;
use crate::mman::ledger::Kernel;
use crate::mman::outcome::Failed;
use crate::mman::remap::{RAP_ALLOW_SRC_HOLES, pagemap_entry};
use std::ops::Range;
use uffd::{Details, Errno, Maps, Vma, VmaKind};

/// What a range was wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The flag, by madvise.
    Flag,
    /// A registration.
    Registration,
    /// Another protection, with the flag or without.
    Protection {
        /// PROT_USERFAULT?
        flag: bool,
    },
    /// Advice for the kernel.
    Advice,
}

const IN_USE: [&str; 3] = ["um", "uw", "ui"]; // userfaultfd: missing, write-protect, minor
const LOCKED: [&str; 1] = ["lo"];
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const EXCLUSIVELY_MAPPED: u64 = 1 << 56;

impl Failed {
    /// The same, with the reason where only the errno was known: `range` is looked at, as it is now.
    #[must_use]
    pub fn looked_up(self, wanted: Wanted, range: &Range<usize>) -> Self {
        if !self.why.is_empty() || !can_look() {
            return self;
        }
        let faulting = wanted != Wanted::Advice && wanted != Wanted::Protection { flag: false };
        let why = match self.errno.0 {
            libc::EINVAL if faulting => cannot_fault(range),
            libc::EINVAL if wanted == Wanted::Advice => refused_advice(range),
            libc::ENOMEM => first_hole(range).map_or_else(
                || "the kernel has no room for more mappings (sysctl vm.max_map_count) or memory".into(),
                |hole| not_mapped(wanted, range, hole),
            ),
            libc::EBUSY if faulting => foreign(range).map_or_else(String::new, |vma| {
                format!("{} belongs to another userfaultfd (a Region, kernel.Userfaultfd): end that first", place(&vma))
            }),
            libc::EFAULT | libc::EHWPOISON if wanted == Wanted::Advice => {
                "a page of it cannot be had: it is flagged, and no descriptor brought it (on_sigbus does not serve system calls)"
                    .into()
            }
            libc::EACCES => format!("{} may not have that protection", first_mapping(range)),
            _ => String::new(),
        };
        Self { why, ..self }
    }
}

fn place(vma: &Vma) -> String {
    format!("the mapping at {:#x} to {:#x}", vma.start, vma.end)
}

/// Not without a descriptor for /proc: then nothing looks mapped.
fn can_look() -> bool {
    Maps::open().is_ok()
}

fn mappings(range: &Range<usize>) -> impl Iterator<Item = Vma> {
    let (maps, mut at, end) = (Maps::open().ok(), range.start, range.end);
    std::iter::from_fn(move || {
        let vma = maps.as_ref()?.at_or_above(at).ok()??;
        at = vma.end;
        (vma.start < end).then_some(vma)
    })
}

fn first_mapping(range: &Range<usize>) -> String {
    mappings(range).next().map_or_else(String::new, |vma| format!("{}, {},", place(&vma), kind(&vma)))
}

fn first_hole(range: &Range<usize>) -> Option<usize> {
    let mut at = range.start;
    for vma in mappings(range) {
        if vma.start > at {
            return Some(at);
        }
        at = vma.end;
    }
    (at < range.end).then_some(at)
}

fn not_mapped(wanted: Wanted, range: &Range<usize>, hole: usize) -> String {
    if mappings(range).next().is_none() {
        return "nothing is mapped there: map it first".into();
    }
    let rest = if matches!(wanted, Wanted::Protection { .. }) { "what is below it" } else { "the rest of the range" };
    format!("nothing is mapped at {hole:#x}; {rest} was done")
}

/// What a mapping is, for a person.
fn kind(vma: &Vma) -> String {
    let details = Maps::details(vma.start);
    let name = details.as_ref().map_or("", |details| details.name.as_str());
    match (vma.kind, vma.shared) {
        _ if details.as_ref().is_some_and(|details| details.has(&["ht"])) => "huge pages of hugetlbfs".into(),
        (VmaKind::Special, _) => format!("the kernel's own ({name})"),
        (VmaKind::File, true) if name.starts_with("/dev/zero") => {
            "shared anonymous memory, as mmap.mmap(-1, n) gives,".into()
        }
        (VmaKind::File, true) => format!("shared memory ({name})"),
        (VmaKind::File, false) => format!("a private mapping of a file ({name})"),
        (VmaKind::Anonymous, true) => "shared anonymous memory".into(),
        (VmaKind::Anonymous, false) => details.as_ref().map_or("private anonymous memory", private_kind).into(),
    }
}

fn private_kind(details: &Details) -> &'static str {
    match details {
        _ if details.has(&["dp"]) => "memory that the kernel may drop (MAP_DROPPABLE)",
        _ if details.has(&["ss"]) => "a shadow stack",
        _ if details.has(&["io", "pf"]) => "memory of a device",
        _ => "private anonymous memory",
    }
}

fn cannot_fault(range: &Range<usize>) -> String {
    const ONLY: &str =
        "cannot raise userfaults yet: only private anonymous memory can; mman.anonymous(length) gives some";
    let refused = |vma: &Vma| !vma.is_private_anonymous() || kind(vma) != "private anonymous memory";
    match mappings(range).find(refused) {
        Some(vma) => format!("{} is {}: it {ONLY}", place(&vma), kind(&vma).trim_end_matches(',')),
        None => "this kernel refuses userfaults there; `userfault doctor` shows what it can do".into(),
    }
}

fn refused_advice(range: &Range<usize>) -> String {
    format!("this kernel does not have the advice, or not for {}", first_mapping(range).trim_end_matches(','))
}

/// The first mapping that a userfaultfd has which is none of this room's.
fn foreign(range: &Range<usize>) -> Option<Vma> {
    let ours = |vma: &Vma| {
        let pieces =
            crate::mman::current().map(|mman| mman.book().ledger.pieces(vma.start..vma.end)).unwrap_or_default();
        pieces.iter().any(|(_, marks)| marks.as_ref().is_some_and(|marks| marks.kernel != Kernel::Nothing))
    };
    mappings(range).find(|vma| Maps::details(vma.start).is_some_and(|details| details.has(&IN_USE)) && !ours(vma))
}

/// Which rule of `remap_anon_pages` was broken, by a call that moved nothing.
#[must_use]
pub fn of_move(errno: Errno, dst: usize, src: usize, len: usize, flags: u64) -> String {
    match errno.0 {
        libc::EMFILE | libc::ENFILE => {
            "the destination is not registered, which takes a descriptor for the move".into()
        }
        // No look: programs with two threads on one page see this all the time.
        libc::EEXIST => format!("there is a page at {dst:#x}: none is ever replaced; MADV_DONTNEED drops it"),
        libc::ENOENT => format!("the source has no page at {src:#x}: write to it first, or give RAP_ALLOW_SRC_HOLES"),
        libc::EINVAL if can_look() => bad_move(dst, src, len, flags),
        libc::EBUSY if can_look() => busy_move(dst, src, len),
        libc::EFAULT => format!("what is at {src:#x} is no ordinary page (poisoned, a device's, a guard)"),
        _ => String::new(),
    }
}

fn bad_move(dst: usize, src: usize, len: usize, flags: u64) -> String {
    let page = uffd::page_size();
    let sides = [("destination", dst), ("source", src)];
    if flags & !RAP_ALLOW_SRC_HOLES != 0 {
        return format!("flags {flags:#x}: there is only RAP_ALLOW_SRC_HOLES");
    }
    if len == 0 || !len.is_multiple_of(page) {
        return format!("a length of {len} bytes: must be whole pages of {page}, at least one");
    }
    for (side, start) in sides {
        if !start.is_multiple_of(page) {
            return format!("the {side} {start:#x} does not start on a page of {page} bytes");
        }
        if let Some(why) = bad_side(side, start, len) {
            return why;
        }
    }
    let details = sides.map(|(_, start)| Maps::details(start));
    if let [Some(to), Some(from)] = &details {
        if to.vma.protection != from.vma.protection {
            return "destination and source differ in protection: mman.mprotect one of them".into();
        }
        if to.has(&LOCKED) != from.has(&LOCKED) {
            return "one of destination and source is locked in memory (mlock), the other is not: lock both or none"
                .into();
        }
    }
    String::new()
}

fn bad_side(side: &str, start: usize, len: usize) -> Option<String> {
    let Some(end) = start.checked_add(len) else {
        return Some(format!("the {side} {start:#x} wraps around the end of memory"));
    };
    let Some(vma) = mappings(&(start..end)).next().filter(|vma| vma.start <= start) else {
        return Some(format!("nothing is mapped at the {side} {start:#x}"));
    };
    if vma.end < end {
        return Some(format!(
            "the {side} leaves its mapping at {:#x}: a call works on one, so call once for each",
            vma.end
        ));
    }
    let kind = kind(&vma);
    if !vma.is_private_anonymous() || kind != "private anonymous memory" {
        let kind = kind.trim_end_matches(',');
        return Some(format!(
            "the {side} {start:#x} is {kind}: must be private anonymous memory, as of mman.anonymous(length)"
        ));
    }
    let writable = vma.protection & libc::PROT_WRITE != 0;
    (!writable)
        .then(|| format!("the {side} {start:#x} may not be written: mman.mprotect(PROT_READ | PROT_WRITE) first"))
}

fn busy_move(dst: usize, src: usize, len: usize) -> String {
    if let Some(vma) = foreign(&(dst..dst + len)) {
        return format!(
            "the destination is in {}, which belongs to another userfaultfd (a Region, kernel.Userfaultfd)",
            place(&vma)
        );
    }
    match pagemap_entry(src) {
        Some(entry) if entry & PRESENT != 0 && entry & EXCLUSIVELY_MAPPED == 0 => format!(
            "the page at {src:#x} is shared with a forked child: have staging memory MADV_DONTFORK, or write the page anew first"
        ),
        Some(entry) if entry & (PRESENT | SWAPPED) != 0 => {
            format!("the page at {src:#x} is pinned: by input or output under way, io_uring, or KSM; use another page")
        }
        _ => String::new(),
    }
}

/// Why bytes written to a descriptor were not taken: the rules of patch 17, in its order.
#[must_use]
pub fn of_write(bytes: &[u8], phase: Phase) -> String {
    let word = |at: usize| bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_ne_bytes);
    match phase {
        Phase::Ask => format!("{} bytes, and the handshake comes first: 8 bytes of mman.PROTOCOL", bytes.len()),
        Phase::Ack | Phase::Unknown => "the answer of the handshake comes first: read 8 bytes".into(),
        _ => match (word(0), word(8)) {
            (Some(start), Some(end)) => bad_command(start, end),
            _ => format!(
                "{} bytes: a command has 16, the start with the command in its low bits, and the end",
                bytes.len()
            ),
        },
    }
}

fn bad_command(start: u64, end: u64) -> String {
    let command = start & 3;
    if command == 3 {
        return "command 3: there are 0 (wake), 1 (register) and 2 (unregister), in the low bits of the start".into();
    }
    bad_range((start & !3) as usize, end as usize)
}

/// What is wrong with the bounds of a command.
#[must_use]
pub fn bad_range(start: usize, end: usize) -> String {
    let page = uffd::page_size();
    for (bound, at) in [("starts", start), ("ends", end)] {
        if !at.is_multiple_of(page) {
            return format!(
                "the range {bound} at {at:#x}, not at the edge of a page: give whole pages of {page} bytes"
            );
        }
    }
    if start >= end {
        return format!("the range from {start:#x} to {end:#x} is empty");
    }
    format!("the range ends at {end:#x}, outside of user memory")
}

/// Why nothing is read.
#[must_use]
pub fn of_read(errno: Errno, room: usize) -> String {
    match errno.0 {
        libc::EAGAIN => "no fault is unread, and it is O_NONBLOCK".into(),
        libc::EINVAL if room < 8 => format!("room for {room} bytes: an address has 8"),
        _ => "the handshake comes first: write 8 bytes of mman.PROTOCOL".into(),
    }
}
