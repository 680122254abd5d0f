//! What works here: tried, not read from a version number, and with the reason where it does not.
//!
//! *Blocks on*: nothing; about forty short system calls. *Threads*: any. It opens and closes descriptors, maps a few
//! pages of its own, and lets a child that shares this memory touch a poisoned page to see how that feels.

mod system;
mod trials;

pub use system::{HugePool, Limit};

use crate::{Errno, Features, OpenError, OpenOptions, Userfaultfd, Via, page_size, supported_features};

/// The end of one trial: it works, or the errno that says why not.
pub type Trial = Result<(), Errno>;

/// What a process may do with userfaultfd on this machine, with its permissions, now.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// Release of the running kernel, for people; nothing is decided by it.
    pub kernel: String,
    /// Bytes in a base page.
    pub page_size: usize,
    /// Everything the kernel has, or why it could not be asked.
    pub features: Result<Features, Errno>,
    /// Whether `/dev/userfaultfd` exists.
    pub device_present: bool,
    /// A descriptor from the device.
    pub device: Trial,
    /// A descriptor from userfaultfd(2), faults of system calls included.
    pub syscall: Trial,
    /// A descriptor from userfaultfd(2) for user-mode faults only.
    pub syscall_user_mode: Trial,
    /// `vm.unprivileged_userfaultfd`, where it can be read.
    pub unprivileged_sysctl: Option<i64>,
    /// CAP_SYS_PTRACE in the effective set (that of the own user namespace, which the kernel does not accept).
    pub sys_ptrace: bool,
    /// A handshake with EVENT_FORK.
    pub event_fork: Trial,
    /// `UFFDIO_MOVE` between two pages of private memory.
    pub move_pages: Trial,
    /// `UFFDIO_POISON`, checked by `MADV_POPULATE_READ`.
    pub poison: Trial,
    /// `si_code` of the SIGBUS that a poisoned page gives, where the trial could be made.
    pub poison_signal_code: Option<i32>,
    /// `PAGEMAP_SCAN` of an own page.
    pub pagemap_scan: Trial,
    /// A write found by `WP_ASYNC` and `PAGEMAP_SCAN` together.
    pub write_tracking: Trial,
    /// Pools of huge pages.
    pub huge_pools: Vec<HugePool>,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub transparent_huge_pages: Option<String>,
    /// The one command that would get (or widen) access to userfaultfd; `None` where nothing is missing or known.
    pub hint: Option<&'static str>,
    /// `/dev/kvm` can be opened.
    pub kvm: Trial,
    /// Seccomp mode of this thread: 0 none, 1 strict, 2 filter.
    pub seccomp: Option<u32>,
    /// RLIMIT_MEMLOCK, bytes.
    pub memlock: Limit,
    /// RLIMIT_NOFILE, descriptors.
    pub nofile: Limit,
    /// `vm.max_map_count`.
    pub max_map_count: Option<u64>,
}

impl Capabilities {
    /// Tries everything. Never panics and needs no permission: what is refused is recorded.
    pub fn probe() -> Self {
        Self {
            kernel: system::kernel_release(),
            page_size: page_size(),
            features: supported_features().map_err(|error| error.errno()),
            device_present: system::exists("/dev/userfaultfd"),
            device: try_open(Via::Device, false),
            syscall: try_open(Via::Syscall, false),
            syscall_user_mode: try_open(Via::Syscall, true),
            unprivileged_sysctl: system::number("/proc/sys/vm/unprivileged_userfaultfd"),
            sys_ptrace: system::has_sys_ptrace(),
            event_fork: trials::event_fork(),
            move_pages: trials::move_pages(),
            poison: trials::poison(),
            poison_signal_code: trials::poison_signal_code(),
            pagemap_scan: trials::pagemap_scan(),
            write_tracking: trials::write_tracking(),
            huge_pools: system::huge_pools(),
            transparent_huge_pages: system::transparent_huge_pages(),
            hint: access_hint(),
            kvm: system::can_open("/dev/kvm"),
            seccomp: system::seccomp(),
            memlock: Limit::read(libc::RLIMIT_MEMLOCK),
            nofile: Limit::read(libc::RLIMIT_NOFILE),
            max_map_count: system::number("/proc/sys/vm/max_map_count"),
        }
    }

    /// True when faults inside system calls can be answered too; otherwise these calls get EFAULT on absent pages.
    pub fn kernel_faults(&self) -> bool {
        self.syscall.is_ok() || self.device.is_ok()
    }
}

/// What would help: to any descriptor if there is none, otherwise to faults of system calls too.
fn access_hint() -> Option<&'static str> {
    let open = |user_mode_only| Userfaultfd::open(OpenOptions { user_mode_only, ..OpenOptions::default() });
    open(true).and_then(|_| open(false)).err().and_then(|error| error.hint())
}

fn try_open(via: Via, user_mode_only: bool) -> Trial {
    let options = OpenOptions { user_mode_only, via, ..OpenOptions::default() };
    Userfaultfd::open(options).map(drop).map_err(|error: OpenError| error.errno())
}
