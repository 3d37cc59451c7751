# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.errors import HostError
from cvmtool.flows.hosts import Host
from cvmtool.flows.placing import artefacts, place
from cvmtool.host.files import LocalFiles
from cvmtool.host.store import Store

FILES = {"firmware.fd": "firmware", "vmlinuz": "kernel", "initrd": "initrd", "rootfs.img": "rootfs"}


@pytest.fixture
def bundle(tmp_path):
    """A guest image of four small files."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    items = {}
    for name in FILES.values():
        data = name.encode()
        (folder / name).write_bytes(data)
        items[name] = SimpleNamespace(file=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    return SimpleNamespace(manifest=SimpleNamespace(**items), path=lambda item: folder / item.file)


@pytest.fixture
def pack(tmp_path):
    path = tmp_path / "pack.img"
    path.write_bytes(b"ciphertext")
    return SimpleNamespace(path=path, descriptor=SimpleNamespace(name="data"))


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_a_machine_gets_the_images_files_and_its_packs_under_their_names(bundle, pack, tmp_path):
    files = LocalFiles()
    machines = str(tmp_path / "machines")
    (tmp_path / "locks").mkdir()
    store = Store(files, machines, uploader="0" * 12, locks=tmp_path / "locks")
    host = Host(name="h", uri="u", hypervisor=None, files=files, machines=machines, store=store, local=True)
    directory = host.directory("m")
    directory.create()
    place(host, directory, bundle, [pack], JsonReporter())
    found = {path.name: path.read_bytes() for path in (tmp_path / "machines/m").iterdir() if path.name != "console.log"}
    assert found == {name: of.encode() for name, of in FILES.items()} | {"pack-data.img": b"ciphertext"}
    assert {path.name for path in (tmp_path / "machines/.store/sha256").iterdir()} == {
        sha256(d) for d in found.values()
    }


def test_a_pack_is_hashed_once(bundle, pack, monkeypatch):
    assert artefacts(bundle, [pack])["pack-data.img"].sha256 == sha256(b"ciphertext")

    def never(*_arguments):
        raise AssertionError

    monkeypatch.setattr(hashlib, "file_digest", never)
    assert artefacts(bundle, [pack])["pack-data.img"].sha256 == sha256(b"ciphertext")


def test_another_pack_in_its_place_is_hashed_again(bundle, pack):
    artefacts(bundle, [pack])
    before = pack.path.stat()
    pack.path.write_bytes(b"other text")
    os.utime(pack.path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert artefacts(bundle, [pack])["pack-data.img"].sha256 == sha256(b"other text")


@pytest.mark.parametrize("kept", [b"", b"zz 10 1", b"\xff\xfe", b"abcd 10 1\n", b" "])
def test_a_digest_that_was_not_kept_whole_is_made_again(bundle, pack, kept):
    artefacts(bundle, [pack])
    Path(f"{pack.path}.sha256").write_bytes(kept)
    assert artefacts(bundle, [pack])["pack-data.img"].sha256 == sha256(b"ciphertext")


def test_a_pack_that_is_gone_is_named(bundle, pack):
    pack.path.unlink()
    with pytest.raises(HostError, match=r"pack\.img"):
        artefacts(bundle, [pack])
