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
//! hints    what sources are told before
//! opens    regions whose sources are being opened
//! lead     one thread reads messages at a time
//! clock    deadlines, a reader that stays away, threads that do not come back
//! ```
//!
//! *Threads*: servers, and those that open sources, some of them of the language above; the clock; the one that hears the owner.
//! *Blocks on*: read(2) on the userfaultfd, the socket, sources.

mod alarm;
mod answer;
mod bulk;
mod clock;
mod fill;
mod flight;
mod hints;
mod lead;
mod opens;
mod table;

use super::sealed;
use super::wire::{self, Attach, Frame, Kind};
use crate::cause::Cause;
use crate::error::Error;
use crate::futex::now_ns;
use crate::shared::{Header, MappedPart, Mapping, VERSION, header_bytes};
use crate::source::Source;
pub use opens::{Request, limit_ns};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;
use table::{Served, Table};
use uffd::{Errno, Handle};

/// How often to look whether another source can be opened.
const ROOM_LOOK: Duration = Duration::from_millis(100);

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
    hints: hints::Hints,
    opens: opens::Opens,
    clock: alarm::Alarm,
}

/// A region that is gone; its owner hears it once the source is closed, where nobody else reads that.
struct Detaching {
    server: Arc<Server>,
    region: u64,
    gone: Option<Arc<Served>>,
}

impl Detaching {
    /// Closing a source is somebody's code: in a thread of its own, or here where there is none to be had.
    fn go_on(self) {
        let is_called =
            self.gone.as_ref().and_then(|gone| gone.source.as_ref().ok()).is_some_and(|source| source.is_called());
        if is_called {
            let _ = std::thread::Builder::new().name("userfault-close".into()).spawn(move || drop(self));
        }
    }
}

impl Drop for Detaching {
    fn drop(&mut self) {
        drop(self.gone.take());
        self.server.say(&Frame::new(Kind::Detached, self.region, &[]));
    }
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
            hints: hints::Hints::default(),
            opens: opens::Opens::default(),
            clock: alarm::Alarm::default(),
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

    /// Wait for a source to be opened, in a thread of its own, for a region to be served. Everything else that the owner says is
    /// done meanwhile. `None`: the owner is gone.
    pub fn next_region(self: &Arc<Self>) -> Option<Request> {
        loop {
            if let Some(request) = self.opens.next() {
                return Some(request);
            }
            // A thread that is given up makes room without a word from the owner.
            if self.opens.is_waiting() && wire::wait_readable([self.socket.as_raw_fd()], Some(ROOM_LOOK)) == [false] {
                continue;
            }
            match wire::receive(self.socket.as_raw_fd()) {
                Ok(Some((frame, told))) => self.heard(&frame, told)?,
                Err(Errno(libc::EINTR)) => {}
                _ => return None,
            }
        }
    }

    /// One that had to wait, for a thread that has opened another one.
    pub fn waiting_region(&self) -> Option<Request> {
        self.opens.next()
    }

    /// `None`: no owner of this build says so.
    fn heard(self: &Arc<Self>, frame: &Frame, told: Vec<OwnedFd>) -> Option<()> {
        match frame.kind() {
            Some(Kind::Attach) => {
                let attach = Attach::of(frame);
                if !attach.is_sound() {
                    return None;
                }
                if attach.lost != 0 {
                    self.lose(attach, Cause::PagerLost(attach.lost as u32 as i32));
                    return Some(());
                }
                match told.into_iter().next().map(sealed::read) {
                    Some(Ok(bytes)) => self.opens.add(attach, bytes, now_ns()),
                    _ => {
                        let text = "OSError\0no memory, or no descriptor, for what the source is\0";
                        self.refuse_as(self.opens.list(), &attach, &[], text);
                    }
                }
                alarm::wake(self);
            }
            Some(Kind::Detach) => {
                self.opens.abandon(frame.region);
                let gone = self.table.remove(frame.region);
                Detaching { server: self.clone(), region: frame.region, gone }.go_on();
            }
            Some(Kind::Fill) if !self.opens.keep(frame) => bulk::begin(self, frame),
            _ => {}
        }
        Some(())
    }

    /// The source of this request is open. Where nobody wants it any more it is dropped, and so closed.
    ///
    /// # Errors
    /// [`Error::Os`] when what is shared of its region cannot be mapped.
    pub fn accept(&self, number: u64, source: Arc<dyn Source>) -> Result<(), Error> {
        let Some(attach) = self.opens.attach_of(number) else {
            self.opens.list().end(number);
            return Ok(());
        };
        if source.len() != attach.len {
            let (here, there) = (source.len(), attach.len);
            self.refuse(number, &format!("OptionError\0the source has {here} bytes here, and {there} in its owner\0"));
            return Ok(());
        }
        let part = self.part_of(&attach)?;
        let mut list = self.opens.list();
        let Some(opening) = list.end(number) else { return Ok(()) };
        self.table.insert(Served::new(attach, part, Ok(source)));
        drop(list);
        self.say(&Frame::new(Kind::Ready, attach.region, &[0]));
        opening.fills.iter().for_each(|fill| bulk::begin(self, fill));
        Ok(())
    }

    /// The source of this request cannot be had, for the reason in `text` (as [`Language::describe`]). Its region's pages fail.
    pub fn refuse(&self, number: u64, text: &str) {
        let mut list = self.opens.list();
        let Some(opening) = list.end(number) else { return };
        self.refuse_as(list, &opening.attach, &opening.fills, text);
    }

    /// `list`: held until it is in the table, for its owner may let go of it at any time.
    fn refuse_as(&self, list: MutexGuard<'_, opens::List>, attach: &Attach, fills: &[Frame], text: &str) {
        let error = crate::cause::SourceError::new(0, Cause::Corrupt);
        let code = self.header.record(attach.region, u64::MAX, error, text);
        let cause = crate::shared::decode(0, code);
        if let Ok(part) = self.part_of(attach) {
            self.table.insert(Served::new(*attach, part, Err(cause)).with_text(text));
        }
        drop(list);
        let words = [1, code[0], code[1], code[2]].map(u64::from);
        self.say(&Frame::new(Kind::Ready, attach.region, &words));
        fills.iter().for_each(|fill| bulk::begin(self, fill));
    }

    /// Every page of it fails, for this reason.
    fn lose(&self, attach: Attach, cause: Cause) {
        let Ok(part) = self.part_of(&attach) else { return };
        self.table.insert(Served::new(attach, part, Err(cause)));
        self.say(&Frame::new(Kind::Ready, attach.region, &[0]));
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
