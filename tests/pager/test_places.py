"""Relative names, modules and variables mean in a pager what they mean here."""

from __future__ import annotations

import pytest

from .test_life import PROLOGUE

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]


def test_a_process_that_goes_elsewhere_gets_another_pager(child, tmp_path):
    """Relative names, and modules found later, mean there what they mean here; the pager before ends with its last region."""
    code = f"""{PROLOGUE}
os.chdir(sys.argv[1])
class Relative(uf.Source):
    length = 8192
    def read_into(self, offset, buffer):
        with open("one", "rb") as file:
            file.seek(offset)
            file.readinto(buffer)
def put(folder, byte):
    os.makedirs(folder, exist_ok=True)
    with open(f"{{folder}}/one", "wb") as file:
        file.write(byte * 8192)
put(".", b"1"), put("sub", b"9")
first = uf.map(Relative(), delivery="process")
assert bytes(memoryview(first)[:2]) == b"11"
pid = first.pager.pid
os.chdir("sub")
second = uf.map(Relative(), delivery="process")
assert second.pager is not first.pager and bytes(memoryview(second)[4096:4098]) == b"99"
assert bytes(memoryview(first)[4096:4098]) == b"11"
with uf.map(Relative(), delivery="process") as third:
    assert third.pager is second.pager
first.close()
del first
assert gone(pid)
os.mkdir("modules")
with open("modules/late.py", "w") as file:
    file.write("import userfault as uf\\nclass Late(uf.Bytes): pass\\n")
sys.path.append(os.path.abspath("modules"))
import late
assert bytes(memoryview(uf.map(late.Late(b"L" * 4096), delivery="process"))[:1]) == b"L"
os.mkdir("gone"), os.chdir("gone"), os.rmdir("../gone")
assert bytes(memoryview(uf.map(uf.Bytes(b"M" * 4096), delivery="process"))[:1]) == b"M"
"""
    child(code, args=[tmp_path]).check()


def test_a_variable_that_was_set_since_is_there_in_another_pager(child):
    """Credentials, say: the shared pager is another one when the environment is; the one before goes on for its regions."""
    code = f"""{PROLOGUE}
class Variable(uf.Source):
    length = 8192
    def read_into(self, offset, buffer):
        buffer[:] = os.environ.get("TOKEN", "-").encode() * len(buffer)
def said(region, at=0):
    return bytes(memoryview(region)[at : at + 1])
first = uf.map(Variable(), delivery="process", unit=4096)
assert said(first) == b"-"
os.environ["TOKEN"] = "1"
second = uf.map(Variable(), delivery="process")
assert second.pager is not first.pager and said(second) == b"1"
assert uf.map(Variable(), delivery="process").pager is second.pager
assert said(first, 4096) == b"-"
del os.environ["TOKEN"]
third = uf.map(Variable(), delivery="process")
assert third.pager is not second.pager and said(third) == b"-"
os.environb[b"ODD"] = b"\\xff"
assert uf.map(Variable(), delivery="process").pager is not third.pager
"""
    child(code).check()
