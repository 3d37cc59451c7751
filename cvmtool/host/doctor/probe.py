# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Read what a host claims about itself. Every answer is bounded; what cannot be read is a fact of its own.

Zone: host. Reads alone; all access goes through `HostView`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from cvmtool.errors import FormatError
from cvmtool.host.doctor import texts
from cvmtool.host.doctor.capacity import asids, disk, memory
from cvmtool.host.doctor.facts import Daemon, Gpu, HostFacts, KernelLog, KvmAmd, Qemu
from cvmtool.host.doctor.source import MAX_ENTRIES, MAX_TEXT_BYTES, Claim, Command, HostView, claim, text

EMULATORS = ("/usr/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm", "/usr/local/bin/qemu-system-x86_64")
"""Where distributions keep QEMU; a path that the host names is not run."""

DMESG = Command(argv=("dmesg",))
JOURNAL = Command(argv=("journalctl", "--dmesg", "--boot=0", "--no-pager", "--output=cat"), seconds=30.0)
DATE = Command(argv=("date", "-u", "+%s.%N"))
USER = Command(argv=("id", "-u"))
GROUPS = Command(argv=("id", "-G"))
SYNCHRONISED = Command(argv=("timedatectl", "show", "--property=NTPSynchronized", "--value"))
_QMP = b"".join(
    b"%s\n" % line
    for line in (
        b'{"execute":"qmp_capabilities"}',
        b'{"execute":"query-version"}',
        b'{"execute":"qom-list-types","arguments":{"implements":"confidential-guest-support"}}',
        b'{"execute":"query-sev-capabilities"}',
        b'{"execute":"quit"}',
    )
)
_QEMU_ARGUMENTS = (
    "-machine",
    "none,accel=kvm:tcg",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-qmp",
    "stdio",
)

_SYSCFG = 0xC001_0010
_CAP_SYS_RESOURCE = 24
_DAEMON_PIDS = ("/run/virtqemud.pid", "/run/libvirtd.pid", "/run/libvirt/virtqemud.pid")
_MODULES = frozenset({"kvm", "kvm_amd", "kvm_intel", "kvm_pvm", "ccp", "vfio_pci"})
_NVIDIA_LIMIT = 64  # functions that are looked at


def account(view: HostView) -> tuple[int, frozenset[int]]:
    """Return the user and groups that the host knows us as.

    Raises:
        OSError: it does not say.
    """
    words = text(view.run(USER)).split(), text(view.run(GROUPS)).split()
    if (
        not all(word.isascii() and word.isdecimal() and len(word) < 12 for word in (*words[0], *words[1]))
        or not words[0]
    ):
        raise OSError("id answers with something else than numbers")
    return int(words[0][0]), frozenset(map(int, words[1]))


def probe(view: HostView, *, store: str, clock: Callable[[], float] = time.time) -> HostFacts:
    """Read everything that the checks ask about.

    Args:
        view: the host.
        store: the directory that machines are kept in; its file system's free space counts.
        clock: the owner's time, in Unix seconds.
    """

    def read(path: str, limit: int = MAX_TEXT_BYTES) -> bytes:
        return view.read(path, limit=limit)[:limit]

    return HostFacts(
        cpu=claim("/proc/cpuinfo", lambda: texts.parse_cpuinfo(read("/proc/cpuinfo", 1 << 16))),
        release=claim("/proc/sys/kernel/osrelease", lambda: _release(read("/proc/sys/kernel/osrelease", 256))),
        cmdline=claim("/proc/cmdline", lambda: tuple(text(read("/proc/cmdline", 1 << 16)).split())),
        log=_kernel_log(view),
        syscfg=claim(
            "/dev/cpu/0/msr", lambda: int.from_bytes(view.read("/dev/cpu/0/msr", limit=8, offset=_SYSCFG), "little")
        ),
        modules=claim("/sys/module", lambda: frozenset(view.list("/sys/module")[:MAX_ENTRIES]) & _MODULES),
        kvm_amd=claim("/sys/module/kvm_amd/parameters", lambda: _kvm_amd(view)),
        asids=asids(view),
        dev_sev=claim("/dev/sev", lambda: view.stat("/dev/sev")),
        dev_kvm=claim("/dev/kvm", lambda: view.stat("/dev/kvm")),
        qemu=_qemu(view),
        daemon=claim("/proc/PID of the libvirt daemon", lambda: _daemon(view)),
        memory=memory(view),
        disk=disk(view, store),
        gpus=claim("/proc/bus/pci/devices", lambda: _gpus(view)),
        skew=claim("date", lambda: _skew(view, clock)),
        synchronised=claim("timedatectl", lambda: text(view.run(SYNCHRONISED)).strip() == "yes"),
    )


def _release(data: bytes) -> str:
    release = text(data).strip()
    texts.parse_version(release)
    return release


def _kernel_log(view: HostView) -> Claim[KernelLog]:
    """Ask dmesg; the journal as well where dmesg is forbidden or no longer reaches back to the boot."""
    ring = claim("dmesg", lambda: texts.parse_kernel_log(view.run(DMESG)))
    if ring.value is not None and ring.value.whole:
        return ring
    journal = claim("journalctl -k", lambda: texts.parse_kernel_log(view.run(JOURNAL)))
    return journal if journal.value is not None and journal.value.whole else ring


def _kvm_amd(view: HostView) -> KvmAmd:
    folder = "/sys/module/kvm_amd/parameters"
    names = {"sev", "sev_es", "sev_snp"}.intersection(view.list(folder)[:MAX_ENTRIES])
    return texts.kvm_amd_parameters({name: view.read(f"{folder}/{name}", limit=64) for name in names})


def _qemu(view: HostView) -> Claim[Qemu]:
    for path in EMULATORS:
        found = claim(path, partial(_ask, view, path))
        if not found.missing:
            return found
    return Claim(source=" or ".join(EMULATORS), problem="does not exist", missing=True)


def _ask(view: HostView, path: str) -> Qemu:
    view.stat(path)
    return texts.parse_qmp(view.run(Command(argv=(path, *_QEMU_ARGUMENTS), stdin=_QMP)))


def _daemon(view: HostView) -> Daemon:
    for path in _DAEMON_PIDS:
        with suppress(FileNotFoundError):
            pid = text(view.read(path, limit=16)).strip()
            if not pid.isdecimal():
                raise FormatError(f"{path} holds {pid!r}; required: a process number")
            mask = texts.parse_capabilities_mask(view.read(f"/proc/{pid}/status", limit=1 << 16))
            limit = texts.parse_memlock(view.read(f"/proc/{pid}/limits", limit=1 << 16))
            return Daemon(memlock=limit, may_raise=bool(mask >> _CAP_SYS_RESOURCE & 1))
    raise FileNotFoundError


def _gpus(view: HostView) -> tuple[Gpu, ...]:
    found = []
    functions = texts.parse_nvidia_functions(view.read("/proc/bus/pci/devices", limit=MAX_TEXT_BYTES))
    for slot, driver in functions[:_NVIDIA_LIMIT]:
        folder = f"/sys/bus/pci/devices/{slot}"
        group = None
        with suppress(OSError):
            group = len(view.list(f"{folder}/iommu_group/devices"))
        device = texts.gpu(slot, driver, view.read(f"{folder}/uevent", limit=4096), group)
        if device is not None:
            found.append(device)
    return tuple(found)


def _skew(view: HostView, clock: Callable[[], float]) -> float:
    before = clock()
    said = texts.parse_clock(view.run(DATE))
    return said - (before + clock()) / 2
