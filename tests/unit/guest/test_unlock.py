# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What unlocking asks of veritysetup and cryptsetup; that they do it is proven in a booted guest."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from cvmtool.formats.control import ControlError
from cvmtool.formats.pack import BLOCK, HEADER_SIZE
from cvmtool.guest import disks, unlock
from cvmtool.guest.programs import Ended
from cvmtool.guest.refusal import RefusedError
from tests.unit.guest import samples

KEY = b"k" * 32


@pytest.fixture(scope="session")
def container(tmp_path_factory):
    path = tmp_path_factory.mktemp("pack") / "container"
    samples.luks_format(path, key=KEY)
    return path


class Machine:
    """Records what is run; `failing` maps a program's name to how it ends. dm-verity's device is the container itself."""

    def __init__(self, root, container):
        self.calls, self.inputs, self.headers, self.failing = [], [], [], {}
        self.container, self.root = container, root
        self.places = unlock.Places(
            blocks=root / "block", dev=root / "dev", packs=root / "packs", kernel_log=root / "kmsg"
        )
        (root / "dev/mapper").mkdir(parents=True)
        (root / "kmsg").write_bytes(b"6,1,0,-;boot\n")

    def disk(self, name, serial):
        (self.root / "block" / name).mkdir(parents=True)
        (self.root / "block" / name / "serial").write_text(serial)

    def run(self, *argv, stdin=b"", timeout_seconds=0):
        self.calls.append(argv)
        self.inputs.append(bytes(stdin))
        program = " ".join(argv[:2])
        if program in self.failing:
            return self.failing[program]
        if program == "veritysetup open":
            (self.root / "dev/mapper" / argv[-3]).symlink_to(self.container)
        if program == "cryptsetup open":
            path = next(word for word in argv if word.startswith("--header=")).removeprefix("--header=")
            self.headers.append(Path(path).read_bytes())
        if program == "veritysetup status":
            return Ended(code=0, output=f"{argv[2]} is active.\n  status: verified", complaint="")
        return Ended(code=0, output="", complaint="")

    def ran(self, *start):
        return [call for call in self.calls if call[: len(start)] == start]


@pytest.fixture
def machine(tmp_path, container, monkeypatch):
    machine = Machine(tmp_path, container)
    for module in (unlock, disks):
        monkeypatch.setattr(module, "run", machine.run)
    return machine


@pytest.fixture
def pack(container):
    header = samples.header_of(container)
    digest = json.loads(header[4096:16_384].rstrip(b"\0"))["digests"]["0"]["digest"]
    return samples.pack(header_sha256=hashlib.sha256(header).hexdigest(), volume_key_digest=digest)


def open_one(machine, pack, key=KEY):
    passphrases = {pack.root_hash: bytearray(key)}
    timings = unlock.open_packs((pack,), passphrases, machine.places)
    return timings, passphrases


def refusal(machine, pack, **keys):
    with pytest.raises(RefusedError) as caught:
        open_one(machine, pack, **keys)
    return caught.value.error, caught.value.pack


def test_every_parameter_of_verity_is_the_manifest_s(machine, pack):
    machine.disk("vda", "cvmtool-root")
    machine.disk("vdb", pack.serial)
    timings, _ = open_one(machine, pack)
    disk = str(machine.places.dev / "vdb")
    assert list(timings) == ["tools"]
    assert machine.ran("veritysetup", "open") == [
        (
            "veritysetup", "open", "--no-superblock", "--format=1", "--hash=sha256", "--data-block-size=4096",
            "--hash-block-size=4096", f"--data-blocks={pack.data_blocks}", f"--hash-offset={pack.hash_offset + BLOCK}",
            f"--salt={pack.salt}", disk, f"verity-{pack.serial}", disk, pack.root_hash,
        )
    ]  # fmt: skip


def test_cryptsetup_sees_the_copy_that_was_checked(machine, pack, container):
    machine.disk("vdb", pack.serial)
    open_one(machine, pack)
    (call,) = machine.ran("cryptsetup", "open")
    assert machine.headers == [samples.header_of(container)]
    assert {"--readonly", "--type=luks2", "--key-file=-", "--disable-external-tokens"} < set(call)
    assert call[-2:] == (str(machine.places.dev / "mapper" / f"verity-{pack.serial}"), f"pack-{pack.serial}")
    assert machine.ran("mount")[0][4] == "ro,nosuid,nodev"


def test_passphrase_goes_in_by_standard_input_and_is_wiped(machine, pack):
    machine.disk("vdb", pack.serial)
    _, passphrases = open_one(machine, pack)
    assert machine.inputs.count(KEY) == 1
    assert not any(KEY.decode() in word for call in machine.calls for word in call)
    assert passphrases[pack.root_hash] == bytes(32)


@pytest.mark.parametrize("serials", [[], ["other"], ["same", "same"]], ids=["none", "another", "two"])
def test_disk_that_is_not_there_once(machine, pack, serials):
    for index, serial in enumerate(serials):
        machine.disk(f"vd{'bcd'[index]}", pack.serial if serial == "same" else serial)
    assert refusal(machine, pack) == (ControlError.PACK_MISSING, "tools")


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("veritysetup open", ControlError.PACK_INTEGRITY),
        ("cryptsetup open", ControlError.PACK_KEY),
        ("mount -t", ControlError.PACK_INTEGRITY),
    ],
)
def test_program_that_fails(machine, pack, program, error):
    machine.disk("vdb", pack.serial)
    machine.failing[program] = Ended(code=2, output="", complaint="no")
    passphrases = {pack.root_hash: bytearray(KEY)}
    with pytest.raises(RefusedError) as caught:
        unlock.open_packs((pack,), passphrases, machine.places)
    assert (caught.value.error, caught.value.pack, caught.value.detail) == (error, "tools", "no")
    assert passphrases[pack.root_hash] == bytes(32)
    assert machine.calls[-3:] == [
        ("umount", "-l", str(machine.places.packs / "tools")),
        ("cryptsetup", "close", f"pack-{pack.serial}"),
        ("veritysetup", "close", f"verity-{pack.serial}"),
    ]


def test_header_that_is_not_the_manifest_s_gets_no_passphrase(machine, pack):
    machine.disk("vdb", pack.serial)
    other = dataclasses.replace(pack, header_sha256="ff" * 32)
    assert refusal(machine, other) == (ControlError.PACK_HEADER, "tools")
    assert machine.ran("cryptsetup", "open") == []
    assert KEY not in machine.inputs


def test_header_that_cannot_be_read_through_verity(machine, pack):
    machine.disk("vdb", pack.serial)
    machine.container = machine.root  # reading a directory fails, as a corrupted block does
    assert refusal(machine, pack) == (ControlError.PACK_INTEGRITY, "tools")
    assert machine.ran("cryptsetup", "open") == []


def test_disk_that_ends_within_the_header(machine, pack, tmp_path):
    machine.disk("vdb", pack.serial)
    machine.container = tmp_path / "short"
    machine.container.write_bytes(bytes(HEADER_SIZE - 1))
    assert refusal(machine, pack) == (ControlError.PACK_HEADER, "tools")


def test_pack_without_a_key(machine, pack):
    machine.disk("vdb", pack.serial)
    with pytest.raises(RefusedError) as caught:
        unlock.open_packs((pack,), {"00" * 32: bytearray(KEY)}, machine.places)
    assert caught.value.error is ControlError.PACK_KEY


def test_undamaged_packs(machine, pack):
    assert unlock.find_damage(samples.manifest(packs=(pack,)), machine.places) is None


@pytest.mark.parametrize(
    "status",
    [
        Ended(code=0, output="is active.\n  status: corrupted", complaint=""),
        Ended(code=4, output="is inactive.", complaint=""),
        Ended(code=0, output="", complaint=""),
    ],
    ids=["corrupted", "gone", "silent"],
)
def test_corrupted_pack_is_named(machine, pack, status):
    machine.failing["veritysetup status"] = status
    assert unlock.find_damage(samples.manifest(packs=(pack,)), machine.places).pack == "tools"


def test_block_that_the_host_withheld(machine, pack):
    machine.places.kernel_log.write_bytes(b"3,9,1,-;SQUASHFS error: Failed to read block 0x60: -5\n")
    damage = unlock.find_damage(samples.manifest(packs=(pack,)), machine.places)
    assert damage.pack is None
    assert "host" in damage.detail
