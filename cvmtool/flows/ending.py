# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Follow a container to its end, and have it end in order when its owner wants that.

Zone: flows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cvmtool.formats.control import Op
from cvmtool.host.channel import AgentChannel


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
        GuestError, HostError: it cannot be asked.
        KeyboardInterrupt: a second interruption.
    """
    failures: list[BaseException] = []

    def follow_log() -> None:
        try:
            follow()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that waits
            failures.append(error)

    # In a thread of its own, which an interruption cannot tear in the middle of a record.
    follower = threading.Thread(target=follow_log, name="log", daemon=True)
    follower.start()
    asked = False
    try:
        follower.join()
    except KeyboardInterrupt:
        asked = True
        notice()
        channel.request(Op.STOP, grace_seconds=grace_seconds)
        follower.join()
    if failures:
        raise failures[0]
    return asked
