"""Post-copy migration with the calls of the 2014 proposal: the guest runs here at once, its pages follow when they are touched.

The source host, another process, sends each page that is asked for over a socket. Here a Python thread reads the fault, receives
the page into staging memory, moves it in, and wakes whoever waits. System calls and KVM wait too: that needs privileges.
"""

import contextlib
import ctypes
import hashlib
import os
import socket
import subprocess
import sys
import threading

import kvm

from userfault import mman

PAGE, PAGES = mman.PAGE_SIZE, 1024


def content(first: int, last: int) -> bytes:
    """What the guest's memory holds on the source host, from one page up to another."""
    return b"".join(hashlib.sha256(b"page %d" % page).digest() * (PAGE // 32) for page in range(first, last))


def destination_host(descriptor: mman.Userfaultfd2014, base: int, connection: socket.socket) -> None:
    """The loop of 2014: read a fault, fetch, remap_anon_pages, wake."""
    staging = mman.anonymous(PAGE)
    while True:
        page = descriptor.read_fault() // PAGE * PAGE
        connection.sendall(((page - base) // PAGE).to_bytes(8, "little"))
        connection.recv_into(staging, PAGE, socket.MSG_WAITALL)
        with contextlib.suppress(FileExistsError):  # a second thread had touched the same page
            mman.remap_anon_pages(page, staging)
        with contextlib.suppress(FileNotFoundError):  # nobody waits any more
            descriptor.wake(page)


def guest_runs(ram: memoryview) -> None:
    """Touch the memory in every way that a guest and its hypervisor do: as they go, all pages arrive."""
    wanted, out = bytearray(content(0, PAGES)), bytearray(64 * PAGE)
    (cpu := threading.Thread(target=lambda: [ram[page * PAGE] for page in range(128)])).start()
    try:
        with kvm.Guest(ram[768 * PAGE :]) as machine:  # its program is put into its first page, and adds up a byte of each other
            assert machine.start(kvm.SUM) == sum(wanted[769 * PAGE :: PAGE]), "the guest did not see the source host's bytes"
        wanted[768 * PAGE : 768 * PAGE + len(kvm.SUM)] = kvm.SUM
        print("KVM's guest walked 256 pages, its sum is right")
    except kvm.Unavailable as reason:
        print(f"without KVM: {reason}")
    for start, cache in ((128, 0), (384, os.O_DIRECT)):  # write(2) and read(2) of pages that are not here yet
        try:
            disk = os.open(".", os.O_RDWR | os.O_TMPFILE | cache)
        except OSError as reason:
            print(f"without a file opened with {cache:#x}: {reason}")
            continue
        os.pwrite(disk, ram[start * PAGE : (start + 64) * PAGE], 0)
        os.preadv(disk, [ram[(start + 64) * PAGE : (start + 128) * PAGE]], 0)
        wanted[(start + 64) * PAGE : (start + 128) * PAGE] = wanted[start * PAGE : (start + 64) * PAGE]
    here, there = [(ctypes.c_size_t * 2)(mman.address_of(memory), len(out)) for memory in (out, ram[600 * PAGE :])]
    ctypes.CDLL(None).process_vm_readv(os.getpid(), here, 1, there, 1, 0)  # what a device in another process does
    assert out == wanted[600 * PAGE : 664 * PAGE], "process_vm_readv did not see the source host's bytes"
    cpu.join()
    assert ram == wanted, "a byte is not the source host's"


if sys.argv[1:]:  # the source host: send every page that is asked for
    connection = socket.socket(fileno=int(sys.argv[1]))
    while asked := connection.recv(8, socket.MSG_WAITALL):
        connection.sendall(content(page := int.from_bytes(asked, "little"), page + 1))
else:
    ours, theirs = socket.socketpair()
    with theirs, subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()]), ours:
        ram = mman.anonymous(PAGES * PAGE)
        mman.madvise(ram, mman.MADV_USERFAULT)
        (uffd := mman.userfaultfd()).register(ram)
        threading.Thread(target=destination_host, args=(uffd, mman.address_of(ram), ours), daemon=True).start()
        guest_runs(memoryview(ram))
    print(f"{PAGES} pages arrived as they were touched, every byte right")
