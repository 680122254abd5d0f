"""Relative names and modules mean in a pager what they mean here."""

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
