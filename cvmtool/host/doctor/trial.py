# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Try an accelerator with the smallest guest that does what a firmware does first. /dev/kvm may exist, open, and not work.

Zone: host. Starts QEMU for a fraction of a second. The guest is 134 bytes of ROM: it uses x87 and SSE, builds page tables,
enters 64-bit mode and says so through QEMU's debug-exit device. A KVM that emulates instructions (nested virtualisation
that is none) runs real mode and stops at the first x87 instruction, so a guest that only halts would prove nothing.
"""

from __future__ import annotations

import errno
import subprocess
import tempfile
import time
from pathlib import Path

from cvmtool.host.mortal import mortal

TRIAL_SECONDS = 10.0
_PROOF = 0x2A
_ROM_BYTES = 1 << 16
_ENTRY = 0xF000

_CODE = bytes.fromhex(
    "fa"  # cli
    "9bdbe3"  # finit
    "31c0 8ed8"  # ds = 0
    "66c7060010 03200000"  # the first entries of three levels of page tables:
    "66c7060020 03300000"
    "66c7060030 83000000"  # 2 MiB, mapped to themselves
    "66b800100000 0f22d8"  # cr3 = 0x1000
    "0f20e0 660d20060000 0f22e0"  # cr4: PAE, OSFXSR, OSXMMEXCPT
    "66b9800000c0 0f32 660d00010000 0f30"  # EFER: long mode
    "2e660f011680f0"  # lgdt, below
    "0f20c0 660d03000080 0f22c0"  # cr0: protection, x87, paging
    "66ea63f00f000800"  # to 64-bit code, the next instruction
    "660fefc0"  # pxor xmm0, xmm0
    "b02a e6f4"  # the proof, to port 0xf4
    "f4 ebfd"  # hlt, for ever
    "6690"
    "0000000000000000 00000000009a2000"  # GDT: null, 64-bit code
    "0f00 70f00f00"  # its limit and address
)
_RESET = bytes.fromhex("ea00f000f0")  # at the reset vector: jump to f000:f000


def trial_rom() -> bytes:
    """Return the guest, 64 KiB that end at 4 GiB and are seen below 1 MiB as well."""
    rom = bytearray(b"\xf4" * _ROM_BYTES)
    rom[_ENTRY : _ENTRY + len(_CODE)] = _CODE
    rom[-16 : -16 + len(_RESET)] = _RESET
    return bytes(rom)


def try_accelerator(emulator: str, accelerator: str, cpu: str, *, seconds: float = TRIAL_SECONDS) -> str:
    """Run the guest; return what was seen.

    Args:
        emulator: QEMU's path.
        accelerator: `kvm` or `tcg`.
        cpu: QEMU's name of the CPU model.
        seconds: how long the guest may take.

    Raises:
        OSError: it did not reach its end; the text says how far it came.
    """
    arguments = [emulator, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-monitor", "none"]
    arguments += ["-machine", "q35", "-accel", accelerator, "-cpu", cpu, "-m", "16"]
    arguments += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    with tempfile.TemporaryDirectory(prefix="cvmtool-trial-") as folder:
        rom, errors = Path(folder, "rom"), Path(folder, "errors")
        rom.write_bytes(trial_rom())
        begun = time.monotonic()
        with (
            errors.open("wb") as sink,
            subprocess.Popen(
                mortal([*arguments, "-bios", str(rom)]), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            ) as qemu,
        ):
            try:
                _wait(qemu, errors, begun + seconds)
            finally:
                qemu.kill()
        # QEMU's debug-exit device ends it with twice the value, plus one.
        if qemu.returncode == 2 * _PROOF + 1:
            return f"a guest reached 64-bit mode in {time.monotonic() - begun:.2f} s"
        raise OSError(errno.ENOEXEC, _reason(errors.read_bytes(), qemu.returncode, seconds))


def _wait(qemu: subprocess.Popen[bytes], errors: Path, deadline: float) -> None:
    # After an internal error of KVM, QEMU stops the guest and stays.
    while qemu.poll() is None and time.monotonic() < deadline and b"KVM internal error" not in errors.read_bytes():
        time.sleep(0.01)


def _reason(said: bytes, code: int, seconds: float) -> str:
    if b"KVM internal error" in said:
        return "KVM internal error: it cannot run the instructions that every firmware begins with"
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if "warning:" not in line]
    if code >= 0:
        return lines[-1][:200] if lines else f"QEMU ended with {code}"
    return f"a guest of 134 bytes did not end within {seconds:.0f} s"
