"""The test kit: sources that fail on purpose (`Chaos`), and the rules of 2014 as a model (`userfault.testing.model2014`)."""

from userfault.testing.chaos import Chaos

__all__ = ["Chaos"]
