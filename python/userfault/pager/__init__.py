"""The pager: another process that fills regions of this one.

>>> region = uf.map(source, delivery="process")          # the pager that all such regions share
>>> region = uf.map(source, delivery="process", pager=uf.pager.Pager(user="nobody", sandbox=True))

A source that hangs, crashes or takes all the memory does so there. What becomes of the region then is `on_pager_death`.
"""

from __future__ import annotations

from userfault.pager.process import Pager, default_pager
from userfault.pager.service import serve
from userfault.pager.sharing import share

__all__ = ["Pager", "default_pager", "serve", "share"]
