"""A resident budget: the oldest units leave as others come, and no byte is wrong for it."""

from __future__ import annotations

import pytest
from support.regions import run_quietly as run

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

both = pytest.mark.parametrize("delivery", ["thread", "signal"])
KEPT = """
def smaps_rss(region):
    wanted, total = False, 0
    for line in open("/proc/self/smaps"):
        head = line.split()[0]
        if "-" in head and head[-1] != ":":
            low, high = (int(part, 16) for part in head.split("-"))
            wanted = region.address <= low < region.address + len(region)
        elif wanted and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total
big = np.arange(4 << 20, dtype="u8")
"""


@both
@pytest.mark.parametrize("unit", ["4KiB", "64KiB", "256KiB", "2MiB"])
def test_memory_stays_within_the_budget_and_every_byte_is_right(child, delivery, unit):
    """Scans and random touches over four budgets of data; the resident set is looked at from outside."""
    run(
        child,
        KEPT
        + f"""
budget = 16 << 20 if {unit!r} == "2MiB" else 8 << 20
with uf.map(big.tobytes(), delivery={delivery!r}, unit={unit!r}, resident=budget) as region:
    a = region.numpy("u8")
    for _ in range(2):
        assert (a == big).all()
    places = np.random.default_rng(3).permutation(len(big))[:20000]
    assert (a[places] == big[places]).all()
    found = region.statistics()
    assert found.present_units * region.unit <= budget + 2 * region.unit, found
    assert smaps_rss(region) <= budget + 2 * region.unit, smaps_rss(region)
    assert found.evicted_units >= 2 * found.units - 2 * budget // region.unit
    assert found.poisoned == 0
""",
        timeout=100,
    )


@both
def test_the_fill_policy_measures_both_ways_and_says_what_it_found(child, delivery):
    """Under a budget statistics() has the cost of a unit by COPY and by MOVE; without one nothing is measured."""
    run(
        child,
        f"""
big = bytes(32 << 20)
with uf.map(np.frombuffer(big, "u1") + 1, delivery={delivery!r}, resident="4MiB") as region:
    for _ in range(3):
        assert region.numpy()[::4096].sum() == len(region) // 4096
    found = region.statistics()
    assert found.copy_nanoseconds > 0, found
    if uf.capabilities().move:
        assert found.move_nanoseconds > 0 and found.moved_bytes > 0, found
with uf.map(big) as region:
    region.populate()
    found = region.statistics()
    assert (found.copy_nanoseconds, found.move_nanoseconds) == (0, 0)
""",
    )


def test_statistics_say_how_units_are_filled_and_why(child, kernel):
    """In words, and repr() too: what is fixed says what fixed it, the rest that it was measured."""
    kernel.need("move")
    run(
        child,
        """
big = np.arange(4 << 20, dtype="u8")
def says(**options):
    with uf.map(big, **options) as region:
        found = region.statistics()
        assert f"filled by {found.fill_method}" in repr(region), repr(region)
        return found.fill_method, found.fill_reason
for options, method, word in [
    (dict(), "copy", "without a resident budget"),
    (dict(unit="1MiB"), "move", "without a resident budget"),
    (dict(huge=True), "move", "huge"),
    (dict(huge=True, resident="16MiB"), "move", "huge"),
    (dict(shared=True, on_error="abort"), "continue", "memory file"),
    (dict(resident="2MiB"), "copy", "being measured"),
]:
    found = says(**options)
    assert found[0] == method and word in found[1], (options, found)
with uf.map(big, resident="2MiB") as region:
    reasons = {(region.numpy("u8")[part::4096].sum(), region.statistics().fill_reason)[1] for part in range(20)}
    assert "measured as the cheaper way" in reasons, reasons
with uf.map(big) as region:
    pass
assert "closed" in repr(region)
""",
    )


def test_threads_under_one_budget_see_their_bytes(child):
    """Four threads over one region of the smallest budget, eight units."""
    run(
        child,
        """
import threading
big = np.arange(1 << 20, dtype="u8")
wrong = []
for delivery in ("thread", "signal"):
    with uf.map(big.tobytes(), delivery=delivery, unit="4KiB", resident="32KiB") as region:
        a = region.numpy("u8")
        def look(seed):
            for start in np.random.default_rng(seed).integers(0, len(big) - 3000, 300):
                if not (a[start : start + 3000] == big[start : start + 3000]).all():
                    wrong.append(start)
        threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
        assert region.statistics().present_units <= 8 + 5, region.statistics()
        del look
assert not wrong, wrong
""",
        timeout=60,
    )


def test_what_cannot_all_be_there_is_refused_or_taken_in_pieces(child):
    """populate of more than the budget is an error; prefetch starts what fits; read and write go through it all."""
    run(
        child,
        """
big = os.urandom(4 << 20)
with uf.map(big, unit="4KiB", resident="64KiB") as region:
    try:
        region.populate()
    except ValueError as error:
        assert "resident" in str(error) and "65536" in str(error), error
    else:
        raise AssertionError("populate of everything")
    region.populate(slice(0, 65536))
    region.prefetch()
    assert region.read() == big
    assert region.read(5, 100000) == big[5:100005]
    if region.kernel_faults:
        file = os.path.join(folder, "out")
        with open(file, "wb", buffering=0) as out:
            assert out.write(memoryview(region)) == len(big)
        assert np.fromfile(file, "u1").tobytes() == big
    again = pickle.loads(pickle.dumps(region))
    assert again.options.resident == 65536 and "resident=64KiB" in repr(again), repr(again)
    again.close()
""",
    )


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("resident=0", "at least 8 units"),
        ("resident='4KiB'", "8 units"),
        ("resident=-1", "resident"),
        ("resident='much'", "resident"),
        ("resident='4MiB', mode='c'", "mode"),
        ("resident='4MiB', shared=True, on_error='abort'", "shared"),
        ("resident='8MiB', huge=True", "8 units"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(child, options, word):
    """With the parameter's name and what would do."""
    run(
        child,
        f"""
try:
    uf.map(bytes(64 << 20), {options})
except ValueError as error:
    assert {word!r} in str(error), error
else:
    raise AssertionError("accepted")
""",
    )


@both
@pytest.mark.parametrize("unit", ["4KiB", "2MiB"])
def test_a_unit_that_comes_again_and_again_stays_when_it_has_come(child, delivery, unit):
    """The ring then holds little else; the unit must not push itself out before its toucher has seen it."""
    run(
        child,
        f"""
budget = 8 * uf.units.parse_bytes({unit!r})
region = uf.map(np.ones(64 << 20, "u1"), delivery={delivery!r}, unit={unit!r}, huge={unit == "2MiB"}, resident=budget)
view = region.numpy()
for _ in range(100):
    region.evict(slice(0, region.unit))
    assert view[0] == 1
assert region.statistics().faults < 1000, region.statistics()
""",
        timeout=20,
    )


@both
def test_a_source_that_fails_and_recovers_under_a_budget_is_served(child, delivery):
    """Failed fills push nothing out, and leave nothing behind that nobody counts."""
    run(
        child,
        f"""
source = uf.testing.Chaos(uf.Bytes(np.ones(64 << 20, "u1")), fail=[range(0, 2 << 20)], failures=40)
region = uf.map(source, delivery={delivery!r}, huge=True, resident=16 << 20)
view = memoryview(region)
for _ in range(400):
    try:
        with uf.checked():
            assert view[5] in (1, 255)
        break
    except uf.PageError:
        pass
assert view[5] == 1
""",
        timeout=30,
    )


@both
def test_staging_goes_with_the_last_region_of_its_unit(child, kernel, delivery):
    """Pages that left are kept for the next fill only while a region of that unit is open; several share them."""
    kernel.need("move")
    run(
        child,
        f"""
from support.lazy import check_endings, resident_bytes
data = np.random.default_rng(5).integers(1, 256, 8 << 20, dtype="u1")
def use(unit):
    first, second = (uf.map(data, delivery={delivery!r}, unit=unit) for _ in range(2))
    assert (first.numpy() == data).all()
    check_endings(first)  # the toucher goes on before its fault is over, and a unit that has one stays
    assert first.evict() * first.unit == 8 << 20
    assert second.statistics().staging_slots * first.unit == 8 << 20
    first.close()
    assert (second.numpy() == data).all() and check_endings(second).moved_bytes == 8 << 20
    second.evict()
    second.close()
use("512KiB")
before = resident_bytes()
for unit in ("256KiB", "1MiB", "2MiB"):
    use(unit)
assert resident_bytes() < before + (8 << 20), resident_bytes() - before
""",
    )
