# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import os

import pytest

from cvmtool.formats.job import Output, OutputKind
from cvmtool.guest.outputs import collect


def file(name, kind=OutputKind.FILE, most=100):
    return Output(name=name, kind=kind, max_bytes=most)


def reasons(declared, directory):
    accepted, rejected = collect(declared, directory)
    return [item.output.name for item in accepted], {item.name: item.reason for item in rejected}


def test_declared_file_leaves_with_its_digest(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/m.json").write_bytes(b'{"a": 1}')
    (item,), rejected = collect((file("sub/m.json", OutputKind.JSON),), tmp_path)
    assert rejected == []
    assert item.to_json() == {
        "name": "sub/m.json", "kind": "json", "size": 8, "sha256": hashlib.sha256(b'{"a": 1}').hexdigest()
    }  # fmt: skip
    assert b"".join(item.read_from(0)) == b'{"a": 1}'
    assert b"".join(item.read_from(5)) == b" 1}"


def test_size_limit_is_exact(tmp_path):
    (tmp_path / "fits").write_bytes(bytes(100))
    (tmp_path / "not").write_bytes(bytes(101))
    accepted, rejected = reasons((file("fits"), file("not")), tmp_path)
    assert accepted == ["fits"]
    assert "101" in rejected["not"]


def test_kind_is_checked(tmp_path):
    (tmp_path / "model").write_bytes(b"\x80\x04pickle")
    accepted, rejected = reasons((file("model", OutputKind.SAFETENSORS),), tmp_path)
    assert accepted == []
    assert "safetensors" in rejected["model"]


@pytest.mark.parametrize("kind", ["link", "directory link", "dangling", "pipe", "directory", "missing", "socket"])
def test_only_regular_files_leave(tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    name = "x"
    if kind == "link":
        (outputs / "x").symlink_to(outside / "secret")
    elif kind == "directory link":
        (outputs / "sub").symlink_to(outside)
        name = "sub/secret"
    elif kind == "dangling":
        (outputs / "x").symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(outputs / "x")
    elif kind == "directory":
        (outputs / "x").mkdir()
    elif kind == "socket":
        os.mknod(outputs / "x", 0o140_600)
    accepted, rejected = reasons((file(name),), outputs)
    assert accepted == []
    assert name in rejected


def test_what_was_hashed_is_what_is_sent(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"first")
    (item,), _ = collect((file("x"),), tmp_path)
    path.unlink()
    path.write_bytes(b"other")
    assert b"".join(item.read_from(0)) == b"first"


def test_undeclared_files_are_named_and_stay(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/left").touch()
    accepted, rejected = reasons((), tmp_path)
    assert accepted == []
    assert rejected == {"sub/left": "not declared in the job"}


def test_undeclared_names_are_bounded_and_printable(tmp_path):
    for index in range(100):
        (tmp_path / f"{index}").touch()
    (tmp_path / os.fsdecode(b"\xff" * 200)).touch()
    _, rejected = collect((), tmp_path)
    assert len(rejected) == 32
    for item in rejected:
        item.name.encode("utf-8")
        assert len(item.name) <= 128
