"""Chunks of sources kept in memory: one cache for the whole process, bounded in bytes; who was used last stays longest.

A chunk that several threads want is fetched by one of them (single flight). Locks are reentrant and held for a few
operations on dictionaries: a garbage collection inside may run a finalizer that touches lazy memory, which comes back here.
"""

from __future__ import annotations

import os
import threading
from _thread import allocate_lock
from collections import OrderedDict
from typing import TypeAlias

__all__ = ["Chunk", "Claim", "Flight", "Key", "MemoryChunks", "shared_chunks"]

#: Which bytes, and which chunk of them.
Key: TypeAlias = tuple[str, int, int]
Chunk: TypeAlias = bytes | bytearray | memoryview


class Claim:
    """One read, which fetches some chunks.

    Attributes:
        owner: The thread that does it.
        is_over: It fetches nothing any more. What of it has not landed by then never will: an exception from outside may come
            in the middle of giving up.
    """

    def __init__(self) -> None:
        self.owner = threading.get_ident()
        self.is_over = False


class Flight:
    """A chunk that one thread is fetching.

    Attributes:
        claim: Of which read it is.
        chunk: The bytes, once they are there.
        error: Why there are none.
        is_landed: Whether there is one or the other.
    """

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.chunk: Chunk | None = None
        self.error: Exception | None = None
        self.is_landed = False
        # No Event: an exception from outside (Ctrl-C) in the middle of its code would leave the lock inside it taken for good.
        self._gate = allocate_lock()
        self._gate.acquire()

    def wait(self, seconds: float) -> bool:
        """Wait until it has landed, or never will; who is not woken at once, after an exception from outside, sees it afterwards.

        Args:
            seconds: At most.

        Returns:
            Whether it has, or never will.
        """
        if not (self.is_landed or self.claim.is_over) and self._gate.acquire(timeout=seconds):
            self._gate.release()  # for the next one who waits
        return self.is_landed or self.claim.is_over

    def land(self) -> None:
        """Wake who waits."""
        self.is_landed = True
        if self._gate.locked():  # only its owner lands it, and a second time after an exception only
            self._gate.release()


class MemoryChunks:
    """The cache.

    Attributes:
        size: Bytes held.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.size = 0
        self._lock = threading.RLock()
        self._chunks: OrderedDict[Key, Chunk] = OrderedDict()
        self._flights: dict[Key, Flight] = {}
        self._limits: dict[int, int] = {}
        self._until_count = 0

    def want(self, who: object, limit: int) -> None:
        """Have room for `limit` bytes as long as `who` is open. The largest that is wanted holds for all.

        Args:
            who: Somebody who will call `leave`.
            limit: Bytes.
        """
        with self._lock:
            self._limits[id(who)] = limit

    def leave(self, who: object) -> None:
        """Somebody is closed. What was kept for him stays, as far as the others want room.

        Args:
            who: As `want`.
        """
        with self._lock:
            self._limits.pop(id(who), None)
            self._shrink()

    def find_or_claim(self, key: Key, claim: Claim, mine: dict[Key, Flight]) -> Chunk | Flight:
        """The chunk, or who fetches it.

        Args:
            key: Which.
            claim: The read that wants it.
            mine: Takes up the flight if the calling thread has to fetch the chunk, and so to land it. It is in there before
                anybody else can see it: an exception from outside (Ctrl-C, the timeout of a touch) may come after any call.

        Returns:
            The bytes, or a flight.
        """
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is not None:
                self._chunks.move_to_end(key)
                return chunk
            flight = self._flights.get(key)
            if flight is not None and flight.claim.is_over:
                flight = None
            if flight is not None and flight.claim.owner != claim.owner:
                return flight
            fresh = Flight(claim)
            mine[key] = fresh
            if flight is None:  # else this thread was interrupted while it fetched that chunk: it cannot wait for itself
                self._flights[key] = fresh
            return fresh

    def land(self, key: Key, flight: Flight, chunk: Chunk | None, error: Exception | None) -> None:
        """A flight ended.

        Args:
            key: Which chunk.
            flight: Of the calling thread.
            chunk: The bytes, or None.
            error: Why there are none; None with None: whoever waits tries himself.
        """
        flight.chunk, flight.error = chunk, error
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
            if chunk is not None:
                self._keep(key, chunk)
        flight.land()

    def _keep(self, key: Key, chunk: Chunk) -> None:
        old = self._chunks.pop(key, b"")
        self._chunks[key] = chunk
        self.size += len(chunk) - len(old)
        self._until_count -= 1
        if self._until_count < 0:  # now and then: an exception from outside may have come between the dictionary and the sum
            self.size = sum(map(len, list(self._chunks.values())))
            self._until_count = len(self._chunks)
        self._shrink()

    def _shrink(self) -> None:
        limit = max(self._limits.values(), default=0)
        while self.size > limit and self._chunks:
            _, chunk = self._chunks.popitem(last=False)
            self.size -= len(chunk)


_SHARED: MemoryChunks | None = None


def shared_chunks() -> MemoryChunks:
    """The cache of this process. A forked child begins with an empty one: nobody lands its parent's flights there."""
    global _SHARED
    shared = _SHARED
    if shared is None or shared.process != os.getpid():
        shared = _SHARED = MemoryChunks()
    return shared
