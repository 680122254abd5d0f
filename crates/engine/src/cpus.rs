//! Which CPUs the calling thread may run on.
//!
//! *Locks*: none. *Threads*: engine threads; [`this`] is for handlers too.

/// The CPUs that a thread may run on; a thread's number of 0 is the calling one.
fn allowed(thread: i32) -> Option<libc::cpu_set_t> {
    // SAFETY: the kernel fills our set, which is as long as said.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (libc::sched_getaffinity(thread, size_of::<libc::cpu_set_t>(), &raw mut set) == 0).then_some(set)
    }
}

fn allow(set: &libc::cpu_set_t) -> bool {
    // SAFETY: the set is as long as said; the calling thread is moved.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const *set) == 0 }
}

fn numbers(set: &libc::cpu_set_t) -> impl Iterator<Item = usize> {
    // SAFETY: reads inside the set.
    (0..libc::CPU_SETSIZE as usize).filter(move |cpu| unsafe { libc::CPU_ISSET(*cpu, set) })
}

/// Those that the process's first thread may run on, so many at most.
#[must_use]
pub fn of_process(most: usize) -> Vec<usize> {
    // SAFETY: getpid has no preconditions.
    allowed(unsafe { libc::getpid() }).map_or_else(Vec::new, |set| numbers(&set).take(most).collect())
}

/// Have the calling thread run on this one alone; false: it may not.
#[must_use]
pub fn pin_to(cpu: usize) -> bool {
    // SAFETY: the set is ours; CPU_SET writes inside it for cpu < CPU_SETSIZE.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if cpu >= libc::CPU_SETSIZE as usize {
            return false;
        }
        libc::CPU_SET(cpu, &mut set);
        allow(&set)
    }
}

/// Where the calling thread runs just now.
#[must_use]
pub fn this() -> usize {
    // SAFETY: no preconditions.
    usize::try_from(unsafe { libc::sched_getcpu() }).unwrap_or(0)
}

/// While it lives the calling thread stays away from one CPU, if it may run on others.
pub struct Elsewhere {
    /// Which.
    pub cpu: usize,
    before_and_since: Option<[libc::cpu_set_t; 2]>,
}

impl Elsewhere {
    /// Away from `cpu`.
    #[must_use]
    pub fn than(cpu: usize) -> Self {
        let before_and_since = allowed(0).and_then(|before| Some([before, without(before, cpu)?]));
        Self { cpu, before_and_since: before_and_since.filter(|[_, since]| allow(since)) }
    }
}

fn without(mut set: libc::cpu_set_t, cpu: usize) -> Option<libc::cpu_set_t> {
    // SAFETY: the set is ours; both write and read inside it for cpu < CPU_SETSIZE.
    unsafe {
        if cpu >= libc::CPU_SETSIZE as usize || !libc::CPU_ISSET(cpu, &set) {
            return None;
        }
        libc::CPU_CLR(cpu, &mut set);
    }
    numbers(&set).next().is_some().then_some(set)
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // Somebody else may have moved the thread meanwhile: that stays.
        if let Some([before, since]) = &self.before_and_since
            && allowed(0).is_some_and(|now| numbers(&now).eq(numbers(since)))
        {
            allow(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stays_away_for_a_while() {
        std::thread::spawn(|| {
            let before: Vec<usize> = numbers(&allowed(0).unwrap()).collect();
            let avoided = this();
            {
                let _elsewhere = Elsewhere::than(avoided);
                assert!(before.len() == 1 || this() != avoided);
            }
            assert_eq!(numbers(&allowed(0).unwrap()).collect::<Vec<_>>(), before);
            assert!(pin_to(before[0]) && this() == before[0]);
            let _nowhere_else = Elsewhere::than(before[0]);
            assert_eq!(this(), before[0]);
            assert!(!pin_to(usize::MAX));
        })
        .join()
        .unwrap();
    }
}
