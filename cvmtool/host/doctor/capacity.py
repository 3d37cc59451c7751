# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Read what a host has left: memory, disk, ASIDs, processors, and the features of a CPU model there.

Zone: host. Reads alone, and far less than a whole probe: these are asked before each run.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass

from cvmtool.host.doctor import texts
from cvmtool.host.doctor.facts import Asids, Memory
from cvmtool.host.doctor.source import MAX_ENTRIES, Claim, Command, HostView, claim

_CGROUP = "/sys/fs/cgroup"
_ONLINE = "/sys/devices/system/cpu/online"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What is left; `disk` in bytes, `processors` a number."""

    memory: Claim[Memory]
    disk: Claim[int]
    asids: Claim[Asids]
    processors: Claim[int]


def capacity(view: HostView, *, store: str) -> Capacity:
    """Ask a host; `store` is the directory that machines are kept in."""
    return Capacity(memory=memory(view), disk=disk(view, store), asids=asids(view), processors=_processors(view))


def memory(view: HostView) -> Claim[Memory]:
    """Read how much memory there is."""
    return claim("/proc/meminfo", lambda: texts.parse_meminfo(view.read("/proc/meminfo", limit=1 << 16)))


def disk(view: HostView, store: str) -> Claim[int]:
    """Ask for the free bytes where machines are kept."""
    return claim(f"df {store}", lambda: texts.parse_free_bytes(_df(view, store)))


def asids(view: HostView) -> Claim[Asids]:
    """Read how many encrypted guests there can be, and how many there are."""
    return claim(f"{_CGROUP}/misc.capacity", lambda: _asids(view))


def cpu_features(view: HostView, *, emulator: str, accelerator: str, model: str) -> Claim[frozenset[str]]:
    """Ask QEMU which features a guest of a CPU model would see.

    Args:
        view: the host.
        emulator: QEMU's path there.
        accelerator: `kvm` or `tcg`.
        model: QEMU's name of the model: letters, digits and `-`.
    """
    questions = (
        {"execute": "qmp_capabilities"},
        {"execute": "query-cpu-model-expansion", "arguments": {"type": "full", "model": {"name": model}}},
        {"execute": "query-cpu-definitions"},
        {"execute": "quit"},
    )
    quiet = ("-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio")
    asked = Command(
        argv=(emulator, "-machine", f"none,accel={accelerator}", *quiet),
        stdin=b"".join(json.dumps(question).encode() + b"\n" for question in questions),
    )
    return claim(f"{emulator} ({accelerator})", lambda: texts.parse_cpu_features(view.run(asked)))


def _processors(view: HostView) -> Claim[int]:
    return claim(_ONLINE, lambda: texts.parse_online(view.read(_ONLINE, limit=4096)))


def _asids(view: HostView) -> Asids:
    total = texts.parse_misc(view.read(f"{_CGROUP}/misc.capacity", limit=4096))
    used = _used(view, [_CGROUP])
    if used is None:  # older kernels keep no sum at the root of the hierarchy
        names = [name for name in view.list(_CGROUP)[:MAX_ENTRIES] if name.endswith(".slice")]
        used = _used(view, [f"{_CGROUP}/{name}" for name in names])
    return Asids(total=total.get("sev_es", 0), used=used)


def _used(view: HostView, groups: list[str]) -> int | None:
    counts = []
    for group in groups:
        with suppress(OSError):
            counts.append(texts.parse_misc(view.read(f"{group}/misc.current", limit=4096)).get("sev_es", 0))
    return sum(counts) if counts else None


def _df(view: HostView, store: str) -> bytes:
    """Ask about the directory that will hold `store`, if it does not exist yet."""
    folder = store
    while folder.count("/") > 1:
        with suppress(FileNotFoundError):
            view.stat(folder)
            break
        folder = folder.rpartition("/")[0]
    return view.run(Command(argv=("df", "-Pk", "--", folder)))
