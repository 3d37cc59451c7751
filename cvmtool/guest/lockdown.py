# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Close the kernel to modules without Debian's signature, where the measured command line could not.

Zone: guest (measured).
Spec: kernel_lockdown(7); Linux Documentation/admin-guide/kernel-parameters.txt, module.sig_enforce.

An image with modules of its own needs a moment in which they may be loaded. Until it is over nothing of a job is in the guest:
the agent alone runs, and what it loads comes from the measured root. Neither setting can be taken back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cvmtool.formats.control import ControlError
from cvmtool.guest.programs import run
from cvmtool.guest.refusal import RefusedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Locks:
    """The kernel's two settings; tests point elsewhere."""

    signatures: Path = Path("/sys/module/module/parameters/sig_enforce")
    security: Path = Path("/sys/kernel/security")


_LOCKS = Locks()


def lock_down(locks: Locks = _LOCKS) -> None:
    """Have the kernel take signed modules alone and refuse its root what could change it; at once where it does so already.

    Raises:
        RefusedError: `kernel`: it cannot be told.
    """
    try:
        _lock_down(locks)
    except OSError as error:
        raise RefusedError(ControlError.KERNEL, f"it cannot be closed to modules: {error}") from error


def _lock_down(locks: Locks) -> None:
    if locks.signatures.read_text("ascii").strip() == "Y":
        return
    mounted = run("mount", "-t", "securityfs", "-o", "nosuid,nodev,noexec", "securityfs", str(locks.security))
    if mounted.code != 0:
        raise OSError(f"securityfs cannot be mounted: {mounted.complaint}")
    (locks.security / "lockdown").write_text("integrity", "ascii")
    locks.signatures.write_text("1", "ascii")  # last: it says that all is done
