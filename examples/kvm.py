"""A virtual machine with one processor, as small as can be: the ioctls of KVM, two programs, and what runs them.

`kvm_guest.py` gives it memory of several kinds. Needs x86-64 and /dev/kvm; `Unavailable` says where they are missing.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import platform
import struct
from collections.abc import Callable
from typing import Any

from userfault import kernel as uk

PAGE = mmap.PAGESIZE
RAM_BYTES = 1 << 20  # all that real mode can address
PARAGRAPH = 16  # bytes from one value of a real-mode segment register to the next


# --- The ioctls of KVM (linux/kvm.h) ----------------------------------------------------------------------------------


def ioctl_number(number: int, size: int = 0, *, reads: bool = False, writes: bool = False) -> int:
    """As linux/ioctl.h does it: who reads or writes the argument's structure, its size, KVM's letter 0xAE, a number."""
    return (2 * reads + writes) << 30 | size << 16 | 0xAE << 8 | number


REGS_BYTES, SREGS_BYTES, SLOT_BYTES = 144, 312, 32

# On /dev/kvm:
KVM_GET_API_VERSION = ioctl_number(0x00)
KVM_CREATE_VM = ioctl_number(0x01)  # the argument is the machine type, 0; gives the descriptor of the machine
KVM_GET_VCPU_MMAP_SIZE = ioctl_number(0x04)  # bytes of struct kvm_run
# On a machine:
KVM_CREATE_VCPU = ioctl_number(0x41)  # the argument is the processor's index; gives its descriptor
KVM_SET_USER_MEMORY_REGION = ioctl_number(0x46, SLOT_BYTES, writes=True)  # guest addresses -> memory of this process
KVM_SET_TSS_ADDR = ioctl_number(0x47)  # three pages that Intel's older processors need for real mode
# On a processor:
KVM_RUN = ioctl_number(0x80)  # returns when the guest does something that is ours to handle; struct kvm_run says what
KVM_SET_REGS = ioctl_number(0x82, REGS_BYTES, writes=True)
KVM_GET_SREGS = ioctl_number(0x83, SREGS_BYTES, reads=True)
KVM_SET_SREGS = ioctl_number(0x84, SREGS_BYTES, writes=True)

API_VERSION = 12  # the only one since 2007
TSS_ADDRESS = 0x10000000  # above the guest's memory

EHWPOISON = 133  # what an access to poisoned memory may give; Python's errno has it since 3.14

# Why KVM_RUN returned (kvm_run.exit_reason):
EXIT_IO, EXIT_HLT, EXIT_MMIO, EXIT_MEMORY_FAULT = 2, 5, 6, 39

# Where things are in struct kvm_run; from 32 on it depends on the exit.
EXIT_REASON = slice(8, 12)
EXIT_PORT_IO = struct.Struct("=32xBBHIQ")  # direction, bytes each, port, how many, where in the structure the data is
EXIT_MMIO_ACCESS = struct.Struct("=32xQ8sIB")  # guest address, data, bytes, is it a write
EXIT_FAULT = struct.Struct("=32xQQQ")  # flags, guest address, bytes
MMIO_DATA = slice(40, 48)


# --- What the guest runs ----------------------------------------------------------------------------------------------

# ax: first paragraph, cx: paragraphs to the next, di: how many. Ends by a write to RESULT_PORT.
RESULT_PORT = 0xF4
SUM = bytes.fromhex(
    "66 31db"  #       xor  ebx, ebx
    "66 31d2"  #       xor  edx, edx
    "8ec0"  #    next: mov  es, ax
    "26 8a16 0000"  #  mov  dl, es:[0]       the touch
    "66 01d3"  #       add  ebx, edx
    "01c8"  #          add  ax, cx
    "4f"  #            dec  di
    "75 f1"  #         jnz  next
    "66 89d8"  #       mov  eax, ebx
    "66 e7f4"  #       out  RESULT_PORT, eax
    "f4"  #            hlt
)
WRITE = bytes.fromhex(
    "8ec0"  #    next: mov  es, ax
    "26 c606 0000 2a"  # mov byte es:[0], 42  the touch
    "01c8"  #          add  ax, cx
    "4f"  #            dec  di
    "75 f3"  #         jnz  next
    "66 31c0"  #       xor  eax, eax
    "66 e7f4"  #       out  RESULT_PORT, eax
    "f4"  #            hlt
)


class Unavailable(Exception):
    """This machine, or this user, cannot have what is shown here."""


class GuestError(Exception):
    """The guest ended as no guest should."""


def must(holds: bool, otherwise: str) -> None:
    """End with a message unless something holds; `assert` would go with -O."""
    if not holds:
        raise GuestError(otherwise)


def create_machine() -> tuple[int, int]:
    """Return the descriptor of a new virtual machine, and the length of a processor's struct kvm_run in bytes."""
    if platform.machine() != "x86_64":
        raise Unavailable(f"the guest is x86 code, this machine is {platform.machine()}")
    try:
        with open("/dev/kvm", "r+b", buffering=0) as kvm:
            version = fcntl.ioctl(kvm, KVM_GET_API_VERSION, 0)
            must(version == API_VERSION, f"KVM's interface has version {version}")
            return fcntl.ioctl(kvm, KVM_CREATE_VM, 0), fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)
    except OSError as error:
        raise Unavailable(f"/dev/kvm: {error.strerror}") from None


class Guest:
    """A virtual machine with one processor, over memory that somebody else provides.

    Args:
        ram: RAM_BYTES of writable memory, a page-aligned buffer; it stays exported until `close`.
        fetch: called with a guest address and a length when KVM cannot get at them: it returns the right bytes and leaves
            the page there, or raises. Without it, such an access is a GuestError.
    """

    def __init__(self, ram: Any, fetch: Callable[[int, int], bytes] | None = None) -> None:
        self.ram = memoryview(ram).cast("B")
        self.fetch = fetch
        self.mended: dict[str, int] = {}  # how KVM told of memory it could not get at, and how often
        address, length = uk.range_of(self.ram)
        self.machine, run_bytes = create_machine()
        fcntl.ioctl(self.machine, KVM_SET_TSS_ADDR, TSS_ADDRESS)
        # slot 0, no flags, guest address 0, length, our address
        fcntl.ioctl(self.machine, KVM_SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, 0, length, address))
        self.processor = fcntl.ioctl(self.machine, KVM_CREATE_VCPU, 0)
        self.state = mmap.mmap(self.processor, run_bytes)  # struct kvm_run, shared with the kernel

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine and let go of the memory."""
        self.state.close()
        os.close(self.processor)
        os.close(self.machine)
        self.ram.release()

    def start(self, program: bytes, first: int = PAGE, step: int = PAGE, count: int = RAM_BYTES // PAGE - 1) -> int:
        """Write SUM or WRITE to page 0, run it to its end, and return the number that it sent to RESULT_PORT.

        Args:
            program: which.
            first: the address it touches first; whole paragraphs.
            step: bytes from one touch to the next; likewise.
            count: how many touches.

        Raises:
            GuestError: it did something else.
            Exception: what `fetch` raised.

        Blocks: as long as the guest runs. GIL: released, as by every ioctl.
        """
        self.ram[: len(program)] = program
        self._point_at_program(first // PARAGRAPH, step // PARAGRAPH, count)
        result = None
        while True:
            reason = self._run()
            if reason == EXIT_IO:
                result = self._sent()
            elif reason == EXIT_HLT and result is not None:
                return result
            elif reason == EXIT_MMIO:
                self._stand_in()
            else:
                raise GuestError(f"KVM_RUN ended with exit reason {reason}")

    def _point_at_program(self, paragraph: int, paragraphs: int, count: int) -> None:
        special = bytearray(SREGS_BYTES)
        fcntl.ioctl(self.processor, KVM_GET_SREGS, special)
        struct.pack_into("=QIH", special, 0, 0, 0xFFFF, 0)  # cs: base 0, limit 64 KiB, selector 0
        fcntl.ioctl(self.processor, KVM_SET_SREGS, special)
        # rax rbx rcx rdx, rsi rdi rsp rbp, r8 to r15, rip, rflags (bit 1 is always set)
        registers = struct.pack("=18Q", paragraph, 0, paragraphs, 0, 0, count, *[0] * 11, 2)
        fcntl.ioctl(self.processor, KVM_SET_REGS, registers)

    def _sent(self) -> int:
        """The number of an OUT instruction."""
        _, size, port, _, where = EXIT_PORT_IO.unpack_from(self.state)
        if (port, size) != (RESULT_PORT, 4):
            raise GuestError(f"{size} bytes for port {port:#x}")
        return int.from_bytes(self.state[where : where + size], "little")

    # Memory that cannot be had shows in one of three ways. To enter the guest again without having seen to it would
    # wait for ever in two of them, and be a silent wrong byte in the third.

    def _run(self) -> int:
        """Enter the guest, again and again while KVM complains of memory that `fetch` brings; return why it was left."""
        while True:
            try:
                fcntl.ioctl(self.processor, KVM_RUN, 0)
                return self._reason()
            except InterruptedError:
                continue  # a signal; its Python handler has run
            except OSError as error:
                if error.errno not in (errno.EFAULT, EHWPOISON):
                    raise
            if self._reason() == EXIT_MEMORY_FAULT:  # newer kernels say where
                _, address, _ = EXIT_FAULT.unpack_from(self.state)
                self._had(address, 1, "MEMORY_FAULT")
            else:
                self._had(0, len(self.ram), "EFAULT")

    def _reason(self) -> int:
        return int.from_bytes(self.state[EXIT_REASON], "little")

    def _stand_in(self) -> None:
        """Play the device that KVM takes the memory for.

        A KVM that runs the guest's instructions itself, one by one, treats all that it cannot read or write as a device.
        """
        address, data, length, is_write = EXIT_MMIO_ACCESS.unpack_from(self.state)
        right = self._had(address, length, "MMIO")
        if is_write:
            self.ram[address : address + length] = data[:length]
        else:
            self.state[MMIO_DATA] = right.ljust(8, b"\0")

    def _had(self, address: int, length: int, how: str) -> bytes:
        if self.fetch is None or address + length > len(self.ram):
            raise GuestError(f"the guest's access to {address:#x} failed ({how})")
        self.mended[how] = self.mended.get(how, 0) + 1
        if self.mended[how] > len(self.ram) // PAGE:
            raise GuestError(f"{address:#x} can be had by us, and again not by KVM ({how})")
        return self.fetch(address, length)
