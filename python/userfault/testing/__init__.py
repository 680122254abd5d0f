"""The test kit: sources that fail on purpose, and memory pressure on purpose."""

from userfault.testing.chaos import Chaos
from userfault.testing.pressure import MemoryGroup, memory_group, purge

__all__ = ["Chaos", "MemoryGroup", "memory_group", "purge"]
