"""Skips give the reason that was found by trying."""

import pytest


def test_need_what_works_goes_on(kernel):
    """Something that works here is no reason to skip."""
    kernel.need("userfaultfd")


def test_need_without_permission_skips_with_reason(as_nobody):
    """The device is not for everybody; the reason says so."""
    code = """
        import pytest
        from support.kernel import why_not, Kernel
        print(why_not("user_mode"), why_not("device"), sep="; ")
        """
    assert "; " in as_nobody(code).check().stdout


def test_need_unknown_name_is_an_error(kernel):
    """A misspelled feature must not skip."""
    with pytest.raises(AttributeError):
        kernel.need("flying")
