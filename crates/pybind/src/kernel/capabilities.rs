//! The probe for Python, as a dictionary whose keys are the fields of `userfault.kernel.Capabilities`.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use uffd::{Capabilities, Errno, Limit, Trial};

/// A trial: `None` where it works, else the errno and what it means.
fn told(trial: Trial) -> Option<(i32, String)> {
    trial.err().map(|errno: Errno| (errno.0, errno.to_string()))
}

fn pair(limit: Limit) -> (Option<u64>, Option<u64>) {
    (limit.soft, limit.hard)
}

/// Tries what the kernel permits to this process.
#[pyfunction]
pub fn capabilities(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let found = py.detach(Capabilities::probe);
    let dict = PyDict::new(py);
    let access: Trial = found.features.map(drop);
    for (name, trial) in [
        ("userfaultfd", access),
        ("device", found.device),
        ("syscall", found.syscall),
        ("user_mode", found.syscall_user_mode),
        ("event_fork", found.event_fork),
        ("move", found.move_pages),
        ("poison", found.poison),
        ("pagemap_scan", found.pagemap_scan),
        ("write_tracking", found.write_tracking),
        ("kvm", found.kvm),
    ] {
        dict.set_item(name, told(trial))?;
    }
    dict.set_item("kernel", &found.kernel)?;
    dict.set_item("page_bytes", found.page_size)?;
    dict.set_item("features", found.features.map_or(0, |features| features.0))?;
    dict.set_item("device_present", found.device_present)?;
    dict.set_item("kernel_faults", found.kernel_faults())?;
    dict.set_item("unprivileged_sysctl", found.unprivileged_sysctl)?;
    dict.set_item("sys_ptrace", found.sys_ptrace)?;
    dict.set_item("poison_signal_code", found.poison_signal_code)?;
    dict.set_item("transparent_huge_pages", &found.transparent_huge_pages)?;
    dict.set_item("seccomp", found.seccomp)?;
    dict.set_item("hint", found.hint)?;
    dict.set_item("memlock_bytes", pair(found.memlock))?;
    dict.set_item("open_files", pair(found.nofile))?;
    dict.set_item("max_map_count", found.max_map_count)?;
    let pools = found.huge_pools.iter().map(|pool| (pool.page_bytes, pool.total, pool.free));
    dict.set_item("huge_pools", pools.collect::<Vec<_>>())?;
    Ok(dict)
}

/// Every named bit, by the name of its set: the Python enums are tested against it.
#[pyfunction]
pub fn kernel_names(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    macro_rules! add {
        ($($set:ident)*) => {
            $(dict.set_item(
                stringify!($set),
                uffd::$set::NAMED.iter().map(|(name, bit)| (*name, bit.0)).collect::<Vec<_>>(),
            )?;)*
        };
    }
    add!(Features RegisterModes Ioctls FaultFlags Categories ScanFlags CopyMode ContinueMode MoveMode ProtectMode RwProtectMode);
    Ok(dict)
}
