"""The test kit: sources that fail on purpose."""

from userfault.testing.chaos import Chaos

__all__ = ["Chaos"]
