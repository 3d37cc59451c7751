# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What the host can see of a run: nothing of the data set, the model, the log or any key."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.flows.hosts import Host, open_host
from cvmtool.flows.platform import dry_run
from cvmtool.flows.prepare import Prepared, prepare
from cvmtool.flows.train import train
from cvmtool.host.embedded import EMBEDDED_DIR
from cvmtool.host.hypervisor import Hypervisor
from cvmtool.image.bundle import Bundle

pytestmark = [pytest.mark.vm, pytest.mark.image]


@dataclass
class WatchingHost:
    """A host that keeps a copy of everything it holds, at the last moment before a machine goes."""

    hypervisor: Hypervisor
    machines: Path
    seen: dict[str, bytes] = field(default_factory=dict)

    def __getattr__(self, name: str) -> object:
        return getattr(self.hypervisor, name)

    def destroy(self, name: str) -> bool:
        for folder in (self.machines, EMBEDDED_DIR):
            for path in folder.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    self.seen[str(path)] = path.read_bytes()
        return self.hypervisor.destroy(name)


def spellings(secret: bytes) -> Iterator[bytes]:
    """A secret as bytes, hex and base64 (whole groups of three bytes, in each alignment)."""
    yield secret
    yield secret.hex().encode()
    for shift in range(3):
        cut = secret[shift:]
        yield base64.b64encode(cut[: len(cut) // 3 * 3])


@dataclass(frozen=True)
class Watched:
    seen: dict[str, bytes]
    secrets: dict[str, bytes]
    prepared: Prepared
    results: Path


@pytest.fixture(scope="module")
def watched(example: Path, bundle: Bundle, settings: Settings, place: Path) -> Watched:
    """Train on inputs that carry random marks, with a container that prints one, under a host that keeps what it sees."""
    marks = {name: secrets.token_bytes(48) for name in ("data", "model")}
    spoken = secrets.token_hex(24)
    folder = place / "marked"
    for name, mark in marks.items():
        (folder / "in" / name).mkdir(parents=True)
        (folder / "in" / name / "mark").write_bytes(mark * 64)
    job = example.read_text().split("\ncommand:")[0]
    job = job.replace("oci-archive:container.oci.tar", f"oci-archive:{example.parent / 'container.oci.tar'}")
    script = "import sys; print(sys.argv[1]); open('/outputs/out', 'wb').write(open('/inputs/data/mark', 'rb').read())"
    job += f"""
command: [python3, -c, "{script}", {spoken}]
inputs: {{data: in/data, model: in/model}}
outputs: {{out: {{kind: file, max: 1MiB}}}}
resources: {{vcpus: 1, memory: 768MiB}}
"""
    (folder / "job.yaml").write_text(job)
    hosts: list[WatchingHost] = []

    def watched_host(settings: Settings) -> Host:
        host = open_host(settings)
        hosts.append(WatchingHost(host.hypervisor, settings.machines_dir))
        return replace(host, hypervisor=cast("Hypervisor", hosts[-1]))

    reporter = JsonReporter()
    prepared = prepare(folder / "job.yaml", bundle, settings=settings, reporter=reporter)
    train(
        prepared,
        platform=dry_run(settings),
        settings=settings,
        reporter=reporter,
        results=folder / "out",
        open_host=watched_host,
    )
    keys = prepared.keys
    return Watched(
        seen=hosts[0].seen,
        secrets={
            **marks,
            "what the container printed": spoken.encode(),
            "owner seed": bytes.fromhex(settings.keystore.read_text().split()[-1]),
            **{
                f"passphrase of {p.descriptor.name}": keys.pack_passphrase(p.descriptor.luks_uuid)
                for p in prepared.packs
            },
        },
        prepared=prepared,
        results=folder / "out",
    )


def test_the_search_finds_what_is_there(watched: Watched) -> None:
    """A search that cannot find anything proves nothing: it finds the kernel, and the owner did get the marked output."""
    kernel = watched.prepared.bundle.kernel.read_bytes()[4096:4144]
    assert any(kernel in content for content in watched.seen.values())
    assert watched.secrets["data"] in (watched.results / "out").read_bytes()
    names = {Path(name).name for name in watched.seen}
    assert {
        "console.log",
        "rootfs.img",
        "pack-data.img",
        "pack-model.img",
        "pack-container.img",
        "firmware.fd",
    } <= names


def test_host_sees_nothing_of_data_model_or_key(watched: Watched) -> None:
    found = [
        (what, where)
        for what, secret in watched.secrets.items()
        for where, content in watched.seen.items()
        if any(spelling in content for spelling in spellings(secret))
    ]
    assert found == []


def test_console_holds_stage_words_only(watched: Watched) -> None:
    console = next(content for name, content in watched.seen.items() if name.endswith("console.log"))
    # The firmware clears the screen before anything of ours runs; the kernel is told to be quiet.
    words = [line.strip() for line in console.split(b"\n") if b"CVM-" in line]
    stages = ["initrd", "root", "agent", "attested", "unlocked", "running", "done"]
    spoken = [word[word.index(b"CVM-") :].decode() for word in words]
    assert spoken[: len(stages)] == [f"CVM-STAGE {stage}" for stage in stages]
    rest = b"\n".join(line for line in console.split(b"\n") if b"CVM-" not in line)
    printable = bytes(byte for byte in rest if 32 <= byte < 127)
    assert b"Traceback" not in printable
    assert len(printable) < 400, printable
