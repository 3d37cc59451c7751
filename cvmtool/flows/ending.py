# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Follow a container to its end, and have it end in order when its owner wants that.

Zone: flows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cvmtool.errors import HostError
from cvmtool.formats.control import Op
from cvmtool.host.channel import AgentChannel

_LOOK_SECONDS = 0.2


def follow_to_the_end(
    channel: AgentChannel, follow: Callable[[], None], *, grace_seconds: int, notice: Callable[[], None]
) -> bool:
    """Follow a container's log until it has ended; an interruption asks the container to end, and goes on until it has.

    Args:
        channel: to its guest.
        follow: returns when the log has ended.
        grace_seconds: what the container has from being asked to being killed.
        notice: says that it is asked.

    Returns:
        Whether it was asked.

    Raises:
        CvmError: what `follow` raises.
        KeyboardInterrupt: a second interruption; or the connection broke after the first: who wants the end shall not have the
            machine started again.
    """
    failures: list[BaseException] = []
    ended = threading.Event()

    def follow_log() -> None:
        try:
            follow()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that waits
            failures.append(error)
        finally:
            ended.set()

    # In a thread of its own, which an interruption cannot tear in the middle of a record.
    follower = threading.Thread(target=follow_log, name="log", daemon=True)
    asked = False
    try:
        follower.start()
        _await(ended)
    except KeyboardInterrupt:
        if follower.ident is None:
            raise  # it did not get as far as being followed
        asked = True
        notice()
        try:
            channel.request(Op.STOP, grace_seconds=grace_seconds)
        except HostError as error:
            raise KeyboardInterrupt from error
        _await(ended)
    if failures and asked and isinstance(failures[0], HostError):
        raise KeyboardInterrupt from failures[0]
    if failures:
        raise failures[0]
    return asked


def _await(ended: threading.Event) -> None:
    # The kernel may hand an interruption to any thread, and Python acts on it in this one, which is not woken by that.
    while not ended.wait(_LOOK_SECONDS):
        pass
