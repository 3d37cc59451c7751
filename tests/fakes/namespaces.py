# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A machine of its own for a test, as far as the network goes."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(code):
    if code != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def lend_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give os what Python 3.12 brought, and the guest's has: setns, unshare and CLONE_NEWNET. The kernel's own, through libc."""
    if not hasattr(os, "setns"):
        monkeypatch.setattr(os, "setns", lambda fd, kind: _checked(_libc.setns(fd, kind)), raising=False)
        monkeypatch.setattr(os, "unshare", lambda kind: _checked(_libc.unshare(kind)), raising=False)
        monkeypatch.setattr(os, "CLONE_NEWNET", CLONE_NEWNET, raising=False)


@contextmanager
def own_network(*addresses: str) -> Iterator[None]:
    """Be in a new namespace, with every thread that is made there; `addresses` are on its loopback."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    try:
        ip("link", "set", "lo", "up")
        for address in addresses:
            ip("address", "add", address, "dev", "lo", "nodad")
        yield
    finally:
        os.setns(before, os.CLONE_NEWNET)
        os.close(before)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
