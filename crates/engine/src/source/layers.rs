//! Layers: each wraps any source and is one. Retry what is transient, give up after a while, verify checksums, and, for
//! tests, fail on purpose.
//!
//! *Locks*: only inside [`Deadline`]. *Blocks on*: the inner source, and pauses between tries.

use super::{Cause, Extent, Latency, Reading, Scratch, ScratchNeeds, Source, SourceError};
use crate::language;
use crate::threads::leave;
use std::ops::Range;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use xxhash_rust::xxh64::xxh64;

/// What a layer leaves as it is: a source of the language above runs where it would without the layer.
macro_rules! where_the_inner_source_runs {
    () => {
        fn is_called(&self) -> bool {
            self.inner.is_called()
        }

        fn piece(&self) -> usize {
            self.inner.piece()
        }

        fn hint(&self, bytes: Range<u64>) {
            self.inner.hint(bytes)
        }
    };
}

/// Tries again, a bounded number of times with doubling pauses, where the failure may pass; never beyond the limit of the read.
pub struct Retry {
    inner: Arc<dyn Source>,
    attempts: u32,
    pause: Duration,
}

impl Retry {
    /// At most `attempts` reads (at least one), the first pause `pause`.
    #[must_use]
    pub fn new(inner: Arc<dyn Source>, attempts: u32, pause: Duration) -> Self {
        Self { inner, attempts: attempts.max(1), pause }
    }
}

impl Source for Retry {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_into(&self, offset: u64, out: &mut [u8], how: &mut Reading<'_>) -> Result<(), SourceError> {
        let (began, limit) = (Instant::now(), how.limit);
        let mut pause = self.pause;
        let mut left = self.attempts;
        loop {
            left -= 1;
            how.limit = limit.saturating_sub(began.elapsed());
            let outcome = self.inner.read_into(offset, out, how);
            let is_over = left == 0 || began.elapsed().saturating_add(pause) >= limit;
            match outcome {
                Err(error) if error.cause.is_transient() && !is_over => {
                    how.scratch.tally.repeated += 1;
                    language::pause(pause);
                }
                outcome => {
                    how.limit = limit;
                    return outcome;
                }
            }
            pause = pause.saturating_mul(2);
        }
    }

    fn extent(&self, offset: u64, len: usize, how: &mut Reading<'_>) -> Extent {
        data_unless_zero(self.inner.extent(offset, len, how))
    }

    fn name(&self) -> String {
        format!("Retry({}, attempts={})", self.inner.name(), self.attempts)
    }

    fn preferred_unit(&self) -> usize {
        self.inner.preferred_unit()
    }

    fn latency(&self) -> Latency {
        Latency::MayBlock
    }

    fn page_granular(&self) -> bool {
        false // each page of a failing unit would be tried again, with all its pauses
    }

    /// Around a source of the language above: that may wait where it runs, so this may.
    fn signal_safe(&self) -> bool {
        self.inner.is_called()
    }

    where_the_inner_source_runs!();

    fn needs(&self) -> ScratchNeeds {
        self.inner.needs()
    }
}

/// A layer must see the bytes, so only zeros pass by it.
fn data_unless_zero(extent: Extent) -> Extent {
    match extent {
        Extent::Memory(_, bytes) => Extent::Data(bytes),
        other => other,
    }
}

/// Gives up on a read after a while. The read goes on in a thread of its own, into a buffer of its own, and its result
/// is thrown away: a read that hangs for good costs that thread.
pub struct Deadline {
    inner: Arc<dyn Source>,
    limit: Duration,
}

impl Deadline {
    /// Every read ends within `limit`.
    #[must_use]
    pub fn new(inner: Arc<dyn Source>, limit: Duration) -> Self {
        Self { inner, limit }
    }
}

impl Source for Deadline {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_into(&self, offset: u64, out: &mut [u8], how: &mut Reading<'_>) -> Result<(), SourceError> {
        let (answer, wait) = mpsc::channel();
        let (inner, len, table) = (self.inner.clone(), out.len(), how.table);
        let read = move || {
            let mut bytes = vec![0; len];
            let mut scratch = Scratch::new(uffd::page_size(), inner.needs());
            let mut how = Reading { table, ..Reading::plain(&mut scratch) };
            let outcome = inner.read_into(offset, &mut bytes, &mut how).map(|()| bytes);
            let tally = scratch.tally;
            drop(scratch);
            if let Err(late) = answer.send((outcome, tally, inner)) {
                leave(Box::new(late)); // nobody listens any more after the deadline, and this may be the last of the source
            }
        };
        std::thread::Builder::new()
            .name("userfault-late".into())
            .spawn(read)
            .map_err(|error| SourceError::new(offset, Cause::Os(error.raw_os_error().unwrap_or(libc::EAGAIN))))?;
        match wait.recv_timeout(self.limit) {
            Ok((outcome, tally, _)) => {
                how.scratch.tally.repeated += tally.repeated;
                outcome.map(|bytes| out.copy_from_slice(&bytes))
            }
            Err(_) => Err(SourceError::new(offset, Cause::Timeout)),
        }
    }

    fn extent(&self, offset: u64, len: usize, how: &mut Reading<'_>) -> Extent {
        data_unless_zero(self.inner.extent(offset, len, how))
    }

    fn name(&self) -> String {
        format!("Deadline({}, {:?})", self.inner.name(), self.limit)
    }

    fn preferred_unit(&self) -> usize {
        self.inner.preferred_unit()
    }

    fn latency(&self) -> Latency {
        Latency::MayBlock
    }

    fn needs(&self) -> ScratchNeeds {
        ScratchNeeds::default() // the reading thread brings its own
    }
}

/// Verifies the XXH64 of every block it reads. Blocks are whole: a read is widened to the blocks it touches.
pub struct Checksum {
    inner: Arc<dyn Source>,
    block: usize,
    sums: Box<[u64]>,
}

impl Checksum {
    /// `sums[i]` is the XXH64 (seed 0) of block `i`; blocks are `block` bytes, the last one shorter.
    ///
    /// # Errors
    /// A sentence, when the number of sums is not that of blocks.
    pub fn new(inner: Arc<dyn Source>, block: usize, sums: Box<[u64]>) -> Result<Self, String> {
        let blocks = inner.len().div_ceil(block.max(1) as u64);
        if block == 0 || blocks != sums.len() as u64 {
            return Err(format!(
                "{} bytes in blocks of {block} are {blocks} blocks, but there are {} checksums",
                inner.len(),
                sums.len()
            ));
        }
        Ok(Self { inner, block, sums })
    }

    fn verified(&self, index: usize, bytes: &[u8]) -> Result<(), SourceError> {
        if xxh64(bytes, 0) == self.sums[index] {
            return Ok(());
        }
        Err(SourceError::new((index * self.block) as u64, Cause::Checksum))
    }

    fn block_range(&self, index: usize) -> Range<u64> {
        let start = (index * self.block) as u64;
        start..(start + self.block as u64).min(self.inner.len())
    }
}

impl Source for Checksum {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_into(&self, offset: u64, out: &mut [u8], how: &mut Reading<'_>) -> Result<(), SourceError> {
        let end = offset + out.len() as u64;
        let first = offset as usize / self.block;
        let last = (end as usize).div_ceil(self.block);
        let mut whole = vec![0; self.block.min(usize::try_from(self.inner.len()).unwrap_or(usize::MAX))];
        for index in first..last {
            let range = self.block_range(index);
            let block = &mut whole[..(range.end - range.start) as usize];
            self.inner.read_into(range.start, block, how)?;
            self.verified(index, block)?;
            let (from, to) = (range.start.max(offset), range.end.min(end));
            let wanted = &block[(from - range.start) as usize..(to - range.start) as usize];
            out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(wanted);
        }
        Ok(())
    }

    fn name(&self) -> String {
        format!("Checksum({}, block={})", self.inner.name(), self.block)
    }

    fn preferred_unit(&self) -> usize {
        self.inner.preferred_unit()
    }

    fn latency(&self) -> Latency {
        self.inner.latency()
    }

    /// Around a source of the language above: that may wait where it runs, so this may.
    fn signal_safe(&self) -> bool {
        self.inner.is_called()
    }

    where_the_inner_source_runs!();

    fn needs(&self) -> ScratchNeeds {
        self.inner.needs()
    }
}

/// Fails and delays on purpose, for tests: reads that touch one of the ranges fail, every read waits `delay` first.
pub struct Chaos {
    inner: Arc<dyn Source>,
    fail: Box<[Range<u64>]>,
    delay: Duration,
    /// This many failures, then none; `None`: always.
    failures_left: Option<std::sync::atomic::AtomicI64>,
}

impl Chaos {
    /// Fail reads that touch one of `fail`, at most `failures` times if given; wait `delay` before every read.
    #[must_use]
    pub fn new(inner: Arc<dyn Source>, fail: Vec<Range<u64>>, delay: Duration, failures: Option<i64>) -> Self {
        let failures_left = failures.map(std::sync::atomic::AtomicI64::new);
        Self { inner, fail: fail.into(), delay, failures_left }
    }

    fn fails(&self, read: &Range<u64>) -> Option<u64> {
        let hit = self.fail.iter().find(|bad| bad.start < read.end && read.start < bad.end)?;
        let left =
            self.failures_left.as_ref().map_or(1, |left| left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed));
        (left > 0).then(|| hit.start.max(read.start))
    }
}

impl Source for Chaos {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_into(&self, offset: u64, out: &mut [u8], how: &mut Reading<'_>) -> Result<(), SourceError> {
        if !self.delay.is_zero() {
            language::pause(self.delay);
        }
        if let Some(at) = self.fails(&(offset..offset + out.len() as u64)) {
            return Err(SourceError::new(at, Cause::Injected));
        }
        self.inner.read_into(offset, out, how)
    }

    fn name(&self) -> String {
        format!("Chaos({})", self.inner.name())
    }

    fn preferred_unit(&self) -> usize {
        self.inner.preferred_unit()
    }

    fn latency(&self) -> Latency {
        if self.delay.is_zero() { self.inner.latency() } else { Latency::MayBlock }
    }

    fn signal_safe(&self) -> bool {
        (self.delay.is_zero() || self.inner.is_called()) && self.inner.signal_safe()
    }

    fn page_granular(&self) -> bool {
        self.delay.is_zero() && self.inner.page_granular()
    }

    fn readahead_helps(&self) -> bool {
        false
    }

    where_the_inner_source_runs!();

    fn needs(&self) -> ScratchNeeds {
        self.inner.needs()
    }
}

/// Read a range of any source on an ordinary thread.
///
/// # Errors
/// As the source's.
#[cfg(test)]
pub fn read_plainly(source: &dyn Source, offset: u64, out: &mut [u8]) -> Result<(), SourceError> {
    let mut scratch = Scratch::new(uffd::page_size(), source.needs());
    let mut how = Reading::plain(&mut scratch);
    source.read_into(offset, out, &mut how)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::zero::Zero;
    use std::time::Instant;

    fn zeros(len: u64) -> Arc<dyn Source> {
        Arc::new(Zero::new(len))
    }

    #[test]
    fn retry_outlives_transient_failures_and_no_others() {
        let flaky = Arc::new(Chaos::new(zeros(4096), vec![Range { start: 0, end: 10 }], Duration::ZERO, Some(2)));
        let mut out = [1; 16];
        read_plainly(&Retry::new(flaky, 3, Duration::ZERO), 0, &mut out).unwrap();
        assert_eq!(out, [0; 16]);
        let broken = Arc::new(Chaos::new(zeros(4096), vec![Range { start: 0, end: 10 }], Duration::ZERO, None));
        let error = read_plainly(&Retry::new(broken, 3, Duration::ZERO), 4, &mut out).unwrap_err();
        assert_eq!(error, SourceError::new(4, Cause::Injected));
    }

    #[test]
    fn a_deadline_ends_a_slow_read() {
        let slow = Arc::new(Chaos::new(zeros(4096), vec![], Duration::from_secs(5), None));
        let start = Instant::now();
        let error = read_plainly(&Deadline::new(slow, Duration::from_millis(30)), 0, &mut [0; 8]).unwrap_err();
        assert_eq!(error.cause, Cause::Timeout);
        assert!(start.elapsed() < Duration::from_secs(2));
        read_plainly(&Deadline::new(zeros(8), Duration::from_secs(2)), 0, &mut [1; 8]).unwrap();
    }

    #[test]
    fn checksums_are_verified_over_whole_blocks() {
        let sums = vec![xxh64(&[0; 1000], 0), xxh64(&[0; 1000], 0), 7].into_boxed_slice();
        let checked = Checksum::new(zeros(2500), 1000, sums).unwrap();
        read_plainly(&checked, 990, &mut [0; 20]).unwrap();
        let error = read_plainly(&checked, 1990, &mut [0; 20]).unwrap_err();
        assert_eq!(error, SourceError::new(2000, Cause::Checksum));
        assert!(Checksum::new(zeros(2500), 1000, vec![1].into()).is_err());
    }
}
