# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A job that is prepared as far as a host is needed: small files stand for image and packs, which nobody opens."""

from __future__ import annotations

from pathlib import Path

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.data.oci import ImageConfig
from cvmtool.flows.jobplan import Plan
from cvmtool.flows.packs import SealedPack
from cvmtool.flows.prepare import Prepared, load_keys, make_manifest
from cvmtool.flows.run import Run
from cvmtool.flows.supervise import put_on_record
from cvmtool.formats.pack import Role
from cvmtool.image.bundle import load_bundle
from cvmtool.owner.jobfile import parse_job_file
from tests.samples import JOB_YAML, pack
from tests.unit.image.images import make_image

NO_HOST = "qemu+ssh://nobody@127.0.0.1:1/system"
"""Where nobody listens."""


def prepared_job(folder: Path, settings: Settings) -> Prepared:
    """Return one. Its files are below `folder`."""
    packs = []
    for name, role in (("container", Role.CONTAINER), ("data", Role.INPUT)):
        path = folder / f"{name}.img"
        path.write_bytes(name.encode())
        packs.append(SealedPack(descriptor=pack(name, role), path=path, reused=True))
    file, keys = parse_job_file(JOB_YAML), load_keys(settings)
    image = ImageConfig(args=(), env={}, workdir="/")
    return Prepared(
        file=file,
        manifest=make_manifest(file, image, keys, packs, salt=b"s" * 32),
        packs=tuple(packs),
        keys=keys,
        bundle=load_bundle(make_image(folder / "image")),
    )


def recorded_run(prepared: Prepared, plan: Plan, settings: Settings) -> Run:
    """Put it on record; this process holds it."""
    return put_on_record(prepared, plan, None, settings=settings, reporter=JsonReporter(), gate=plan.gate(settings))
