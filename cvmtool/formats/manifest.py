# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The image manifest: what a guest image is, by digest, and which launch digests follow from it.

Zone: shared. Pure: no I/O.
Schema `cvmtool/image/v1`. JSON with sorted keys, two spaces of indentation and a final newline, so that it reads and
diffs well; there is one spelling, and a reader refuses every other.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from cvmtool.errors import FormatError
from cvmtool.formats.wire import JsonObject, members, natural, parse_hex, parse_json, typed

SCHEMA = "cvmtool/image/v1"
MAX_MANIFEST = 4 << 20  # bytes
MAX_CMDLINE = 2047  # bytes; the x86 kernel keeps 2048 with the final NUL
MAX_VCPUS = 64
DIGEST_BYTES = 48  # a launch digest
DRYRUN_WORD = "cvmtool.dryrun=1"
NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WORD = re.compile(r"[!-~]{1,200}")


class Mode(StrEnum):
    """Which of the two measured command lines: the one for AMD hardware, or the one that accepts a simulated report."""

    PRODUCTION = "production"
    DRYRUN = "dryrun"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """One file of a bundle."""

    file: str
    """Its name in the bundle's folder."""
    sha256: str
    """64 hex digits."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageManifest:
    """Everything public about a guest image."""

    name: str
    source_date_epoch: int
    """Seconds; the time stamp of every file in the image."""
    inputs_sha256: str
    """SHA-256 over everything that the build reads; an unchanged input needs no new build."""
    lock_sha256: str
    """SHA-256 of the packages lock."""
    kernel_release: str
    builder: dict[str, str]
    """Versions of what made the image."""
    firmware: Artefact
    kernel: Artefact
    initrd: Artefact
    rootfs: Artefact
    sbom: Artefact
    cmdline: dict[Mode, str]
    launch_digests: dict[Mode, dict[str, tuple[str, ...]]]
    """Mode -> CPU model -> launch digest (96 hex digits) for 1, 2, ... 64 vCPUs."""

    def artefacts(self) -> tuple[Artefact, ...]:
        """Return every file of the bundle but the manifest."""
        return (self.firmware, self.kernel, self.initrd, self.rootfs, self.sbom)

    def launch_digest(self, mode: Mode, cpu: str, vcpus: int) -> bytes:
        """Return the launch digest (48 bytes) for a machine.

        Raises:
            FormatError: the manifest does not list that CPU model or that many vCPUs.
        """
        models = self.launch_digests[mode]
        if cpu not in models:
            raise FormatError(
                f"image {self.name} has no launch digest for the CPU model {cpu[:64]!r}; it has {', '.join(models)}"
            )
        if not 1 <= vcpus <= len(models[cpu]):
            raise FormatError(
                f"image {self.name} has launch digests for 1 to {len(models[cpu])} vCPUs; {vcpus} was asked for"
            )
        return bytes.fromhex(models[cpu][vcpus - 1])

    def encode(self) -> bytes:
        """Return manifest.json."""
        value: JsonObject = {**asdict(self), "schema": SCHEMA}
        return _encode(value)


_ARTEFACTS = ("firmware", "kernel", "initrd", "rootfs", "sbom")


def parse_image_manifest(data: bytes) -> ImageManifest:
    """Read manifest.json.

    Raises:
        FormatError: too long, not JSON in the one spelling, or a key is missing, unknown or out of range.
    """
    what = "image manifest"
    value = parse_json(data, what=what, limit=MAX_MANIFEST)
    if _encode(value) != data:
        raise FormatError(f"{what} is not in its one spelling: sorted keys, two spaces, a final newline")
    members(value, what=what, required={*ImageManifest.__slots__, "schema"})
    if value["schema"] != SCHEMA:
        raise FormatError(f"{what}.schema is {str(value['schema'])[:64]!r}; {SCHEMA!r} is required")
    name = typed(value, "name", str, what=what)
    if not NAME.fullmatch(name):
        raise FormatError(f"{what}.name is {name[:64]!r}; lower-case letters, digits, '.', '_' and '-' are required")
    for key in ("inputs_sha256", "lock_sha256"):
        parse_hex(value[key], 32, what=f"{what}.{key}")
    artefacts = {key: _artefact(value, key) for key in _ARTEFACTS}
    files = [artefact.file for artefact in artefacts.values()]
    if len(set(files)) != len(files):
        raise FormatError(f"{what}: two artefacts have the same file name; each needs its own")
    cmdline = _by_mode(value, "cmdline")
    return ImageManifest(
        name=name,
        source_date_epoch=natural(value, "source_date_epoch", what=what, most=(1 << 32) - 1),
        inputs_sha256=value["inputs_sha256"],
        lock_sha256=value["lock_sha256"],
        kernel_release=_word(value, "kernel_release"),
        builder=_builder(value),
        cmdline=_cmdlines({mode: typed(cmdline, mode, str, what="cmdline") for mode in Mode}),
        launch_digests=_digests(
            {mode: typed(_by_mode(value, "launch_digests"), mode, dict, what="launch_digests") for mode in Mode}
        ),
        **artefacts,
    )


def _encode(value: JsonObject) -> bytes:
    try:
        return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=True) + "\n").encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"image manifest has no JSON form: {error}") from error


def _artefact(value: JsonObject, key: str) -> Artefact:
    item = typed(value, key, dict, what="image manifest")
    members(item, what=key, required=set(Artefact.__slots__))
    file = typed(item, "file", str, what=key)
    # The name is joined to a folder: it must not be able to leave it.
    if not _FILE.fullmatch(file) or file == "manifest.json":
        raise FormatError(f"{key}.file is {file[:64]!r}; a plain file name is required")
    parse_hex(item["sha256"], 32, what=f"{key}.sha256")
    return Artefact(file=file, sha256=item["sha256"], size=natural(item, "size", what=key, least=1, most=1 << 40))


def _by_mode(value: JsonObject, key: str) -> JsonObject:
    item: dict[str, Any] = typed(value, key, dict, what="image manifest")
    members(item, what=key, required={mode.value for mode in Mode})
    return item


def _word(value: JsonObject, key: str) -> str:
    word = typed(value, key, str, what="image manifest")
    if not _WORD.fullmatch(word):
        raise FormatError(f"image manifest.{key} is {word[:64]!r}; a printable word is required")
    return word


def _builder(value: JsonObject) -> dict[str, str]:
    item: dict[str, Any] = typed(value, "builder", dict, what="image manifest")
    if len(item) > 64:
        raise FormatError(f"builder has {len(item)} entries; at most 64 are allowed")
    return {str(key): _word(item, key) for key in item}


def _cmdlines(lines: dict[Mode, str]) -> dict[Mode, str]:
    for mode, line in lines.items():
        if not 1 <= len(line) <= MAX_CMDLINE or not line.isascii() or not line.isprintable():
            raise FormatError(
                f"cmdline.{mode} has {len(line)} characters; 1 to {MAX_CMDLINE} printable ones are required"
            )
    # They differ in that word alone, so a production measurement is never that of a guest that believes a simulation.
    if lines[Mode.DRYRUN] != f"{lines[Mode.PRODUCTION]} {DRYRUN_WORD}" or DRYRUN_WORD in lines[Mode.PRODUCTION].split(
        " "
    ):
        raise FormatError(f"cmdline.dryrun is not cmdline.production with {DRYRUN_WORD!r} at the end; that is required")
    return lines


def _digests(modes: dict[Mode, dict[str, Any]]) -> dict[Mode, dict[str, tuple[str, ...]]]:
    found: dict[Mode, dict[str, tuple[str, ...]]] = {}
    for mode, models in modes.items():
        if not 1 <= len(models) <= 64:
            raise FormatError(f"launch_digests.{mode} has {len(models)} CPU models; 1 to 64 are required")
        found[mode] = {}
        for cpu, digests in models.items():
            where = f"launch_digests.{mode}.{cpu[:64]}"
            if not _WORD.fullmatch(cpu) or not isinstance(digests, list) or len(digests) != MAX_VCPUS:
                raise FormatError(f"{where} is not a list of {MAX_VCPUS} digests")
            for digest in digests:
                parse_hex(digest, DIGEST_BYTES, what=where)
            found[mode][cpu] = tuple(digests)
    if found[Mode.PRODUCTION].keys() != found[Mode.DRYRUN].keys():
        raise FormatError("launch_digests.production and launch_digests.dryrun list different CPU models")
    return found
