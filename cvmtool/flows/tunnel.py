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
from contextlib import contextmanager

from cvmtool.errors import ConfigError, CvmError, HostError
from cvmtool.formats.control import ControlError, Op, Stage
from cvmtool.host.channel import AgentChannel, GuestError
from cvmtool.host.tunnel import carry, open_tunnel, run_command

__all__ = ["await_port", "listen", "run_command", "serve"]

_LOOK_SECONDS = 2.0  # between two looks whether the job still runs
_AGAIN_SECONDS = 0.5  # between two attempts to connect


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


def serve(listener: socket.socket, channel: AgentChannel, port: int, *, notice: Callable[[str], None]) -> None:
    """Carry every connection that comes to a port of the job's container, until the job has ended.

    Raises:
        HostError: the session is lost: the machine is gone, or the way to it.
    """
    listener.settimeout(_LOOK_SECONDS)
    looked = time.monotonic()
    while channel.alive:
        if time.monotonic() - looked > _LOOK_SECONDS:
            looked = time.monotonic()
            if channel.request(Op.STATUS).get("stage") != Stage.RUNNING:
                return
        try:
            local, _ = listener.accept()
        except TimeoutError:
            continue
        threading.Thread(target=_carry, args=(local, channel, port, notice), name="tunnel", daemon=True).start()
    raise HostError("the session has ended: the machine is gone, or the way to it", hint="cvmtool jobs list")


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
