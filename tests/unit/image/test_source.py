# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Where an image that extends another takes its parts from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cvmtool.errors import BuildError
from cvmtool.image.build import Source

IMAGES = Path(__file__).parents[3] / "images"


@pytest.fixture
def operator(tmp_path: Path) -> Source:
    shutil.copytree(IMAGES, tmp_path / "images")
    (tmp_path / "cvmtool").mkdir()
    return Source(image=tmp_path / "images/operator", package=tmp_path / "cvmtool")


def test_what_it_does_not_have_is_the_other_s(operator: Source) -> None:
    base = operator.image.parent / "base"
    assert operator.folders == (base, operator.image)
    assert operator.lock_path == base / "packages.lock"
    assert operator.init_path == base / "init"
    assert Source(image=base, package=operator.package).folders == (base,)


def test_what_it_has_is_its_own(operator: Source) -> None:
    (operator.image / "init").write_text("another")
    recipe = operator.image / "image.toml"
    recipe.write_text(recipe.read_text() + '[packages.rootfs]\ninclude = ["bash"]\n')
    assert operator.init_path == operator.image / "init"
    assert operator.lock_path == operator.image / "packages.lock"


@pytest.mark.parametrize("name", ["operator/overlay/usr/lib/cvmtool/shell", "base/init", "base/skeleton/etc/group"])
def test_every_file_of_both_counts(operator: Source, name: str) -> None:
    before = operator.digest(b"lock")
    path = operator.image.parent / name
    path.write_bytes(path.read_bytes() + b"#\n")
    changed = operator.digest(b"lock")
    path.chmod(path.stat().st_mode ^ 0o100)
    assert len({before, changed, operator.digest(b"lock"), operator.digest(b"other")}) == 4


def test_the_lock_is_no_file_of_the_image(operator: Source) -> None:
    before = operator.digest(b"lock")
    operator.lock_path.write_bytes(b"")
    assert operator.digest(b"lock") == before


def test_an_image_that_is_not_there_is_not_extended(operator: Source) -> None:
    shutil.rmtree(operator.image.parent / "base")
    with pytest.raises(BuildError):
        operator.recipe()


def test_the_user_of_the_shell_is_the_one_that_the_agent_knows() -> None:
    from cvmtool.formats.control import OWNER_USER
    from cvmtool.guest.shell import OWNER_ID

    for image in ("base", "operator"):
        lines = (IMAGES / image / "skeleton/etc/passwd").read_text().splitlines()
        users = {line.split(":")[0]: line.split(":") for line in lines}
        assert users[OWNER_USER][2:4] == [str(OWNER_ID), str(OWNER_ID)]
        assert users[OWNER_USER][6].endswith("shell") == (image == "operator")
