# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The transformer example as a whole: pretrained, fine-tuned in a dry run, and fine-tuned natively with the same result.

Takes a quarter of an hour and fetches 200 MB of packages: `make transformer`, and this with `-m soak`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cvmtool.config import Settings
from cvmtool.image.archive import find_archive
from cvmtool.image.container import build_container, pin
from cvmtool.image.store import Store
from tests.scenario.conftest import ROOT

pytestmark = [pytest.mark.vm, pytest.mark.image, pytest.mark.soak]

OUTPUTS = ("adapter_model.safetensors", "adapter_config.json", "model.safetensors", "metrics.json")


@pytest.fixture(scope="module")
def job(place: Path, settings: Settings) -> Path:
    """The example's job file, in a copy of its own, its container built and its model pretrained for a short while."""
    shutil.copy(ROOT / "examples" / "native.py", place)
    folder = place / "transformer"
    ignored = shutil.ignore_patterns("container.oci.tar", "__pycache__", "inputs", ".root", "results")
    shutil.copytree(ROOT / "examples" / "transformer", folder, ignore=ignored)
    built = build_container(
        folder / "container",
        folder / "container.oci.tar",
        store=Store(folder=settings.packages_dir),
        find_archive=find_archive,
        progress=lambda _: None,
        notice=lambda _: None,
    )
    job = folder / "job.yaml"
    job.write_text(pin(job.read_text(), built.digest))
    native(job, folder / "prepare.py", "--steps", "400")
    return job


def native(job: Path, script: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, job.parents[1] / "native.py", job, script, *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=800,
    )


def test_a_dry_run_gives_the_same_model_as_a_native_run(job: Path, environment: dict[str, str], place: Path) -> None:
    results, plain = place / "transformer-results", place / "transformer-native"
    subprocess.run(
        [sys.executable, "-m", "cvmtool", "train", str(job), "--dry-run", "--results", str(results), "--json"],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        timeout=880,
        check=True,
    )
    plain.mkdir()
    inputs = str(job.parent / "inputs")
    native(job, job.parent / "train.py", "--inputs", inputs, "--outputs", str(plain), "--merged")
    assert {name: (results / name).read_bytes() == (plain / name).read_bytes() for name in OUTPUTS} == dict.fromkeys(
        OUTPUTS, True
    )
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["bits_per_character_after"] < metrics["bits_per_character_before"] - 0.2
    assert sum(metrics["loss"][-10:]) < sum(metrics["loss"][:10])
