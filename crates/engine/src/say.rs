//! Words for people where nothing else works: one line on standard error, without allocating.
//!
//! *Locks*: none. *Threads*: any, signal handlers too.

/// Say why on standard error, in one write and without allocating, and abort.
pub fn abort_with(message: std::fmt::Arguments<'_>) -> ! {
    say(message);
    // SAFETY: abort has no preconditions.
    unsafe { libc::abort() }
}

/// One line on standard error, in one write, from any context.
pub fn say(message: std::fmt::Arguments<'_>) {
    let mut line = Line::default();
    let _ = std::fmt::write(&mut line, message);
    // SAFETY: the buffer is ours and `used` bytes of it are initialised.
    unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.used) };
}

/// A line built on the stack.
struct Line {
    bytes: [u8; 512],
    used: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 512], used: 0 }
    }
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = self.bytes.len() - self.used;
        let take = text.len().min(room);
        self.bytes[self.used..self.used + take].copy_from_slice(&text.as_bytes()[..take]);
        self.used += take;
        Ok(())
    }
}
