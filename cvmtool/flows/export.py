# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Simulated launches of a guest image as a folder that others try their verifier on.

Zone: flows. Each product line gets a fake AMD of its own, whose keys are kept nowhere: once the folder is written, nobody can
sign anything more that its roots would endorse.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cvmtool.dryrun.amd import FakeAmd
from cvmtool.dryrun.export import README, README_FILE, export_case
from cvmtool.dryrun.faults import Fault
from cvmtool.dryrun.psp import LaunchFacts
from cvmtool.errors import ConfigError
from cvmtool.formats.manifest import Mode
from cvmtool.formats.tcb import ProductLine
from cvmtool.image.bundle import Bundle
from cvmtool.measure.hashes import kernel_hashes

VERSIONS = (3, 5)
"""Of reports; version 2 is a fault."""

_CPUS = {ProductLine.MILAN: "EPYC-Milan", ProductLine.GENOA: "EPYC-Genoa", ProductLine.TURIN: "EPYC-Turin"}
_GUEST_POLICY = 0x30000  # SMT allowed, and the bit that must be set


def require_room(folder: Path, *, force: bool) -> None:
    """Refuse a folder that others' files would be lost in.

    Raises:
        ConfigError: it is a file, or holds something and `force` is not given.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; required: a folder, or nothing yet")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; required: an empty folder, or none", hint="--force writes into it")


def export_launches(
    folder: Path, bundle: Bundle, *, force: bool = False, progress: Callable[[str], None]
) -> tuple[Path, ...]:
    """Write a launch of `bundle` for each product line, report version and fault; return their folders.

    All is written beside `folder` first and moved in at the end, so an interruption leaves nothing half. With `force`, what has
    the same name is replaced, and everything else stays.

    Raises:
        ConfigError: as `require_room`, or the folder cannot be written.
        FormatError: the image's firmware cannot be measured.
    """
    require_room(folder, force=force)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
            drafts = _draft(Path(name), bundle, progress)
            (Path(name) / README_FILE).write_text(README, "utf-8")
            for draft in (*drafts, Path(name) / README_FILE):
                _replace(draft, folder / draft.name)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from error
    return tuple(folder / draft.name for draft in drafts)


def _draft(folder: Path, bundle: Bundle, progress: Callable[[str], None]) -> tuple[Path, ...]:
    firmware = bundle.firmware.read_bytes()
    hashes = kernel_hashes(bundle.kernel.read_bytes(), bundle.initrd.read_bytes(), bundle.cmdline(Mode.DRYRUN))
    host_data, report_data = secrets.token_bytes(32), secrets.token_bytes(64)
    cases: list[Path] = []
    for line in ProductLine:
        progress(f"making a simulated AMD for {line}")
        amd = FakeAmd.temporary(line)
        facts = LaunchFacts(
            firmware=firmware,
            hash_table=hashes.table(),
            vcpus=2,
            cpu=_CPUS[line],
            host_data=host_data,
            policy=_GUEST_POLICY,
            report_id=secrets.token_bytes(32),
        )
        for version in VERSIONS:
            for fault in Fault:
                progress(f"launching on {line}, report version {version}, fault {fault}")
                cases.append(export_case(folder, amd, facts, fault, report_data=report_data, version=version))
    return tuple(cases)


def _replace(draft: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    draft.replace(target)
