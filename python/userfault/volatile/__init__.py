"""Volatile memory: the kernel may take it when it needs memory, and you are told.

`VolatileBuffer` is such memory, `VolatileCache` a mapping that keeps its values in it, `volatile_cache` a decorator.
"""

from userfault.volatile.buffer import VolatileBuffer, VolatileState
from userfault.volatile.cache import CacheStatistics, VolatileCache
from userfault.volatile.memo import volatile_cache

__all__ = ["CacheStatistics", "VolatileBuffer", "VolatileCache", "VolatileState", "volatile_cache"]
