"""The test kit: sources that fail on purpose, memory pressure on purpose, and the rules of 2014 as a model (`model2014`)."""

from userfault.testing.chaos import Chaos
from userfault.testing.pressure import MemoryGroup, memory_group, purge

__all__ = ["Chaos", "MemoryGroup", "memory_group", "purge"]
