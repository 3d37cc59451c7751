# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A listener here whose connections come out in a running job: any number of them, through one attested session.

Zone: flows.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cvmtool.errors import ConfigError, CvmError, HostError
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import JobDir
from cvmtool.formats.control import ControlError, Op, Stage
from cvmtool.host.channel import AgentChannel, GuestError
from cvmtool.host.tunnel import carry, open_tunnel, run_command

__all__ = ["await_port", "comes_to_its_end", "listen", "run_command", "serve"]

_LOOK_SECONDS = 2.0  # between two looks whether the job still runs
_AGAIN_SECONDS = 0.5  # between two attempts to connect
_CLEANING_SECONDS = 20.0  # between the end of a guest and that of its run


@contextmanager
def listen(address: str, port: int) -> Iterator[socket.socket]:
    """Listen on an address of this machine; port 0 is any.

    Raises:
        ConfigError: it cannot be listened on.
    """
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"{address} port {port} cannot be listened on",
            detail=str(error),
            hint="--listen 127.0.0.1:0 takes any port",
        ) from error
    with listener:
        yield listener


def serve(
    listener: socket.socket,
    channel: AgentChannel,
    port: int,
    *,
    notice: Callable[[str], None],
    is_over: Callable[[], bool],
) -> None:
    """Carry every connection that comes to a port of the job's container, until the job has ended.

    `is_over` is asked when the session is lost: a guest that is done is gone before it has told everybody.

    Raises:
        HostError: the session is lost: the machine is gone, or the way to it.
    """
    listener.settimeout(_LOOK_SECONDS)
    looked = time.monotonic()
    try:
        while True:
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                if channel.request(Op.STATUS).get("stage") == Stage.DONE:
                    return
            with suppress(TimeoutError):
                local, _ = listener.accept()
                threading.Thread(target=_carry, args=(local, channel, port, notice), name="tunnel", daemon=True).start()
    except HostError as error:
        if not is_over():
            raise HostError(
                "the session has ended: the job is over, the machine is gone, or the way to it is",
                detail=error.message,
                hint="cvmtool jobs list says more to the job's owner",
            ) from error


def comes_to_its_end(job: JobDir, *, patience_seconds: float = _CLEANING_SECONDS) -> bool:
    """Say whether a run is done, or will be in a moment: whoever carries it out has a machine to remove."""
    end = time.monotonic() + patience_seconds
    while job.record.state is JobState.RUNNING and time.monotonic() < end:
        time.sleep(_AGAIN_SECONDS)
        job.reread()
    return job.record.state is JobState.DONE


def _carry(local: socket.socket, channel: AgentChannel, port: int, notice: Callable[[str], None]) -> None:
    try:
        tunnel = open_tunnel(channel, port)
    except CvmError as error:
        notice(f"a connection was turned away: {error.detail or error.message}")
        local.close()
        return
    carry(local, tunnel)


def await_port(channel: AgentChannel, port: int, *, give_up: Callable[[], bool]) -> bool:
    """Wait until something listens on a port of the container; False if it was given up, or the container has ended.

    Raises:
        HostError: the connection broke.
    """
    while not give_up():
        try:
            open_tunnel(channel, port).close()
        except GuestError as error:
            if error.error != ControlError.ACCESS:
                return False
            time.sleep(_AGAIN_SECONDS)
        else:
            return True
    return False
