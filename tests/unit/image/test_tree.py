# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Trees: what packages may bring, and that the same inputs are the same archive."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from cvmtool.errors import BuildError
from cvmtool.image.tree import NodeKind, Tree, matches
from tests.unit.image.parts import make_deb

TIME = 1_700_000_000


def tar_of(tree: Tree) -> tarfile.TarFile:
    out = io.BytesIO()
    tree.write_tar(out, time=TIME)
    return tarfile.open(fileobj=io.BytesIO(out.getvalue()))


def test_package_files_lose_owner_time_and_setuid(tmp_path: Path) -> None:
    deb = make_deb(tmp_path, "a", {"usr/bin/su": b"x", "usr/bin/sh": "su"}, modes={"usr/bin/su": 0o4755})
    with Tree() as tree:
        tree.add_deb(deb)
        archive = tar_of(tree)
    member = archive.getmember("usr/bin/su")
    assert (member.uid, member.gid, member.mtime, member.mode) == (0, 0, TIME, 0o755)
    assert archive.getmember("usr/bin/sh").linkname == "su"
    assert archive.getnames() == ["usr", "usr/bin", "usr/bin/sh", "usr/bin/su"]


def test_old_paths_are_merged_into_usr(tmp_path: Path) -> None:
    deb = make_deb(tmp_path, "a", {"lib/x/liba.so": b"a", "sbin/b": b"b"})
    with Tree() as tree:
        tree.add_deb(deb)
        assert "usr/lib/x/liba.so" in tree
        assert tree.read("/sbin/b") == b"b"
        assert "lib" not in tree


def test_two_packages_may_share_a_file_only_with_the_same_contents(tmp_path: Path) -> None:
    one = make_deb(tmp_path, "one", {"etc/x": b"same", "etc/y": b"1"})
    same = make_deb(tmp_path, "same", {"etc/x": b"same"})
    other = make_deb(tmp_path, "other", {"etc/y": b"2"})
    with Tree() as tree:
        tree.add_deb(one)
        tree.add_deb(same)
        with pytest.raises(BuildError, match="etc/y"):
            tree.add_deb(other)


def test_a_file_that_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(b"nonsense")
    with Tree() as tree, pytest.raises(BuildError):
        tree.add_deb(tmp_path / "x.deb")


def test_a_path_that_leaves_the_image_is_refused() -> None:
    with Tree() as tree, pytest.raises(BuildError, match="leaves the image"):
        tree.add_file("usr/../../etc/passwd", b"")


def test_wheel_entry_that_leaves_the_image_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("../../evil.py", "")
    with Tree() as tree, pytest.raises(BuildError, match="leaves the image"):
        tree.add_wheel(tmp_path / "x.whl", "usr")


def test_links_are_followed_and_loops_end() -> None:
    with Tree() as tree:
        tree.add_file("usr/lib/libx.so.1.2", b"lib")
        tree.add_link("usr/lib/libx.so.1", "libx.so.1.2")
        tree.add_link("usr/lib64", "/usr/lib")
        tree.add_link("a", "b")
        tree.add_link("b", "a")
        assert tree.read("usr/lib64/libx.so.1") == b"lib"
        assert tree.resolve("usr/lib64/../lib/libx.so.1") == "usr/lib/libx.so.1.2"
        with pytest.raises(BuildError, match="loop"):
            tree.read("a")


def test_prune_takes_what_is_below() -> None:
    with Tree() as tree:
        tree.add_file("usr/share/doc/a/b", b"")
        tree.add_file("usr/share/docs", b"")
        tree.prune(["usr/share/doc"])
        assert [path for path, _ in tree.items()] == ["usr", "usr/share", "usr/share/docs"]


def test_source_files_get_modes_from_the_execute_bit_alone(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"")
    (tmp_path / "run").chmod(0o700)
    (tmp_path / "data").write_bytes(b"")
    (tmp_path / "data").chmod(0o600)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/x.pyc").write_bytes(b"")
    with Tree() as tree:
        tree.add_files(tmp_path)
        assert {path: node.mode for path, node in tree.items()} == {"run": 0o755, "data": 0o644}


def test_order_of_adding_does_not_matter() -> None:
    archives = []
    for paths in (["a/b", "a-b", "a/a"], ["a/a", "a-b", "a/b"]):
        with Tree() as tree:
            for path in paths:
                tree.add_file(path, path.encode())
            out = io.BytesIO()
            tree.write_tar(out, time=TIME)
            archives.append(out.getvalue())
    assert archives[0] == archives[1]


def test_extract_writes_what_was_asked(tmp_path: Path) -> None:
    with Tree() as tree:
        tree.add_file("usr/bin/x", b"x", mode=0o755)
        tree.add_file("etc/y", b"y")
        tree.extract(tmp_path / "out", ("usr",))
    assert (tmp_path / "out/usr/bin/x").stat().st_mode & 0o777 == 0o755
    assert not (tmp_path / "out/etc").exists()


def test_the_merged_folders_stay_links_whatever_comes_first() -> None:
    with Tree() as tree:
        tree.add_directory("lib64")
        tree.add_link("lib64", "usr/lib64")
        tree.add_directory("./lib64")
        nodes = dict(tree.items())
    assert nodes["lib64"].kind is NodeKind.LINK
    assert nodes["usr/lib64"].kind is NodeKind.DIRECTORY


@pytest.mark.parametrize(
    ("path", "glob", "expected"),
    [
        ("usr/share/doc/x", "usr/share/doc", True),
        ("usr/share/docs", "usr/share/doc", False),
        ("usr/share", "usr/share/doc", False),
        ("usr/lib/a/b", "usr/*/b", False),
        ("usr/lib/b/c", "usr/*/b", True),
    ],
)
def test_globs_match_part_by_part(path: str, glob: str, expected: bool) -> None:
    assert matches(path, [glob]) is expected
