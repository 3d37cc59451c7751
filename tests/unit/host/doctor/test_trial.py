# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The smallest guest, run for real under emulation; and programs that are no QEMU."""

import shutil

import pytest

from cvmtool.host.doctor.probe import EMULATORS
from cvmtool.host.doctor.trial import trial_rom, try_accelerator

QEMU = next((path for path in EMULATORS if shutil.which(path)), None)
needs_qemu = pytest.mark.skipif(QEMU is None, reason="no QEMU for x86-64")


@pytest.fixture
def program(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "qemu"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return write


def test_the_rom_begins_where_the_processor_does():
    rom = trial_rom()
    assert len(rom) == 1 << 16
    assert rom[-16:-11] == bytes.fromhex("ea00f000f0")
    assert rom[0xF000] == 0xFA


@needs_qemu
@pytest.mark.vm
@pytest.mark.parametrize("cpu", ["EPYC-Genoa", "EPYC-v4", "qemu64"])
def test_an_emulated_guest_reaches_its_end(cpu):
    assert "64-bit mode" in try_accelerator(QEMU, "tcg", cpu, seconds=60)


@needs_qemu
@pytest.mark.vm
def test_a_guest_whose_code_is_another_does_not(monkeypatch):
    monkeypatch.setattr("cvmtool.host.doctor.trial._CODE", b"\xfa\xf4\xeb\xfd")
    with pytest.raises(OSError, match="did not end within 1 s"):
        try_accelerator(QEMU, "tcg", "qemu64", seconds=1)


@needs_qemu
@pytest.mark.vm
def test_qemus_own_words_are_told():
    with pytest.raises(OSError, match="unable to find CPU model 'EPYC-v99'"):
        try_accelerator(QEMU, "tcg", "EPYC-v99")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 0", "QEMU ended with 0"),
        (
            "exec >&2; echo 'warning: x'; echo 'Could not access KVM kernel module: Permission denied'; exit 1",
            "Permission denied",
        ),
        ("echo 'KVM internal error. Suberror: 1' >&2; exec sleep 60", "KVM internal error"),
        ("exec sleep 60", "did not end within 1 s"),
    ],
)
def test_a_qemu_that_fails(program, script, told):
    with pytest.raises(OSError, match=told):
        try_accelerator(program(script), "kvm", "EPYC-v4", seconds=1)


def test_no_qemu():
    with pytest.raises(FileNotFoundError):
        try_accelerator("/no/such/qemu", "tcg", "EPYC-v4")
