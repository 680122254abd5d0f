"""The enums of `userfault.kernel` against the native module, and the house rules of the package."""

from __future__ import annotations

import pickle

import pytest

from userfault import _core
from userfault import kernel as uk

ENUMS = {
    "Features": uk.Features,
    "RegisterModes": uk.RegisterMode,
    "Ioctls": uk.Ioctls,
    "FaultFlags": uk.FaultFlags,
    "Categories": uk.PageCategory,
    "ScanFlags": uk.ScanFlags,
    "CopyMode": uk.CopyMode,
    "ContinueMode": uk.ContinueMode,
    "MoveMode": uk.MoveMode,
    "ProtectMode": uk.ProtectMode,
    "RwProtectMode": uk.RwProtectMode,
}


def test_every_native_set_has_its_enum():
    """No set of bits is known to one side only."""
    assert set(_core.kernel_names()) == set(ENUMS)


@pytest.mark.parametrize("name", ENUMS)
def test_enum_members_equal_the_native_bits(name):
    """Same names, same numbers."""
    native = dict(_core.kernel_names()[name])
    assert {member.name: member.value for member in ENUMS[name]} == native


def test_public_names_exist_once_and_are_documented():
    """`__all__` is sorted and complete, and everything in it has a docstring."""
    assert list(uk.__all__) == sorted(uk.__all__)
    for name in uk.__all__:
        assert getattr(uk, name).__doc__ or name == "Event", name


@pytest.mark.parametrize("kind", uk.OutcomeKind)
def test_outcome_has_one_true_property(kind):
    """Exactly one of done, partial, exists, retry, gone, failed."""
    outcome = uk.Outcome(kind, 0, 0)
    names = ["done", "partial", "exists", "retry", "gone", "failed"]
    assert [name for name in names if getattr(outcome, name)] == [kind.name.lower()]


def test_outcome_check_returns_bytes_or_raises_the_fitting_class():
    """The errno picks the exception."""
    assert uk.Outcome(uk.OutcomeKind.DONE, 4096, 0).check() == 4096
    with pytest.raises(FileExistsError):
        uk.Outcome(uk.OutcomeKind.EXISTS, 0, 17).check()
    with pytest.raises(BlockingIOError, match="partial after 8192 bytes"):
        uk.Outcome(uk.OutcomeKind.PARTIAL, 8192, 11).check()
    with pytest.raises(ProcessLookupError):
        uk.Outcome(uk.OutcomeKind.GONE, 0, 3).check()


def test_values_pickle():
    """Events and outcomes cross processes."""
    for value in (
        uk.PageFault(4096, uk.FaultFlags.WRITE, 7),
        uk.Remap(1, 2, 3),
        uk.Outcome(uk.OutcomeKind.DONE, 1, 0),
        uk.capabilities(),
    ):
        assert pickle.loads(pickle.dumps(value)) == value
