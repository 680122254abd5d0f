"""The thin, faithful face of Linux userfaultfd(2).

Use it for experiments, for memory that somebody else laid out, or to build what `userfault.map` does not do.
For arrays whose pages come from a file or from a function, `userfault.map` is shorter and safer: here, nobody keeps a
Python thread from waiting for a page that only this very thread could bring.

>>> import mmap
>>> memory = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
>>> with Userfaultfd(user_mode_only=True) as fd:
...     fd.register(memory)
...     fd.copy(memory, b"x" * 4096)
...     memory[0]
<Ioctls...>
Outcome(done, 4096 bytes)
120
"""

from userfault.kernel.events import Event, Fork, PageFault, Remap, Remove, Unknown, Unmap
from userfault.kernel.flags import (
    ContinueMode,
    CopyMode,
    FaultFlags,
    Features,
    Ioctls,
    MoveMode,
    PageCategory,
    ProtectMode,
    RegisterMode,
    RwProtectMode,
    ScanFlags,
)
from userfault.kernel.outcome import Outcome, OutcomeKind
from userfault.kernel.pagemap import PageRange, scan
from userfault.kernel.probe import Capabilities, HugePool, Limit, Trial, capabilities
from userfault.kernel.uffd import FaultCounts, Userfaultfd, range_of

__all__ = [
    "Capabilities",
    "ContinueMode",
    "CopyMode",
    "Event",
    "FaultCounts",
    "FaultFlags",
    "Features",
    "Fork",
    "HugePool",
    "Ioctls",
    "Limit",
    "MoveMode",
    "Outcome",
    "OutcomeKind",
    "PageCategory",
    "PageFault",
    "PageRange",
    "ProtectMode",
    "RegisterMode",
    "Remap",
    "Remove",
    "RwProtectMode",
    "ScanFlags",
    "Trial",
    "Unknown",
    "Unmap",
    "Userfaultfd",
    "capabilities",
    "range_of",
    "scan",
]
