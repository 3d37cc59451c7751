# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A pack's file system in clear: what its owner gets out, and that nothing stays of what is not his."""

import stat
import subprocess
from dataclasses import replace

import pytest

from cvmtool.data.opening import write_payload
from cvmtool.data.pack import TreeSource, make_pack
from cvmtool.errors import BuildError, ConfigError, VerificationError
from cvmtool.formats.pack import HEADER_SIZE, Role

PASSPHRASE = bytes(range(32))


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "source").mkdir()
    (folder / "source/word").write_text("hello\n")
    made = make_pack(
        TreeSource(path=folder / "source"),
        folder / "pack",
        name="data",
        role=Role.INPUT,
        passphrase_for=lambda _uuid: PASSPHRASE,
    )
    return folder / "pack", made


def test_it_is_the_file_system(sealed, tmp_path):
    pack, descriptor = sealed
    out = tmp_path / "image"
    write_payload(pack, descriptor, out, passphrase=PASSPHRASE)
    assert out.stat().st_size == descriptor.hash_offset - HEADER_SIZE
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    read = subprocess.run(["unsquashfs", "-cat", out, "word"], capture_output=True, text=True, check=True)
    assert read.stdout == "hello\n"


def changed(pack, out, at):
    data = bytearray(pack.read_bytes())
    data[at] ^= 1
    out.write_bytes(data)
    return out


@pytest.mark.parametrize("at", [100, HEADER_SIZE, -1], ids=["header", "first block", "a root hash of its own"])
def test_nothing_stays_of_another_pack(sealed, tmp_path, at):
    pack, descriptor = sealed
    if at < 0:
        path, descriptor = pack, replace(descriptor, root_hash="00" * 32)
    else:
        path = changed(pack, tmp_path / "changed", at)
    with pytest.raises(VerificationError):
        write_payload(path, descriptor, tmp_path / "image", passphrase=PASSPHRASE)
    assert not (tmp_path / "image").exists()


def test_nothing_stays_where_the_passphrase_is_another(sealed, tmp_path):
    with pytest.raises(BuildError):
        write_payload(*sealed, tmp_path / "image", passphrase=bytes(32))
    assert not (tmp_path / "image").exists()


def test_a_file_that_is_there_stays_as_it_is(sealed, tmp_path):
    (tmp_path / "image").write_text("mine")
    with pytest.raises(ConfigError):
        write_payload(*sealed, tmp_path / "image", passphrase=PASSPHRASE)
    assert (tmp_path / "image").read_text() == "mine"
