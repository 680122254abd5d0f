"""Images in memory: frames that are larger than what a touch wants, and frames whose bytes were shuffled."""

from __future__ import annotations

import pytest
from support.regions import run_quietly as run

pytestmark = pytest.mark.kernel

PREPARE = """
from userfault.image import pack
array = np.round(np.sin(np.arange(1 << 20) / 900) + rng.normal(0, 1e-3, 1 << 20), 4).astype("f4")
array[300_000:500_000] = 0
raw, image = os.path.join(folder, "raw.npy"), os.path.join(folder, "raw.npy.zst")
np.save(raw, array)
"""


@pytest.mark.parametrize(
    ("frame", "block"), [("64KiB", None), ("2MiB", None), ("8MiB", "2MiB"), ("96KiB", None), ("4KiB", "4KiB")]
)
def test_shuffled_image_is_the_array_that_was_packed(child, frame, block):
    """However it is mapped, and whichever part of a frame or a block is wanted."""
    run(
        child,
        PREPARE
        + f"""
pack(raw, image, dtype="f4", frame={frame!r}, block={block!r})
wanted = open(raw, "rb").read()
ways = [dict(), dict(delivery="signal"), dict(huge=True), dict(unit="4KiB"), dict(unit="16MiB"), dict(mode="c"),
        dict(shared=True, on_error="abort"), dict(unit="64KiB", delivery="signal")]
for way in ways:
    loaded = uf.load(image, **way)
    assert (loaded[::-4099] == array[::-4099]).all(), way
    assert (loaded == array).all(), way
    with uf.map(image, **way) as region:
        assert region.read(1_000_003, 70_001) == wanted[1_000_003:1_070_004], way
        assert bytes(region) == wanted
""",
    )


@pytest.mark.parametrize("dtype", [None, "f4"])
def test_neighbouring_touches_decode_a_large_frame_once(child, dtype):
    """Random touches of all units, in several threads and by regions of the same image opened anew, thread and signal."""
    run(
        child,
        PREPARE
        + f"""
import threading
pack(raw, image, dtype={dtype!r}, frame="1MiB", block={"1MiB" if dtype else None!r})
wanted = open(raw, "rb").read()
regions = [uf.map(image, unit="64KiB", delivery=way) for way in ("thread", "signal", "thread")]

def touch(region, seed):
    view = memoryview(region)
    for unit in np.random.default_rng(seed).permutation(len(wanted) // 65536):
        assert view[int(unit) * 65536 + 77] == wanted[int(unit) * 65536 + 77]

threads = [threading.Thread(target=touch, args=(region, seed)) for seed, region in enumerate(regions * 2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
counted = [region.statistics() for region in regions]
frames = len(wanted) // (1 << 20) + 1
# Who meets the shelf's lock, or has waited long for the frame that another decodes, decodes it for itself: now and then
# on a busy machine. Without the shelf there would be as many as touches.
assert 4 <= sum(one.frames_decoded for one in counted) <= 2 * frames, counted
assert all(one.frames_found > 20 for one in counted), counted
assert all(bytes(region) == wanted for region in regions)
""",
    )


def test_frames_of_the_units_size_are_decoded_in_place(child):
    """Nothing is kept of them: a second region decodes again."""
    run(
        child,
        PREPARE
        + """
pack(raw, image, frame="64KiB")
for _ in range(2):
    with uf.map(image) as region:
        region.populate()
        found = region.statistics()
        assert found.frames_found == 0 and found.frames_decoded >= 40, found
""",
    )


def test_decoded_frames_of_all_images_together_take_bounded_memory(child):
    """64 MiB of them; the image that was read last has its own."""
    run(
        child,
        PREPARE
        + """
import shutil
from support.lazy import resident_bytes
with open(raw, "wb") as file:
    file.write(rng.integers(0, 16, 16 << 20, dtype="u1").tobytes())
pack(raw, image, frame="4MiB", level=1)
images = [shutil.copy(image, os.path.join(folder, f"{number}.zst")) for number in range(10)]
before = resident_bytes()
regions = [uf.map(name, unit="4KiB") for name in images]
bytes_ = open(raw, "rb").read()
for _ in range(2):
    for region in regions:
        for at in range(0, len(region), 4 << 20):
            assert region.numpy()[at + 5] == bytes_[at + 5]
            region.evict()
grown = resident_bytes() - before - len(bytes_)
assert grown < (90 << 20), grown >> 20
decoded = [region.statistics().frames_decoded for region in regions]
assert decoded == [8] * 10, decoded
assert regions[-1].numpy()[9000] == bytes_[9000] and regions[-1].statistics().frames_decoded == 8
""",
    )


def test_decoded_frames_take_bounded_memory_and_go_with_the_last_region(child):
    """At most 32 MiB of them, however many are touched."""
    run(
        child,
        PREPARE
        + """
from support.lazy import resident_bytes
with open(raw, "wb") as file:
    for _ in range(24):
        file.write(rng.integers(0, 16, 8 << 20, dtype="u1").tobytes())
pack(raw, image, frame="8MiB", level=1)
before = resident_bytes()
region = uf.map(image, unit="4KiB")
view = memoryview(region)
for at in rng.permutation(24):
    view[int(at) * (8 << 20) + 5]
grown = resident_bytes() - before
assert region.statistics().frames_decoded == 24
assert (24 << 20) < grown < (60 << 20), grown >> 20
view.release()
region.close()
del region
assert resident_bytes() - before < (28 << 20), (resident_bytes() - before) >> 20
""",
    )
