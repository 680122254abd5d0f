"""The accesses themselves: each makes one system call touch a page, checks the bytes, or raises the call's OSError."""

from __future__ import annotations

import ctypes
import errno
import io
import mmap
import os
import platform
import socket
import struct

from kernel.accesses_ground import Ground, Lacking
from kernel.accesses_uring import OP_READ, OP_WRITE, WORKER, Ring
from kernel.touching import PAGE, libc
from userfault.kernel import range_of

NUMBERS = {"x86_64": {"getrandom": 318, "futex": 202, "ptrace": 101}, "aarch64": {"getrandom": 278, "futex": 98, "ptrace": 117}}
MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23
MLOCK_ONFAULT = 1
MCL_CURRENT = 1
FUTEX_WAIT, FUTEX_PRIVATE = 0, 128
PTRACE_PEEKDATA, PTRACE_POKEDATA, PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 2, 5, 17, 0x4206, 0x4207
PR_SET_PTRACER, ANY_PROCESS = 0x59616D61, -1
FIONREAD = 0x541B
DATA = bytes(range(1, 201))  # what calls write into a page

for function in ("vmsplice", "process_vm_readv", "process_vm_writev", "sendfile", "splice"):
    getattr(libc, function).restype = ctypes.c_ssize_t


def call(function: str, *arguments: int | bytes | None) -> int:
    """A function of the C library; pointers and lengths as plain numbers; OSError where it returns -1."""
    wide = [ctypes.c_void_p(one) if isinstance(one, int) and one > 0x7FFFFFFF else one for one in arguments]
    result = getattr(libc, function)(*wide)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def system_call(name: str, *arguments: int | None) -> int:
    """A system call by number: the C library may do some in user mode, or in other ways."""
    if platform.machine() not in NUMBERS:
        raise Lacking(f"the number of {name} is not known here for {platform.machine()}")
    return call("syscall", NUMBERS[platform.machine()][name], *arguments)


def file_with(data: bytes) -> io.FileIO:
    """A file without a buffer, at its start, which stays open."""
    file = io.FileIO(f"file-{os.getpid()}-{len(KEPT)}", "x+")
    file.write(data)
    file.seek(0)
    KEPT.append(file)
    return file


def vector(address: int, length: int) -> int:
    """Address of a struct iovec, which stays."""
    return address_of(bytearray(struct.pack("QQ", address, length)))


def address_of(ordinary: bytearray) -> int:
    """Where ordinary bytes are; they stay."""
    KEPT.append(ordinary)
    return range_of(ordinary)[0]


KEPT: list[object] = []


# By the CPU, for comparison


def load(ground: Ground) -> None:
    assert ground.memory[5] == ground.held[0][5]


def store(ground: Ground) -> None:
    ground.memory[5] = 99
    ground.check_first(5, 6)


# Reading a page for a file, a pipe, a socket


def write_file(ground: Ground) -> None:
    file = file_with(b"")
    assert file.write(ground.view()) == PAGE
    assert os.pread(file.fileno(), PAGE, 0) == ground.held[0]


def write_pipe(ground: Ground) -> None:
    out, into = os.pipe()
    assert os.write(into, ground.view()) == PAGE
    assert os.read(out, PAGE) == ground.held[0]


def write_null(ground: Ground) -> None:
    """/dev/null takes everything and looks at nothing."""
    assert os.write(os.open("/dev/null", os.O_WRONLY), ground.view()) == PAGE


def writev(ground: Ground) -> None:
    file = file_with(b"")
    assert os.writev(file.fileno(), [ground.view(), b"tail"]) == PAGE + 4
    assert os.pread(file.fileno(), PAGE, 0) == ground.held[0]


def send(ground: Ground) -> None:
    here, there = socket.socketpair()
    assert here.send(ground.view()) == PAGE
    assert there.recv(PAGE, socket.MSG_WAITALL) == ground.held[0]


def vmsplice(ground: Ground) -> None:
    out, into = os.pipe()
    assert call("vmsplice", into, vector(ground.address, PAGE), 1, 0) == PAGE
    assert os.read(out, PAGE) == ground.held[0]


# Writing into a page


def read_file(ground: Ground) -> None:
    assert file_with(DATA).readinto(ground.view()) == len(DATA)
    assert ground.view(0, len(DATA)) == DATA
    ground.check_first(0, len(DATA))


def readv(ground: Ground) -> None:
    assert os.readv(file_with(DATA).fileno(), [ground.view(50, 100), bytearray(10)]) == 60
    assert ground.view(50, 100) == DATA[:50]
    ground.check_first(50, 100)


def read_pipe(ground: Ground) -> None:
    out, into = os.pipe()
    os.write(into, DATA)
    assert os.readv(out, [ground.view()]) == len(DATA)
    ground.check_first(0, len(DATA))


def receive(ground: Ground) -> None:
    here, there = socket.socketpair()
    there.send(DATA)
    assert here.recv_into(ground.view()) == len(DATA)
    ground.check_first(0, len(DATA))


def getrandom(ground: Ground) -> None:
    assert system_call("getrandom", ground.address, 64, 0) == 64
    ground.check_first(0, 64)
    assert ground.view(0, 64) != ground.held[0][:64]


def mincore_vector(ground: Ground) -> None:
    there = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    there[0] = 1
    call("mincore", address_of(there), PAGE, ground.address)
    assert ground.memory[0] & 1
    ground.check_first(0, 1)


def ioctl_argument(ground: Ground) -> None:
    out, into = os.pipe()
    os.write(into, DATA)
    call("ioctl", out, FIONREAD, ground.address)
    assert struct.unpack_from("i", ground.memory)[0] == len(DATA)


# Around the page cache


def direct(ground: Ground) -> int:
    """A file of one page, open for O_DIRECT."""
    name = f"direct-{os.getpid()}"
    with open(name, "wb") as file:
        file.write(bytes([7]) * PAGE)
    try:
        return os.open(name, os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        raise Lacking(f"no O_DIRECT in {os.getcwd()}: {error.strerror}") from None
    finally:
        os.unlink(name)


def direct_read(ground: Ground) -> None:
    assert os.preadv(direct(ground), [ground.view()], 0) == PAGE
    assert ground.view() == bytes([7]) * PAGE


def direct_write(ground: Ground) -> None:
    file = direct(ground)
    assert os.pwrite(file, ground.view(), 0) == PAGE
    there = mmap.mmap(-1, PAGE)
    assert os.preadv(file, [there], 0) == PAGE
    assert bytes(there) == ground.held[0]


# Arguments behind pointers: the first page begins with them

OFFSET = struct.pack("q", 100)
WORD = struct.pack("I", 0x2014)
PATH = b"/proc/self/status\0"


def sendfile_offset(ground: Ground) -> None:
    """The pages of a file never pass through memory of ours; the offset does."""
    out, into = os.pipe()
    assert call("sendfile", into, file_with(DATA).fileno(), ground.address, 50) == 50
    assert os.read(out, 100) == DATA[100:150]
    assert struct.unpack_from("q", ground.memory)[0] == 150


def splice_offset(ground: Ground) -> None:
    out, into = os.pipe()
    assert call("splice", file_with(DATA).fileno(), ground.address, into, None, 50, 0) == 50
    assert os.read(out, 100) == DATA[100:150]
    assert struct.unpack_from("q", ground.memory)[0] == 150


def path(ground: Ground) -> None:
    call("access", ground.address, os.F_OK)


def futex_shared(ground: Ground) -> None:
    futex(ground, FUTEX_WAIT)


def futex_private(ground: Ground) -> None:
    futex(ground, FUTEX_WAIT | FUTEX_PRIVATE)


def futex(ground: Ground, operation: int) -> None:
    """Waits only while the word is the one we say: that the time runs out proves that it was read."""
    timeout = bytearray(struct.pack("qq", 0, 1_000_000))
    try:
        system_call("futex", ground.address, operation, 0x2014, address_of(timeout))
    except OSError as error:
        if error.errno != errno.ETIMEDOUT:
            raise


# Locking and populating


def mlock(ground: Ground) -> None:
    call("mlock", ground.address, PAGE)


def mlock_on_fault(ground: Ground) -> None:
    call("mlock2", ground.address, PAGE, MLOCK_ONFAULT)


def mlockall(ground: Ground) -> None:
    try:
        call("mlockall", MCL_CURRENT)
    except OSError as error:
        if error.errno in (errno.ENOMEM, errno.EPERM):
            raise Lacking(f"mlockall: {error.strerror} (RLIMIT_MEMLOCK)") from None
        raise
    call("munlockall")


def populate_read(ground: Ground) -> None:
    populate(ground, MADV_POPULATE_READ)


def populate_write(ground: Ground) -> None:
    populate(ground, MADV_POPULATE_WRITE)


def populate(ground: Ground, advice: int) -> None:
    try:
        call("madvise", ground.address, 4 * PAGE, advice)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise Lacking("this kernel has no MADV_POPULATE (5.14)") from None
        raise
    assert ground.memory[:] == b"".join(ground.held)


# Other ways to somebody's memory


def process_vm_read(ground: Ground) -> None:
    there = bytearray(PAGE)
    local, remote = vector(address_of(there), PAGE), vector(ground.address, PAGE)
    assert call("process_vm_readv", os.getpid(), local, 1, remote, 1, 0) == PAGE
    assert there == ground.held[0]


def process_vm_read_into(ground: Ground) -> None:
    """The lazy page is where the bytes go."""
    there = bytearray(DATA)
    local, remote = vector(ground.address, len(DATA)), vector(address_of(there), len(DATA))
    assert call("process_vm_readv", os.getpid(), local, 1, remote, 1, 0) == len(DATA)
    ground.check_first(0, len(DATA))


def process_vm_write(ground: Ground) -> None:
    there = bytearray(DATA)
    local, remote = vector(address_of(there), len(DATA)), vector(ground.address, len(DATA))
    assert call("process_vm_writev", os.getpid(), local, 1, remote, 1, 0) == len(DATA)
    assert ground.view(0, len(DATA)) == DATA
    ground.check_first(0, len(DATA))


def process_vm_read_by_another(ground: Ground) -> None:
    def read(owner: int) -> None:
        there = bytearray(PAGE)
        local, remote = vector(address_of(there), PAGE), vector(ground.address, PAGE)
        assert call("process_vm_readv", owner, local, 1, remote, 1, 0) == PAGE
        assert there == ground.held[0]

    in_another_process(read)


def memory_file_read(ground: Ground) -> None:
    with open("/proc/self/mem", "rb", buffering=0) as file:
        os.pread(file.fileno(), 8, ground.address)


def memory_file_write(ground: Ground) -> None:
    with open("/proc/self/mem", "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"12345678", ground.address)


def peek(ground: Ground) -> None:
    """What a debugger does."""
    word = bytearray(8)
    in_another_process(lambda owner: trace(owner, PTRACE_PEEKDATA, ground.address, address_of(word)))


def poke(ground: Ground) -> None:
    in_another_process(lambda owner: trace(owner, PTRACE_POKEDATA, ground.address, 1))


def trace(owner: int, request: int, address: int, data: int) -> None:
    system_call("ptrace", PTRACE_SEIZE, owner, None, None)
    system_call("ptrace", PTRACE_INTERRUPT, owner, None, None)
    os.waitpid(owner, 0)
    try:
        system_call("ptrace", request, owner, address, data)
    finally:
        system_call("ptrace", PTRACE_DETACH, owner, None, None)


def in_another_process(work) -> None:
    """Let a child do something to this process; its OSError is raised here."""
    libc.prctl(PR_SET_PTRACER, ctypes.c_long(ANY_PROCESS), 0, 0, 0)  # where Yama asks for it; fails elsewhere
    owner = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            work(owner)
            status = 0
        except OSError as error:
            status = error.errno or status
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == errno.EPERM:
        raise Lacking("a child may not trace its parent here")
    assert status != 255, "the child failed"
    if status:
        raise OSError(status, "in another process")


# io_uring


def uring_write(ground: Ground, flags: int = 0) -> None:
    file = file_with(b"")
    assert Ring().request(OP_WRITE, file.fileno(), ground.address, PAGE, flags=flags) == PAGE
    assert os.pread(file.fileno(), PAGE, 0) == ground.held[0]


def uring_read(ground: Ground, flags: int = 0) -> None:
    assert Ring().request(OP_READ, file_with(DATA).fileno(), ground.address, PAGE, flags=flags) == len(DATA)
    ground.check_first(0, len(DATA))


def uring_write_by_worker(ground: Ground) -> None:
    uring_write(ground, WORKER)


def uring_read_by_worker(ground: Ground) -> None:
    uring_read(ground, WORKER)


def uring_buffers(ground: Ground) -> None:
    Ring().register(ground.address, 4 * PAGE)
    assert ground.memory[:] == b"".join(ground.held)


# Buffered files copy in user mode, unless it is much


def buffered_write(ground: Ground) -> None:
    raw = file_with(b"")
    with io.BufferedWriter(raw, 4 * PAGE) as file:
        file.write(ground.view())
        file.flush()
        assert os.pread(raw.fileno(), PAGE, 0) == ground.held[0]


def buffered_read(ground: Ground) -> None:
    with io.BufferedReader(file_with(DATA * 9), 4 * PAGE) as file:
        file.peek()
        assert file.readinto(ground.view(0, len(DATA))) == len(DATA)
    ground.check_first(0, len(DATA))


def buffered_write_of_much(ground: Ground) -> None:
    file = io.BufferedWriter(file_with(b""), 512)
    assert file.write(ground.view()) == PAGE
    file.flush()
    assert os.pread(file.fileno(), PAGE, 0) == ground.held[0]


def buffered_read_of_much(ground: Ground) -> None:
    with io.BufferedReader(file_with(DATA * 9), 512) as file:
        assert file.readinto(ground.view(0, len(DATA) * 9)) == len(DATA) * 9
    ground.check_first(0, len(DATA) * 9)
