//! What the machine and the process limits say: files of /proc and /sys, resource limits.

use super::Trial;
use crate::Errno;
use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::str::FromStr;

/// Bit of CAP_SYS_PTRACE in the capability masks.
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// A pool of huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePool {
    /// Bytes in one page of the pool.
    pub page_bytes: u64,
    /// Pages the pool has.
    pub total: u64,
    /// Pages nobody uses.
    pub free: u64,
}

/// A resource limit; `None` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What is enforced.
    pub soft: Option<u64>,
    /// How far the process may raise it.
    pub hard: Option<u64>,
}

impl Limit {
    pub(super) fn read(resource: libc::__rlimit_resource_t) -> Self {
        let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the structure is ours; getrlimit writes into it or fails, and then it says "no limit".
        unsafe { libc::getrlimit(resource, &mut limit) };
        let finite = |value: libc::rlim_t| (value != libc::RLIM_INFINITY).then_some(value);
        Self { soft: finite(limit.rlim_cur), hard: finite(limit.rlim_max) }
    }
}

/// True if the path is there, whoever may open it.
pub(super) fn exists(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Opens for reading and writing, and closes.
pub(super) fn can_open(path: &str) -> Trial {
    let opened = fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path);
    opened.map(drop).map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)))
}

/// The number a one-line file holds.
pub(super) fn number<T: FromStr>(path: &str) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

pub(super) fn kernel_release() -> String {
    // SAFETY: a utsname is arrays of bytes, for which zero is valid.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is ours.
    if unsafe { libc::uname(&mut name) } != 0 {
        return String::new();
    }
    // SAFETY: the kernel ends each field with NUL, within the structure.
    unsafe { CStr::from_ptr(name.release.as_ptr()) }.to_string_lossy().into_owned()
}

pub(super) fn has_sys_ptrace() -> bool {
    let mask = status_field("CapEff:").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    mask.is_some_and(|mask| mask & CAP_SYS_PTRACE != 0)
}

pub(super) fn seccomp() -> Option<u32> {
    status_field("Seccomp:")?.parse().ok()
}

fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

/// The word in brackets of `/sys/kernel/mm/transparent_hugepage/enabled`.
pub(super) fn transparent_huge_pages() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

/// Every pool the kernel lists, smallest pages first.
pub(super) fn huge_pools() -> Vec<HugePool> {
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let mut pools: Vec<HugePool> = entries.flatten().filter_map(|entry| huge_pool(&entry)).collect();
    pools.sort_by_key(|pool| pool.page_bytes);
    pools
}

fn huge_pool(entry: &fs::DirEntry) -> Option<HugePool> {
    let name = entry.file_name();
    let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    let count = |file: &str| number::<u64>(entry.path().join(file).to_str()?);
    Some(HugePool { page_bytes: kib * 1024, total: count("nr_hugepages")?, free: count("free_hugepages")? })
}
