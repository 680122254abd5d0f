"""The exceptions of this package.

    UserfaultError
    ├─ PageError(…, OSError)             a page could not be had: .source .offset .cause
    │  └─ PagePurged                     the kernel took a volatile page
    ├─ UserFault(…, OSError)             nobody resolved a fault on memory flagged by mman: .address .cause
    ├─ RefusedError(…, PermissionError)  userfaultfd is not permitted here: .command .hint
    ├─ UnsupportedError(…, OSError)      this kernel lacks something
    ├─ OptionError(…, ValueError)        parameters that make no sense, or not together
    ├─ RegionClosedError(…, ValueError)  the region is closed, or belongs to the parent process
    ├─ RemoteError                       raised in a pager process, in words: .kind .message .traceback
    ├─ ImageError(…, ValueError)         a file is not the image it should be
    └─ StoreError(…, OSError)            a store did not give the bytes: .url .reason .transient
       ├─ StoreMissing(…, FileNotFoundError)  there is no such object, or no longer
       └─ StoreChanged                   the object is not the one that was opened any more

A failed system call that has no better name is an `OSError` of the kind its errno asks for.
"""

from __future__ import annotations

import os
import pickle
from typing import Any, TypeAlias

from userfault import _core

__all__ = [
    "ImageError",
    "OptionError",
    "PageError",
    "PagePurged",
    "RefusedError",
    "RegionClosedError",
    "RemoteError",
    "StoreChanged",
    "StoreError",
    "StoreMissing",
    "UnsupportedError",
    "UserFault",
    "UserfaultError",
]


class UserfaultError(Exception):
    """The root of all exceptions of this package."""


class PageError(UserfaultError, OSError):
    """A page could not be had.

    Raised in the thread that touched the page, at the end of the call that did, or by `Region.populate`, `Region.read` and
    `checked` before any byte is seen. The next touch asks the source again.

    Attributes:
        source: The name of the source, as its repr.
        offset: Offset in bytes in the source of the first byte that could not be had.
        cause: Why: what a Python source raised, an `OSError` when the kernel gave an errno (both are the `__cause__` too), else
            a sentence.
    """

    source: str
    offset: int
    cause: BaseException | str

    def __init__(self, source: str, offset: int | None = None, cause: BaseException | str | None = None) -> None:
        self.source = source
        self.offset = -1 if offset is None else offset
        self.cause = "unknown" if cause is None else cause
        where = f" at byte {self.offset}" if self.offset >= 0 else ""
        super().__init__(f"{self.source}{where}: {_described(self.cause)}")
        if isinstance(self.cause, BaseException):
            self.errno = _errno_of(self.cause)
            self.__cause__ = self.cause

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.offset, _portable(self.cause))


class PagePurged(PageError):
    """The kernel took a page of a volatile buffer while it was unpinned. `VolatileBuffer.pin` says which, without raising."""


class UserFault(UserfaultError, OSError):
    """A fault on memory that is flagged with `mman.MADV_USERFAULT` found nobody who resolved it.

    Raised in the thread that touched the page, at the end of the call that did (as `PageError` is). The next touch is a fault
    again.

    Attributes:
        address: Of the page.
        cause: Why: an `OSError` when the kernel or a source gave an errno, else a sentence. An exception that a resolver
            raised is the `__cause__` of this one.
    """

    address: int
    cause: BaseException | str

    def __init__(self, address: int, cause: BaseException | str | None = None) -> None:
        self.address = address
        self.cause = "unknown" if cause is None else cause
        super().__init__(f"nobody resolved the fault at {address:#x}: {_described(self.cause)}")
        self.__cause__ = self.cause if isinstance(self.cause, BaseException) else None

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.address, _portable(self.cause))


_Taken: TypeAlias = tuple[str, int, int | None, str, int, type[BaseException], BaseException | None]
_REPLACED = "the details were replaced by those of later failures"
_ELSEWHERE = (
    "its exception, which says which page, was raised where that was touched: in another thread, or in this block, where it "
    "was caught"
)


def _cause(noted: _Taken) -> BaseException | str:
    _, _, errno, text, _, _, raised = noted
    if raised is not None:
        return raised
    return text if errno is None else OSError(errno, os.strerror(errno))


def _described(cause: BaseException | str) -> str:
    """A sentence; of an exception that says nothing, its name."""
    name, text = type(cause).__name__, cause if isinstance(cause, str) else shown(cause)
    return text or name if isinstance(cause, OSError | RemoteError | str) else f"{name}: {text}"


def shown(error: BaseException) -> str:
    """What an exception says. One that cannot say anything must not replace the exception that it is the cause of.

    Args:
        error: Of anybody's class.

    Returns:
        Its `str`, or words where that raises.
    """
    try:
        return str(error)
    except Exception:
        return "(it cannot be shown)"


def _errno_of(error: BaseException) -> Any:
    """As it has it; of some it is a property, which may raise."""
    try:
        return getattr(error, "errno", None)
    except Exception:
        return None


def failure_of(noted: _Taken | None, resolver_raised: BaseException | None = None) -> BaseException:
    """Make the exception of what the engine noted.

    Args:
        noted: What `take_failure` returned.
        resolver_raised: What a resolver raised there: the `__cause__` of a `UserFault`.
    """
    if noted is None:
        return PageError("a page could not be had", None, _REPLACED)
    source, offset, _, _, address, class_, raised = noted
    if raised is not None and class_ not in (PageError, PagePurged, UserFault):
        return raised  # what asks the process to end is no PageError
    if class_ is UserFault:
        fault = UserFault(address, _cause(noted))
        fault.__cause__ = resolver_raised if resolver_raised is not None else fault.__cause__
        return fault
    return (PagePurged if class_ is PagePurged else PageError)(source, offset, _cause(noted))


def of_block(failure: BaseException) -> BaseException:
    """The exception of a block in which a page failed, of which nothing may be noted for the thread that leaves the block.

    Args:
        failure: As `failure_of` made it.
    """
    if isinstance(failure, PageError) and failure.cause is _REPLACED:
        return PageError("a page failed during this block", None, _ELSEWHERE)
    return failure


def surfacing(class_: type[BaseException]) -> type[BaseException]:
    """Make the class that a thread is told to raise: what the interpreter makes of it when it surfaces is one of `class_`.

    It is made natively at first, so that the thread's touches wait for their pages again before any Python runs: a signal handler
    or a finalizer that runs while the exception is made would be answered by it for touches of its own.
    """
    return type(class_.__name__, (class_,), {"__new__": _core.surface})


def standing_for(error: BaseException) -> type[BaseException]:
    """Make a class that stands for one exception: a thread can be told to raise a class only.

    Args:
        error: What a source raised in the thread that touched.

    Returns:
        A class derived from its own. An instance, as the interpreter makes it when the class surfaces, is `error` itself.
    """

    def surface(_class: type, *_arguments: object) -> BaseException:
        _core.take_failure()  # the thread's touches wait for their pages again
        return error

    return type(type(error).__name__, (type(error),), {"__new__": surface})


def _portable(cause: BaseException | str) -> BaseException | str:
    """As it is, or in words where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(cause))
    except Exception:
        return _described(cause)
    return cause


class RefusedError(UserfaultError, PermissionError):
    """This process may not have a userfaultfd.

    Attributes:
        command: The one command that would change it, where one is known.
        hint: What to do about it.
    """

    command: str | None = None

    @property
    def hint(self) -> str:
        """What to do about it, in a sentence."""
        first = f"{self.command}; " if self.command else ""
        return f"{first}`userfault doctor` says what works here and why not; fallback='eager' loads everything instead"

    def __str__(self) -> str:
        return f"{super().__str__()}\nhint: {self.hint}"


class UnsupportedError(UserfaultError, OSError):
    """This kernel lacks something the call needs."""


class OptionError(UserfaultError, ValueError):
    """A parameter makes no sense, or not together with another."""


class RegionClosedError(UserfaultError, ValueError):
    """The region is closed, or belongs to the process this one was forked from."""


class RemoteError(UserfaultError):
    """What a source raised in a pager process, in words: no object of that process is ever unpickled here.

    It is the `__cause__` of a `PageError`; the traceback over there is one of its notes.

    Attributes:
        kind: The name of the class.
        message: What the exception said.
        traceback: As Python prints it, cut at its start where it is long.
        transient: Whether the same read may succeed a moment later, as far as a pager that is shared tells.
    """

    kind: str
    message: str
    traceback: str
    transient: bool

    def __init__(self, kind: str, message: str, traceback: str, transient: bool = False) -> None:
        self.kind = kind or "Exception"
        self.message = message
        self.traceback = traceback
        self.transient = transient
        super().__init__(f"{self.kind}: {message}" if kind else "its details were replaced by those of later failures")
        if traceback:
            self.add_note(f"in the pager process:\n{traceback}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.message, self.traceback, self.transient)


class ImageError(UserfaultError, ValueError):
    """A file is not the image it should be: truncated, damaged, hostile, or not an image at all."""


class StoreError(UserfaultError, OSError):
    """A store did not give the bytes that it was asked for: at a touch the `__cause__` of the `PageError`.

    Attributes:
        url: Which object.
        reason: Why, a sentence.
        transient: Whether the same read may succeed a moment later; the source has tried that already, as often as it was told.
    """

    def __init__(self, url: str, reason: str, transient: bool = False) -> None:
        self.url = url
        self.reason = reason
        self.transient = transient
        super().__init__(f"{url}: {reason}")

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.reason, self.transient)


class StoreMissing(StoreError, FileNotFoundError):
    """There is no such object in the store, or there is none any more."""


class StoreChanged(StoreError):
    """The object was replaced since it was opened. Its pages would be a mixture of both, so none of the new ones is shown."""
