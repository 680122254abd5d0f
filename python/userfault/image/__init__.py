"""Memory at rest: pack a file into an image, look at one, check one.

An image is a standard seekable zstd file: frames that decompress on their own, and a table of them at the end.
``zstd -d`` gives the bytes back anywhere; `userfault.map` decompresses the frame that somebody touches. The bytes of an
array may be shuffled before they are compressed (``pack(dtype=...)``): `unshuffle` undoes that to what ``zstd -d`` gives.
"""

from userfault.image.inspect import FrameInfo, ImageInfo, frames, inspect
from userfault.image.pack import Packed, pack
from userfault.image.shuffling import Shuffle, unshuffle
from userfault.image.verify import BadFrame, Verification, verify

__all__ = [
    "BadFrame",
    "FrameInfo",
    "ImageInfo",
    "Packed",
    "Shuffle",
    "Verification",
    "frames",
    "inspect",
    "pack",
    "unshuffle",
    "verify",
]
