# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: make one, and do something inside one.

Zone: guest (measured).
A namespace belongs to a thread. So whatever is done inside is done by a thread that is made for it and ends with it, and nothing
else of the agent is ever there; what it made (a socket, a program) stays there for good.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def make_namespace() -> int:
    """Return the descriptor of a new network namespace, which has a loopback interface, down, and nothing else.

    Raises:
        OSError: the kernel refuses.
    """

    def make() -> int:
        os.unshare(os.CLONE_NEWNET)  # type: ignore[attr-defined] # of Python 3.12; the image's is newer
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _in_a_thread(make)


def within(namespace: int, act: Callable[[], T]) -> T:
    """Return what `act` returns when it is called inside the namespace that `namespace` is a descriptor of.

    Raises:
        OSError: the kernel refuses; and whatever `act` raises.
    """

    def enter() -> T:
        os.setns(namespace, os.CLONE_NEWNET)  # type: ignore[attr-defined] # likewise
        return act()

    return _in_a_thread(enter)


def _in_a_thread(act: Callable[[], T]) -> T:
    done: list[T] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            done.append(act())
        except Exception as error:  # noqa: BLE001 - handed to the caller
            failed.append(error)

    thread = threading.Thread(target=work, name="namespace", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
