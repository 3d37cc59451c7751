# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Work in a machine's guest: a shell, or one command, over the attested channel.

Zone: flows.
"""

from __future__ import annotations

from collections.abc import Callable

from cvmtool.errors import HostError
from cvmtool.flows.vms import Vm
from cvmtool.flows.vmsession import VmSession
from cvmtool.formats.control import Stage
from cvmtool.host.terminal import Ends, Window, converse

__all__ = ["Ends", "Window", "work_in"]


def work_in(
    vm: Vm,
    opened: VmSession,
    command: str | None,
    *,
    ends: Ends,
    window: Window | None,
    resized: Callable[[], Window | None] = lambda: None,
) -> int:
    """Run a command, or the login shell if there is none, until it ends; return its exit status.

    Args:
        vm: the machine.
        opened: an attested session with its guest; it has a shell if the volumes were unlocked before it began.
        command: for the guest's shell.
        ends: this side's descriptors.
        window: this side's terminal; None if there is none.
        resized: its new size, once after each change.

    Raises:
        HostError: the guest gives no shell, or the connection broke.
    """
    name = vm.record.name
    if not vm.challenge.manifest.shell:
        raise HostError(f"{name} gives no shell; its manifest does not ask for one", hint="cvmtool vm start --shell")
    if opened.stage is not Stage.UNLOCKED:
        raise HostError(f"{name} is {opened.stage.value}; unlocked is required", hint=f"cvmtool vm unlock {name}")
    return converse(opened.attached.channel.open_session(command, window), ends, resized=resized)
