# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Whether KVM works here, found by running something. /dev/kvm may exist, open, and still not run a guest.

Zone: host. Starts QEMU itself: once a kernel, QEMU and guest image, for a few seconds; the answer is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cvmtool.host.mortal import mortal

PROBE_SECONDS = 30.0  # a working KVM guest prints within two
_FAILURE_SECONDS = 86_400.0
_PROOF = b"CVM-STAGE initrd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceleration:
    """The domain type to use, and why."""

    domain_type: str
    """`kvm` or `qemu` (TCG: emulation)."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeBoot:
    """The boot chain that the probe tries: the same one as the machine's."""

    emulator: str
    cpu: str
    firmware: Path
    kernel: Path
    initrd: Path
    cmdline: str
    hash_table: bytes
    hash_table_gpa: int


def probe_kvm(
    boot: ProbeBoot, *, cache: Path, device: Path = Path("/dev/kvm"), seconds: float = PROBE_SECONDS
) -> Acceleration:
    """Boot the guest's own chain under KVM until its initrd speaks; fall back to TCG.

    Args:
        boot: what to boot.
        cache: a directory for the answer.
        device: KVM's device node.
        seconds: how long the guest may take to speak.
    """
    if not device.exists():
        return Acceleration(domain_type="qemu", reason=f"{device} does not exist")
    if not os.access(device, os.R_OK | os.W_OK):
        return Acceleration(domain_type="qemu", reason=f"{device} may not be opened by this user (group kvm?)")
    key = _key(boot)
    file = cache / f"kvm-{key}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text("utf-8"))
        # A failure is asked about again after a day: a moment's load may have been all there was to it.
        fresh = kept["domain_type"] == "kvm" or time.time() - file.stat().st_mtime < _FAILURE_SECONDS
        if fresh and kept["domain_type"] in ("kvm", "qemu"):
            return Acceleration(domain_type=kept["domain_type"], reason=str(kept["reason"]))
    failure = _try(boot, cache, seconds)
    answer = (
        Acceleration(domain_type="kvm", reason="a guest booted under KVM")
        if failure is None
        else Acceleration(domain_type="qemu", reason=f"{device} exists but does not work: {failure}")
    )
    file.write_text(json.dumps({"domain_type": answer.domain_type, "reason": answer.reason}), "utf-8")
    return answer


def _key(boot: ProbeBoot) -> str:
    facts = [platform.release(), platform.version(), boot.emulator, boot.cpu, boot.cmdline]
    with suppress(OSError):
        facts += [str(Path(boot.emulator).stat().st_mtime_ns)]
    digest = hashlib.sha256("\0".join(facts).encode("utf-8") + boot.hash_table)
    return digest.hexdigest()[:16]


def _try(boot: ProbeBoot, directory: Path, seconds: float) -> str | None:
    """Boot under KVM; return None if the initrd spoke, else why not."""
    console = directory / f"probe-{os.getpid()}.log"
    table = directory / f"probe-{os.getpid()}.bin"
    errors = directory / f"probe-{os.getpid()}.err"
    table.write_bytes(boot.hash_table)
    arguments = [boot.emulator, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    arguments += ["-machine", "q35", "-accel", "kvm", "-cpu", boot.cpu, "-m", "512", "-bios", str(boot.firmware)]
    arguments += ["-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", boot.cmdline]
    arguments += ["-device", f"loader,addr={boot.hash_table_gpa:#x},file={table},force-raw=on"]
    arguments += ["-serial", f"file:{console}", "-monitor", "none"]
    try:
        with (
            errors.open("wb") as error_file,
            subprocess.Popen(mortal(arguments), stdin=subprocess.DEVNULL, stdout=error_file, stderr=error_file) as qemu,
        ):
            try:
                return _watch(qemu, console, errors, seconds)
            finally:
                qemu.kill()
    except OSError as error:
        return f"{boot.emulator} cannot be started: {error.strerror}"
    finally:
        for path in (console, table, errors):
            path.unlink(missing_ok=True)


def _watch(qemu: subprocess.Popen[bytes], console: Path, errors: Path, seconds: float) -> str | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError):
            if _PROOF in console.read_bytes():
                return None
        said = errors.read_bytes()
        if b"KVM internal error" in said:
            return "KVM internal error (it cannot run the guest's instructions)"
        if qemu.poll() is not None:
            line = said.decode("utf-8", "replace").strip().splitlines()
            return line[-1][:200] if line else f"QEMU ended with {qemu.returncode}"
        time.sleep(0.1)
    return f"a guest printed nothing within {seconds:.0f} s"
