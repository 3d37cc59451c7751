# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import hashlib
import os
import subprocess

import pytest

from cvmtool.formats.age import sealed_size
from cvmtool.formats.job import MAX_FILES, Output, OutputKind
from cvmtool.guest import outputs
from cvmtool.owner.ageopen import open_age
from cvmtool.owner.keystore import OwnerKeys
from tests.unit.guest import samples

READER = OwnerKeys(b"reader__" * 4)


def file(name, kind=OutputKind.FILE, most=100):
    return Output(name=name, kind=kind, max_bytes=most)


def folder(name="model", most=100):
    return Output(name=name, kind=OutputKind.DIRECTORY, max_bytes=most)


def collect(declared, directory, *, outputs_mib=16, recipients=()):
    manifest = samples.manifest()
    limits = dataclasses.replace(manifest.limits, outputs_mib=outputs_mib)
    return outputs.collect(
        dataclasses.replace(manifest, outputs=declared, limits=limits, recipients=recipients), directory
    )


def reasons(declared, directory, **terms):
    accepted, rejected = collect(declared, directory, **terms)
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


def test_each_file_below_a_directory_is_an_output_of_its_own(tmp_path):
    (tmp_path / "model/part").mkdir(parents=True)
    (tmp_path / "model/config.json").write_bytes(b"{}")
    (tmp_path / "model/part/vocab.txt").write_bytes(b"a b c")
    accepted, rejected = collect((folder(),), tmp_path)
    assert rejected == []
    assert [(item.output.name, item.output.kind, item.size) for item in accepted] == [
        ("model/config.json", OutputKind.JSON, 2),
        ("model/part/vocab.txt", OutputKind.FILE, 5),
    ]
    assert b"".join(accepted[1].read_from(0)) == b"a b c"


def test_the_size_of_a_directory_is_that_of_all_its_files(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/a").write_bytes(bytes(60))
    (tmp_path / "model/b").write_bytes(bytes(40))
    assert reasons((folder(most=100),), tmp_path)[0] == ["model/a", "model/b"]
    accepted, rejected = reasons((folder(most=99),), tmp_path)
    assert accepted == []
    assert rejected == {"model": "100 bytes; at most 99 are allowed"}


@pytest.mark.parametrize(
    ("name", "content"),
    [("w.safetensors", b"no tensors"), ("config.json", b"{"), ("optimizer.pt", b"\x80\x04K\x01."), ("-x", b"")],
)
def test_what_may_not_leave_a_directory_stays_and_is_named(tmp_path, name, content):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_bytes(content)
    (tmp_path / "model/good").write_bytes(b"good")
    accepted, rejected = reasons((folder(),), tmp_path)
    assert accepted == ["model/good"]
    assert list(rejected) == [f"model/{name}"]


def test_no_link_out_of_a_directory_is_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"secret")
    root = tmp_path / "outputs"
    (root / "model").mkdir(parents=True)
    (root / "model/file").symlink_to(tmp_path / "outside/secret")
    (root / "model/dir").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "model/pipe")
    accepted, rejected = reasons((folder(),), root)
    assert accepted == []
    assert set(rejected) == {"model/file", "model/dir", "model/pipe"}
    (root / "linked").symlink_to(tmp_path / "outside")
    assert reasons((folder("linked"),), root)[0] == []


def test_a_directory_of_too_many_files_stays_whole(tmp_path):
    (tmp_path / "model").mkdir()
    for index in range(MAX_FILES):
        (tmp_path / f"model/{index}").touch()
    assert len(reasons((folder(),), tmp_path)[0]) == MAX_FILES
    (tmp_path / "other").touch()
    accepted, rejected = reasons((folder(), file("other")), tmp_path)
    assert len(accepted) == MAX_FILES
    assert str(MAX_FILES) in rejected["other"]
    (tmp_path / "model/more").touch()
    accepted, rejected = reasons((folder(),), tmp_path)
    assert accepted == []
    assert str(MAX_FILES) in rejected["model"]


def test_what_lies_too_deep_is_named_and_stays(tmp_path):
    deep = tmp_path / "model/2/3/4/5/6/7"
    (deep / "8/9").mkdir(parents=True)
    (deep / "8/9/file").touch()
    (deep / "file").touch()
    accepted, rejected = reasons((folder(),), tmp_path)
    assert accepted == ["model/2/3/4/5/6/7/file"]
    assert list(rejected) == ["model/2/3/4/5/6/7/8/9"]


def test_directories_nested_beyond_reason_end_no_guest(tmp_path):
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    try:
        assert reasons((folder("d"),), tmp_path)[0] == []
    finally:  # pytest would not get through it
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


@pytest.mark.parametrize("kind", ["empty", "missing", "file"])
def test_a_directory_without_files_is_refused(tmp_path, kind):
    if kind == "empty":
        (tmp_path / "model/sub").mkdir(parents=True)
    elif kind == "file":
        (tmp_path / "model").touch()
    accepted, rejected = reasons((folder(),), tmp_path)
    assert accepted == []
    assert list(rejected) == ["model"]


def test_no_more_leaves_than_the_job_may_write(tmp_path):
    with (tmp_path / "holes").open("wb") as sparse:
        sparse.truncate((2 << 20) + 1)
    (tmp_path / "small").write_bytes(b"small")
    large = file("holes", most=1 << 30)
    accepted, rejected = reasons((large, file("small")), tmp_path, outputs_mib=2)
    assert accepted == ["small"]
    assert "limits.outputs is 2097152" in rejected["holes"]
    os.truncate(tmp_path / "holes", 2 << 20)
    accepted, rejected = reasons((large, file("small")), tmp_path, outputs_mib=2)
    assert accepted == ["holes"]
    assert "of which 0 are left" in rejected["small"]


def test_with_recipients_only_age_files_leave(tmp_path):
    content = bytes(range(256)) * 1000
    (tmp_path / "x").write_bytes(content)
    (item,), _ = collect((file("x", most=1 << 20),), tmp_path, recipients=(READER.recipient.hex(),))
    sealed = b"".join(item.read_from(0))
    assert item.leaving == len(sealed) == sealed_size(len(content), 1)
    assert item.to_json()["sealed"] == {"size": len(sealed), "sha256": hashlib.sha256(sealed).hexdigest()}
    assert item.to_json()["sha256"] == hashlib.sha256(content).hexdigest()
    assert b"".join(item.read_from(70_000)) == sealed[70_000:]
    pieces = iter([sealed])
    assert b"".join(open_age(lambda size: next(pieces, b""), [READER.age_identity])) == content
