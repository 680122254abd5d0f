"""Kinds of touch, as code for children: `memory` has 64 pages, page n full of the byte n + 1, and `known` all of its bytes."""

from __future__ import annotations

#: What the code below needs in front of it.
PREPARE = """
import pickle, re, zlib
PAGES = 64
known = b"".join(bytes([page + 1]) * PAGE for page in range(PAGES))
def check(got, wanted):
    assert got == wanted, (got, wanted)
def sha(it):
    return hashlib.sha256(it).digest()
def u1(memory):
    return np.frombuffer(memory, "u1")
"""

READS = {
    "index": "check(memory[5 * PAGE + 1], 6)",
    "slice": "check(memory[5 * PAGE - 3 : 9 * PAGE], known[5 * PAGE - 3 : 9 * PAGE])",
    "memoryview": "check(bytes(memoryview(memory)[3 * PAGE : 8 * PAGE]), known[3 * PAGE : 8 * PAGE])",
    "memoryview_index": "check(memoryview(memory)[3 * PAGE], 4)",
    "stride": "check(bytes(memoryview(memory)[::PAGE]), bytes(range(1, 65)))",
    "struct": "check(struct.unpack_from('=QQ', memory, 7 * PAGE)[1], int.from_bytes(b'\\x08' * 8, 'little'))",
    "int": "check(int.from_bytes(memoryview(memory)[PAGE : PAGE + 4], 'little'), 0x02020202)",
    "find": "check(memory.find(b'\\x09'), 8 * PAGE)",
    "regular_expression": "check(re.search(b'\\x07+', memory).span(), (6 * PAGE, 7 * PAGE))",
    "iteration": "check(sum(memoryview(memory)[: 3 * PAGE]), 6 * PAGE)",
    "join": "check(b''.join([memoryview(memory)[:PAGE], memoryview(memory)[PAGE : 2 * PAGE]]), known[: 2 * PAGE])",
    "pickle": "check(pickle.loads(pickle.dumps(bytes(memory))), known)",
    "small_hash": "check(sha(memoryview(memory)[3 * PAGE : 3 * PAGE + 900]), sha(b'\\4' * 900))",
    "large_hash": "check(sha(memory), sha(known))",
    "crc": "check(zlib.crc32(memory), zlib.crc32(known))",
    "string_at": "check(ctypes.string_at(at(memory, 4), 3), b'\\5\\5\\5')",
    "ctypes_without_gil": "check(load(at(memory, 4)), 5)",
    "numpy_sum": "check(int(u1(memory).sum()), sum(known))",
    "numpy_small": "check(int(u1(memory)[3 * PAGE : 3 * PAGE + 64].sum()), 4 * 64)",
    "numpy_sort": "check(np.sort(u1(memory)).tobytes(), bytes(sorted(known)))",
    "numpy_matmul": "a = u1(memory).view('f4').reshape(256, 256); check(np.isfinite((a @ a).astype('f8')).all(), True)",
}

WRITES = {
    "assignment": "memory[9 * PAGE] = 77; check(memory[9 * PAGE : 9 * PAGE + 2], bytes([77, 10]))",
    "slice_assignment": "memory[9 * PAGE - 2 : 9 * PAGE + 2] = b'news'; check(memory[9 * PAGE - 3 :][:6], b'\\x09news\\n')",
    "numpy_in_place": "u1(memory).__iadd__(1); check(bytes(memory), bytes(byte + 1 for byte in known))",
}

#: Only a descriptor hears of these.
SYSTEM_CALLS = {
    "write": "r, w = os.pipe(); os.write(w, memoryview(memory)[PAGE : PAGE + 9]); check(os.read(r, 99), b'\\2' * 9)",
    "read_into": "r, w = os.pipe(); os.write(w, b'x'); os.readv(r, [memoryview(memory)[:1]]); check(memory[:2], b'x\\1')",
}
