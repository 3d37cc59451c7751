# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
import os
import socket
import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.config import load_settings
from cvmtool.data.oci import OciImage
from cvmtool.data.sealed import verify_pack
from cvmtool.errors import ConfigError, FormatError
from cvmtool.flows.packs import read_descriptor, seal_container, seal_tree, tree_digest
from cvmtool.formats.pack import Role
from cvmtool.owner.keystore import OwnerKeys
from tests.unit.data.oci_images import Image, layer, member
from tests.unit.formats.test_wire import JSON

KEYS = OwnerKeys(b"seed" * 8)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_bytes(b"A" * 10_000)
    (folder / "sub/b").write_bytes(b"B")
    (folder / "link").symlink_to("a")
    return folder


def seal(source, name="data", keys=KEYS):
    return seal_tree(source, name, settings=load_settings(), keys=keys, progress=lambda _done, _all: None)


def test_a_tree_is_sealed_once(source):
    first, second = seal(source), seal(source)
    assert (first.reused, second.reused) == (False, True)
    assert first.descriptor == second.descriptor
    assert first.path == second.path
    assert first.path.stat().st_size == first.descriptor.size


def test_a_kept_pack_takes_the_name_of_the_job_at_hand(source):
    seal(source, "data")
    again = seal(source, "other")
    assert (again.reused, again.descriptor.name, again.descriptor.role) == (True, "other", Role.INPUT)


def test_another_owner_gets_a_pack_of_his_own(source):
    mine, his = seal(source), seal(source, keys=OwnerKeys(b"SEED" * 8))
    assert not his.reused
    assert his.path != mine.path


@pytest.mark.parametrize("damage", ["missing sidecar", "torn sidecar", "missing pack", "short pack", "other schema"])
def test_a_pack_that_is_not_whole_is_sealed_again(source, damage):
    first = seal(source)
    sidecar = first.path.with_name("pack.json")
    match damage:
        case "missing sidecar":
            sidecar.unlink()
        case "torn sidecar":
            sidecar.write_bytes(sidecar.read_bytes()[:50])
        case "missing pack":
            first.path.unlink()
        case "short pack":
            os.truncate(first.path, 4096)
        case "other schema":
            sidecar.write_text(sidecar.read_text().replace("/v1", "/v2"))
    again = seal(source)
    assert not again.reused
    assert again.descriptor.root_hash != first.descriptor.root_hash
    verify_pack(again.path, again.descriptor)


def test_packs_are_the_owners_alone(source):
    pack = seal(source)
    assert stat.S_IMODE(pack.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(pack.path.parent.stat().st_mode) == 0o700


CHANGES = {
    "content": lambda folder: (folder / "a").write_bytes(b"a" * 10_000),
    "name": lambda folder: (folder / "a").rename(folder / "c"),
    "new file": lambda folder: (folder / "c").write_bytes(b""),
    "new directory": lambda folder: (folder / "c").mkdir(),
    "executable": lambda folder: (folder / "a").chmod(0o755),
    "link": lambda folder: ((folder / "link").unlink(), (folder / "link").symlink_to("sub/b")),
    "link becomes file": lambda folder: ((folder / "link").unlink(), (folder / "link").write_bytes(b"a")),
    "moved": lambda folder: (folder / "sub/b").rename(folder / "b"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_source_changes_its_digest(source, change):
    (source / "a").chmod(0o644)
    before = tree_digest(source)
    CHANGES[change](source)
    assert tree_digest(source) != before


def test_what_a_pack_does_not_hold_is_not_in_the_digest(source):
    (source / "a").chmod(0o644)
    before = tree_digest(source)
    (source / "a").chmod(0o600)
    os.utime(source / "a", (1, 1))
    assert tree_digest(source) == before


def test_names_and_contents_cannot_be_shifted(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, name, content in ((one, "ab", b"c"), (two, "a", b"bc")):
        folder.mkdir()
        (folder / name).write_bytes(content)
    assert tree_digest(one) != tree_digest(two)


def test_a_single_file_has_a_digest(source):
    assert tree_digest(source / "a") != tree_digest(source / "sub/b")


def test_what_no_pack_can_hold_is_refused(source, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "to-file").symlink_to("source/a")
    for path in (tmp_path / "missing", tmp_path / "empty", tmp_path / "to-file"):
        with pytest.raises(ConfigError):
            tree_digest(path)
    os.mkfifo(source / "pipe")
    with pytest.raises(ConfigError, match="pipe"):
        tree_digest(source)
    (source / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "s"))
        with pytest.raises(ConfigError):
            tree_digest(source)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be")
@pytest.mark.parametrize(("path", "mode"), [("a", 0o000), ("sub", 0o000), ("sub", 0o300)])
def test_what_cannot_be_read_is_refused_and_not_left_out(tmp_path_factory, path, mode):
    folder = tmp_path_factory.mktemp("readable")
    for part in (folder, *folder.parents):
        if part.stat().st_uid == 0 and part.name.startswith(("readable", "popen", "pytest")):
            part.chmod(0o755)
    (folder / "sub").mkdir()
    (folder / "a").write_bytes(b"A")
    (folder / "sub/b").write_bytes(b"B")
    os.chown(folder, 65534, 65534)
    (folder / path).chmod(mode)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match=path):
            tree_digest(folder)
    finally:
        os.seteuid(0)


def test_a_container_is_sealed_once(tmp_path):
    image = Image(layer(member("a", b"1")))
    opened = OciImage(f"oci:{image.write(tmp_path / 'layout')}", image.digest, base=tmp_path)
    arguments = {"settings": load_settings(), "keys": KEYS, "progress": lambda _done, _all: None}
    first, second = seal_container(opened, **arguments), seal_container(opened, **arguments)
    assert (first.reused, second.reused) == (False, True)
    assert (first.descriptor.name, first.descriptor.role) == ("container", Role.CONTAINER)


@given(st.sampled_from(["schema", "name", "size", "more"]), JSON)
def test_any_descriptor_file_is_read_or_a_format_error(tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("descriptor") / "pack.json"
    from tests.samples import pack

    document = {"schema": "cvmtool/pack/v1", **pack("data").to_json(), key: value}
    path.write_text(json.dumps(document))
    with contextlib.suppress(FormatError):
        assert replace(read_descriptor(path), name="data", size=pack("data").size) == pack("data")
