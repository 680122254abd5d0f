//! A userfaultfd descriptor: how one is had, the handshake, and the copyable [`Handle`] that operations live on.

use crate::abi::{UFFD_API, UFFD_USER_MODE_ONLY, UFFDIO_API, USERFAULTFD_IOC_NEW, UffdioApi};
use crate::{Errno, Features};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// The device that hands out descriptors to whoever may open it (Linux 6.1).
pub const DEVICE: &CStr = c"/dev/userfaultfd";

/// Which door to knock at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Via {
    /// The device first; the system call when the device is absent or refused, whatever the errno.
    #[default]
    Auto,
    /// userfaultfd(2) only.
    Syscall,
    /// [`DEVICE`] only.
    Device,
}

/// How a descriptor is opened. It is close-on-exec in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenOptions {
    /// `read_messages` answers EAGAIN instead of sleeping; poll(2) needs it (without it poll reports an error).
    pub nonblocking: bool,
    /// Faults of system calls are refused with EFAULT instead of delivered; all an ordinary user may have by default.
    pub user_mode_only: bool,
    /// Which door to knock at.
    pub via: Via,
}

impl OpenOptions {
    fn flags(self) -> libc::c_int {
        let nonblocking = if self.nonblocking { libc::O_NONBLOCK } else { 0 };
        let user_mode_only = if self.user_mode_only { UFFD_USER_MODE_ONLY } else { 0 };
        libc::O_CLOEXEC | nonblocking | user_mode_only
    }
}

/// Why there is no descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// No door opened; each errno is that of one door, `None` where it was not tried.
    #[error("userfaultfd refused: {}", refusal(*device, *syscall, *user_mode_only))]
    Refused {
        /// What `/dev/userfaultfd` said.
        device: Option<Errno>,
        /// What userfaultfd(2) said.
        syscall: Option<Errno>,
        /// Whether only user-mode faults were asked for, which every user may have by default.
        user_mode_only: bool,
    },
    /// The kernel lacks features that were asked for.
    #[error("this kernel has no userfaultfd feature {}", missing.names().join(", "))]
    Unsupported {
        /// What was asked for and is not there.
        missing: Features,
        /// What is there.
        kernel: Features,
    },
    /// The handshake failed although the kernel has the features; EPERM means EVENT_FORK without CAP_SYS_PTRACE.
    #[error("userfaultfd handshake failed for features {features:?}: {errno}")]
    Handshake {
        /// What was asked for.
        features: Features,
        /// What the kernel said.
        errno: Errno,
    },
}

impl OpenError {
    /// The one errno that stands for the whole failure: want of descriptors or memory wherever it was met; else of the system
    /// call where it was tried, else of the device.
    pub fn errno(&self) -> Errno {
        let short = |errno: &Errno| matches!(errno.0, libc::EMFILE | libc::ENFILE | libc::ENOMEM);
        match self {
            Self::Refused { device: Some(errno), .. } if short(errno) => *errno,
            Self::Refused { device, syscall, .. } => syscall.or(*device).unwrap_or(Errno(libc::EINVAL)),
            Self::Unsupported { .. } => Errno(libc::EINVAL),
            Self::Handshake { errno, .. } => *errno,
        }
    }

    /// The one command (or change) that would help, where one is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Refused { .. } if matches!(self.errno().0, libc::EMFILE | libc::ENFILE) => Some(hints::MORE_FILES),
            Self::Refused { .. } if self.errno() == Errno(libc::ENOMEM) => None,
            Self::Refused { syscall: Some(Errno(libc::ENOSYS)), .. } => Some(hints::NO_KERNEL_SUPPORT),
            Self::Refused { user_mode_only: true, .. } => Some(hints::SANDBOX),
            Self::Refused { device: Some(Errno(libc::EACCES | libc::EPERM)), .. } => Some(hints::OWN_DEVICE),
            Self::Refused { syscall: Some(Errno(libc::EPERM)), .. } => Some(hints::ALLOW_ALL),
            Self::Refused { .. } => None,
            Self::Unsupported { .. } => Some(hints::NEWER_KERNEL),
            Self::Handshake { errno: Errno(libc::EPERM), .. } => Some(hints::GRANT_PTRACE),
            Self::Handshake { .. } => None,
        }
    }
}

/// The commands, each once.
mod hints {
    pub const OWN_DEVICE: &str = "sudo chown $(id -un) /dev/userfaultfd";
    pub const ALLOW_ALL: &str = "sudo sysctl vm.unprivileged_userfaultfd=1";
    pub const SANDBOX: &str = "a sandbox forbids it: start the container with --device /dev/userfaultfd";
    pub const NO_KERNEL_SUPPORT: &str = "boot a kernel built with CONFIG_USERFAULTFD=y";
    pub const MORE_FILES: &str = "close some files, or allow more: ulimit -n";
    pub const NEWER_KERNEL: &str = "boot a newer kernel, or do without the feature";
    pub const GRANT_PTRACE: &str = "run it with sudo; in a container: docker run --cap-add SYS_PTRACE";
}

fn refusal(device: Option<Errno>, syscall: Option<Errno>, user_mode_only: bool) -> String {
    let user_mode_only = user_mode_only.then(|| "even for user-mode faults only".to_owned());
    let device = device.map(|errno| format!("/dev/userfaultfd {errno}"));
    let syscall = syscall.map(|errno| format!("userfaultfd(2) {errno}"));
    [user_mode_only, device, syscall].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// An owned userfaultfd.
///
/// The last close drops every registration and turns missing pages into silent zeros: whoever cares keeps a clone.
/// The descriptor is bound for life to the address space of the process that made it, wherever it is sent.
#[derive(Debug)]
pub struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// Opens a descriptor; no handshake yet, so nothing but [`Userfaultfd::handshake`] works on it.
    ///
    /// # Errors
    /// [`OpenError::Refused`] with the errno of each door that was tried.
    pub fn open(options: OpenOptions) -> Result<Self, OpenError> {
        let by_device = || open_device(options.flags());
        let by_syscall = || open_syscall(options.flags());
        let opened = match options.via {
            Via::Device => by_device().map_err(|errno| (Some(errno), None)),
            Via::Syscall => by_syscall().map_err(|errno| (None, Some(errno))),
            Via::Auto => by_device().or_else(|device| by_syscall().map_err(|errno| (Some(device), Some(errno)))),
        };
        let user_mode_only = options.user_mode_only;
        opened.map(Self).map_err(|(device, syscall)| OpenError::Refused { device, syscall, user_mode_only })
    }

    /// Opens a descriptor and completes the handshake with exactly `features`.
    ///
    /// # Errors
    /// [`OpenError::Unsupported`] names what the kernel lacks (asked with a throw-away descriptor, for a failed
    /// handshake would only say EINVAL); the others as they say.
    pub fn open_with(options: OpenOptions, features: Features) -> Result<Self, OpenError> {
        let kernel = Self::open(options)?.probe()?;
        if !kernel.contains(features) {
            return Err(OpenError::Unsupported { missing: features - kernel, kernel });
        }
        let fd = Self::open(options)?;
        fd.handshake(features).map_err(|errno| OpenError::Handshake { features, errno })?;
        Ok(fd)
    }

    /// `UFFDIO_API`: asks for `features`, once per descriptor. Returns everything the kernel has, not what was asked.
    ///
    /// # Errors
    /// EINVAL for a feature the kernel does not know and for a second handshake (the descriptor keeps working);
    /// EPERM for EVENT_FORK without CAP_SYS_PTRACE.
    pub fn handshake(&self, features: Features) -> Result<Features, Errno> {
        let mut api = UffdioApi { api: UFFD_API, features: features.0, ioctls: 0 };
        self.handle().ioctl(UFFDIO_API, &mut api)?;
        Ok(Features(api.features))
    }

    fn probe(self) -> Result<Features, OpenError> {
        let features = Features::NONE;
        self.handshake(features).map_err(|errno| OpenError::Handshake { features, errno })
    }

    /// A second descriptor of the same userfaultfd (close-on-exec); registrations live until the last one is closed.
    ///
    /// # Errors
    /// EMFILE or ENFILE where no descriptor is to be had.
    pub fn try_clone(&self) -> Result<Self, Errno> {
        self.0.try_clone().map(Self).map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)))
    }

    /// The copyable handle that operations live on; it must not outlive every descriptor of this userfaultfd.
    #[inline]
    pub fn handle(&self) -> Handle {
        Handle(self.0.as_raw_fd())
    }

    /// Takes over a descriptor that came from elsewhere: a FORK event, another process.
    pub fn from_owned(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Gives up ownership.
    pub fn into_owned(self) -> OwnedFd {
        self.0
    }
}

/// All features of the running kernel, asked with a throw-away descriptor (user-mode-only, which everybody may have).
///
/// # Errors
/// [`OpenError`] where userfaultfd is refused altogether.
pub fn supported_features() -> Result<Features, OpenError> {
    Userfaultfd::open(OpenOptions { user_mode_only: true, ..OpenOptions::default() })?.probe()
}

impl AsRawFd for Userfaultfd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl IntoRawFd for Userfaultfd {
    fn into_raw_fd(self) -> RawFd {
        self.0.into_raw_fd()
    }
}

/// The number of a userfaultfd that somebody else keeps open.
///
/// Operations are methods of this, plain system calls without allocation or lock, so that signal handlers and other
/// threads can issue them. A number whose descriptor was closed gives EBADF, or ENOTTY once it was reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle(RawFd);

impl Handle {
    /// A handle from a bare number.
    #[inline]
    pub const fn from_raw(fd: RawFd) -> Self {
        Self(fd)
    }

    /// The number.
    #[inline]
    pub const fn as_raw_fd(self) -> RawFd {
        self.0
    }

    /// One ioctl that takes a kernel structure of this crate; the request number states the size of the argument.
    #[inline]
    pub(crate) fn ioctl<T: Copy>(self, request: u32, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: `argument` is a live, exclusively borrowed structure of exactly the size encoded in `request` (proven
        // in abi.rs), of which every bit pattern is valid; what the kernel does to *other* memory is argued where the
        // operation is defined.
        let result = unsafe { libc::ioctl(self.0, request as libc::Ioctl, argument as *mut T) };
        if result == -1 { Err(Errno::last()) } else { Ok(()) }
    }
}

fn open_syscall(flags: libc::c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: userfaultfd(2) takes one integer and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    own(fd as RawFd)
}

fn open_device(flags: libc::c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: the path is a NUL-terminated constant.
    let device = own(unsafe { libc::open(DEVICE.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })?;
    // SAFETY: this ioctl takes its flags by value and touches no memory of ours.
    own(unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW as libc::Ioctl, flags as libc::c_ulong) })
}

fn own(fd: RawFd) -> Result<OwnedFd, Errno> {
    if fd < 0 {
        return Err(Errno::last());
    }
    // SAFETY: the kernel has just given us this descriptor and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
