# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""container.toml, read strictly, and the digest that is written into a job."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cvmtool.errors import BuildError, ConfigError
from cvmtool.image.build import scratch
from cvmtool.image.container import build_container, parse_container, pin
from cvmtool.image.store import Store

RECIPE = b"""
name = "demo"
source_date_epoch = 1
[packages]
suites = ["trixie"]
[packages.rootfs]
include = ["python3"]
[packages.tools]
include = ["python3-minimal"]
[files]
"app/train.py" = "../train.py"
"""
JOB = """name: x
# digest: sha256:comment
container:
  image: oci-archive:x   # the image
  digest: sha256:00  # pinned

inputs:
  digest: sha256:11
"""
DIGEST = "sha256:" + "ab" * 32


def test_recipe() -> None:
    recipe = parse_container(RECIPE)
    assert recipe.files == {"app/train.py": "../train.py"}
    assert recipe.run.workdir == "/"
    assert recipe.request.roles["rootfs"].include == ("python3",)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (b'name = "demo"', b"name = 1", "name"),
        (b"source_date_epoch = 1", b"source_date_epoch = -1", "source_date_epoch"),
        (b"[files]", b"[filez]", "filez"),
        (b'suites = ["trixie"]', b"suites = [1]", "suites"),
        (b"[packages.tools]", b"[packages.tool]", "tools"),
        (b"[files]", b"[files", "TOML"),
    ],
)
def test_mutated_recipe_is_refused(old: bytes, new: bytes, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_container(RECIPE.replace(old, new))


def test_pin_changes_one_word() -> None:
    pinned = pin(JOB, DIGEST)
    assert yaml.safe_load(pinned) == {
        "name": "x",
        "container": {"image": "oci-archive:x", "digest": DIGEST},
        "inputs": {"digest": "sha256:11"},
    }
    assert pinned == JOB.replace("sha256:00", DIGEST)
    assert pin(pinned, DIGEST) == pinned


@pytest.mark.parametrize(
    "job", ["name: x\n", "container:\n  image: y\n", "container:\n  digest: a\n  digest: b\n", "other:\n  digest: a\n"]
)
def test_pin_needs_exactly_one_line(job: str) -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        pin(job, DIGEST)


def test_the_example_in_the_repository_parses() -> None:
    path = Path(__file__).parents[3] / "examples/digits/container/container.toml"
    recipe = parse_container(path.read_bytes())
    assert "app/train.py" in recipe.files


def test_a_folder_without_a_recipe_is_a_build_error(tmp_path: Path) -> None:
    def never() -> None:
        raise AssertionError("no archive is needed to see that")

    with pytest.raises(BuildError, match=r"container\.toml"):
        build_container(
            tmp_path,
            tmp_path / "out",
            store=Store(folder=tmp_path / "store"),
            find_archive=never,  # type: ignore[arg-type]
            progress=print,
            notice=print,
        )


def test_a_place_that_cannot_be_written_is_a_build_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BuildError, match="cannot be used"), scratch(tmp_path / "file" / "out"):
        pass
