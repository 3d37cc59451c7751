# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Three owners on one machine, each with a state directory of its own: a coordinator's container, a clinic's and a ward's data."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.errors import VerificationError
from cvmtool.flows.jobs import load_jobs
from cvmtool.flows.platform import dry_run
from cvmtool.flows.prepare import Prepared, load_keys, prepare
from cvmtool.flows.train import run_policy, train
from cvmtool.image.bundle import Bundle
from cvmtool.owner.ageopen import open_age
from cvmtool.owner.amdroots import SimulatedRoot
from cvmtool.owner.grants import ConsentError
from cvmtool.owner.keystore import parse_keys
from cvmtool.owner.receipts import require_manifest, verify_receipt

pytestmark = [pytest.mark.vm, pytest.mark.image]

POOL = (
    "import pathlib; pathlib.Path('/outputs/both').write_bytes("
    "b'+'.join(pathlib.Path(f'/inputs/{name}/file').read_bytes() for name in ('clinic', 'ward')))"
)


@dataclass(frozen=True)
class Owner:
    """A party, by its command line alone."""

    name: str
    folder: Path
    environment: dict[str, str]

    def command(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "cvmtool", *map(str, words)]

    def run(self, *words: str | Path) -> str:
        done = subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def answer(self, exchange: Path, root: str) -> subprocess.Popen[str]:
        command = self.command("party", "answer", exchange, "--simulated-root", root, "--json")
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @property
    def pack(self) -> Path:
        return self.folder / f"{self.name}.pack"


def owner_of(name: str, place: Path, environment: dict[str, str]) -> Owner:
    folder = place / f"owner-{name}"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "file").write_text(f"of the {name}")
    owner = Owner(name, folder, environment | {"CVMTOOL_STATE_DIR": str(folder / "state")})
    owner.run("data", "pack", folder / "data", "--out", owner.pack, "--name", name)
    return owner


@pytest.fixture(scope="module")
def owners(place: Path, environment: dict[str, str], bundle: Bundle) -> list[Owner]:
    return [owner_of(name, place, environment) for name in ("clinic", "ward")]


@pytest.fixture
def pooled(example: Path, bundle: Bundle, settings: Settings, owners: list[Owner]) -> Prepared:
    keys = {owner.name: json.loads(owner.run("key", "show", "--json")) for owner in owners}
    parties = {name: key["public"] for name, key in keys.items()}
    head = example.read_text().split("\ncommand:")[0]
    head = head.replace("oci-archive:container.oci.tar", f"oci-archive:{example.parent / 'container.oci.tar'}")
    path = owners[0].folder.parent / "pooled.yaml"
    path.write_text(
        f'{head}\ncommand: [python3, -c, "{POOL}"]\noutputs: {{both: {{kind: file, max: 1KiB}}}}\n'
        f"inputs: {{{', '.join(f'{owner.name}: {owner.pack}' for owner in owners)}}}\n"
        f"recipients: [{', '.join(key['recipient'] for key in keys.values())}]\n"
        f"parties: {{{', '.join(f'{name}: {public}' for name, public in parties.items())}}}\n"
        "resources: {vcpus: 1, memory: 768MiB}\n"
    )
    return prepare(path, bundle, settings=settings, reporter=JsonReporter())


def root_of(settings: Settings) -> str:
    roots = dry_run(settings).roots
    assert isinstance(roots, SimulatedRoot)
    return roots.fingerprint.hex()


class Asking(JsonReporter):
    """Lets the owners look at the job, once it is there."""

    def __init__(self, act: object) -> None:
        self._act = act

    def step(self, text: str) -> None:
        if text.startswith("waiting for the consent"):
            self._act()


def test_one_of_three_refuses_and_no_machine_is_started(
    pooled: Prepared, owners: list[Owner], settings: Settings, place: Path
) -> None:
    exchange = place / "exchange-refused"
    asking = Asking(lambda: owners[1].run("party", "refuse", exchange, "--reason", "not with these recipients"))
    with pytest.raises(ConsentError, match="ward refuses: not with these recipients"):
        train(pooled, platform=dry_run(settings), settings=settings, reporter=asking, exchange=exchange)
    record = list(load_jobs(settings.jobs_dir))[-1].record
    assert (record.state, record.attempts) == ("refused", [])


def test_three_owners_each_release_to_a_guest_that_they_looked_at_themselves(
    pooled: Prepared, owners: list[Owner], settings: Settings, place: Path
) -> None:
    exchange, answers = place / "exchange", []

    def consent() -> None:
        for owner in owners:
            owner.run("party", "grant", exchange, "--pack", owner.pack)
            answers.append(owner.answer(exchange, root_of(settings)))

    platform, results = dry_run(settings), place / "pooled-results"
    train(pooled, platform=platform, settings=settings, reporter=Asking(consent), exchange=exchange, results=results)
    for answer in answers:
        said, complaints = answer.communicate(timeout=60)
        assert answer.returncode == 0, complaints
        assert [json.loads(line)["event"] for line in said.splitlines()] == ["consented", "released"]
    sealed = results / "both.age"
    for owner in owners:
        keys = parse_keys((owner.folder / "state" / "owner.key").read_bytes())
        with sealed.open("rb") as file:
            assert b"".join(open_age(file.read, [keys.age_identity])) == b"of the clinic+of the ward"
    with sealed.open("rb") as file, pytest.raises(VerificationError):
        list(open_age(file.read, [load_keys(settings).age_identity]))  # the coordinator is no recipient
    receipt = verify_receipt((results / "receipt.json").read_bytes(), run_policy(pooled, platform), datetime.now(UTC))
    manifest = require_manifest(receipt.statement, pooled.manifest.encode())
    assert len(manifest.parties) == len(owners)
    (attempt,) = list(load_jobs(settings.jobs_dir))[-1].record.attempts
    assert [session.released for session in attempt.sessions] == [False, True, True, True]
    assert attempt.sessions[-1].nonce == receipt.statement.nonce.hex()
    for owner in owners:
        (grant,) = json.loads(owner.run("party", "grants", "--json"))["grants"]
        assert list(grant["used"]) == [attempt.sessions[0].boot]
