"""The native half of userfault. Not for direct use: names, enums and checks are in the packages above it."""

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar, final

from _typeshed import ReadableBuffer, WriteableBuffer

_T = TypeVar("_T")

# kernel

_Range: TypeAlias = tuple[int, int] | ReadableBuffer
_Place: TypeAlias = int | _Range
_Ended: TypeAlias = tuple[int, int, int]

@final
class NativePager:
    """A pager as its owner has it; `userfault.pager.Pager` is its face.

    Threads: safe from any. GIL: released in everything that waits.
    """

    def __new__(
        cls,
        path: bytes | None,
        arguments: list[bytes],
        environment: list[bytes],
        settings: bytes,
        restarts: int,
        within_seconds: float,
    ) -> NativePager:
        """Start the program `arguments` with `environment` (NAME=value), or ask who serves at `path`; not waited for."""

    def facts(self) -> tuple[int, int, int, str | None]:
        """Return the process number (0: none runs), regions, restarts, and how it ended for good."""

    def close(self) -> bool:
        """End it and wait; False: it serves regions."""

@final
class PagerServer:
    """The program: serves the regions of the process at the other end of a socket."""

    def __new__(cls, socket: int) -> PagerServer:
        """Hear the owner's first words on a descriptor, which is taken over."""

    def settings(self) -> bytes:
        """Return what the owner has set."""

    def next_region(self) -> tuple[int, bytes] | None:
        """Wait for a source to be opened: a number for its end, and what describes it; None: the owner is gone. GIL: released."""

    def waiting_region(self) -> tuple[int, bytes] | None:
        """Return one that had to wait for a thread, or None."""

    def accept(self, number: int, source: NativeSource) -> None:
        """Serve the region of a request; where nobody wants it any more the source is let go, and so closed."""

    def refuse(self, number: int, text: str) -> None:
        """Tell its owner why not: class, message and traceback, with zero bytes between them."""

    def serve(self) -> None:
        """Answer faults in the calling thread, for good. GIL: released but for calls of Python sources."""

@final
class Userfaultfd:
    """One userfaultfd descriptor; `userfault.kernel.Userfaultfd` is its public face.

    Threads: safe from any. The descriptor is closed once the last call in progress has left.
    GIL: released in every call into the kernel.
    """

    def __new__(cls, features: int, user_mode_only: bool, device: bool | None) -> Userfaultfd:
        """Open a descriptor and complete the handshake."""

    @staticmethod
    def adopt(fd: int) -> Userfaultfd:
        """Take over a descriptor from elsewhere."""

    def fileno(self) -> int:
        """Return the number of the descriptor."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""

    def close(self) -> None:
        """Close it and call its readers away; twice is fine."""

    def register(self, place: _Range, modes: int) -> int:
        """UFFDIO_REGISTER; returns the bits of the ioctls granted."""

    def unregister(self, place: _Range) -> None:
        """UFFDIO_UNREGISTER."""

    def wake(self, place: _Range) -> None:
        """UFFDIO_WAKE."""

    def copy(self, dst: _Place, src: _Place, length: int | None, mode: int) -> _Ended:
        """UFFDIO_COPY."""

    def move(self, dst: _Place, src: _Place, length: int | None, mode: int) -> _Ended:
        """UFFDIO_MOVE."""

    def zeropage(self, place: _Range, wake: bool) -> _Ended:
        """UFFDIO_ZEROPAGE."""

    def poison(self, place: _Range, wake: bool) -> _Ended:
        """UFFDIO_POISON."""

    def continue_(self, place: _Range, mode: int) -> _Ended:
        """UFFDIO_CONTINUE."""

    def write_protect(self, place: _Range, mode: int) -> _Ended:
        """UFFDIO_WRITEPROTECT."""

    def rw_protect(self, place: _Range, mode: int) -> _Ended:
        """UFFDIO_RWPROTECT."""

    def set_mode(self, enable: int, disable: int) -> None:
        """UFFDIO_SET_MODE."""

    def fdinfo(self) -> tuple[int, int, int]:
        """Return unread faults, waiting faults, and the features in force."""

    def read_events(self, max: int, timeout: float | None) -> list[tuple[Any, ...]]:
        """Wait for messages; each is a tuple that begins with the kernel's event number."""

def capabilities() -> dict[str, Any]:
    """Try what the kernel permits; keys are the fields of `userfault.kernel.Capabilities`."""

def kernel_names() -> dict[str, list[tuple[str, int]]]:
    """Every named bit of the native module, by the name of its set."""

def range_of(place: _Range) -> tuple[int, int]:
    """Address and length of the memory that a buffer names."""

def pagemap_scan(
    start: int,
    stop: int,
    *,
    pid: int | None,
    flags: int,
    inverted: int,
    all_of: int,
    any_of: int,
    report: int,
    max_pages: int,
) -> list[tuple[int, int, int]]:
    """PAGEMAP_SCAN; returns (start, stop, categories) triples."""

# image

ZSTD_LEVELS: tuple[int, int]
MAX_FRAME_BYTES: int
FRAME_ENTRY_BYTES: int
MAX_ITEM_BYTES: int
MAX_BLOCK_BYTES: int

class ImageIndex:
    """The seek table of an image file, checked; `userfault.image.inspect` is its public face.

    Threads: safe from any. GIL: released while the file is read.
    """

    def __new__(cls, path: str) -> ImageIndex:
        """Open an image; `ImageError` when it is none, `OSError` when it cannot be read."""

    @property
    def path(self) -> str:
        """What it was opened by."""

    @property
    def decoded_bytes(self) -> int:
        """What it decompresses to."""

    @property
    def filled_frames(self) -> int:
        """How many frames hold bytes; the others are to be skipped."""

    @property
    def file_bytes(self) -> int:
        """What it takes."""

    @property
    def has_checksums(self) -> bool:
        """Whether each frame has a checksum."""

    @property
    def common_frame_bytes(self) -> int:
        """The one size of its frames (the last, and zeros, aside); 0 if there is none."""

    @property
    def largest_frame_bytes(self) -> int:
        """The most that a frame decompresses to, frames of the size of zeros aside."""

    @property
    def filter(self) -> tuple[int, int, int] | None:
        """How its bytes were shuffled: bytes of an item, bytes of a block, where items begin; None if they were not."""

    def __len__(self) -> int:
        """How many frames there are."""

    def frame(self, number: int) -> tuple[int, int, int, int, int | None]:
        """Return offset, compressed bytes, decoded offset, decoded bytes, checksum."""

    def is_zero(self, number: int) -> bool:
        """Whether a frame holds only zeros, written as such; reads its few bytes."""

    def count_zeros(self) -> tuple[int, int]:
        """Return how many frames `is_zero` holds for, and how many bytes these are."""

    def verify(self, start: int, stop: int) -> list[tuple[int, int, int, str]]:
        """Decompress frames [start, stop); (frame, decoded offset, decoded bytes, what is wrong) of each bad one."""

class FrameEncoders:
    """Makes frames, in as many threads at once as call it."""

    def __new__(cls, frame_bytes: int, level: int, filter: tuple[int, int, int] | None = None) -> FrameEncoders:
        """Check the frame size, the level, and the filter: as `ImageIndex.filter`."""

    def encode(self, data: bytes, at: int) -> list[tuple[bytes, bytes] | int]:
        """Cut the bytes from `at` on into frames; in order, an int is that many zeros, a pair is frames and their entries."""

def zero_frame(decoded_bytes: int) -> tuple[bytes, bytes]:
    """Return the frame of so many zeros, and its table entry."""

def unshuffle(data: bytes, filter: tuple[int, int, int], at: int) -> bytes:
    """Return `data` as it was before the filter; it lies at byte `at` of the whole, a multiple of the block. No GIL."""

def seek_table(entries: bytes, filter: tuple[int, int, int] | None = None) -> bytes:
    """Return what follows the last frame: the filter's record, the guard of the table, and the table."""

# sources

class NativeSource:
    """A source of the engine; `userfault.sources` has the objects for users.

    Layers (`retry`, `deadline`, `checksum`, `chaos`) wrap it and give a new one.
    """

    @staticmethod
    def zero(length: int) -> NativeSource:
        """Return a source of `length` zero bytes."""

    @staticmethod
    def bytes(buffer: ReadableBuffer, heap: bool) -> NativeSource:
        """Return a source of bytes in memory; keeps the buffer exported. Memory of a Region is an OptionError.

        `heap` is for the memory of bytes and bytearray objects, which cannot fail to be read.
        """

    @staticmethod
    def file(path: str, offset: int, length: int | None, seen: tuple[int, int, int, int, int] | None = None) -> NativeSource:
        """Return a source of a range of a file; OSError (ESTALE) if it is another one than was `seen`."""

    @staticmethod
    def image(path: str, seen: tuple[int, int, int, int, int] | None = None) -> NativeSource:
        """Return a source of the bytes inside an image; likewise."""

    def unpacked(self) -> NativeSource:
        """Return a source of the bytes inside the image that this one gives; OptionError if it is an image already."""

    def read_into(self, offset: int, buffer: WriteableBuffer) -> None:
        """Fill a buffer with the bytes from `offset` on; PageError where they cannot be had. GIL: released."""

    @staticmethod
    def called(source: object) -> NativeSource:
        """Return a source whose reads are calls of Python: of the attributes of `userfault.sources.called.Opened`."""

    @staticmethod
    def remote(length: int, name: str, unit: int) -> NativeSource:
        """Return what the owner of a region knows of a source that its pager reads; it cannot be read here."""

    def retry(self, attempts: int, pause_seconds: float) -> NativeSource:
        """Return one that reads again after transient failures."""

    def deadline(self, limit_seconds: float) -> NativeSource:
        """Return one whose reads end in time; OptionError for one that is Python."""

    def checksum(self, block: int, sums: list[int]) -> NativeSource:
        """Return one that verifies XXH64 sums of blocks."""

    def chaos(self, fail: list[tuple[int, int]], delay_seconds: float, failures: int | None) -> NativeSource:
        """Return one that fails and dawdles on purpose."""

    @property
    def is_called(self) -> bool:
        """Whether its reads are calls of Python."""

    @property
    def length(self) -> int:
        """Bytes."""

    @property
    def name(self) -> str:
        """One name for people."""

    @property
    def signal_safe(self) -> bool:
        """Whether it may be read inside a signal handler."""

    @property
    def preferred_unit(self) -> int:
        """The unit that suits it, bytes; 0: no wish."""

# region

class NativeRegion:
    """The native half of `userfault.Region`: the buffer protocol, and calls that release the GIL.

    Ranges are offsets in bytes, half-open.
    """

    def __new__(
        cls,
        source: NativeSource,
        *,
        delivery: str,
        unit: int,
        huge: bool,
        resident: int,
        mode: str,
        on_error: str,
        timeout_seconds: float,
        shared: bool,
        eager: bool,
        served: tuple[NativePager, bytes, str] | None = None,
    ) -> Self:
        """Map a source.

        `served` is for delivery="process": the pager, the source as that gets it, and what if the pager dies.
        """

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, view: memoryview, /) -> None: ...
    @property
    def address(self) -> int:
        """Where it begins."""

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""

    @property
    def unit(self) -> int:
        """Bytes filled per fault."""

    @property
    def kernel_faults(self) -> bool:
        """Whether system calls on absent pages are served; if not they get EFAULT."""

    @property
    def is_eager(self) -> bool:
        """Whether everything was loaded at the start, for want of userfaultfd."""

    @property
    def views(self) -> int:
        """How many buffers are exported now."""

    @property
    def state(self) -> str:
        """One of "open", "closing", "closed", and "foreign" in a forked child."""

    def fill_ahead(self, start: int, stop: int) -> None:
        """Start filling in the background."""

    def fill_now(self, start: int, stop: int) -> None:
        """Fill and wait."""

    def drop_units(self, start: int, stop: int) -> int:
        """Give whole units back; returns how many."""

    def rearm(self) -> None:
        """Turn pages that show the error pattern back into holes, now."""

    def copy_bytes(self, offset: int, length: int) -> bytes:
        """Return a copy, made by the kernel."""

    def counters(self) -> dict[str, int]:
        """Return the counters."""

    def filling(self) -> tuple[str, str]:
        """Return how a whole unit gets to its place, and why so."""

    def failed_since(self, epoch: int) -> bool:
        """Tell whether a page may have shown the error pattern since `failure_epoch` was that."""

    def unit_states(self) -> bytes:
        """Return one byte a unit: 0 absent, 1 filling, 2 present."""

    def file_descriptor(self) -> int | None:
        """Return the memory file of a shared region."""

    def close(self) -> None:
        """Unmap it; BufferError while views are alive, nothing when it is closed."""

    def close_when_free(self) -> None:
        """Unmap it now or when the last view dies."""

def start_engine() -> None:
    """Start the engine, or raise what `map()` would raise."""

# volatile

def volatile_source(length: int, refill: NativeSource | None) -> NativeSource:
    """Return the source of a volatile region: zeros, and lost pages from `refill`."""

def volatile_unpin(region: NativeRegion, start: int, stop: int) -> None:
    """Let the kernel take the whole pages inside a range of bytes."""

def volatile_pin(region: NativeRegion, start: int, stop: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Keep all pages that a range of bytes touches; return the runs of pages that were lost, and that were volatile."""

def volatile_discard(region: NativeRegion, start: int, stop: int) -> None:
    """Put zeros in all pages that a range of bytes touches."""

def volatile_pages(region: NativeRegion) -> bytes:
    """Return one byte a page: 0 untouched, 1 pinned, 2 volatile, 3 purged, 4 purged and refilled."""

@final
class Window:
    """A read-only part of a buffer: it lives until its last view is released, and keeps its holder alive as long."""

    def __new__(cls, buffer: ReadableBuffer, start: int, stop: int, holder: object) -> Window:
        """Show the bytes from `start` to `stop`."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

# raise

def set_exceptions(main_thread: int) -> None:
    """Look up the exceptions that failed pages raise, and note who raises for threads that Python does not know; at import."""

def take_failure() -> tuple[str, int, int | None, str, int, type[BaseException], BaseException | None] | None:
    """Return and clear what was noted for this thread: source, offset, errno, text, address, class, what a source raised."""

def surface(_class: type[BaseException], *arguments: object) -> BaseException:
    """Take what was noted for this thread, and make its exception: the `__new__` of classes that a thread is told to raise."""

def count_repeats(repeats: int) -> None:
    """Say, in the thread that reads a source, how often the read was made again; the region's statistics add it up."""

def serve_read(start_another: Callable[[int], object]) -> None:
    """Wait for a read of a Python source that an engine thread wants, and do it.

    `start_another` is called with the number of threads that read when none has time for what comes next.
    """

@final
class Finally(Generic[_T]):
    """A context manager that no exception from outside (Ctrl-C) keeps from ending, with its block or with its life, once.

    To end it appends `end` to `calls`, in one step, and calls `after`, which shall do what is on that list; if it is interrupted,
    again, and after that whoever looks at the list next has to. `begin` is called for the block, and answers its value.
    """

    def __new__(
        cls, end: Callable[[], Any], calls: deque[Callable[[], Any]], after: Callable[[], Any], begin: Callable[[], _T]
    ) -> Finally[_T]:
        """Say what to call; nothing is yet."""

    def __enter__(self) -> _T: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> bool: ...

class Turn:
    """One thread waits, another one rings; made for handing something over, where `wait` rings in the same step."""

    def ring(self) -> None:
        """Wake who waits, or who waits next. A second ring before that changes nothing."""

    def wait(self, limit_seconds: float | None = None, ring: Turn | None = None) -> bool:
        """Ring that other one, and wait until this one is rung. One thread at a time.

        Returns:
            True: it was, and is not any more. False: the time is up.

        Blocks: as it says; Ctrl-C works. GIL: released, before the other one is rung.
        """

def noted_failure() -> BaseException:
    """Take what was noted for this thread, and make its exception, where it has not surfaced and will not."""

def failure_epoch() -> int:
    """Return how many pages have shown the error pattern so far: a moment for `failed_since`."""

def failed_since(epoch: int) -> bool:
    """Tell whether a page of any region may have shown the error pattern since then."""

def rearm_failed() -> None:
    """Turn every page of every region that shows the error pattern back into a hole."""

def drop_pending_error() -> None:
    """Take back an exception of this thread that has not surfaced yet."""

def refresh_handlers(interrupt_raises: bool) -> None:
    """Put the SIGBUS handler in front, and the SIGINT hook if Ctrl-C raises."""

# mman

def mman_flag(place: _Range, on: bool, follow: bool) -> None:
    """Set or clear the flag of a range; `follow`: forked children have it too, and their faults come here.

    Raises:
        RefusedError: To follow needs CAP_SYS_PTRACE.
        UnsupportedError: This kernel cannot follow.
    """

def mman_advise(place: _Range, advice: int, name: str) -> None:
    """Give another advice, by its number in the kernel."""

def mman_protect(place: _Range, protection: int, userfault: bool) -> None:
    """Call mprotect; under policy "mprotect" set or clear the flag too."""

def mman_set_policy(policy: str) -> None:
    """Choose the policy; RuntimeError while a range is marked."""

def mman_policy() -> str:
    """Return the policy in force."""

def mman_on_sigbus(
    place: _Range, kind: str, resolver: Callable[[int], object] | None = None, source: NativeSource | None = None
) -> None:
    """Choose what a SIGBUS in a range leads to: "raise", "default", "callable" or "source"."""

def remap_anon_pages(dst: _Place, src: _Place, length: int | None = None, flags: int = 0) -> int:
    """Move pages from `src` into the hole at `dst`. Nobody is woken; the pages leave holes behind them.

    Args:
        dst: Address or buffer; need be neither flagged nor registered.
        src: Address or buffer, usually staging memory.
        length: Bytes, whole pages; None: as long as the shorter of the two buffers.
        flags: 0 or `RAP_ALLOW_SRC_HOLES`.

    Returns:
        Bytes moved: `length`, or fewer when an error came after some; the call for the rest then says which.

    Raises:
        OSError: EINVAL: flags, alignment, nothing or more than one mapping at either end, shared memory, memory that is not
            writable, different protection or mlock. EEXIST: there is a page already. ENOENT: there is none at the source.
            EBUSY: the page is shared with a forked child, or pinned. EFAULT: something else than a page.

    Blocks: for the moment of a change of owner. Source: patch 12 of the series.
    """

def mman_ranges() -> list[tuple[int, int, bool, int | None, str | None, str]]:
    """Return what is marked: start, bytes, flagged, owner, what forked children get ("deny", "follow"), resolver."""

def mman_poisoned_switches() -> int:
    """Return how many changes of owner had to poison holes."""

def mman_tell_late(teller: Callable[[], object]) -> None:
    """Have `teller` called, in the main thread, when system calls ended because nobody answered their faults in time."""

def mman_take_late() -> list[tuple[int, int, float, str, float]]:
    """Return those that were not taken yet: address, native thread id, seconds, what the thread was doing."""

class NativeUserfaultfd2014:
    """The native half of `userfault.mman.Userfaultfd2014`."""

    def __new__(cls, *, nonblocking: bool, user_mode_only: bool, timeout_seconds: float | None) -> Self:
        """Open one, before its handshake."""

    @property
    def ident(self) -> int:
        """Return a number that no other descriptor of this process has."""

    def read(self, n: int) -> bytes:
        """Read 8 bytes: what the handshake says, or the address of a fault, the newest first.

        Raises:
            OSError: EINVAL: `n` is less than 8, or there is nothing to be read before the handshake.
            BlockingIOError: Nothing there, with O_NONBLOCK.
            ValueError: It is closed.

        Blocks: until there is a fault, without O_NONBLOCK; Ctrl-C works. GIL: released.
        """

    def read_fault(self) -> int:
        """Return the exact address of the newest fault that nobody has read. Raises and blocks as `read` does."""

    @property
    def can_follow(self) -> bool:
        """Whether it hears of forks: it was opened with CAP_SYS_PTRACE."""

    def next_fork(self, limit_seconds: float | None = None) -> NativeForkedUserfaultfd | None:
        """Return the userfaultfd of the next forked child; None when the time is over.

        Raises:
            ValueError: It is closed.

        Blocks: until a fork, or the limit; Ctrl-C works. GIL: released.
        """

    def write(self, data: ReadableBuffer) -> int:
        """Write 8 bytes of protocol, or 16 bytes of command: start with the command in its low two bits, and end.

        0 wakes, 1 registers, 2 unregisters.

        Raises:
            OSError: EINVAL: too short, not whole pages, no such command, not the time for it. ERANGE: an empty range. ENOMEM: it
                ends outside of user memory, or nothing is mapped there or above. ENOENT: nobody to wake. EBUSY: another
                descriptor has it.
            ValueError: It is closed.
        """

    def register(self, place: _Range) -> None:
        """Have faults of flagged memory in the range come to this descriptor. Raises as `write` does."""

    def unregister(self, place: _Range) -> None:
        """Undo `register`: flagged memory raises SIGBUS again. Raises as `write` does."""

    def wake(self, address: int, length: int) -> None:
        """Wake those whose faults in the range were read."""

    def fileno(self) -> int:
        """Return a number for poll and select: readable with a fault unread, writable with one read and not woken.

        The same each time; another one if the program has closed it, as by os.closerange.
        """

    def standing(self) -> tuple[str, int, int, int]:
        """Return the state, unread faults, faults read and not woken, and those that ended by the timeout."""

    def late(self) -> list[tuple[int, int, float, str, float]]:
        """Return the newest of those: address, native thread id, seconds, what the thread was doing, the timeout in seconds."""

    def close(self) -> None:
        """Close it: who waits, and who touches a hole later, gets SIGBUS. Twice is fine."""

class NativeForkedUserfaultfd:
    """The native half of `userfault.mman.ForkedUserfaultfd`."""

    @property
    def ident(self) -> int:
        """Return a number that no other descriptor of this process has."""

    def read_fault(self) -> int:
        """Return the exact address of the newest fault that nobody has read.

        Raises:
            ProcessLookupError: The child is gone.
            ValueError: It is closed.

        Blocks: until there is a fault; Ctrl-C works. GIL: released.
        """

    def fill(self, address: int, data: bytes) -> int:
        """Copy whole pages into the child, from the page of `address` on; return the bytes of pages that were not there.

        Raises:
            ProcessLookupError: The child is gone.
            OSError: ENOENT: the child has nothing registered there.
            ValueError: It is closed; no whole number of pages.

        Blocks: for a copy. GIL: released.
        """

    def wake(self, address: int, length: int) -> None:
        """Have those who wait in the range ask again. Raises as `fill` does."""

    def standing(self) -> tuple[bool, bool, int]:
        """Return whether it is closed, whether the child is gone, and how many faults nobody has read."""

    def close(self) -> None:
        """Close it: who waits in the child, and who touches a hole there later, gets SIGBUS. Twice is fine."""
