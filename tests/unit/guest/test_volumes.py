# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What volumes ask of cryptsetup, mkfs.btrfs and mount, in which order, and what they refuse.

That those do it is proven in a booted guest (tests/scenario/test_volumes.py): this machine's kernel has no dm-integrity.
"""

import dataclasses
from pathlib import Path

import pytest

from cvmtool.formats.control import ControlError
from cvmtool.formats.pack import HEADER_SIZE
from cvmtool.formats.release import VolumeSecret
from cvmtool.formats.volume import MIN_VOLUME, Epoch
from cvmtool.guest import disks, volumes
from cvmtool.guest.programs import Ended
from cvmtool.guest.refusal import RefusedError
from tests.unit.guest import samples
from tests.unit.guest.test_lukshdr import VOLUME as DESCRIBED
from tests.unit.guest.test_lukshdr import volume_header

VOLUME = dataclasses.replace(DESCRIBED, size=MIN_VOLUME)
KEY = b"k" * 32
DONE = Ended(code=0, output="", complaint="")


def epoch(counter):
    return Epoch(counter=counter, mark=f"{counter:064x}")


SECRET = VolumeSecret(passphrase=KEY, blank=False, accept=(epoch(3), epoch(4)), next=epoch(5))
FIRST = VolumeSecret(passphrase=KEY, blank=True, accept=(), next=epoch(1))


@pytest.fixture(scope="session")
def header(tmp_path_factory):
    return volume_header(samples.luks_format(tmp_path_factory.mktemp("volume") / "container"))


class Machine:
    """One disk, and programs that do what the real ones would do to it; `failing` maps the first words to how they end."""

    def __init__(self, root, header):
        self.calls, self.inputs, self.shown, self.failing, self.syncs = [], [], [], {}, 0
        self.made = header
        self.places = volumes.Places(
            blocks=root / "block",
            dev=root / "dev",
            btrfs=root / "btrfs",
            kernel_log=root / "kmsg",
            whole=root / "whole",
            volumes=root / "volumes",
        )
        (root / "dev/mapper").mkdir(parents=True)
        self.kmsg = root / "kmsg"
        self.kmsg.write_bytes(b"6,1,0,-;boot\n")
        (root / "block/vdb").mkdir(parents=True)
        self.disk = root / "dev/vdb"
        self.whole = root / "whole" / VOLUME.name
        self.stats = root / "btrfs" / VOLUME.luks_uuid / "devinfo/1/error_stats"
        self.stats.parent.mkdir(parents=True)
        self.errors(0)
        self.attach(VOLUME.serial, VOLUME.size)
        self.present(bytes(HEADER_SIZE))
        self.stored = epoch(4).encode()

    def attach(self, serial, size):
        (self.places.blocks / "vdb/serial").write_text(serial)
        (self.places.blocks / "vdb/size").write_text(f"{size // 512}\n")

    def present(self, data):
        self.disk.write_bytes(data)

    def errors(self, corrupted):
        self.stats.write_text(f"write_errs 0\nread_errs 0\ncorruption_errs {corrupted}\ngeneration_errs 0\n")

    def run(self, *argv, stdin=b"", timeout_seconds=0):
        self.calls.append(argv)
        self.inputs.append(bytes(stdin))
        for words, ended in self.failing.items():
            if " ".join(argv).startswith(words):
                return ended
        if argv[:2] == ("cryptsetup", "luksFormat"):
            assert not any(self.disk.read_bytes())
            Path(self.named(argv, "--header=")).write_bytes(self.made)
        if argv[:2] == ("cryptsetup", "open"):
            self.shown.append(Path(self.named(argv, "--header=")).read_bytes())
            for name in (argv[-1], f"{argv[-1]}_dif"):
                (self.places.dev / "mapper" / name).touch()  # no device: its number is 0
        if argv[:3] == ("mount", "-t", "btrfs") and argv[4].startswith("ro,") and self.stored is not None:
            (self.whole / "epoch").write_bytes(self.stored)
        return DONE

    @staticmethod
    def named(argv, option):
        return next(word for word in argv if word.startswith(option)).removeprefix(option)

    def programs(self):
        return [" ".join(call[:2]) if call[0] == "cryptsetup" else call[0] for call in self.calls]

    def sync(self, whole):
        assert whole == self.whole
        self.syncs += 1


@pytest.fixture
def machine(tmp_path, header, monkeypatch):
    machine = Machine(tmp_path, header)
    for module in (volumes, disks):
        monkeypatch.setattr(module, "run", machine.run)
    monkeypatch.setattr(volumes, "_sync", machine.sync)
    monkeypatch.setattr(volumes.os, "chown", lambda *_: None)
    return machine


def refused(machine, volume=VOLUME, secret=SECRET):
    with pytest.raises(RefusedError) as caught:
        volumes.open_volume(volume, secret, machine.places)
    assert caught.value.volume == volume.name
    return caught.value.error


def closed(machine):
    return machine.programs()[-3:] == ["umount", "umount", "cryptsetup close"]


# ---- a blank disk ---------------------------------------------------------------------------------------------------


def test_a_blank_disk_becomes_a_volume(machine, header):
    opened = volumes.open_volume(VOLUME, FIRST, machine.places)
    assert (opened.created, opened.epoch) == (True, epoch(1))
    assert machine.programs() == ["cryptsetup luksFormat", "cryptsetup open", "mkfs.btrfs", "mount", "mount"]
    form = machine.calls[0]
    for option in (
        f"--uuid={VOLUME.luks_uuid}",
        "--type=luks2",
        "--cipher=aes-xts-plain64",
        "--key-size=512",
        "--integrity=hmac-sha256",
        "--integrity-no-wipe",
        "--sector-size=4096",
        "--offset=2048",
        "--key-file=-",
    ):
        assert option in form
    assert form[-1] == str(machine.disk)
    assert {"--csum=sha256", f"--uuid={VOLUME.luks_uuid}"} < set(machine.calls[2])
    assert machine.shown == [header]
    assert machine.disk.read_bytes() == header
    assert (machine.whole / "epoch").read_bytes() == epoch(1).encode()
    assert (machine.whole / "data").stat().st_mode & 0o777 == 0o700
    assert machine.calls[-1][:3] == ("mount", "-o", "bind")


@pytest.mark.parametrize("words", ["cryptsetup luksFormat", "cryptsetup open", "mkfs.btrfs", "mount -t"])
def test_what_fails_before_the_end_leaves_the_disk_blank(machine, words):
    machine.failing[words] = Ended(code=1, output="", complaint="no")
    assert refused(machine, secret=FIRST) is ControlError.VOLUME_INTEGRITY
    assert not any(machine.disk.read_bytes())
    assert closed(machine)


def test_a_header_that_is_not_as_we_would_take_it_is_not_written(machine, header):
    machine.made = header[:16_384] + bytes(HEADER_SIZE - 16_384)
    assert refused(machine, secret=FIRST) is ControlError.VOLUME_HEADER
    assert not any(machine.disk.read_bytes())


def test_a_blank_disk_where_a_volume_was_is_a_rollback(machine):
    assert refused(machine, secret=SECRET) is ControlError.VOLUME_ROLLED_BACK
    assert "cryptsetup luksFormat" not in machine.programs()


def test_a_blank_disk_that_must_not_be_made_a_volume(machine):
    assert refused(machine, dataclasses.replace(VOLUME, create=False), FIRST) is ControlError.VOLUME_HEADER
    assert "cryptsetup luksFormat" not in machine.programs()


@pytest.mark.parametrize("at", [0, 511, 4096, 65_536, HEADER_SIZE - 1])
def test_a_disk_with_anything_in_its_first_mebibyte_is_not_blank(machine, at):
    content = bytearray(HEADER_SIZE)
    content[at] = 1
    machine.present(bytes(content))
    assert refused(machine, secret=FIRST) is ControlError.VOLUME_HEADER
    assert machine.disk.read_bytes() == content


# ---- a volume -------------------------------------------------------------------------------------------------------


@pytest.fixture
def volume(machine, header):
    machine.present(header)
    return machine


def test_a_volume_is_looked_at_before_it_is_written_to(volume, header):
    opened = volumes.open_volume(VOLUME, SECRET, volume.places)
    assert (opened.created, opened.epoch) == (False, epoch(5))
    assert volume.programs() == ["cryptsetup open", "mount", "mount", "mount"]
    assert [call[2:5] for call in volume.calls[1:3]] == [
        ("btrfs", "-o", "ro,nosuid,nodev,noatime"),
        ("remount,rw,nosuid,nodev,noatime", str(volume.whole)),
    ]
    assert volume.shown == [header]
    assert (volume.whole / "epoch").read_bytes() == epoch(5).encode()
    assert volume.syncs == 2
    assert volume.disk.read_bytes() == header


@pytest.mark.parametrize("stored", [epoch(3), epoch(4)])
def test_an_acknowledged_and_a_begun_state_are_taken(volume, stored):
    volume.stored = stored.encode()
    volumes.open_volume(VOLUME, SECRET, volume.places)


@pytest.mark.parametrize("stored", [epoch(2), epoch(5), epoch(6), Epoch(counter=4, mark="ff" * 32), epoch(1)])
def test_any_other_state_is_a_rollback(volume, stored):
    volume.stored = stored.encode()
    assert refused(volume) is ControlError.VOLUME_ROLLED_BACK
    assert not any("remount" in word for call in volume.calls for word in call)
    assert (volume.whole / "epoch").read_bytes() == stored.encode()
    assert closed(volume)


@pytest.mark.parametrize("stored", [b"", b"{}", epoch(4).encode() + b"\n", b"x" * 100_000, None])
def test_a_volume_without_a_state_is_damaged(volume, stored):
    volume.stored = stored
    assert refused(volume) is ControlError.VOLUME_INTEGRITY
    assert closed(volume)


def test_a_new_volume_whose_first_state_was_never_acknowledged(volume):
    volume.stored = epoch(1).encode()
    begun = VolumeSecret(passphrase=KEY, blank=True, accept=(epoch(1),), next=epoch(2))
    assert volumes.open_volume(VOLUME, begun, volume.places).created is False


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        ("cryptsetup open", 2, ControlError.VOLUME_KEY),
        ("cryptsetup open", 1, ControlError.VOLUME_INTEGRITY),
        ("cryptsetup open", 124, ControlError.VOLUME_INTEGRITY),
        ("mount -t", 32, ControlError.VOLUME_INTEGRITY),
        ("mount -o remount", 1, ControlError.VOLUME_INTEGRITY),
        ("mount -o bind", 1, ControlError.VOLUME_INTEGRITY),
    ],
)
def test_a_program_that_fails(volume, words, code, error):
    volume.failing[words] = Ended(code=code, output="", complaint="no")
    assert refused(volume) is error
    assert closed(volume)


def test_another_header_gets_no_passphrase(volume):
    other = dataclasses.replace(VOLUME, luks_uuid=VOLUME.luks_uuid[:-1] + "0")
    assert refused(volume, other) is ControlError.VOLUME_HEADER
    assert KEY not in volume.inputs


def test_the_passphrase_goes_in_by_standard_input(volume):
    volumes.open_volume(VOLUME, SECRET, volume.places)
    assert volume.inputs.count(KEY) == 1
    assert not any(KEY.decode() in word for call in volume.calls for word in call)


@pytest.mark.parametrize(
    ("serial", "size"),
    [("other", VOLUME.size), (VOLUME.serial, VOLUME.size + 4096), (VOLUME.serial, VOLUME.size - 4096)],
)
def test_a_disk_that_is_not_as_the_manifest_says(volume, serial, size):
    volume.attach(serial, size)
    assert refused(volume) is ControlError.VOLUME_MISSING


def test_two_disks_of_one_serial(volume):
    (volume.places.blocks / "vdc").mkdir()
    (volume.places.blocks / "vdc/serial").write_text(VOLUME.serial)
    assert refused(volume) is ControlError.VOLUME_MISSING


def test_a_disk_that_cannot_be_read(volume):
    volume.disk.unlink()
    volume.disk.mkdir()
    assert refused(volume) is ControlError.VOLUME_INTEGRITY


# ---- committing -----------------------------------------------------------------------------------------------------


def test_a_commit_marks_what_it_has_written(volume):
    opened = volumes.open_volume(VOLUME, SECRET, volume.places)
    later = volumes.commit(opened, epoch(6), volume.places)
    assert later.epoch == epoch(6)
    assert (volume.whole / "epoch").read_bytes() == epoch(6).encode()


def test_damage_is_seen_and_not_marked(volume):
    opened = volumes.open_volume(VOLUME, SECRET, volume.places)
    assert not volumes.is_damaged(opened, volume.places)
    volume.errors(1)
    assert volumes.is_damaged(opened, volume.places)
    with pytest.raises(RefusedError, match=ControlError.VOLUME_INTEGRITY):
        volumes.commit(opened, epoch(6), volume.places)
    assert (volume.whole / "epoch").read_bytes() == epoch(5).encode()


AEAD = b"3,%d,1,-;trusted_key: device-mapper: crypt: dm-%d: INTEGRITY AEAD ERROR, sector 128\n"


def test_a_sector_that_does_not_authenticate_is_damage(volume):
    opened = volumes.open_volume(VOLUME, SECRET, volume.places)
    volume.kmsg.write_bytes(AEAD % (2, 0))
    assert volumes.is_damaged(opened, volume.places)
    with pytest.raises(RefusedError, match=ControlError.VOLUME_INTEGRITY):
        volumes.commit(opened, epoch(6), volume.places)


def test_another_device_s_sectors_and_those_before_do_not_count(volume):
    volume.kmsg.write_bytes(AEAD % (2, 0))
    opened = volumes.open_volume(VOLUME, SECRET, volume.places)
    volume.kmsg.write_bytes(AEAD % (2, 0) + AEAD % (3, 7) + b"6,4,1,-;dm-0 is fine\n")
    assert not volumes.is_damaged(opened, volume.places)
    volume.kmsg.write_bytes(b"6,4,1,-;the oldest records are gone\n")
    assert not volumes.is_damaged(opened, volume.places)
    volumes.commit(opened, epoch(6), volume.places)


def test_damage_of_an_earlier_life_does_not_count(volume):
    volume.errors(7)
    opened = volumes.open_volume(VOLUME, SECRET, volume.places)
    assert not volumes.is_damaged(opened, volume.places)
    volumes.commit(opened, epoch(6), volume.places)


def test_a_volume_that_has_gone_is_damaged(volume):
    opened = volumes.open_volume(VOLUME, SECRET, volume.places)
    volume.stats.unlink()
    assert volumes.is_damaged(opened, volume.places)


def test_what_cannot_be_written_is_not_committed(volume, monkeypatch):
    opened = volumes.open_volume(VOLUME, SECRET, volume.places)

    def sync(_whole):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(volumes, "_sync", sync)
    with pytest.raises(RefusedError, match=ControlError.VOLUME_INTEGRITY):
        volumes.commit(opened, epoch(6), volume.places)
