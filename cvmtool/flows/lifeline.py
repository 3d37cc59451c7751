# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Hold on to a machine: connect again when the way to it is lost, start it again when it died and that is wanted.

Zone: flows. What is refused (exit codes 5, 6, 7) and what the guest itself says is never tried again: only what a host can fail
at is. A machine that was started anew is another guest: it is challenged with a new nonce before it gets anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from cvmtool.errors import CvmError, HostError
from cvmtool.flows.attempts import MAX_ATTEMPTS, Attempt, now
from cvmtool.flows.guard import Guard, guarded
from cvmtool.flows.hosts import Host
from cvmtool.flows.machine import Machine
from cvmtool.host.channel import GuestError
from cvmtool.host.events import Happening
from cvmtool.host.hypervisor import MachineState
from cvmtool.owner.jobfile import Restart

LOOK_SECONDS = 5.0
"""A port closes a moment before libvirt says why."""
RECONNECT_SECONDS = 60.0
"""How long a host may be away: a libvirtd that is started again needs a few seconds."""
REBOOT_SECONDS = 900.0
"""The same where a machine shall be started again: long enough for a server's boot."""
_RETRY_SECONDS = 2.0

Result = TypeVar("Result")


class OtherBootError(HostError):
    """The guest that answers is not the one that was there: its host started the machine again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is tried."""

    restart: Restart
    reconnect_seconds: float = RECONNECT_SECONDS
    reboot_seconds: float = REBOOT_SECONDS
    attempts: int = MAX_ATTEMPTS

    @property
    def patience(self) -> float:
        """Seconds that a host may be away."""
        return self.reboot_seconds if self.restart is Restart.ON_FAILURE else self.reconnect_seconds


class Lifeline:
    """One machine, through every connection and launch."""

    def __init__(
        self,
        machine: Machine,
        effort: Effort,
        *,
        start_again: Callable[[Machine], Machine],
        attempts: list[Attempt],
        save: Callable[[], None],
    ) -> None:
        """Take over a machine that was just started.

        Args:
            machine: it.
            effort: how much is tried.
            start_again: launches it anew on the host that it is given with; the machine it returns is the same one.
            attempts: the record's; the running one is last.
            save: keeps the record.
        """
        self.machine = machine
        self._effort = effort
        self._start_again = start_again
        self._attempts = attempts
        self._save = save

    @property
    def attempt(self) -> Attempt:
        """The running launch."""
        return self._attempts[-1]

    def remove(self) -> None:
        """Take the machine away, whichever connection it has by now."""
        self.machine.remove()

    def hold(self, work: Callable[[Machine], Result]) -> Result:
        """Do `work` with the machine; when its connection or the machine is lost, mend that and do it again.

        Raises:
            HostError: it cannot be mended, or shall not be; the message says what became of the machine.
        """
        while True:
            with ExitStack() as stack:
                guard = None
                try:
                    guard = stack.enter_context(
                        guarded(self.machine.hypervisor, self.machine.name, self.machine.notice)
                    )
                    return work(self.machine)
                except GuestError:
                    raise
                except OtherBootError as error:
                    cause: str | None = error.message
                except HostError as error:
                    cause = self._look(guard, error)
            if cause is None:
                self._reconnected()
            else:
                self._died(cause)

    def _look(self, guard: Guard | None, error: HostError) -> str | None:
        """Return why the machine is gone; None if it is its host's connection that was lost, and is there again.

        Raises:
            HostError: neither; `error` itself.
        """
        happened = guard.wait_over(LOOK_SECONDS) if guard is not None else None
        lost = not self.machine.hypervisor.alive
        if lost:
            self.machine = self._reopen(error)
        state = presence(self.machine.host, self.machine.name)
        if state not in {MachineState.RUNNING, MachineState.PAUSED, MachineState.NO_ROOM}:
            return cause_of(state, happened)
        if not lost:
            raise error
        return None

    def _reopen(self, error: HostError) -> Machine:
        self.machine.notice(f"the connection to the host of {self.machine.name} is lost; trying to reach it again")
        with suppress(CvmError):
            self.machine.host.close()
        end = time.monotonic() + self._effort.patience
        while True:
            try:
                return replace(self.machine, host=self.machine.reopen())
            except HostError as failure:
                if time.monotonic() > end:
                    raise HostError(
                        f"the host of {self.machine.name} has not answered for {self._effort.patience:.0f} s",
                        detail=failure.message,
                        hint=f"once it does: cvmtool vm list; cvmtool vm destroy {self.machine.name}",
                    ) from error
            time.sleep(_RETRY_SECONDS)

    def _reconnected(self) -> None:
        self.machine.notice(f"connected again; {self.machine.name} still runs, and is attested anew")

    def _died(self, cause: str) -> None:
        """Start the machine again, or say why not."""
        self.attempt.end(cause)
        self._save()
        name = self.machine.name
        if self._effort.restart is not Restart.ON_FAILURE:
            raise HostError(f"{name} is gone: {cause}", hint="restart: on-failure has it started again")
        if len(self._attempts) >= self._effort.attempts:
            raise HostError(
                f"{name} is gone: {cause}; that was attempt {len(self._attempts)} of {self._effort.attempts}",
                hint="the host's own log says why: cvmtool doctor, or journalctl on the host",
            )
        self.machine.notice(
            f"{name} is gone: {cause}. Starting it again, attempt {len(self._attempts) + 1} of {self._effort.attempts}"
        )
        self._attempts.append(Attempt(started=now()))
        self._save()
        self.machine = self._start_again(self.machine)


def presence(host: Host, name: str) -> MachineState | None:
    """Ask a host for a machine's state; None if it does not know the machine.

    Raises:
        HostError: the host does not answer.
    """
    try:
        return host.hypervisor.state(name)
    except HostError:
        if host.hypervisor.alive:
            return None
        raise


def cause_of(state: MachineState | None, happened: Happening | None) -> str:
    """Say why a machine does not run, from its state and the last event."""
    if state is None:
        return "its host does not know it any more"
    if state is MachineState.CRASHED or happened is Happening.DIED:
        return "QEMU was killed, or crashed"
    if happened is Happening.ENDED:
        return "the guest powered itself off"
    return "its host stopped it"
