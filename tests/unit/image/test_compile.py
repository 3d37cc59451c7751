# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Modules compiled in a root of their own: for real, with a few programs of this machine as the locked compiler."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cvmtool.errors import BuildError
from cvmtool.image.compile import Compilation, compiled_modules, read_patches
from cvmtool.image.elf import is_elf
from cvmtool.image.lock import Package
from cvmtool.image.recipe import ModulesRecipe
from cvmtool.image.store import Store
from tests.unit.image.parts import make_deb, make_package

RELEASE = "6.1-test"
PROGRAMS = ("env", "sh", "make", "patch", "as", "strip")
SOURCE = b'.globl answer\nanswer: .long 41\n.section .comment\n.asciz "first"\n'
PATCH = b"""\
--- a/tiny.s
+++ b/tiny.s
@@ -1,2 +1,2 @@
 .globl answer
-answer: .long 41
+answer: .long 0xC0FFEE
"""
# What a kernel's build folder does for a module, as far as this is concerned. It also tells what it sees.
MAKEFILE = b"""\
modules:
\t@test "$(WORD)" = two\\ words
\t@test ! -e /etc/hostname && test ! -e /proc/version && test -c /dev/null
\t@env > $(M)/environment
\tas -g -o $(M)/tiny.ko $(M)/tiny.s
"""
COFFEE = (0xC0FFEE).to_bytes(4, "little")
RECIPE = ModulesRecipe(source="usr/src/tiny", make=("WORD=two words", "RELEASE={release}"), take=("tiny",))


def _can_enter() -> bool:
    wanted = ("unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "true")
    return subprocess.run(wanted, capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.skipif(any(shutil.which(name) is None for name in (*PROGRAMS, "unshare", "ldd")), reason="no compiler"),
    pytest.mark.skipif(not _can_enter(), reason="this machine lets nobody make namespaces"),
]


def _with_libraries(program: str) -> dict[str, bytes]:
    path = Path(str(shutil.which(program))).resolve()
    listed = subprocess.run(["ldd", path], capture_output=True, check=True, text=True).stdout
    libraries = {Path(found) for found in re.findall(r"(/\S+) \(0x", listed)}
    return {f"usr/bin/{program}": path.read_bytes()} | {
        str(library).lstrip("/"): library.read_bytes() for library in libraries
    }


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    files: dict[str, bytes | str] = {}
    for program in PROGRAMS:
        files |= _with_libraries(program)
    modes = dict.fromkeys(files, 0o755)
    return make_deb(tmp_path_factory.mktemp("compiler"), "compiler", files, modes=modes).read_bytes()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "packages").mkdir()
    return Store(folder=tmp_path / "packages")


@pytest.fixture
def keep(store: Store, tmp_path: Path) -> Callable[[str, dict[str, bytes | str]], Package]:
    def keep(name: str, files: dict[str, bytes | str]) -> Package:
        (tmp_path / name).mkdir()
        return _kept(store, name, make_deb(tmp_path / name, name, files).read_bytes())

    return keep


def _kept(store: Store, name: str, data: bytes) -> Package:
    package = make_package(name, data, roles=frozenset({"modules"}))
    (store.folder / hashlib.sha256(data).hexdigest()).write_bytes(data)
    return package


@pytest.fixture
def what(store: Store, keep: Callable[[str, dict[str, bytes | str]], Package], compiler: bytes) -> Compilation:
    headers = keep("headers", {f"usr/lib/modules/{RELEASE}/build/Makefile": MAKEFILE})
    source = keep("source", {"usr/src/tiny/tiny.s": SOURCE})
    return Compilation(
        recipe=RECIPE,
        packages=(_kept(store, "compiler", compiler), headers, source),
        patches={"answer.patch": PATCH},
        release=RELEASE,
        time=1_760_000_000,
    )


def build(what: Compilation, store: Store, work: Path, *, fresh: bool = False) -> tuple[dict[str, bytes], list[str]]:
    stages: list[str] = []
    return compiled_modules(what, store=store, work=work, fresh=fresh, progress=stages.append), stages


def test_a_module_is_its_patched_source_without_debugging_information(
    what: Compilation, store: Store, tmp_path: Path
) -> None:
    modules, stages = build(what, store, tmp_path / "work")
    assert modules.keys() == {"tiny"}
    assert is_elf(modules["tiny"])
    assert COFFEE in modules["tiny"]
    assert b".debug" not in modules["tiny"]
    assert b".debug" not in b"".join(modules.values())
    assert len(stages) == 2


def test_nothing_of_this_machine_is_known_inside(
    what: Compilation, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("https_proxy", "http://proxy.invalid")
    build(what, store, tmp_path / "work")
    lines = (tmp_path / "work/usr/src/tiny/environment").read_text().splitlines()
    told = dict(line.split("=", 1) for line in lines)
    assert (told["SOURCE_DATE_EPOCH"], told["KBUILD_BUILD_HOST"], told["HOME"]) == ("1760000000", "cvmtool", "/")
    assert "somebody" not in str(told)
    assert "proxy" not in str(told)


def test_two_compilations_are_the_same_bytes(what: Compilation, store: Store, tmp_path: Path) -> None:
    one, _ = build(what, store, tmp_path / "one")
    other, stages = build(what, store, tmp_path / "another/and/longer", fresh=True)
    assert other == one
    assert stages


def test_what_was_compiled_is_kept(what: Compilation, store: Store, tmp_path: Path) -> None:
    modules, _ = build(what, store, tmp_path / "one")
    assert build(what, store, tmp_path / "two") == (modules, [])
    assert not (tmp_path / "two").exists()
    changed = replace(what, patches={})
    assert COFFEE not in build(changed, store, tmp_path / "three")[0]["tiny"]
    assert build(what, store, tmp_path / "four") == (modules, [])


@pytest.mark.parametrize("damage", [b"", b"\x7fELF\x02\x01\x01 of somebody else"])
def test_what_is_kept_is_not_believed(what: Compilation, store: Store, tmp_path: Path, damage: bytes) -> None:
    modules, _ = build(what, store, tmp_path / "one")
    (kept,) = store.folder.glob("modules-*/tiny.ko")
    kept.write_bytes(damage)
    again, stages = build(what, store, tmp_path / "two")
    assert again == modules
    assert stages
    assert kept.read_bytes() == modules["tiny"]


def test_everything_that_goes_in_counts(what: Compilation) -> None:
    recipe = what.recipe
    others = [
        replace(what, recipe=replace(recipe, make=("WORD=other",))),
        replace(what, recipe=replace(recipe, source="usr/src/other")),
        replace(what, recipe=replace(recipe, take=())),
        replace(what, packages=what.packages[1:]),
        replace(what, patches={"answer.patch": PATCH + b"\n"}),
        replace(what, patches={}),
        replace(what, release="6.2-test"),
        replace(what, time=1),
    ]
    assert len({what.digest(), *(other.digest() for other in others)}) == len(others) + 1


def test_headers_of_another_kernel_are_refused(what: Compilation, store: Store, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"headers of kernel 6\.2-test"):
        build(replace(what, release="6.2-test"), store, tmp_path / "work")


@pytest.mark.parametrize(
    ("patch", "named"),
    [({"answer.patch": PATCH.replace(b"41", b"43")}, "tiny.s"), ({"no.patch": b"no patch"}, "patch")],
)
def test_a_patch_that_does_not_fit_ends_the_build(
    what: Compilation, store: Store, tmp_path: Path, patch: dict[str, bytes], named: str
) -> None:
    with pytest.raises(BuildError) as caught:
        build(replace(what, patches=patch), store, tmp_path / "work")
    assert named in (caught.value.detail or "")


def test_what_make_says_is_told(what: Compilation, store: Store, tmp_path: Path) -> None:
    recipe = replace(what.recipe, make=("WORD=one",))
    with pytest.raises(BuildError, match="make failed in the root") as caught:
        build(replace(what, recipe=recipe), store, tmp_path / "work")
    assert "modules" in (caught.value.detail or "")


def test_a_module_that_make_did_not_make_is_named(what: Compilation, store: Store, tmp_path: Path) -> None:
    recipe = replace(what.recipe, take=("tiny", "other"))
    with pytest.raises(BuildError, match=r"left no other\.ko"):
        build(replace(what, recipe=recipe), store, tmp_path / "work")


def test_patches_are_those_of_every_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "own/patches").mkdir(parents=True)
    (tmp_path / "own/patches/a.patch").write_bytes(PATCH)
    (tmp_path / "own/patches/notes.txt").write_bytes(b"")
    assert read_patches((tmp_path / "base", tmp_path / "own")) == {"a.patch": PATCH}
