"""map(): the front door. It picks the source and opens a region of it; load() does so for arrays in files."""

from __future__ import annotations

import io
import math
import os
import tokenize
from typing import TYPE_CHECKING, Any, Literal

from userfault.errors import OptionError
from userfault.region import OPENERS, Options, Region, open_region
from userfault.sources import Source, source_of
from userfault.sources.called import name_of
from userfault.units import parse_bytes, parse_seconds

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer

    from userfault.pager import Pager

__all__ = ["load", "map"]

_WORDS = {
    "delivery": "'thread', 'signal' or 'process'",
    "mode": "'r' or 'c'",
    "on_error": "'raise' or 'abort'",
    "on_pager_death": "'restart', 'poison' or 'abort'",
}


def map(
    source: Source | str | os.PathLike[str] | Buffer,
    *,
    delivery: Literal["thread", "signal", "process"] = "thread",
    unit: int | str | None = None,
    huge: bool = False,
    resident: int | str | None = None,
    mode: Literal["r", "c"] = "r",
    on_error: Literal["raise", "abort"] = "raise",
    timeout: float | str = "30s",
    shared: bool = False,
    fork: Literal["deny"] = "deny",
    fallback: Literal["eager"] | None = None,
    on_pager_death: Literal["restart", "poison", "abort"] = "restart",
    pager: Pager | None = None,
) -> Region:
    """Map a source into memory: pages are filled when they are touched.

    Args:
        source: A Source, a path or a URL (opened by what it holds: an image, or plain bytes), or bytes. URLs are those of object
            stores ("s3://bucket/key", "gs://…", "az://…"), the web, Redis, and whatever fsspec knows: see docs/stores.md.
        delivery: "thread": serves every access, system calls too; native sources by native threads, Python sources by the thread
            that touched (docs/sources.md). "signal": the touching thread serves itself, which is cheaper, but a system call on
            an absent page gets EFAULT. "process": another process does, the pager: a source that hangs, crashes or takes all
            the memory does so there (docs/pager.md).
        unit: Bytes filled per fault, a power of two from one page to 64 MiB, or a string such as "64KiB"; None: what suits
            the source.
        huge: Units of 2 MiB in whole huge pages: for scans.
        resident: Bytes kept in memory at most (and one unit more for each thread that fills one), or a string such as "512MiB";
            the unit that came first leaves first, and comes back when touched. At least 8 units; None: all stay. Views stay
            valid. Needs mode="r".
        mode: "r": read-only views. "c": writes stay in memory.
        on_error: What happens when a page cannot be had. "raise": PageError in the touching thread. "abort": the process
            dies by SIGBUS with one line on stderr; also what "raise" means on kernels before 6.6.
        timeout: How long a touch may wait; seconds, or a string such as "30s".
        shared: Pages live in a memory file that other processes may map (`Region.fileno()`); needs on_error="abort".
        fork: "deny": a forked child that touches the region dies by SIGSEGV with one line; spawn and pickling work.
        fallback: "eager": where userfaultfd is not permitted, load everything now instead.
        on_pager_death: With delivery="process". "restart": another pager goes on, pages that are there stay; if they die too
            often, as "poison". "poison": every page that is not there raises PageError. "abort": this process ends, with a
            line.
        pager: With delivery="process": a `userfault.pager.Pager`; None: the one that all such regions of this process share.

    Returns:
        The region. Nothing was read yet, but an image's seek table.

    Raises:
        RefusedError: A PermissionError: this process may not have a userfaultfd; names the command that tells why.
        OptionError: A ValueError: options that make no sense, or not together.
        ImageError: The file looks like an image and is not a sound one.
        OSError: The file or object cannot be opened, or there is no room.

    GIL: released while it waits. Kernel: 4.11; PageError needs POISON (6.6), recycling needs MOVE (6.8).

    Example:
        >>> region = map(b"lazy" * 1000)
        >>> bytes(memoryview(region)[:4])
        b'lazy'
    """
    _check_words(delivery=delivery, mode=mode, on_error=on_error, on_pager_death=on_pager_death)
    if fork != "deny":
        raise OptionError(f"fork={fork!r}: must be 'deny'")
    if fallback not in (None, "eager"):
        raise OptionError(f"fallback={fallback!r}: must be None or 'eager'")
    if resident is not None and parse_bytes(resident, "resident") == 0:
        raise OptionError("resident=0: at least 8 units have to stay; None keeps all")
    options = Options(
        delivery=delivery,
        unit=0 if unit is None else parse_bytes(unit, "unit"),
        huge=huge,
        resident=0 if resident is None else parse_bytes(resident, "resident"),
        mode=mode,
        on_error=on_error,
        timeout=parse_seconds(timeout, "timeout"),
        shared=shared,
        fallback=fallback,
        on_pager_death=on_pager_death,
    )
    if delivery != "process" and (pager is not None or on_pager_death != "restart"):
        what = "on_pager_death" if pager is None else "pager"
        raise OptionError(f"{what}: only delivery='process' has a pager, and delivery={delivery!r} was asked for")
    if pager is not None:
        return _open_in_pager(source_of(source), options, pager)
    return open_region(source_of(source), options)


def _check_words(**given: object) -> None:
    """Which words there are, the native half says; of what is no text at all it does not say which argument it was."""
    for name, value in given.items():
        if not isinstance(value, str):
            raise OptionError(f"{name}={value!r}: must be {_WORDS[name]}")


def _open_in_pager(source: Source, options: Options, pager: Pager | None = None) -> Region:
    from userfault.pager.session import open_in_pager  # most processes have no pager

    return open_in_pager(source, options, pager)


OPENERS["process"] = _open_in_pager


def load(path: Source | str | os.PathLike[str], **options: Any) -> np.ndarray[Any, Any]:
    """Open an array file lazily: `.npy`, or a `.npy` packed as an image (`.npy.zst`).

    Args:
        path: The file, its URL, or a Source of its bytes.
        **options: As `map` takes them.

    Returns:
        The ndarray with the header's dtype, order and shape, as `numpy.load(mmap_mode="r")` gives; it keeps its region
        alive.

    Raises:
        OptionError: The file is no `.npy`, is shorter than its header says, or holds pickled objects, which are never loaded.
        ImageError: As `map`.
        OSError: As `map`.
    """
    region = map(path, **options)
    name = name_of(path) if isinstance(path, Source) else os.fspath(path)
    shape, fortran, dtype, start = _npy_header(region, name)
    if dtype.hasobject:
        raise OptionError(f"{name} holds pickled Python objects; they are never loaded")
    if any(length < 0 for length in shape):
        raise OptionError(f"{name} is not a .npy array: its header promises the shape {shape}")
    need = math.prod(shape) * dtype.itemsize
    if start + need > len(region):
        raise OptionError(f"{name}: its header promises {need} bytes of data, {len(region) - start} are there")
    try:
        return region.numpy(dtype, shape, start, order="F" if fortran else "C")
    except OptionError as error:
        raise OptionError(f"{name}: {error}") from None


_NPY_READERS = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}
# More than numpy reads of a header that was not vouched for.
_HEADER_BYTES = 16384


def _npy_header(region: Region, path: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    from numpy.lib import format as npy

    head = io.BytesIO(region.read(0, min(len(region), _HEADER_BYTES)))
    try:
        version = npy.read_magic(head)
        if version == (3, 0):
            return _npy_header_3(head)
        if version not in _NPY_READERS:
            raise ValueError(f"version {version} of the format is not known")
        shape, fortran, dtype = getattr(npy, _NPY_READERS[version])(head)
    except _PARSER_ERRORS as error:
        raise OptionError(f"{path} is not a .npy array: {str(error) or type(error).__name__}") from None
    return shape, fortran, dtype, head.tell()


# What numpy lets through of Python's own parser when a header is hostile.
_PARSER_ERRORS = (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)


def _npy_header_3(head: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Version 3.0 is 2.0 in another encoding, UTF-8: written with escapes, numpy's public reader of 2.0 takes it."""
    from numpy.lib import format as npy

    length = int.from_bytes(head.read(4), "little")
    text = head.read(length)
    if len(text) < length:
        raise ValueError(f"its header has {length} bytes, {len(text)} are there or may be read")
    escaped = text.decode("utf-8").encode("ascii", "backslashreplace")
    again = io.BytesIO(len(escaped).to_bytes(4, "little") + escaped)
    shape, fortran, dtype = npy.read_array_header_2_0(again, max_header_size=len(escaped))
    return shape, fortran, dtype, head.tell()
