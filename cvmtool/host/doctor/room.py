# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Is there room for a machine, do clocks agree, and can a GPU be handed on?

Zone: host. Pure: no I/O.
"""

from __future__ import annotations

from cvmtool.host.doctor.facts import Seen
from cvmtool.host.doctor.line import Outcome, fail, ok, unknown, warn

SKEW_WARNED_SECONDS = 5.0
SKEW_REFUSED_SECONDS = 300.0
_UNUSED_HUGE = 4  # a warning when more than a quarter of the memory lies idle in huge pages


def gpus(seen: Seen) -> Outcome:
    """Are NVIDIA GPUs ready to be handed to a guest?"""
    found = seen.host.gpus
    if found.value is None:
        return unknown(found)
    if not found.value:
        return ok(f"{found.source}: no NVIDIA GPU, so jobs without one")
    told = ", ".join(f"{gpu.slot} driver {gpu.driver or 'none'}" for gpu in found.value[:8])
    ungrouped = [gpu.slot for gpu in found.value if gpu.group is None]
    if ungrouped:
        return warn(f"{found.source}: {told}; no IOMMU group for {ungrouped[0]}", "in the BIOS: IOMMU = Enabled")
    bound = [gpu.slot for gpu in found.value if gpu.driver not in {"", "vfio-pci"}]
    if bound:
        return warn(
            f"{found.source}: {told}; the host's driver holds {len(bound)}",
            "bind it to vfio-pci and set confidential-computing mode with NVIDIA's gpu-admin-tools; the mode cannot be read here",
        )
    return ok(f"{found.source}: {told}; confidential-computing mode unknown: only its own attestation shows it")


def memlock(seen: Seen) -> Outcome:
    """May libvirt lock the memory of a guest that gets a device?"""
    daemon, devices = seen.host.daemon, seen.host.gpus.value
    if not devices:
        return ok("no GPU to hand on, so no memory has to be locked")
    if daemon.value is None:
        return unknown(daemon)
    if daemon.value.memlock is None or daemon.value.may_raise:
        return ok(f"{daemon.source}: {'may raise its limit' if daemon.value.may_raise else 'no limit'}")
    limit = daemon.value.memlock
    if limit < seen.owner.memory_mib << 20:
        return fail(
            f"{daemon.source}: Max locked memory {limit} bytes, without CAP_SYS_RESOURCE",
            "systemctl edit libvirtd: LimitMEMLOCK=infinity under [Service]; in a container: --ulimit memlock=-1",
        )
    return warn(
        f"{daemon.source}: Max locked memory {limit >> 20} MiB: larger guests with a GPU cannot start",
        "LimitMEMLOCK=infinity",
    )


def huge_pages(seen: Seen) -> Outcome:
    """Do huge pages leave memory for guests? A guest's private memory (guest_memfd) cannot come out of them."""
    memory = seen.host.memory
    if memory.value is None:
        return unknown(memory)
    found = memory.value
    said = f"{memory.source}: {found.huge >> 10} MiB in huge pages, {found.huge_free >> 10} of them unused"
    remedy = "sysctl vm.nr_hugepages=0, and take hugepages= off the kernel's command line"
    needed = seen.owner.memory_mib << 10
    if found.available < needed <= found.huge_free:
        return fail(f"{said}, {found.available >> 10} MiB left for everything else", remedy)
    if found.huge_free * _UNUSED_HUGE > found.total:
        return warn(said, remedy)
    return ok(said)


def memory(seen: Seen) -> Outcome:
    """Is there memory for the smallest machine?"""
    found = seen.host.memory
    if found.value is None:
        return unknown(found)
    said = f"{found.source}: {found.value.available >> 10} of {found.value.total >> 10} MiB available"
    if found.value.available < seen.owner.memory_mib << 10:
        return fail(f"{said}; required: {seen.owner.memory_mib} MiB", "stop what else runs there, or use a larger host")
    return ok(said)


def disk(seen: Seen) -> Outcome:
    """Is there disk space for an image and its packs?"""
    found = seen.host.disk
    if found.value is None:
        return unknown(found)
    said = f"{found.source}: {found.value >> 20} MiB free"
    if found.value < seen.owner.disk_bytes:
        return fail(
            f"{said}; required: {seen.owner.disk_bytes >> 20} MiB",
            "make room there, or set machines_dir (docs/reference/files.md)",
        )
    return ok(said)


def clock(seen: Seen) -> Outcome:
    """Does the host's clock agree with the owner's? The guest takes its time from the host."""
    skew, synchronised = seen.host.skew, seen.host.synchronised.value
    if skew.value is None:
        return unknown(skew)
    said = (
        f"{skew.source}: {skew.value:+.1f} s against the owner's clock"
        if seen.owner.remote
        else "the owner's own clock"
    )
    remedy = "apt-get install systemd-timesyncd; timedatectl set-ntp true"
    if abs(skew.value) > SKEW_REFUSED_SECONDS:
        return fail(said, remedy)
    if abs(skew.value) > SKEW_WARNED_SECONDS or synchronised is False:
        return warn(said + ("; not synchronised, says timedatectl" if synchronised is False else ""), remedy)
    return ok(said)


def key_service(seen: Seen) -> Outcome:
    """Can the owner fetch AMD's certificates?"""
    found = seen.owner.key_service
    if found.value is None:
        return unknown(
            found, "none needed where certificates are cached or come with the evidence: cvmtool attest bundle"
        )
    return ok(f"{found.source}: {found.value}")
