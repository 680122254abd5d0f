//! The counters the kernel keeps for a userfaultfd: `/proc/self/fdinfo/N`. A cheap watch for stuck faults.

use crate::{Errno, Features, Handle};

/// Feature word bit that says the handshake was done.
const INITIALISED: u64 = 1 << 31;

/// What fdinfo says about one userfaultfd.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FdInfo {
    /// Faults nobody has read yet.
    pub pending: u64,
    /// Faults whose thread still waits: unread ones, and those read but not woken.
    pub total: u64,
    /// The features in force.
    pub features: Features,
    /// Whether the handshake was done.
    pub initialised: bool,
}

impl Handle {
    /// Reads the counters of this descriptor.
    ///
    /// # Errors
    /// ENOENT: the descriptor is closed. EINVAL: it is no userfaultfd. Otherwise as open(2) of a file in /proc.
    pub fn fdinfo(self) -> Result<FdInfo, Errno> {
        let path = format!("/proc/self/fdinfo/{}", self.as_raw_fd());
        let text = std::fs::read_to_string(path).map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)))?;
        parse(&text).ok_or(Errno(libc::EINVAL))
    }
}

fn parse(text: &str) -> Option<FdInfo> {
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let (pending, total) = (value("pending:")?.parse().ok()?, value("total:")?.parse().ok()?);
    let features = u64::from_str_radix(value("API:")?.split(':').nth(1)?, 16).ok()?;
    let initialised = features & INITIALISED != 0;
    Some(FdInfo { pending, total, features: Features(features & !INITIALISED), initialised })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_reads_the_kernel_format() {
        let text = "pos:\t0\nflags:\t02004000\npending:\t1\ntotal:\t3\nAPI:\taa:80000100:8000000000000003\n";
        let info = parse(text).expect("parsed");
        assert_eq!((info.pending, info.total, info.initialised), (1, 3, true));
        assert_eq!(info.features, Features::THREAD_ID);
        assert!(parse("pos:\t0\nflags:\t02\n").is_none());
    }
}
