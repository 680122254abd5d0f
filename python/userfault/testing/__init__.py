"""The test kit: sources that fail on purpose, and memory pressure on purpose."""
"""The test kit: sources that fail on purpose (`Chaos`), and the rules of 2014 as a model (`userfault.testing.model2014`)."""

from userfault.testing.chaos import Chaos
from userfault.testing.pressure import MemoryGroup, memory_group, purge

__all__ = ["Chaos", "MemoryGroup", "memory_group", "purge"]
