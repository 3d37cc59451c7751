# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""OCI archives: read by another reader, the same bytes each time."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from cvmtool.data.oci import OciImage
from cvmtool.errors import VerificationError
from cvmtool.image.oci import RunConfig, write_oci_archive
from cvmtool.image.tree import Tree

RUN = RunConfig(entrypoint=("python3",), env={"B": "2", "A": "1"}, workdir="/app")


def write(folder: Path, content: bytes = b"print(1)") -> tuple[Path, str]:
    with Tree() as tree:
        tree.add_file("app/train.py", content)
        with (folder / "layer.tar").open("wb") as file:
            tree.write_tar(file, time=7)
    out = io.BytesIO()
    digest = write_oci_archive(out, folder / "layer.tar", RUN, tag="test", time=7)
    (folder / "image.tar").write_bytes(out.getvalue())
    return folder / "image.tar", digest


def test_our_own_reader_accepts_it_by_its_digest(tmp_path: Path) -> None:
    path, digest = write(tmp_path)
    image = OciImage(f"oci-archive:{path.name}", digest, base=tmp_path)
    assert image.config.args == ("python3",)
    assert image.config.env == {"A": "1", "B": "2"}
    assert b"print(1)" in b"".join(image.rootfs())


def test_another_content_is_another_digest(tmp_path: Path) -> None:
    _, digest = write(tmp_path)
    path, other = write(tmp_path, b"print(2)")
    assert other != digest
    with pytest.raises(VerificationError):
        OciImage(f"oci-archive:{path.name}", digest, base=tmp_path)


def test_it_is_the_same_twice(tmp_path: Path) -> None:
    first = write(tmp_path)[0].read_bytes()
    assert write(tmp_path)[0].read_bytes() == first


def test_skopeo_accepts_it(tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    path, digest = write(tmp_path)
    done = subprocess.run(["skopeo", "inspect", f"oci-archive:{path}"], capture_output=True, check=True)
    assert json.loads(done.stdout)["Digest"] == digest
