# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Errors as people met them, one for each row, and the row that must know it; hostile text on top."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.host.failure_table import ROWS
from cvmtool.host.failures import MAX_MESSAGE, decode, hint
from cvmtool.host.firmware_status import STATUS

QEMU = "error: internal error: process exited while connecting to monitor: 2026-11-06T09:14:26.679347Z qemu-system-x86_64: "

MESSAGES = {
    "id-block-measurement": "qemu-system-x86_64: sev_snp_launch_finish: SNP_LAUNCH_FINISH ret=-5 fw_error=11 'Bad measurement'",
    "id-auth-signature": QEMU + "SNP_LAUNCH_FINISH ret=-5 fw_error=10 'Bad signature'",
    "id-block-policy": QEMU + "SNP_LAUNCH_FINISH ret=-5 fw_error=7 'Policy is not allowed'",
    "id-key": QEMU + "SNP_LAUNCH_FINISH ret=-5 fw_error=39 ''",
    "policy-refused": QEMU
    + "-accel kvm: sev_snp_launch_start: SNP_LAUNCH_START ret=-5 fw_error=7 'Policy is not allowed'",
    "launch-refused-by-kvm": QEMU + "-accel kvm: sev_snp_launch_start: SNP_LAUNCH_START ret=-22 fw_error=0 ''",
    "kernel-and-qemu-differ": "qemu-system-x86_64: sev_snp_launch_start: SNP_LAUNCH_START ret=-25 fw_error=0 ''",
    "asids-exhausted": QEMU + "sev_common_kvm_init: failed to initialize ret=-16 fw_error=0 ''",
    "cpuid-refused": "qemu-system-x86_64: SEV-SNP: CPUID validation failed for function 0x8000001d, index: 0x3.\n"
    "provided: eax:0x000bc163, ebx: 0x03c0003f, ecx: 0x00007fff, edx: 0x00000006\n"
    "qemu-system-x86_64: SEV-SNP: failed update CPUID page",
    "launch-update-refused-by-kvm": "qemu-system-x86_64: SNP_LAUNCH_UPDATE ret=-22 fw_error=0 ''",
    "firmware-without-hashes": "qemu-system-x86_64: SEV: guest firmware hashes table area is invalid (base=0x0 size=0x0)",
    "firmware-without-snp": "qemu-system-x86_64: pc_system_parse_sev_metadata: Failed to locate SEV metadata header",
    "firmware-on-pflash": "qemu-system-x86_64: SEV information block/Firmware GUID Table block not found in pflash rom",
    "firmware-not-found": "error: Domain requires SEV-SNP firmware '/usr/share/OVMF/OVMF_CODE_4M.fd' doesn't support it",
    "smm": "qemu-system-x86_64: SEV-SNP does not support SMM.",
    "kvm-without-snp": "qemu-system-x86_64: -accel kvm: vm-type SEV-SNP not supported by KVM",
    "needs-kvm": "qemu-system-x86_64: cannot set up private guest memory for sev-snp-guest: KVM required",
    "sev-off": '{"error": {"class": "GenericError", "desc": "SEV is not enabled in KVM"}}',
    "sev-device": "error: Path '/dev/sev' is not accessible: No such file or directory",
    "sev-type-unsupported": "error: unsupported configuration: "
    "'sev-snp' launch security is not supported with this QEMU binary",
    "libvirt-too-old": "error: unsupported configuration: unsupported launch security type 'sev-snp'",
    "launch-data-length": "error: unsupported configuration: Unexpected length of 'idAuth', expected 4096 got 3",
    "kvm-closed": "Could not access KVM kernel module: Permission denied\n"
    "qemu-system-x86_64: -accel kvm: failed to initialize kvm: Permission denied",
    "kvm-missing": "Could not access KVM kernel module: No such file or directory",
    "kvm-emulates": "KVM internal error. Suberror: 1\nextra data[0]: 0x0000000000000001\nemulation failure",
    "kvm-memory-fault": "error: kvm run failed Bad address",
    "kvm-run-refused": "error: kvm run failed Invalid argument\nEAX=00000000 EBX=00000000 ECX=00000000 EDX=00000000",
    "cpu-unknown": "qemu-system-x86_64: unable to find CPU model 'EPYC-v99'",
    "machine-type-unknown": "error: unsupported configuration: "
    "Emulator '/usr/bin/qemu-system-x86_64' does not support machine type 'pc-q35-10.1'",
    "vfio-and-snp": "qemu-system-x86_64: -device vfio-pci,host=0000:41:00.0: vfio 0000:41:00.0: "
    "Cannot set discarding of RAM broken: Device or resource busy",
    "memlock": "error: cannot limit locked memory of process 4711 to 9663676416: Operation not permitted",
    "vfio-group": "vfio 0000:41:00.0: group 27 is not viable\nPlease ensure all devices within the iommu_group are bound",
    "vfio-busy": "vfio 0000:41:00.0: failed to open /dev/vfio/27: Device or resource busy",
    "disk-locked": 'qemu-system-x86_64: -blockdev driver=raw: Failed to get "write" lock\n'
    "Is another process using the image [/var/lib/x.img]?",
    "disk-full": "error: cannot write data to file '/var/lib/libvirt/images/x': No space left on device",
    "huge-pages": "qemu-system-x86_64: unable to map backing store for guest RAM: Cannot allocate memory",
    "no-memory": "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory",
    "rmp-not-reserved": "[    0.642786] SEV-SNP: Memory for the RMP table has not been reserved by BIOS",
    "rmp-too-small": "SEV-SNP: Memory reserved for the RMP table does not cover full system RAM "
    "(expected 0x40100000 got 0x10100000)",
    "iommu": "AMD-Vi: SNP: IOMMU disabled or configured in passthrough mode, SNP cannot be supported.",
    "psp-init-config": "ccp 0000:42:00.1: SEV-SNP: failed to INIT rc -5, error 0x3",
    "processors-offline": "ccp 0000:22:00.1: SEV: DF_FLUSH failed 0xe, rc -5",
    "psp-silent": "ccp 0000:23:00.1: SEV: failed to get status. Error: 0x9000",
    "virtlogd": "error: Failed to connect socket to '/run/libvirt/virtlogd-sock': No such file or directory",
    "libvirt-not-running": "error: Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory",
    "libvirt-closed": "error: Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied",
    "embedded-driver-busy": "internal error: Failed to acquire pid file '/run/cvmtool/1/run/qemu/driver.pid': "
    "Resource temporarily unavailable",
    "name-taken": "error: operation failed: domain 'cvm' already exists with uuid 6f0c1b5e-6a0e-5f3c-9d11-2a3a8f5c9b01",
    "host-key": "error: End of file while reading data: Host key verification failed.: Input/output error",
    "file-closed": "qemu-system-x86_64: Could not open '/root/kernel': Permission denied",
}


def test_every_row_has_a_message_and_none_is_left_over():
    assert set(MESSAGES) == {row.code for row in ROWS}
    assert len(ROWS) == len(MESSAGES)


@pytest.mark.parametrize(("code", "message"), MESSAGES.items(), ids=MESSAGES)
def test_its_row_knows_it_first(code, message):
    causes = decode(message)
    assert causes[0].code == code
    assert causes[0].quoted in message


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
def test_a_row_says_everything_in_one_line(row):
    for text in row:
        assert text
        assert "\n" not in text
    assert re.fullmatch(r"[a-z][a-z-]+", row.code)


def test_rows_do_not_know_what_is_no_error():
    assert (
        decode("Linux version 6.12\nkvm_amd: SEV-SNP enabled (ASIDs 1 - 99)\nccp 0000:22:00.1: SEV API:1.55 build:40")
        == ()
    )


@pytest.mark.parametrize("number", STATUS, ids=lambda number: STATUS[number].name)
def test_a_status_alone_is_told_by_its_name(number):
    (cause,) = decode(f"qemu-system-x86_64: SNP_LAUNCH_OTHER ret=-5 fw_error={number} ''")
    assert STATUS[number].name in cause.cause
    assert decode(f"ccp 0000:42:00.1: SEV: failed, error {number:#x}, rc -5")[0].cause == cause.cause


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("ccp 0000:42:00.1: SEV-SNP: SNP_INIT_EX failed rc -5, error 0x3", "psp-init-config"),
        ("ccp 0000:42:00.1: SEV-SNP: SNP_DF_FLUSH failed rc -5, error 0xe", "processors-offline"),
        ("SEV: SNP_DF_FLUSH failed, ret = -5, error=0xe", "processors-offline"),
        ("qemu: vfio 0000:41:00.0: VFIO_MAP_DMA failed: Cannot allocate memory", "memlock"),
        ("vfio_container_dma_map(0x55, 0x0, 0xa0000, 0x7f) = -12 (Cannot allocate memory)", "memlock"),
        ("qemu-system-x86_64: error: failed to set MSR 0x10a to 0xc000069", "kvm-emulates"),
        ("SNP_LAUNCH_START ret=-16 fw_error=0 ''", "asids-exhausted"),
    ],
)
def test_other_words_for_the_same(message, code):
    assert decode(message)[0].code == code


def test_a_number_that_is_no_status_and_an_error_that_is_not_the_firmwares_are_not_guessed():
    assert decode("SNP_LAUNCH_START ret=-5 fw_error=9999 ''") == ()
    assert decode("nginx: error 11 while reading") == ()


def test_a_hint_comes_from_the_text_before_the_number():
    assert "another QEMU has this disk" in hint(MESSAGES["disk-locked"], 1)
    assert "is another cvmtool at work" in hint("cannot acquire state change lock", 9)
    assert hint("domain not found", 42) == "cvmtool vm list shows the machines there are"
    assert hint("whatever", 12345) is None
    assert hint("whatever", None) is None


def test_the_end_of_a_log_is_looked_at():
    assert decode("\n" * MAX_MESSAGE + MESSAGES["disk-full"])[0].code == "disk-full"
    assert decode(MESSAGES["disk-full"] + "\n" * MAX_MESSAGE) == ()


@pytest.mark.parametrize(
    "filler", ["SNP_LAUNCH_FINISH ret=-", "Failed to connect socket to '", "RMP ", "SNP: IOMMU ", "error "]
)
def test_a_hostile_message_costs_little(filler):
    begun = time.process_time()
    decode(filler * (MAX_MESSAGE // len(filler)))
    decode((filler * 90 + "\n") * 700)
    assert time.process_time() - begun < 20  # a pattern that backtracks without end takes hours


@given(st.text())
def test_any_text_is_taken(text):
    for cause in decode(text):
        assert cause.quoted in text
