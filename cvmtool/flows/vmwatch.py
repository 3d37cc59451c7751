# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Stand by a machine without a job: unlock it, wait, and when it dies start, attest and unlock it again.

Zone: flows. It runs where the owner's keys are: a host can start a machine again by itself, but not unlock it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from cvmtool.config import Settings
from cvmtool.errors import ConfigError, CvmError, HostError
from cvmtool.flows.attach import StageOf
from cvmtool.flows.attempts import Attempt, now
from cvmtool.flows.lifeline import Effort, Lifeline
from cvmtool.flows.machine import Machine
from cvmtool.flows.reporter import Reporter, Stage
from cvmtool.flows.vmrecords import VmDir
from cvmtool.flows.vms import Vm, open_vm, start_again
from cvmtool.flows.vmsession import session, unlock
from cvmtool.flows.vmstate import Milestone
from cvmtool.host.embedded import embedded_root
from cvmtool.host.events import GONE, Event, Happening
from cvmtool.owner.jobfile import Restart

STABLE_SECONDS = 600.0
"""A machine that was up for so long begins to count its deaths anew."""
_LOOK_SECONDS = 60.0


def watch_all(folders: Sequence[VmDir], settings: Settings, make_reporter: Callable[[], Reporter]) -> None:
    """Stand by several machines at once, each in a thread of its own, until all are stopped or given up.

    Raises:
        HostError: one or more were given up; the message names them.
        ConfigError, AppraisalError, VerificationError, FreshnessError: as `watch`, of the only machine.
    """
    given_up: dict[str, CvmError] = {}

    def stand_by(folder: VmDir) -> None:
        reporter = make_reporter()
        try:
            watch(
                folder, settings, reporter, stage=reporter.stage if len(folders) == 1 else _by_notice(folder, reporter)
            )
        except CvmError as error:
            given_up[folder.record.name] = error
            reporter.notice(f"{folder.record.name} is given up: {error.message}")

    threads = [threading.Thread(target=stand_by, args=(folder,), daemon=True) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(folders) == 1 and given_up:
        raise next(iter(given_up.values()))
    if given_up:
        raise HostError(f"{len(given_up)} of {len(folders)} machines were given up: {', '.join(sorted(given_up))}")


def _by_notice(folder: VmDir, reporter: Reporter) -> StageOf:
    @contextmanager
    def stage(_stage: Stage, text: str) -> Iterator[None]:
        reporter.notice(f"{folder.record.name}: {text}")
        yield

    return stage


def watch(folder: VmDir, settings: Settings, reporter: Reporter, *, stage: StageOf) -> None:
    """Stand by a machine until its owner stops it.

    Raises:
        ConfigError: it is not to be started again, or libvirt runs inside processes here, where nobody else could work with it.
        HostError: it died too often, or its host stays away.
        AppraisalError, VerificationError, FreshnessError: the guest is not trusted, or a volume was changed or turned back.
    """
    record = folder.record
    if record.restart is not Restart.ON_FAILURE:
        raise ConfigError(
            f"{record.name} is not to be started again when it dies; --restart on-failure is required",
            hint="vm start has that option",
        )
    if embedded_root(record.host) is not None:
        raise ConfigError(
            f"the libvirt of {record.name} runs inside one process at a time; nobody could work with it while it is watched",
            hint="with a libvirt daemon that is no limit: systemctl start libvirtd",
        )
    vm = open_vm(folder, settings, reporter)
    try:
        if not vm.runs:
            vm = start_again(vm, settings, reporter)
        _stand_by(vm, settings, reporter, stage)
    finally:
        vm.close()


def _stand_by(vm: Vm, settings: Settings, reporter: Reporter, stage: StageOf) -> None:
    launches = [Attempt(started=now())]  # that this watch has seen; the record has them all

    def begin_again(machine: Machine) -> Machine:
        with vm.folder.alone(wait=True):
            return start_again(replace(vm, machine=machine), settings, reporter, cause=launches[-2].cause).machine

    def serve(machine: Machine) -> None:
        begun = time.monotonic()
        try:
            _serve(replace(vm, machine=machine), stage)
        finally:
            if time.monotonic() - begun > STABLE_SECONDS:
                del launches[:-1]

    effort = Effort(restart=Restart.ON_FAILURE)
    lifeline = Lifeline(vm.machine, effort, start_again=begin_again, attempts=launches, save=vm.folder.save)
    lifeline.hold(serve)


def _serve(vm: Vm, stage: StageOf) -> None:
    """Unlock a machine and wait until it is stopped by its owner.

    Raises:
        HostError: it is gone, or the connection to its host.
    """
    name = vm.record.name
    with vm.machine.hypervisor.events.gather(name) as happened:
        with session(vm, stage=stage, wait=True) as opened:
            unlock(vm, opened)
        vm.machine.notice(f"{name} is unlocked; standing by")
        while _lives(vm, happened):
            continue
    left = vm.folder.settled()  # a command that stops it says so in the record when it has stopped
    if left is not None and left.milestone is not Milestone.DEFINED:
        raise HostError(f"{name} is gone")


def _lives(vm: Vm, happened: queue.SimpleQueue[Event]) -> bool:
    """Wait for the next event; say whether the machine is still there."""
    try:
        return happened.get(timeout=_LOOK_SECONDS).what not in GONE | {Happening.DISCONNECTED}
    except queue.Empty:
        return vm.runs  # an event may be missed
