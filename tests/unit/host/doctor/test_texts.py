# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What hosts show, one thing wrong at a time; any bytes give a value or a FormatError."""

import json
import struct
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.tcb import Silicon
from cvmtool.host.doctor import texts
from cvmtool.host.doctor.facts import AsidRange, KernelLog
from cvmtool.host.doctor.source import MAX_TEXT_BYTES

CPUINFO = (
    b"processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
    b"stepping\t: 1\nflags\t\t: sme sev\n\nprocessor\t: 1\nflags\t\t: other\n"
)
LIMITS = (
    b"Limit                     Soft Limit           Hard Limit           Units     \n"
    b"Max locked memory         8388608              %s             bytes     \n"
)
QMP = [
    {"QMP": {}},
    {"return": {}},
    {"return": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}},
    {"return": [{"name": "sev-guest"}, {"name": "sev-snp-guest"}]},
    {"return": {"cbitpos": 51, "reduced-phys-bits": 1}},
    {"return": {}},
]

PARSERS = [
    texts.parse_cpuinfo,
    texts.parse_kernel_log,
    texts.parse_flag,
    texts.parse_misc,
    texts.parse_meminfo,
    texts.parse_memlock,
    texts.parse_capabilities_mask,
    texts.parse_free_bytes,
    texts.parse_clock,
    texts.parse_nvidia_functions,
    texts.parse_qmp,
    texts.parse_platform_status,
    texts.parse_cpu_features,
    texts.parse_online,
]

FEATURES = [
    {"QMP": {}},
    {"return": {}},
    {"return": {"model": {"name": "EPYC", "props": {"avx2": True, "sse4_1": True, "avx512f": True, "smt": False}}}},
    {
        "return": [
            {"name": "other", "unavailable-features": ["avx2"]},
            {"name": "EPYC", "unavailable-features": ["avx512f"]},
        ]
    },
    {"return": {}},
]


def qmp(answers=QMP) -> bytes:
    return "\r\n".join(json.dumps(answer) for answer in answers).encode()


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(parse, data):
    with suppress(FormatError):
        parse(data)


@given(st.text())
def test_any_version_is_read_or_refused(version):
    with suppress(FormatError):
        assert texts.parse_version(version)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["return", "error", "desc", "qemu", "name", "cbitpos"]), inner)
        ),
        max_leaves=20,
    )
)
def test_any_json_over_qmp_is_read_or_refused(answer):
    for position in range(1, 5):
        with suppress(FormatError):
            texts.parse_qmp(qmp([*QMP[:position], {"return": answer}, *QMP[position + 1 :]]))


def test_the_first_processor_counts():
    cpu = texts.parse_cpuinfo(CPUINFO)
    assert (cpu.vendor, cpu.cpuid.silicon, cpu.flags) == ("AuthenticAMD", Silicon.GENOA, {"sme", "sev"})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"vendor_id", b"vendor"),
        (b": 25", b": x"),
        (b": 17", b": 99999"),
        (b"stepping", b"step"),
        (b": 25", b": \xd9\xa2"),
    ],
)
def test_a_processor_without_its_signature_is_refused(old, new):
    with pytest.raises(FormatError):
        texts.parse_cpuinfo(CPUINFO.replace(old, new, 1))


@pytest.mark.parametrize(
    ("text", "version"),
    [("6.11.0-29-generic", (6, 11, 0)), ("6.12.48+deb13-amd64", (6, 12, 48)), ("6.18-rc1", (6, 18)), ("7", (7,))],
)
def test_versions(text, version):
    assert texts.parse_version(text) == version


@pytest.mark.parametrize("text", ["", "v6.1", "-1", "\u0662.1"])
def test_no_version(text):
    with pytest.raises(FormatError):
        texts.parse_version(text)


NOTHING = KernelLog(
    whole=False,
    rmp_size=None,
    rmp_segmented=False,
    rmp_error=None,
    iommu_snp=False,
    iommu_error=None,
    psp=False,
    psp_error=None,
    sev_error=None,
    snp_api=None,
    sev_api=None,
    asids={},
)


def test_a_log_that_says_nothing():
    assert texts.parse_kernel_log(b"kvm: Nested Virtualization enabled\n") == NOTHING


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("Linux version 6.12", "whole", True),
        ("SEV-SNP: RMP table physical range [0x0000000088900000 - 0x00000000a8efffff]", "rmp_size", 0x20600000),
        ("SEV-SNP: RMP table physical range [0x2000 - 0x1000]", "rmp_size", None),
        ("SEV-SNP: Segmented RMP using 64GB segments", "rmp_segmented", True),
        ("AMD-Vi: IOMMU SNP support enabled.", "iommu_snp", True),
        ("ccp 0000:22:00.1: sev enabled", "psp", True),
        ("ccp 0000:42:00.1: SEV-SNP API:1.55 build:40", "snp_api", (1, 55, 40)),
        ("ccp 0000:42:00.1: SEV API:1.55 build:7", "sev_api", (1, 55, 7)),
        ("kvm_amd: SEV-ES disabled (ASIDs 0 - 0)", "asids", {"SEV-ES": AsidRange(state="disabled", first=0, last=0)}),
    ],
)
def test_one_line_gives_one_fact(line, field, value):
    log = texts.parse_kernel_log(f"[    1.0] {line}\n".encode())
    assert getattr(log, field) == value
    changed = {name for name in KernelLog.__slots__ if getattr(log, name) != getattr(NOTHING, name)}
    assert changed <= {field}


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("SEV-SNP: Memory for the RMP table has not been reserved by BIOS", "rmp_error"),
        ("SEV-SNP: Segmented RMP does not cover full system RAM (expected 0x2 got 0x1)", "rmp_error"),
        ("SEV-SNP: RMP configuration not valid: base=0x2000, end=0x1000", "rmp_error"),
        ("AMD-Vi: SNP: IOMMU SNP feature not enabled, SNP cannot be supported.", "iommu_error"),
        ("ccp 0000:42:00.1: SEV-SNP: failed to INIT rc -5, error 0x3", "psp_error"),
        ("ccp 0000:42:00.1: SEV-SNP: SNP_INIT_EX failed rc -5, error 0x3", "psp_error"),
        ("ccp 0000:42:00.1: SEV: failed to INIT error 0x1, rc -5", "sev_error"),
        ("ccp 0000:42:00.1: sev command 0x1 timed out, disabling PSP", "psp_error"),
        ("ccp 0000:23:00.1: SEV: failed to get status. Error: 0x9000", "psp_error"),
    ],
)
def test_an_error_is_quoted_and_no_longer_than_a_line(line, field):
    quoted = getattr(texts.parse_kernel_log(f"[    1.0] {line}{' x' * 999}\n".encode()), field)
    assert line.endswith(quoted[: len(line)]) or quoted.startswith(line[-60:])
    assert len(quoted) <= 200


def test_a_module_that_was_loaded_again_tells_its_last_word():
    log = b"kvm_amd: SEV-SNP disabled (ASIDs 1 - 99)\nkvm_amd: SEV-SNP enabled (ASIDs 1 - 99)\n"
    assert texts.parse_kernel_log(log).asids["SEV-SNP"].state == "enabled"


@pytest.mark.parametrize(
    ("text", "value"), [(b"Y\n", True), (b"N\n", False), (b"1", True), (b"0", False), (b"-1\n", False)]
)
def test_flags(text, value):
    assert texts.parse_flag(text) is value


@pytest.mark.parametrize("text", [b"", b"y", b"YN", b"1.0", b"\xff"])
def test_no_flag(text):
    with pytest.raises(FormatError):
        texts.parse_flag(text)


def test_misc_leaves_out_what_has_no_number():
    assert texts.parse_misc(b"sev 410\nsev_es max\ntdx 12\n") == {"sev": 410, "tdx": 12}


def test_memory():
    memory = texts.parse_meminfo(
        b"MemTotal: 1000 kB\nMemAvailable: 900 kB\nHugePages_Total: 3\nHugePages_Free: 2\nHugepagesize: 2048 kB\nHugetlb: 8192 kB\n"
    )
    assert (memory.total, memory.available, memory.huge, memory.huge_free) == (1000, 900, 8192, 4096)
    with pytest.raises(FormatError):
        texts.parse_meminfo(b"MemTotal: 1000 kB\n")


def test_locked_memory():
    assert texts.parse_memlock(LIMITS % b"8388608") == 8388608
    assert texts.parse_memlock(LIMITS % b"unlimited") is None
    for wrong in (LIMITS % b"some", b"Max open files 1 2 files\n"):
        with pytest.raises(FormatError):
            texts.parse_memlock(wrong)


def test_effective_capabilities():
    assert texts.parse_capabilities_mask(b"Name:\tx\nCapPrm:\t01\nCapEff:\t000001ffffffffff\n") == 0x1FFFFFFFFFF
    with pytest.raises(FormatError):
        texts.parse_capabilities_mask(b"CapPrm:\t01\n")


@pytest.mark.parametrize(
    ("row", "free"),
    [
        (b"/dev/nvme0n1p2  1845679104 212345678 81920      12% /", 81920 * 1024),
        (b"/dev/mapper/a b 100 50 -3 100% /var", 0),
        (b"overlay 1 1 7 - /", 7168),
    ],
)
def test_free_space(row, free):
    head = b"Filesystem     1024-blocks      Used Available Capacity Mounted on\n"
    assert texts.parse_free_bytes(head + row + b"\n") == free
    with pytest.raises(FormatError):
        texts.parse_free_bytes(head)


@pytest.mark.parametrize("wrong", [b"", b"nan", b"inf", b"1e9", b"-1", b"1_0", b"%s.%N", b"\xd9\xa1"])
def test_no_clock(wrong):
    assert texts.parse_clock(b"1780000000.25\n") == 1_780_000_000.25
    with pytest.raises(FormatError):
        texts.parse_clock(wrong)


@pytest.mark.parametrize(
    ("parse", "piece"),
    [
        (texts.parse_kernel_log, b"SEV-SNP: RMP segment size "),
        (texts.parse_kernel_log, b"SNP: IOMMU "),
        (texts.parse_kernel_log, b"ccp 0:"),
        (texts.parse_free_bytes, b"1 "),
        (texts.parse_nvidia_functions, b"0000 10de "),
        (texts.parse_misc, b"sev 1 "),
        (texts.parse_meminfo, b"MemTotal: "),
        (texts.parse_memlock, b"Max locked memory "),
        (texts.parse_cpuinfo, b"vendor_id : "),
    ],
)
def test_a_long_hostile_answer_costs_little(parse, piece):
    begun = time.process_time()
    for data in (b"head\n" + piece * (MAX_TEXT_BYTES // len(piece)), (piece * 40 + b"\n") * 3000):
        with suppress(FormatError):
            parse(data)
    assert time.process_time() - begun < 20  # a pattern that backtracks without end takes hours


def test_nvidia_functions():
    numbers = b"\t0" * 15
    data = (
        b"4100\t10de2331"
        + numbers
        + b"\tvfio-pci\n"
        + b"0108\t10de1234"
        + numbers
        + b"\n0000\t102214a4"
        + numbers
        + b"\n"
    )
    assert texts.parse_nvidia_functions(data) == (("0000:41:00.0", "vfio-pci"), ("0000:01:01.0", ""))


@pytest.mark.parametrize(
    ("uevent", "found"), [(b"PCI_CLASS=30200\n", True), (b"PCI_CLASS=40300\n", False), (b"DRIVER=x\n", False)]
)
def test_a_gpu_is_told_by_its_class(uevent, found):
    assert (texts.gpu("0000:41:00.0", "nvidia", uevent, 1) is not None) is found


def test_qemu():
    qemu = texts.parse_qmp(qmp())
    assert (qemu.version, qemu.confidential, qemu.sev) == ((10, 0, 2), {"sev-guest", "sev-snp-guest"}, (51, 1))
    without = texts.parse_qmp(
        qmp([*QMP[:4], {"error": {"class": "GenericError", "desc": "SEV is not enabled in KVM"}}])
    )
    assert (without.sev, without.sev_problem) == (None, "SEV is not enabled in KVM")


@pytest.mark.parametrize(
    "answers",
    [
        [],
        QMP[:4],
        [{"return": {}}] * 5,
        [*QMP[:2], {"error": {"desc": "no"}}, *QMP[3:]],
        [*QMP[:2], {"return": {"qemu": {"micro": 2, "minor": 0, "major": float("inf")}}}, *QMP[3:]],
    ],
)
def test_no_qemu(answers):
    with pytest.raises(FormatError):
        texts.parse_qmp(qmp(answers))


def test_platform_status():
    data = struct.pack("<BBBBIII8s8s", 1, 55, 1, 1, 40, 0b01, 7, b"current1", b"reported")
    status = texts.parse_platform_status(data)
    assert (status.api, status.initialised, status.rmp_initialised, status.guests) == ((1, 55, 40), True, True, 7)
    assert (status.mask_chip_id, status.mask_chip_key) == (True, False)
    assert (status.current_tcb, status.reported_tcb) == (b"current1", b"reported")
    with pytest.raises(FormatError):
        texts.parse_platform_status(data[:-1])


def test_a_guest_sees_what_the_model_has_and_the_accelerator_does_not_lack():
    assert texts.parse_cpu_features(qmp(FEATURES)) == {"avx2", "sse4-1"}


@pytest.mark.parametrize(
    ("at", "answer"),
    [
        (2, {"error": {"desc": "The CPU type 'EPYC' is not a known CPU type"}}),
        (2, {"return": {"model": {"name": "unlisted", "props": {"avx2": True}}}}),
        (3, {"return": []}),
        (3, {"return": [{"name": "EPYC"}]}),
    ],
)
def test_what_qemu_does_not_say_is_not_guessed(at, answer):
    with pytest.raises(FormatError):
        texts.parse_cpu_features(qmp([*FEATURES[:at], answer, *FEATURES[at + 1 :]]))


@pytest.mark.parametrize(("said", "count"), [(b"0\n", 1), (b"0-7\n", 8), (b"0-1,4,8-9\n", 5)])
def test_processors_are_counted(said, count):
    assert texts.parse_online(said) == count


@pytest.mark.parametrize("said", [b"", b"all", b"0-", b"0,,2", b"0-1-2"])
def test_something_else_is_no_list_of_processors(said):
    with pytest.raises(FormatError):
        texts.parse_online(said)
