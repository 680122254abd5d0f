//! The pager: serving the userfaultfd of another process. Its own locks and allocations are nobody's but its own: whoever waits
//! for a page waits in the other process.
//!
//! ```text
//! table    which region an address is of
//! flight   units being filled, and who waits for them
//! fill     from source to the other process's page
//! alarm    what wakes the clock
//! answer   one fault, from message to ending
//! bulk     prefetch and populate
//! lead     one thread reads messages at a time
//! clock    deadlines, a reader that stays away, threads that do not come back
//! ```
//!
//! *Threads*: servers, some of them of the language above; the clock; the one that hears the owner. *Blocks on*: read(2) on the
//! userfaultfd, the socket, sources.

mod alarm;
mod answer;
mod bulk;
mod clock;
mod fill;
mod flight;
mod lead;
mod table;

use super::sealed;
use super::wire::{self, Attach, Frame, Kind};
use crate::cause::Cause;
use crate::error::Error;
use crate::shared::{Header, MappedPart, Mapping, VERSION, header_bytes};
use crate::source::Source;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use table::{Served, Table};
use uffd::{Errno, Handle};

/// What the language above tells about its sources.
pub trait Language: Send + Sync {
    /// Why a read failed, in words: class, message and traceback in three parts, with zero bytes between them; empty: nothing
    /// is known.
    fn describe(&self, cause: Cause) -> String;
    /// Take the language's lock and give it back.
    fn run(&self);
}

/// The pager.
pub struct Server {
    socket: OwnedFd,
    file: OwnedFd,
    handle: Handle,
    header: &'static Header,
    settings: Vec<u8>,
    language: Box<dyn Language>,
    /// The owner as we number it, where that is how it numbers itself; else 0.
    owner: i32,
    table: Table,
    flights: flight::Flights,
    lead: lead::Lead,
    work: lead::Work,
    bulks: bulk::Bulks,
    clock: alarm::Alarm,
    /// A source is being opened: that may take long, and is no reason to be taken for dead.
    opening: AtomicBool,
}

impl Server {
    /// Hear the owner's first words on `socket`, and tell the clock to run.
    ///
    /// # Errors
    /// [`Error::Os`], and [`Error::Invalid`] when the owner is of another build or gone.
    pub fn start(socket: OwnedFd, language: Box<dyn Language>) -> Result<Arc<Self>, Error> {
        let wrong = || Error::Invalid("this program is started by userfault itself".into());
        let heard = wire::receive(socket.as_raw_fd());
        let (frame, mut descriptors) =
            heard.map_err(|errno| Error::Os { what: "hearing the owner".into(), errno })?.ok_or_else(wrong)?;
        let mut last = || descriptors.pop();
        let (Some(settings), Some(handle), Some(file)) = (last(), last(), last()) else { return Err(wrong()) };
        if frame.kind() != Some(Kind::Hello) {
            return Err(wrong());
        }
        // SAFETY: asks for the seals of a file.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) } & libc::F_SEAL_SHRINK == 0 {
            return Err(wrong());
        }
        let header = Mapping::new(file.as_raw_fd(), 0, header_bytes())?.into_header();
        if header.version.load(Ordering::Acquire) != VERSION {
            return Err(wrong());
        }
        header.free_records();
        let settings = sealed::read(settings).map_err(|_| wrong())?;
        let peer = wire::peer(&socket).map(|peer| peer.pid);
        let owner = peer.filter(|pid| *pid == header.owner.load(Ordering::Acquire)).unwrap_or(0);
        let handle = Handle::from_raw(std::os::fd::IntoRawFd::into_raw_fd(handle));
        let server = Arc::new(Self {
            socket,
            file,
            handle,
            header,
            settings,
            language,
            owner,
            table: Table::default(),
            flights: flight::Flights::default(),
            lead: lead::Lead::default(),
            work: lead::Work::default(),
            bulks: bulk::Bulks::default(),
            clock: alarm::Alarm::default(),
            opening: AtomicBool::new(false),
        });
        clock::start(&server)?;
        server.say(&Frame::new(Kind::Started, 0, &[u64::from(std::process::id())]));
        Ok(server)
    }

    /// What the owner has set.
    #[must_use]
    pub fn settings(&self) -> &[u8] {
        &self.settings
    }

    /// Wait for a region to be served: what it is, and the bytes that describe its source (none for one that has lost its
    /// pager). Everything else that the owner says is done meanwhile. `None`: the owner is gone.
    pub fn next_region(self: &Arc<Self>) -> Option<(Attach, Vec<u8>)> {
        loop {
            self.opening.store(false, Ordering::SeqCst);
            let (frame, told) = match wire::receive(self.socket.as_raw_fd()) {
                Ok(Some(heard)) => heard,
                Err(Errno(libc::EINTR)) => continue,
                _ => return None,
            };
            match frame.kind() {
                Some(Kind::Attach) => {
                    let attach = Attach::of(&frame);
                    if !attach.is_sound() {
                        return None; // no owner of this build says so
                    }
                    if attach.lost != 0 {
                        let _ = self.attach(attach, Err(Cause::PagerLost(attach.lost as u32 as i32)));
                        continue;
                    }
                    self.opening.store(true, Ordering::SeqCst);
                    alarm::wake(self);
                    match told.into_iter().next().map(sealed::read) {
                        Some(Ok(bytes)) => return Some((attach, bytes)),
                        _ => self.refuse(&attach, "OSError\0no memory, or no descriptor, for what the source is\0"),
                    }
                }
                Some(Kind::Detach) => {
                    self.table.remove(frame.region);
                    self.say(&Frame::new(Kind::Detached, frame.region, &[]));
                }
                Some(Kind::Fill) => bulk::begin(self, &frame),
                _ => {}
            }
        }
    }

    /// Serve a region from `source`; without one every page fails for the reason given.
    ///
    /// # Errors
    /// [`Error::Os`] when what is shared of it cannot be mapped.
    pub fn attach(&self, attach: Attach, source: Result<Arc<dyn Source>, Cause>) -> Result<(), Error> {
        let part = self.part_of(&attach)?;
        self.table.insert(Served::new(attach, part, source));
        self.say(&Frame::new(Kind::Ready, attach.region, &[0]));
        Ok(())
    }

    /// Its source cannot be had, for the reason in `text` (as [`Language::describe`]). Its pages fail.
    pub fn refuse(&self, attach: &Attach, text: &str) {
        let error = crate::cause::SourceError::new(0, Cause::Corrupt);
        let code = self.header.record(attach.region, u64::MAX, error, text);
        let cause = crate::shared::decode(0, code);
        if let Ok(part) = self.part_of(attach) {
            self.table.insert(Served::new(*attach, part, Err(cause)).with_text(text));
        }
        let words = [1, code[0], code[1], code[2]].map(u64::from);
        self.say(&Frame::new(Kind::Ready, attach.region, &words));
    }

    fn part_of(&self, attach: &Attach) -> Result<MappedPart, Error> {
        let number = |word: u64| usize::try_from(word).unwrap_or(usize::MAX);
        let units = number(attach.mapped).div_ceil(number(attach.unit));
        MappedPart::new(self.file.as_raw_fd(), attach.part_at, units, number(attach.mapped) / uffd::page_size())
    }

    /// Answer faults, for good. Several threads do.
    pub fn serve(self: &Arc<Self>) {
        lead::serve(self);
    }

    fn say(&self, frame: &Frame) {
        // The socket blocks: the owner's watcher always reads. Where the owner is gone, so are we in a moment.
        let _ = wire::send(self.socket.as_raw_fd(), frame, &[]);
    }
}
