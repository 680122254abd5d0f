//! What is mapped where: one mapping at a time (`PROCMAP_QUERY`, Linux 6.11), or by reading /proc/self/maps.
//!
//! *Blocks on*: the lock of the address space, for a moment.

use crate::Errno;
use crate::abi::{PROCMAP_QUERY, ProcmapQuery};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;

/// What stands behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmaKind {
    /// Memory of the process alone.
    Anonymous,
    /// A file, shared memory, or huge pages of hugetlbfs. Also /dev/zero mapped privately: it can be registered, but COPY and
    /// POISON are EFAULT there.
    File,
    /// The kernel's own: vdso, vvar, vsyscall.
    Special,
}

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: usize,
    /// Address after the last.
    pub end: usize,
    /// What stands behind it.
    pub kind: VmaKind,
    /// MAP_SHARED?
    pub shared: bool,
    /// PROT_READ, PROT_WRITE, PROT_EXEC.
    pub protection: i32,
}

impl Vma {
    /// Private anonymous memory: what missing pages mean something for.
    #[must_use]
    pub fn is_private_anonymous(&self) -> bool {
        self.kind == VmaKind::Anonymous && !self.shared
    }
}

/// More of one mapping, in the kernel's words: what a person is told after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// The mapping.
    pub vma: Vma,
    /// The last column of /proc/self/maps: a path, or such as `[heap]`.
    pub name: String,
    /// The line `VmFlags` of /proc/self/smaps: two letters each.
    pub flags: String,
}

impl Details {
    /// Is one of these two-letter flags set?
    #[must_use]
    pub fn has(&self, wanted: &[&str]) -> bool {
        self.flags.split_ascii_whitespace().any(|flag| wanted.contains(&flag))
    }
}

/// The mappings of this process.
#[derive(Debug)]
pub struct Maps(File);

impl Maps {
    /// Opens /proc/self/maps.
    ///
    /// # Errors
    /// ENOENT without /proc; EMFILE.
    pub fn open() -> Result<Self, Errno> {
        File::open("/proc/self/maps").map(Self).map_err(errno_of)
    }

    /// The mapping at `address`, or the first one above it.
    ///
    /// # Errors
    /// Whatever reading /proc gives.
    pub fn at_or_above(&self, address: usize) -> Result<Option<Vma>, Errno> {
        match self.query(address) {
            Err(Errno(libc::ENOTTY)) => self.search(address),
            answer => answer,
        }
    }

    /// The mapping at `address`.
    ///
    /// # Errors
    /// As [`Maps::at_or_above`].
    pub fn at(&self, address: usize) -> Result<Option<Vma>, Errno> {
        Ok(self.at_or_above(address)?.filter(|vma| vma.start <= address))
    }

    /// All that the kernel tells of the mapping at `address`, if there is one. Slow: it walks the pages of every mapping below.
    #[must_use]
    pub fn details(address: usize) -> Option<Details> {
        let mut lines = BufReader::new(File::open("/proc/self/smaps").ok()?).lines().map_while(Result::ok);
        let (vma, line) = lines.find_map(|line| Some((parse(&line).filter(|vma| vma.end > address)?, line)))?;
        let mut name = line.as_str();
        for _ in 0..5 {
            name = name.trim_start().split_once(' ')?.1;
        }
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:").map(str::to_owned)).unwrap_or_default();
        (vma.start <= address).then(|| Details { vma, name: name.trim().to_owned(), flags })
    }

    fn query(&self, address: usize) -> Result<Option<Vma>, Errno> {
        let mut name = [0u8; 64];
        let mut query = ProcmapQuery {
            size: size_of::<ProcmapQuery>() as u64,
            query_flags: COVERING_OR_NEXT,
            query_addr: address as u64,
            vma_name_size: name.len() as u32,
            vma_name_addr: name.as_mut_ptr() as u64,
            ..ProcmapQuery::default()
        };
        // SAFETY: the structure is ours and of the size in the request; the name's buffer is as long as said.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), PROCMAP_QUERY as libc::Ioctl, &raw mut query) };
        if result != 0 {
            return match Errno::last() {
                Errno(libc::ENOENT) => Ok(None),
                // A name that does not fit is a path: the mapping is a file's.
                Errno(libc::ENAMETOOLONG) => self.search(address),
                errno => Err(errno),
            };
        }
        let used = (query.vma_name_size as usize).saturating_sub(1).min(name.len());
        let flags = query.vma_flags;
        Ok(Some(Vma {
            start: query.vma_start as usize,
            end: query.vma_end as usize,
            kind: kind_of(query.inode != 0, &name[..used]),
            shared: flags & SHARED != 0,
            protection: (flags & 7) as i32, // readable 1, writable 2, executable 4: as PROT_*
        }))
    }

    /// The same without `PROCMAP_QUERY`.
    fn search(&self, address: usize) -> Result<Option<Vma>, Errno> {
        let mut text = String::new();
        File::open("/proc/self/maps").and_then(|mut file| file.read_to_string(&mut text)).map_err(errno_of)?;
        Ok(text.lines().filter_map(parse).find(|vma| vma.end > address))
    }
}

const COVERING_OR_NEXT: u64 = 0x10;
const SHARED: u64 = 8;

fn errno_of(error: std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

fn kind_of(has_file: bool, name: &[u8]) -> VmaKind {
    let ours = name.is_empty() || [&b"[heap"[..], b"[stack", b"[anon"].iter().any(|start| name.starts_with(start));
    match (has_file, ours) {
        (true, _) => VmaKind::File,
        (false, true) => VmaKind::Anonymous,
        (false, false) => VmaKind::Special,
    }
}

fn parse(line: &str) -> Option<Vma> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let flags = fields.next()?.as_bytes();
    let inode = fields.nth(2)?;
    let bit = |at: usize, letter: u8, value: i32| if flags.get(at) == Some(&letter) { value } else { 0 };
    Some(Vma {
        start: usize::from_str_radix(start, 16).ok()?,
        end: usize::from_str_radix(end, 16).ok()?,
        kind: kind_of(inode != "0", fields.next().unwrap_or("").as_bytes()),
        shared: flags.get(3) == Some(&b's'),
        protection: bit(0, b'r', 1) | bit(1, b'w', 2) | bit(2, b'x', 4),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_and_the_text_give_the_same_answer() {
        let maps = Maps::open().unwrap();
        let here = 0u8;
        for address in [&raw const here as usize, Maps::open as *const () as usize, 0] {
            assert_eq!(maps.at_or_above(address).unwrap(), maps.search(address).unwrap(), "{address:#x}");
        }
        assert!(maps.at(&raw const here as usize).unwrap().unwrap().is_private_anonymous());
        assert_eq!(maps.at(0).unwrap(), None);
        assert_eq!(Maps::details(0), None);
        let details = Maps::details(&raw const here as usize).unwrap();
        assert_eq!(Some(details.vma), maps.at(&raw const here as usize).unwrap());
        assert!(details.has(&["rd"]) && !details.has(&["ex"]), "{details:?}");
        let code = Maps::details(Maps::open as *const () as usize).unwrap();
        assert!(code.name.starts_with('/') && code.has(&["ex"]), "{code:?}");
    }

    #[test]
    fn kinds_follow_the_name_and_the_file() {
        assert_eq!(kind_of(true, b"/dev/zero"), VmaKind::File);
        assert_eq!(kind_of(false, b"[vdso]"), VmaKind::Special);
        assert_eq!(kind_of(false, b"[heap]"), VmaKind::Anonymous);
        assert_eq!(kind_of(false, b""), VmaKind::Anonymous);
    }
}
