# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Watch a machine boot, and say why it did not.

Zone: flows. The host's signs (console bytes, domain state, a register) are hints for a better message; they never
decide trust.

A guest that the firmware refuses never prints a byte and spins for ever. Told apart by: no byte on the console within a
generous deadline; and in an emulated dry run, sooner, by a program counter that no longer moves.
"""

from __future__ import annotations

import hashlib
import re
import time

from cvmtool.errors import AppraisalError, Finding, HostError
from cvmtool.flows.machine import Machine
from cvmtool.formats.manifest import Artefact, Mode
from cvmtool.host.domain import ROOT_SERIAL
from cvmtool.host.files import HostFiles
from cvmtool.host.hypervisor import MachineState
from cvmtool.host.live import LiveDomain
from cvmtool.host.storage import stage_words

FIRST_BYTE_SECONDS = 90.0  # a firmware prints within about two; a busy host under emulation needs many more
_QUIET_SECONDS = 5.0  # before the program counter is looked at
_SAMPLES = 6  # program counters, a second apart, of which all but one are the same in a dead loop
_CHANGED = "the host changed {what} of the image, or its copy is damaged (cvmtool host gc --verify); nothing was released to it"
_RIP = re.compile(r"\bRIP=([0-9a-f]{16})")


class BootWatch:
    """Looks at a booting machine about once a second."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._counters: list[str] = []

    def alive(self) -> None:
        """Return while waiting makes sense.

        Raises:
            AppraisalError: the measured boot was refused; the findings name the component that is not the image's.
            HostError: the machine stopped for another reason.
        """
        machine = self._machine
        state = machine.hypervisor.state(machine.name)
        if state is MachineState.NO_ROOM:
            return  # it waits, and so do we (cvmtool.flows.guard)
        if state is not MachineState.RUNNING:
            self._stopped(state)
        if machine.directory.read_console():
            return
        waited = time.monotonic() - machine.started
        if waited > FIRST_BYTE_SECONDS or (waited > _QUIET_SECONDS and self._stands_still()):
            raise AppraisalError(
                "the measured boot was refused: the firmware does not start what this host gave it",
                findings=self._differences() or (_NOTHING_DIFFERS,),
                hint=_CHANGED.format(what="an artefact"),
            )

    def _stopped(self, state: MachineState) -> None:
        words = stage_words(self._machine.directory.read_console())
        differences = self._differences()
        if differences or any(word.startswith("CVM-FAIL") for word in words):
            raise AppraisalError(
                f"the guest stopped itself while booting, after {words[-1] if words else 'no stage'!r}",
                findings=differences or (_BLOCK_DIFFERS,),
                hint=_CHANGED.format(what="a disk"),
            )
        raise HostError(
            f"the machine is {state.value} before its agent answered; last stage: {words[-1] if words else 'none'}",
            hint=f"its console, on the host: {self._machine.directory.console}",
        )

    def _stands_still(self) -> bool:
        if self._machine.launch.mode is Mode.PRODUCTION:
            return False  # its registers are encrypted
        match = _RIP.search(self._machine.hypervisor.monitor(self._machine.name, "info registers"))
        self._counters = [*self._counters, match[1] if match else ""][-_SAMPLES:]
        most = max(self._counters.count(counter) for counter in self._counters)
        return len(self._counters) == _SAMPLES and most >= _SAMPLES - 1

    def _differences(self) -> tuple[Finding, ...]:
        """Compare what the live domain was given with the image's manifest."""
        machine = self._machine
        try:
            live = machine.hypervisor.live(machine.name)
        except HostError:
            return ()
        return differences(live, machine)


_NOTHING_DIFFERS = Finding(
    code="boot-silent",
    field="first byte on the console",
    actual="none",
    required=f"within {FIRST_BYTE_SECONDS:.0f} s",
    why="every artefact is the image's own, so the host may simply be too slow, or lie about what it started",
)
_BLOCK_DIFFERS = Finding(
    code="boot-verity",
    field="root file system",
    actual="a block that does not match its hash",
    required="the blocks under the measured dm-verity root",
    why="the guest reads nothing that its measurement does not cover",
)


def differences(live: LiveDomain, machine: Machine) -> tuple[Finding, ...]:
    """Return a finding for each artefact of a live domain that is not the image's."""
    manifest = machine.launch.bundle.manifest
    root = next((disk.path for disk in live.disks if disk.serial == ROOT_SERIAL), "")
    given: list[tuple[str, str, Artefact]] = [
        ("firmware", live.firmware, manifest.firmware),
        ("kernel", live.kernel, manifest.kernel),
        ("initrd", live.initrd, manifest.initrd),
        ("rootfs", root, manifest.rootfs),
    ]
    found = []
    for field, path, artefact in given:
        actual = _sha256(machine.host.files, path)
        if actual != artefact.sha256:
            found.append(_finding(field, f"sha256:{actual}", f"sha256:{artefact.sha256}"))
    required = machine.launch.cmdline
    if live.cmdline != required:
        found.append(_finding("cmdline", repr(live.cmdline[:400]), repr(required)))
    if live.simulation is None:
        return tuple(found)  # on hardware QEMU makes the table, and the report tells
    table = machine.launch.hashes.table()
    actual = _sha256(machine.host.files, live.hash_table)
    if actual != hashlib.sha256(table).hexdigest():
        found.append(_finding("hash table", f"sha256:{actual}", f"sha256:{hashlib.sha256(table).hexdigest()}"))
    return tuple(found)


def _finding(field: str, actual: str, required: str) -> Finding:
    return Finding(
        code=f"boot-{field.replace(' ', '-')}",
        field=field,
        actual=actual,
        required=required,
        why="the launch measurement covers it: changed, it is another guest than the one you trust",
    )


def _sha256(files: HostFiles, path: str) -> str:
    try:
        return files.digest(path)
    except HostError:
        return "unreadable"
