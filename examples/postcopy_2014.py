"""Post-copy migration with the calls of the 2014 proposal: the guest runs here at once, its pages follow when they are touched.

The source host, another process, sends each page that is asked for over a socket. Here a Python thread reads the fault, receives
the page into staging memory, moves it in, and wakes whoever waits. System calls wait too: that needs privileges.
"""

import contextlib
import ctypes
import hashlib
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import threading

from userfault import mman

PAGE, PAGES = mmap.PAGESIZE, 1024


def content(first: int, last: int) -> bytes:
    """What the guest's memory holds on the source host, from one page up to another."""
    return b"".join(hashlib.sha256(b"page %d" % page).digest() * (PAGE // 32) for page in range(first, last))


def destination_host(descriptor: mman.Userfaultfd2014, guest: mmap.mmap, connection: socket.socket) -> None:
    """The loop of 2014: read a fault, fetch, remap_anon_pages, wake."""
    base, staging = mman.address_of(guest), mman.anonymous(PAGE)
    while True:
        page = descriptor.read_fault() // PAGE * PAGE
        connection.sendall(((page - base) // PAGE).to_bytes(8, "little"))
        connection.recv_into(staging, PAGE, socket.MSG_WAITALL)
        with contextlib.suppress(FileExistsError):  # a second thread had touched the same page
            mman.remap_anon_pages(page, staging)
        with contextlib.suppress(FileNotFoundError):  # nobody waits any more
            descriptor.wake(page)


def guest_runs(guest: mmap.mmap) -> None:
    """Touch the memory in every way that a guest and its hypervisor do: as they go, all pages arrive."""
    view, wanted = memoryview(guest), bytearray(content(0, PAGES))
    (cpu := threading.Thread(target=lambda: [view[page * PAGE] for page in range(128)])).start()
    reader, writer = os.pipe()
    os.write(writer, b"from the disk")
    wanted[130 * PAGE + 5 : 130 * PAGE + 18] = b"from the disk"
    os.readv(reader, [view[130 * PAGE + 5 : 130 * PAGE + 18]])  # read(2) into a page that is not here yet
    with tempfile.TemporaryDirectory(dir=".") as folder, contextlib.suppress(OSError):  # not every file system has O_DIRECT
        disk = os.open(f"{folder}/disk", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        assert os.pwrite(disk, view[200 * PAGE : 264 * PAGE], 0) == 64 * PAGE
        assert os.preadv(disk, [view[300 * PAGE : 364 * PAGE]], 0) == 64 * PAGE
        wanted[300 * PAGE : 364 * PAGE] = wanted[200 * PAGE : 264 * PAGE]
    out = ctypes.create_string_buffer(64 * PAGE)
    here = (ctypes.c_size_t * 2)(ctypes.addressof(out), len(out))
    there = (ctypes.c_size_t * 2)(mman.address_of(guest) + 500 * PAGE, len(out))
    assert ctypes.CDLL(None).process_vm_readv(os.getpid(), here, 1, there, 1, 0) == len(
        out
    )  # what a device in another process does
    assert out.raw == wanted[500 * PAGE : 564 * PAGE]
    cpu.join()
    assert view == wanted, "a byte is not the source host's"


if sys.argv[1:]:  # the source host: send every page that is asked for
    connection = socket.socket(fileno=int(sys.argv[1]))
    while asked := connection.recv(8, socket.MSG_WAITALL):
        page = int.from_bytes(asked, "little")
        connection.sendall(content(page, page + 1))
else:
    ours, theirs = socket.socketpair()
    with theirs, subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()]):
        ram = mman.anonymous(PAGES * PAGE)
        mman.madvise(ram, mman.MADV_USERFAULT)
        uffd = mman.userfaultfd(os.O_CLOEXEC)
        uffd.register(ram)
        threading.Thread(target=destination_host, args=(uffd, ram, ours), daemon=True).start()
        guest_runs(ram)
        ours.close()
    print(f"{PAGES} pages arrived as they were touched, every byte right")
