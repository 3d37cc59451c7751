# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Persistent volumes and the owner's shell on real guests, against a host that keeps every state its disks were in.

One story over four lives of a machine: the tests of a life run in their order and share its guest.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import paramiko
import pytest

from cvmtool.config import Settings
from cvmtool.errors import FreshnessError
from cvmtool.flows.attach import demand_evidence
from cvmtool.flows.images import bring_up_to_date
from cvmtool.flows.machine import Machine
from cvmtool.flows.platform import dry_run
from cvmtool.formats.control import Op
from cvmtool.formats.pack import HEADER_SIZE
from cvmtool.formats.volume import SECTOR
from cvmtool.host.channel import GuestError
from cvmtool.image.bundle import Bundle
from cvmtool.owner.keystore import generate_keys
from tests.scenario.workbench import Workbench, new_volume, run, transport

pytestmark = [pytest.mark.vm, pytest.mark.image]
OLD, NEW = secrets.token_bytes(3 << 20), secrets.token_bytes(3 << 20)
BULK = secrets.token_bytes(16 << 20)


@pytest.fixture(scope="module")
def bench(settings: Settings, place: Path) -> Workbench:
    folder = place / "volumes"
    folder.mkdir()
    return Workbench(
        settings=settings,
        bundle=bring_up_to_date("operator", settings, progress=lambda _: None, notice=lambda _: None),
        platform=dry_run(settings),
        folder=folder,
        volumes=(new_volume("data"), new_volume("other")),
    )


@dataclass(frozen=True)
class Kept:
    """The disks after a life, as a host keeps them."""

    data: Path
    other: Path


def keep(bench: Workbench, name: str) -> Kept:
    paths = []
    for volume in bench.volumes:
        paths.append(bench.folder / f"{volume.name}.{name}")
        subprocess.run(["cp", "--sparse=always", bench.disk(volume), paths[-1]], check=True)
    return Kept(*paths)


def show(disk: Path, content: Path | None, *, change: Callable[[int, bytes, bytes], bytes] | None = None) -> None:
    """Put a kept disk (None: a blank one) under a guest that runs. `change` gets block number, present and kept block."""
    with disk.open("r+b") as file, (content or Path("/dev/zero")).open("rb") as source:
        for number in range(disk.stat().st_size // SECTOR):
            present, kept = file.read(SECTOR), source.read(SECTOR)
            wanted = change(number, present, kept) if change else kept
            if wanted != present:
                file.seek(number * SECTOR)
                file.write(wanted)
                file.seek((number + 1) * SECTOR)


def refused(bench: Workbench, machine: Machine) -> tuple[str, str | None]:
    with bench.attach(machine) as attached, pytest.raises(GuestError) as error:
        bench.release(attached)
    return error.value.error, error.value.volume


def end(bench: Workbench, machine: Machine) -> None:
    with bench.attach(machine) as attached:
        bench.commit(attached)
        attached.channel.request(Op.POWEROFF)
    assert machine.wait_off()
    machine.remove()


# ---- the first life: blank disks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(bench: Workbench) -> Iterator[Machine]:
    machine = bench.start()
    yield machine
    machine.remove()


def test_blank_disks_become_volumes(bench: Workbench, first: Machine) -> None:
    with bench.attach(first) as attached:
        bench.configure(attached)
        assert attached.channel.request(Op.STATUS)["volumes"] == []
        assert sorted(bench.release(attached)["timings"]) == ["data", "other"]
        state = {"counter": 1, "created": True, "damaged": False}
        assert attached.channel.request(Op.STATUS)["volumes"] == [
            {"name": "data", **state},
            {"name": "other", **state},
        ]
        with pytest.raises(paramiko.ChannelException):  # the shell begins with the next session
            transport(attached).open_session()


def test_another_owner_gets_no_answer(bench: Workbench, first: Machine) -> None:
    stranger = replace(bench.challenge, keys=generate_keys())
    with ExitStack() as stack, pytest.raises(FreshnessError):
        demand_evidence(first, stranger, bench.platform, stack)


def test_the_shell_is_an_ordinary_user_s(bench: Workbench, first: Machine) -> None:
    with bench.attach(first) as attached:
        code, output, _ = run(attached, "id -u; id -g; pwd; cat /proc/self/oom_score_adj; ls")
        assert (code, output.split()) == (0, [b"990", b"990", b"/volumes", b"1000", b"data", b"other"])
        for secret in (
            "/run/cvmtool/ssh_host_ed25519_key",
            "/run/cvmtool/whole/data/epoch",
            "/proc/1/environ",
            "/dev/mapper/control",
            "/dev/vda",
        ):
            code, output, errors = run(attached, f"cat {secret}")
            assert (code, output) == (1, b""), secret
            assert b"Permission denied" in errors
        assert run(attached, "find / -xdev -perm /6000 2>/dev/null")[1] == b""
        assert run(attached, "exit 7")[0] == 7


def test_a_terminal(bench: Workbench, first: Machine) -> None:
    with bench.attach(first) as attached:
        session = transport(attached).open_session()
        session.settimeout(120)
        session.get_pty()
        session.invoke_shell()
        session.sendall(b"tty; echo done-$((40+2)); exit 3\n")
        output = session.makefile("rb").read()
        assert b"/dev/pts/" in output
        assert b"done-42" in output
        assert session.recv_exit_status() == 3


def test_a_session_reaches_the_control_service_and_nothing_else(bench: Workbench, first: Machine) -> None:
    with bench.attach(first) as attached:
        assert attached.channel.request(Op.STATUS)["shell"] is True
        for address in (("127.0.0.1", 22), ("10.0.2.2", 80)):
            with pytest.raises(paramiko.ChannelException):
                transport(attached).open_channel("direct-tcpip", address, ("127.0.0.1", 0))
        with pytest.raises(paramiko.SSHException):
            transport(attached).request_port_forward("127.0.0.1", 0)


def test_files_over_sftp(bench: Workbench, first: Machine, tmp_path: Path) -> None:
    with bench.attach(first) as attached:
        sftp = paramiko.SFTPClient.from_transport(transport(attached))
        assert sftp is not None
        with sftp.open("/volumes/data/state", "wb") as file:
            file.write(OLD)
        with sftp.open("/volumes/data/state", "rb") as file:
            assert file.read() == OLD
        with pytest.raises(OSError, match="denied"):
            sftp.open("/volumes/more", "wb")
        sftp.close()


@pytest.fixture(scope="module")
def oldest(bench: Workbench, first: Machine) -> Kept:
    with bench.attach(first) as attached:
        assert run(attached, "setsid sleep 1000 >/volumes/other/log 2>&1 & echo other >/volumes/other/name")[0] == 0
    end(bench, first)
    return keep(bench, "oldest")


# ---- the second life: what was written is there ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(bench: Workbench, oldest: Kept) -> Iterator[Machine]:
    machine = bench.start()
    yield machine
    machine.remove()


def test_what_was_written_is_there_after_a_life(bench: Workbench, second: Machine) -> None:
    with bench.attach(second) as attached:
        bench.configure(attached)
        bench.release(attached)
        volumes = attached.channel.request(Op.STATUS)["volumes"]
        assert [(volume["counter"], volume["created"]) for volume in volumes] == [(3, False), (3, False)]
    with bench.attach(second) as attached:
        assert run(attached, "cat /volumes/data/state")[1] == OLD
        assert run(attached, "cat /volumes/other/name")[1] == b"other\n"


@pytest.fixture(scope="module")
def revived(bench: Workbench, second: Machine) -> Iterator[Machine]:
    """The guest wrote a state whose answer its owner never had, went on writing, and was killed in the middle of it."""
    with bench.attach(second) as attached:
        assert run(attached, "echo kept >/volumes/data/kept")[0] == 0
        bench.commit(attached, heard=False)
        busy = "while :; do head -c 300000 /dev/urandom >>/volumes/data/growing; sync; done"
        assert run(attached, f"setsid sh -c '{busy}' >/dev/null 2>&1 & sleep 5")[0] == 0
        second.hypervisor.destroy(second.name)
    second.remove()
    machine = bench.start()
    yield machine
    machine.remove()


def test_a_lost_answer_and_a_dead_guest_lock_nobody_out(bench: Workbench, revived: Machine) -> None:
    with bench.attach(revived) as attached:
        bench.configure(attached)
        bench.release(attached)
        volumes = attached.channel.request(Op.STATUS)["volumes"]
        assert [(volume["counter"], volume["damaged"]) for volume in volumes] == [(5, False), (5, False)]
    with bench.attach(revived) as attached:
        assert run(attached, "cat /volumes/data/kept")[1] == b"kept\n"
        assert run(attached, "cat /volumes/data/state")[1] == OLD
        assert int(run(attached, "cat /volumes/data/growing | wc -c; rm /volumes/data/growing")[1]) >= 300_000
        volumes = attached.channel.request(Op.STATUS)["volumes"]
        assert [volume["damaged"] for volume in volumes] == [False, False]


@pytest.fixture(scope="module")
def before(bench: Workbench, revived: Machine) -> Kept:
    """The disks under a running guest, before `bulk` is written."""
    with bench.attach(revived) as attached:
        bench.commit(attached)
    return keep(bench, "before")


@pytest.fixture(scope="module")
def newest(bench: Workbench, before: Kept, revived: Machine) -> Kept:
    with bench.attach(revived) as attached:
        assert run(attached, "cat >/volumes/data/state", stdin=NEW)[0] == 0
        assert run(attached, "cat >/volumes/data/bulk", stdin=BULK)[0] == 0
    end(bench, revived)
    return keep(bench, "newest")


def test_nothing_of_it_is_on_the_disks(newest: Kept) -> None:
    content = newest.data.read_bytes() + newest.other.read_bytes()
    for secret in (OLD, NEW, BULK):
        assert secret[4096:4160] not in content
    assert b"LUKS\xba\xbe" in content  # the search finds what is there


# ---- the last life: a host that attacks ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def third(bench: Workbench, newest: Kept) -> Iterator[Machine]:
    machine = bench.start()
    with bench.attach(machine) as attached:
        bench.configure(attached)
    yield machine
    machine.remove()


@pytest.fixture
def disk(bench: Workbench, newest: Kept) -> Iterator[Path]:
    """The disk of `data`, which a test may change; afterwards it is the newest again."""
    path = bench.disk(bench.volumes[0])
    history = dict(bench.history)
    yield path
    show(path, newest.data)
    bench.history = history


def test_a_disk_that_was_rolled_back_is_refused(bench: Workbench, oldest: Kept, third: Machine, disk: Path) -> None:
    show(disk, oldest.data)
    assert refused(bench, third) == ("volume-rolled-back", "data")


def test_blocks_that_were_turned_back_one_by_one_are_never_old_data(
    bench: Workbench, oldest: Kept, third: Machine, disk: Path
) -> None:
    """Every second of the blocks that changed since: each was genuine once, in its place."""
    show(disk, oldest.data, change=lambda number, present, kept: present if number % 2 else kept)
    error, volume = refused(bench, third)
    assert (error in {"volume-integrity", "volume-rolled-back"}, volume) == (True, "data")


def test_a_disk_that_was_wiped_is_refused_and_not_made_anew(bench: Workbench, third: Machine, disk: Path) -> None:
    show(disk, None)
    assert refused(bench, third) == ("volume-rolled-back", "data")
    with disk.open("rb") as file:
        assert not any(file.read(HEADER_SIZE))


def test_swapped_disks_are_refused(bench: Workbench, newest: Kept, third: Machine, disk: Path) -> None:
    show(disk, newest.other)
    assert refused(bench, third) == ("volume-header", "data")


def null_cipher(header: bytes) -> bytes:
    """Name the null cipher for the payload, and give the header the checksum of what it says then (CVE-2025-59054)."""
    changed = bytearray(header)
    for at in (0, 16_384):
        area = changed[at : at + 16_384]
        metadata = json.loads(area[4096:].rstrip(b"\0"))
        metadata["segments"]["0"]["encryption"] = "cipher_null-ecb"
        area[4096:] = json.dumps(metadata).encode().ljust(12_288, b"\0")
        area[448:512] = bytes(64)
        area[448:512] = hashlib.sha256(area).digest().ljust(64, b"\0")
        changed[at : at + 16_384] = area
    return bytes(changed)


def test_a_header_that_the_host_rewrote_is_refused(
    bench: Workbench, newest: Kept, third: Machine, disk: Path, tmp_path: Path
) -> None:
    with newest.data.open("rb") as file:
        header = null_cipher(file.read(HEADER_SIZE))
    with disk.open("r+b") as file:
        file.write(header)
    assert refused(bench, third) == ("volume-header", "data")


def test_a_key_slot_that_is_not_the_owner_s_is_refused(
    bench: Workbench, newest: Kept, third: Machine, disk: Path
) -> None:
    with disk.open("r+b") as file:
        file.seek(32_768)
        file.write(secrets.token_bytes(385_024))
    assert refused(bench, third) == ("volume-key", "data")


def test_blocks_in_each_other_s_place_are_refused(bench: Workbench, third: Machine, disk: Path) -> None:
    """All of them genuine, each in the place of the one before it."""
    with disk.open("r+b") as file:
        file.seek(HEADER_SIZE + (64 << 10))
        content = file.read()
        file.seek(HEADER_SIZE + (64 << 10))
        file.write(content[SECTOR:])
    assert refused(bench, third) == ("volume-integrity", "data")


def test_a_flipped_block_is_an_error_and_never_other_data(
    bench: Workbench, before: Kept, newest: Kept, third: Machine
) -> None:
    disk = bench.disk(bench.volumes[0])
    with bench.attach(third) as attached:
        bench.release(attached)  # the newest state opens in the same guest that refused all others
    with disk.open("r+b") as file, before.data.open("rb") as earlier:
        changed = [
            number for number in range(disk.stat().st_size // SECTOR) if file.read(SECTOR) != earlier.read(SECTOR)
        ]
        for number in longest_run(changed)[64:-64:32]:  # within `bulk`, which nobody has read in this life
            file.seek(number * SECTOR)
            byte = file.read(1)
            file.seek(number * SECTOR)
            file.write(bytes([byte[0] ^ 1]))
    with bench.attach(third) as attached:
        code, output, errors = run(attached, "cat /volumes/data/bulk")
        assert code == 1
        assert b"Input/output error" in errors
        assert BULK.startswith(output)
        assert run(attached, "cat /volumes/data/state")[1] == NEW  # what was not changed is there
        damaged = {volume["name"]: volume["damaged"] for volume in attached.channel.request(Op.STATUS)["volumes"]}
        assert damaged == {"data": True, "other": False}
        with pytest.raises(GuestError) as error:
            bench.commit(attached)
        assert (error.value.error, error.value.volume) == ("volume-integrity", "data")
        attached.channel.request(Op.POWEROFF)
    assert third.wait_off()


def longest_run(numbers: list[int]) -> list[int]:
    runs: list[list[int]] = [[]]
    for number in numbers:
        if runs[-1] and number != runs[-1][-1] + 1:
            runs.append([])
        runs[-1].append(number)
    return max(runs, key=len)


# ---- the base image -------------------------------------------------------------------------------------------------


def test_the_base_image_gives_no_shell(bench: Workbench, bundle: Bundle, place: Path) -> None:
    """The same manifest on an image without the measured word."""
    folder = place / "volumes-base"
    folder.mkdir()
    asking = replace(bench, bundle=bundle, folder=folder, history={})
    machine = asking.start()
    try:
        with asking.attach(machine) as attached:
            with pytest.raises(GuestError) as error:
                asking.configure(attached)
            assert error.value.error == "shell"
            assert attached.channel.request(Op.STATUS)["stage"] == "waiting"
            with pytest.raises(paramiko.ChannelException):
                transport(attached).open_session()
    finally:
        machine.remove()
        shutil.rmtree(folder)
