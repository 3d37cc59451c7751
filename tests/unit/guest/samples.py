# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Values that several tests of the guest start from; each test changes one thing."""

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from cvmtool.formats.job import (
    Container,
    JobManifest,
    Limits,
    Network,
    Output,
    OutputKind,
    Resources,
)
from cvmtool.formats.pack import BLOCK, HEADER_SIZE, PackDescriptor, Role

UUID = "b15a00be-a260-4fb2-8aa3-ff202c4276a6"
REPORT_BYTES = 1184


def pack(name: str = "tools", role: Role = Role.CONTAINER, **changes) -> PackDescriptor:
    blocks = HEADER_SIZE // BLOCK + 16
    base = PackDescriptor(
        name=name,
        role=role,
        root_hash=name.encode().hex().ljust(64, "0"),
        salt="5a" * 32,
        data_blocks=blocks,
        hash_offset=blocks * BLOCK,
        size=(blocks + 40) * BLOCK,
        luks_uuid=UUID,
        volume_key_digest="A" * 43 + "=",
        header_sha256="00" * 32,
    )
    return dataclasses.replace(base, **changes)


def manifest(**changes) -> JobManifest:
    base = JobManifest(
        name="digits",
        salt="11" * 32,
        owner_key="22" * 32,
        container=Container(
            oci_digest="sha256:" + "33" * 32, args=("/bin/train", "--fast"), env=(("HOME", "/scratch"),), workdir="/app"
        ),
        packs=(pack(), pack("digits", Role.INPUT)),
        outputs=(Output(name="metrics.json", kind=OutputKind.JSON, max_bytes=100),),
        resources=Resources(vcpus=1, memory_mib=1024, cpu="EPYC-Genoa"),
        limits=Limits(memory_mib=256, pids=64, scratch_mib=32, outputs_mib=16, log_mib=1, seconds=60),
        network=Network.NONE,
    )
    return dataclasses.replace(base, **changes)


def report(report_data: bytes, host_data: bytes) -> bytes:
    """Bytes of a report's size with the fields that the guest looks at."""
    data = bytearray(REPORT_BYTES)
    data[0x20:0x30] = b"I" * 16
    data[0x90:0xC0] = b"L" * 48
    data[0x50:0x90] = report_data
    data[0xC0:0xE0] = host_data
    return bytes(data)


def filling(data: bytes) -> Callable[[memoryview, int], int]:
    """What fills memory from `data`, as `os.preadv` does from a file."""

    def read_into(into: memoryview, at: int) -> int:
        piece = data[at : at + len(into)]
        into[: len(piece)] = piece
        return len(piece)

    return read_into


def luks_format(path: Path, *, key: bytes = b"k" * 32, cipher: str = "aes-xts-plain64") -> bytes:
    """Make a container as `cvmtool data pack` does, with the real tool; return its header."""
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(HEADER_SIZE + 16 * BLOCK)
    arguments = ["cryptsetup", "luksFormat", "--batch-mode", "--type=luks2", f"--cipher={cipher}", "--key-size=512"]
    arguments += [f"--sector-size={BLOCK}", f"--uuid={UUID}", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"]
    arguments += [f"--offset={HEADER_SIZE // 512}", "--key-file=-", str(path)]
    subprocess.run(arguments, input=key, check=True)
    return header_of(path)


def header_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEADER_SIZE)


def luks_tool(path: Path, *arguments: str, stdin: bytes = b"") -> None:
    subprocess.run(["cryptsetup", *arguments, str(path)], input=stdin, check=True)


HAVE_CRYPTSETUP = shutil.which("cryptsetup") is not None
