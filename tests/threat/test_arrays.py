"""Headers of .npy files that lie: each is refused as a wrong value, and nothing of it is believed."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel


def test_a_hostile_header_is_an_option_error_whatever_its_version(child, tmp_path):
    """Neither Python's parser nor NumPy lets an error of its own through, and no text is evaluated."""

    def code():
        import pathlib

        from support.lazy import raised

        import userfault as uf

        def array(rest):
            return f"{{'descr': '<f8', 'fortran_order': False, {rest}}}"

        texts = [
            b"",
            b"{",
            b"{'''",
            b"\xff\xfe",
            b"(" * 3000,
            b"-" * 9000 + b"1",
            b"{[]: 1}",
            b"__import__('os').abort()",
            b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
            b"{'descr': [('a',)], 'fortran_order': False, 'shape': (1,)}",
            b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,)}",
            *(
                array(f"'shape': {shape}").encode()
                for shape in (
                    "(-1,)",
                    "(-1, -1)",
                    "(10**6,)",
                    "(2**62, 4)",
                    f"({2**62}, 4)",
                    f"({2**62}, 0)",
                    "(1,)*70",
                    "(1.0,)",
                )
            ),
            array("'shape': (" + "1, " * 70 + ")").encode(),
        ]
        path = pathlib.Path("hostile.npy")
        for version, width in ((1, 2), (2, 4), (3, 4)):
            start = b"\x93NUMPY" + bytes([version, 0])
            for text in texts:
                path.write_bytes(start + len(text).to_bytes(width, "little") + text + bytes(64))
                assert "hostile.npy" in str(raised(uf.OptionError, lambda: uf.load(path))), text
            for stump in (start[:5], start, start + b"\x01", start + b"\xff" * width, start + b"\xff" * width + b"{}"):
                path.write_bytes(stump)
                assert "hostile.npy" in str(raised(uf.OptionError, lambda: uf.load(path))), stump
        path.write_bytes(b"\x93NUMPY\x04\x00" + bytes(100))
        assert "version (4, 0)" in str(raised(uf.OptionError, lambda: uf.load(path)))

    child(code, cwd=tmp_path).check()
