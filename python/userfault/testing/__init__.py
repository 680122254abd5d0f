"""The test kit: a contract for sources of your own, sources and servers that fail on purpose, children that touch lazy memory.

Also memory pressure on purpose, and the rules of 2014 as a model (`model2014`).
"""

from userfault.testing.chaos import Chaos, ChaosSource
from userfault.testing.contract import SourceContract
from userfault.testing.pressure import MemoryGroup, memory_group, purge
from userfault.testing.proxy import Fault, FaultyProxy
from userfault.testing.touching import TouchChild, TouchDied, TouchTimeout

__all__ = [
    "Chaos",
    "ChaosSource",
    "Fault",
    "FaultyProxy",
    "MemoryGroup",
    "SourceContract",
    "TouchChild",
    "TouchDied",
    "TouchTimeout",
    "memory_group",
    "purge",
]
