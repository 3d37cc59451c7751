# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Parse what a host shows: /proc, /sys, the kernel's log, QMP replies.

Zone: host. Pure: no I/O. Whoever wrote the text is not trusted: any bytes give a value or a `FormatError`.
Sources: Linux arch/x86/virt/svm/sev.c, arch/x86/kvm/svm/sev.c, drivers/crypto/ccp/sev-dev.c, drivers/iommu/amd/init.c (the
messages, v6.11 to v6.18); include/uapi/linux/psp-sev.h; QEMU qapi/misc-target.json.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any

from cvmtool.errors import FormatError
from cvmtool.formats.tcb import Cpuid
from cvmtool.host.doctor.facts import (
    AsidRange,
    Cpu,
    Gpu,
    KernelLog,
    KvmAmd,
    Memory,
    PlatformStatus,
    Qemu,
    Version,
)
from cvmtool.host.doctor.source import text

PLATFORM_STATUS_BYTES = 32
MAX_QMP_BYTES = 1 << 20
_MAX_DIGITS = 18
_SHOWN = 200  # characters of a message that is quoted
_LONGEST_LINE = 1000  # printk's LOG_LINE_MAX, rounded down


def _number(digits: str, what: str) -> int:
    if not re.fullmatch(f"[0-9]{{1,{_MAX_DIGITS}}}", digits, re.ASCII):
        raise FormatError(f"{what} is {digits[:40]!r}; required: a number")
    return int(digits)


def parse_version(data: str) -> Version:
    """Read the numbers that a version begins with: `6.11.0-29-generic` is (6, 11, 0).

    Raises:
        FormatError: it does not begin with a number.
    """
    match = re.match(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}", data, re.ASCII)
    if match is None:
        raise FormatError(f"a version is {data[:40]!r}; required: numbers")
    return tuple(int(part) for part in match[0].split("."))


def parse_cpuinfo(data: bytes) -> Cpu:
    """Read the first processor of /proc/cpuinfo.

    Raises:
        FormatError: vendor, family, model or stepping are missing, or out of their range.
    """
    first = text(data).partition("\n\n")[0]
    rows = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    numbers = {name: _number(rows.get(name, ""), name) for name in ("cpu family", "model", "stepping")}
    if max(numbers.values()) > 0xFFF or not rows.get("vendor_id"):
        raise FormatError("the first processor has no vendor, or a family, model or stepping above 4095")
    cpuid = Cpuid(family=numbers["cpu family"], model=numbers["model"], stepping=numbers["stepping"])
    flags = frozenset(rows.get("flags", "").split())
    return Cpu(vendor=rows["vendor_id"][:_SHOWN], name=rows.get("model name", "")[:_SHOWN], cpuid=cpuid, flags=flags)


_RMP_RANGE = re.compile(r"SEV-SNP: RMP table physical (?:range|address) \[0x([0-9a-f]{1,16}) - 0x([0-9a-f]{1,16})\]")
_RMP_SEGMENTED = re.compile(r"SEV-SNP: Segmented RMP ")
_RMP_ERROR = re.compile(
    r"SEV-SNP: (?:Memory for the RMP table has not been reserved|Memory reserved for the RMP table does not cover"
    r"|Segmented RMP does not cover|RMP configuration not valid|RMP segment size .* not within|Failed to map RMP).*"
)
_IOMMU_ERROR = re.compile(r"SNP: IOMMU .*SNP cannot be supported.*")
_PSP_ERROR = re.compile(
    r"ccp [0-9a-f:.]+: (?:SEV-SNP: (?:failed|SNP_\w+ failed)|SEV: failed to get status"
    r"|sev command 0x[0-9a-f]+ timed out, disabling PSP|(?:psp: )?unable to access the device).*"
)
# The older SEV may fail while SNP works: firmware without SEV-ES beside SNP (AMD-SB-3023) is what owners ask for.
_SEV_ERROR = re.compile(r"ccp [0-9a-f:.]+: SEV: (?:failed to INIT|INIT failed|DF_FLUSH failed).*")
_API = re.compile(r"ccp [0-9a-f:.]+: (SEV(?:-SNP)?) API:([0-9]{1,3})\.([0-9]{1,3}) build:([0-9]{1,5})")
_ASIDS = re.compile(r"kvm_amd: (SEV(?:-ES|-SNP)?) (enabled|disabled|unusable) \(ASIDs ([0-9]{1,6}) - ([0-9]{1,6})\)")


def parse_kernel_log(data: bytes) -> KernelLog:
    """Read the kernel's log. Of repeated messages the last counts: a module can be loaded again."""
    # Patterns backtrack within a line, and the kernel writes none that is longer.
    log = "\n".join(line[:_LONGEST_LINE] for line in text(data).splitlines())
    apis = {name: (int(major), int(minor), int(build)) for name, major, minor, build in _API.findall(log)}
    ranges = _RMP_RANGE.findall(log)
    size = int(ranges[-1][1], 16) - int(ranges[-1][0], 16) + 1 if ranges else None
    return KernelLog(
        whole="Linux version " in log,
        rmp_size=size if size is not None and size > 0 else None,
        rmp_segmented=bool(_RMP_SEGMENTED.search(log)),
        rmp_error=_last(_RMP_ERROR, log),
        iommu_snp="AMD-Vi: IOMMU SNP support enabled" in log,
        iommu_error=_last(_IOMMU_ERROR, log),
        psp="ccp " in log and ": sev enabled" in log,
        psp_error=_last(_PSP_ERROR, log),
        sev_error=_last(_SEV_ERROR, log),
        snp_api=apis.get("SEV-SNP"),
        sev_api=apis.get("SEV"),
        asids={
            name: AsidRange(state=state, first=int(first), last=int(last))
            for name, state, first, last in _ASIDS.findall(log)
        },
    )


def _last(pattern: re.Pattern[str], log: str) -> str | None:
    found = [match[0] for match in pattern.finditer(log)]
    return found[-1][:_SHOWN] if found else None


def parse_flag(data: bytes) -> bool:
    """Read a module's parameter: `Y` and numbers above 0 are true, `N`, 0 and -1 false.

    Raises:
        FormatError: neither.
    """
    value = text(data).strip()
    if value in {"Y", "N"}:
        return value == "Y"
    if not re.fullmatch(r"-?[0-9]{1,9}", value, re.ASCII):
        raise FormatError(f"a parameter is {value[:40]!r}; required: Y, N or a number")
    return int(value) > 0


def kvm_amd_parameters(found: dict[str, bytes]) -> KvmAmd:
    """Read the parameters that exist, by name.

    Raises:
        FormatError: one of them is neither true nor false.
    """
    return KvmAmd(**{name: parse_flag(found[name]) if name in found else None for name in ("sev", "sev_es", "sev_snp")})


def parse_misc(data: bytes) -> dict[str, int]:
    """Read a file of the misc control group, lines such as `sev_es 99`. Those of another form (`max`) are left out."""
    return {
        name: int(value)
        for name, value in re.findall(r"^(\w{1,32}) ([0-9]{1,9})$", text(data), re.MULTILINE | re.ASCII)
    }


def parse_meminfo(data: bytes) -> Memory:
    """Read /proc/meminfo.

    Raises:
        FormatError: the total or what is available is missing.
    """
    rows = dict(re.findall(r"^(\w+): +([0-9]{1,15})", text(data), re.MULTILINE | re.ASCII))
    for name in ("MemTotal", "MemAvailable"):
        if name not in rows:
            raise FormatError(f"meminfo has no {name}")
    page = int(rows.get("Hugepagesize", "0"))
    pages, free = int(rows.get("HugePages_Total", "0")), int(rows.get("HugePages_Free", "0"))
    # Hugetlb counts pages of every size, the total above only those of the default one.
    huge = max(int(rows.get("Hugetlb", "0")), pages * page)
    return Memory(
        total=int(rows["MemTotal"]), available=int(rows["MemAvailable"]), huge=huge, huge_free=min(free * page, huge)
    )


def parse_memlock(data: bytes) -> int | None:
    """Read the hard limit of `Max locked memory` in /proc/PID/limits, in bytes; None for no limit.

    Raises:
        FormatError: there is no such line.
    """
    match = re.search(r"^Max locked memory +\S+ +(\S+) +bytes", text(data), re.MULTILINE)
    if match is None:
        raise FormatError("limits have no line for locked memory")
    return None if match[1] == "unlimited" else _number(match[1], "the limit of locked memory")


def parse_capabilities_mask(data: bytes) -> int:
    """Read the effective capabilities in /proc/PID/status.

    Raises:
        FormatError: there is no such line.
    """
    match = re.search(r"^CapEff:\s+([0-9a-f]{1,16})$", text(data), re.MULTILINE)
    if match is None:
        raise FormatError("status has no line for effective capabilities")
    return int(match[1], 16)


def parse_free_bytes(data: bytes) -> int:
    """Read `df -Pk DIRECTORY`: the free space, in bytes.

    Raises:
        FormatError: there is no such column.
    """
    for line in text(data).splitlines()[1:3]:  # a long name of a device has a line of its own
        fields = line.split(maxsplit=64)[:64]
        for at in range(3, len(fields) - 1):
            sizes = fields[at - 3 : at]
            if re.fullmatch("[0-9]{1,3}%|-", fields[at]) and all(re.fullmatch("-?[0-9]{1,15}", size) for size in sizes):
                return max(0, int(sizes[-1])) * 1024
    raise FormatError("df shows no free space")


def parse_clock(data: bytes) -> float:
    """Read `date +%s.%N`: Unix time in seconds.

    Raises:
        FormatError: something else.
    """
    said = text(data).strip()
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", said, re.ASCII):
        raise FormatError(f"date says {said[:40]!r}; required: seconds")
    return float(said)


def parse_nvidia_functions(data: bytes) -> tuple[tuple[str, str], ...]:
    """Read /proc/bus/pci/devices: slot (0000:41:00.0) and driver of each function whose vendor is NVIDIA.

    The file has no domain; slots of other domains than 0 are not told apart.
    """
    found = []
    for line in text(data).splitlines():
        fields = line.split()
        if len(fields) < 2 or not re.fullmatch("[0-9a-f]{4}", fields[0]) or not fields[1].startswith("10de"):
            continue
        address = int(fields[0], 16)
        slot = f"0000:{address >> 8:02x}:{(address >> 3) & 31:02x}.{address & 7}"
        # The driver's name follows seventeen numbers, where there is one.
        found.append((slot, fields[17][:64] if len(fields) > 17 else ""))
    return tuple(found)


def gpu(slot: str, driver: str, uevent: bytes, group: int | None) -> Gpu | None:
    """Return the GPU of a function's uevent file; None for its sound card, USB and bridges."""
    # PCI class 03: display controllers; 0302 is what NVIDIA's data-centre GPUs are.
    match = re.search(r"^PCI_CLASS=([0-9A-F]{1,6})$", text(uevent), re.MULTILINE | re.ASCII)
    if match is None or int(match[1], 16) >> 16 != 3:
        return None
    return Gpu(slot=slot, driver=driver, group=group)


def parse_qmp(data: bytes) -> Qemu:
    """Read what QEMU answers to qmp_capabilities, query-version, qom-list-types, query-sev-capabilities and quit.

    Raises:
        FormatError: not lines of JSON, or not these answers.
    """
    try:
        answers = _qmp_answers(data)
        version = answers[1]["return"]
        numbers = tuple(int(version["qemu"][name]) for name in ("major", "minor", "micro"))
        package = str(version.get("package", ""))[:_SHOWN]
        types = frozenset(str(item["name"]) for item in answers[2]["return"])
        sev = answers[3].get("return")
        pair = None if sev is None else (int(sev["cbitpos"]), int(sev["reduced-phys-bits"]))
        problem = "" if sev is not None else str(answers[3]["error"]["desc"])[:_SHOWN]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError("QEMU gives no usable answer over QMP") from error
    return Qemu(version=numbers, package=package, confidential=types, sev=pair, sev_problem=problem)


def parse_cpu_features(data: bytes) -> frozenset[str]:
    """Read what QEMU answers to qmp_capabilities, query-cpu-model-expansion, query-cpu-definitions and quit: a model's features.

    What the accelerator lacks is taken away: a guest is started without it. Names are QEMU's, with `-` and never `_`.

    Raises:
        FormatError: not these answers, or QEMU knows no such model.
    """
    try:
        answers = _qmp_answers(data)
        model = answers[1]["return"]["model"]
        features = {str(name).replace("_", "-") for name, value in model["props"].items() if value is True}
        named = [item for item in answers[2]["return"] if item["name"] == model["name"]]
        lacking = {str(name).replace("_", "-") for name in named[0]["unavailable-features"]}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError("QEMU does not say what the CPU model has") from error
    return frozenset(features - lacking)


def _qmp_answers(data: bytes) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text(data[:MAX_QMP_BYTES]).splitlines()]
    return [line for line in lines if isinstance(line, dict) and ("return" in line or "error" in line)]


def parse_online(data: bytes) -> int:
    """Read /sys/devices/system/cpu/online, such as `0-7,16-23`: how many processors there are.

    Raises:
        FormatError: something else.
    """
    said = text(data[:4096]).strip()
    if not re.fullmatch(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*", said, re.ASCII):
        raise FormatError(f"the list of processors is {said[:40]!r}; required: ranges such as 0-7")
    ranges = [part.partition("-") for part in said.split(",")]
    return sum(max(0, int(last or first) - int(first) + 1) for first, _, last in ranges)


def parse_platform_status(data: bytes) -> PlatformStatus:
    """Read the 32 bytes of SNP_PLATFORM_STATUS (AMD 56860, table STRUCT_PLATFORM_STATUS; little-endian).

    Raises:
        FormatError: another size.
    """
    if len(data) != PLATFORM_STATUS_BYTES:
        raise FormatError(f"platform status has {len(data)} bytes; required: {PLATFORM_STATUS_BYTES}")
    major, minor, state, rmp, build, flags, guests = struct.unpack_from("<BBBBIII", data)
    return PlatformStatus(
        api=(major, minor, build),
        initialised=state != 0,
        rmp_initialised=bool(rmp & 1),
        mask_chip_id=bool(flags & 1),
        mask_chip_key=bool(flags & 2),
        guests=guests,
        current_tcb=data[16:24],
        reported_tcb=data[24:32],
    )
