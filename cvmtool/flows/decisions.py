# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A run's rules, asked at each stage: every decision is kept in the run's record, and what is denied stops the run.

Zone: flows (owner's machine). What the rules say is `cvmtool.owner.pipeline`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvmtool.config import Settings
from cvmtool.errors import BuildError, ConfigError
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import JobDir
from cvmtool.flows.packfile import is_pack, read_pack
from cvmtool.formats.job import JobManifest
from cvmtool.formats.jobterms import Access as JobAccess
from cvmtool.formats.packheader import Action, PackHeader
from cvmtool.formats.receipt import Access
from cvmtool.image.bundle import Bundle, load_bundle
from cvmtool.owner.age import render_recipient
from cvmtool.owner.appraise import VerifiedGuest
from cvmtool.owner.jobfile import JobFile
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.pipeline import (
    Decision,
    InputFacts,
    Rules,
    RulesError,
    judge_export,
    judge_ingestion,
    judge_launch,
    judge_release,
    judge_sealing,
)
from cvmtool.owner.pipelinefile import parse_rules
from cvmtool.owner.pipelinetext import rules_of_job
from cvmtool.owner.policy import Policy, stateable
from cvmtool.owner.receipts import VerifiedReceipt

DECISIONS_FILE = "decisions.jsonl"
_RULES_FILE = "rules-{}.yaml"  # with the beginning of its digest

Headers = Mapping[str, PackHeader | None]
"""What is said of each input, by its name in the job; None of a directory, which says nothing of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """A file of rules."""

    text: str
    rules: Rules

    @property
    def digest(self) -> str:
        """SHA-256 of the file, 64 hex digits."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


class Gate:
    """The rules of one run, and what they decided: each set is asked, so a second one can only forbid more.

    Each stage raises RulesError if anything in it is denied, after all its decisions were kept. Without rules every stage is
    open and nothing is decided.
    """

    def __init__(self, sets: Sequence[RuleSet], jobs_dir: Path, *, simulated: bool) -> None:
        self._sets = tuple({item.digest: item for item in sets}.values())
        self._jobs_dir = jobs_dir
        self._simulated = simulated
        self._job: JobDir | None = None
        self._inputs: tuple[InputFacts, ...] = ()
        self._kept: list[tuple[RuleSet, Decision]] = []

    @property
    def decisions(self) -> list[Decision]:
        """What was decided so far."""
        return [decision for _, decision in self._kept]

    def ingest(self, job: JobFile, headers: Headers) -> None:
        """Before anything is sealed."""
        inputs = facts(headers)
        self._decide(
            lambda rules: judge_ingestion(
                rules, container=job.container_digest, inputs=inputs, simulated=self._simulated
            ),
            job.name,
        )

    def seal(self, manifest: JobManifest, headers: Headers) -> None:
        """Before the manifest is used; `headers` are those of the packs in it."""
        self._inputs = facts(headers)
        recipients = recipients_of(manifest.owner_key, manifest.recipients)
        self._decide(
            lambda rules: judge_sealing(
                rules,
                inputs=self._inputs,
                network=manifest.network,
                destinations=manifest.destinations,
                access=_access(manifest.access),
                clients=manifest.access.clients,
                outputs=manifest.outputs,
                recipients=recipients,
            ),
            manifest.name,
        )

    def launch(self, job: JobDir, bundle: Bundle, policy: Policy) -> None:
        """Before anything leaves this machine. From now on decisions are kept with `job`, the earlier ones too."""
        self._job = job
        self._decide(
            lambda rules: judge_launch(
                rules,
                image=bundle.manifest.name,
                image_digest=bundle.digest,
                unchecked=policy.unchecked,
                floors=policy.tcb_floors,
            ),
            job.record.name,
        )

    def release(self, guest: VerifiedGuest) -> None:
        """Before the keys leave."""
        self._decide(
            lambda rules: judge_release(
                rules, inputs=self._inputs, simulated=guest.simulated, unchecked=guest.unchecked
            ),
            "",
        )

    def export(self, receipt: VerifiedReceipt) -> None:
        """Before the outputs are fetched."""
        statement = receipt.statement
        self._decide(
            lambda rules: judge_export(
                rules, outputs=statement.outputs, access=statement.access, owner_key=statement.owner_key.hex()
            ),
            "",
        )

    def _decide(self, judge: Callable[[Rules], tuple[Decision, ...]], name: str) -> None:
        if not self._sets:
            return
        decided = [(item, decision) for item in self._sets for decision in judge(item.rules)]
        self._kept.extend(decided)
        denied = [decision for _, decision in decided if not decision.allowed]
        error = RulesError(denied) if denied else None
        if self._job is not None:
            self._keep(self._job)
        elif error is not None:  # refused before there was a run: it is on record all the same
            job = JobDir.create(self._jobs_dir, name, simulated=self._simulated)
            self._keep(job)
            job.finish(JobState.REFUSED, error=error.message)
        if error is not None:
            raise error

    def _keep(self, job: JobDir) -> None:
        keep_rules(job, self._sets)
        lines = (
            json.dumps({**decision.to_json(), "rules": item.digest}, ensure_ascii=False)
            for item, decision in self._kept
        )
        job.write(DECISIONS_FILE, "".join(f"{line}\n" for line in lines).encode())


def keep_rules(job: JobDir, sets: Sequence[RuleSet]) -> None:
    """Keep the rules of a run in its directory, as they were written."""
    for item in sets:
        job.write(_RULES_FILE.format(item.digest[:12]), item.text.encode("utf-8"))


def kept_rules(job: JobDir) -> tuple[RuleSet, ...]:
    """Return the rules that were kept with a run.

    Raises:
        ConfigError: they cannot be read, or are none.
    """
    return tuple(read_rules(path) for path in sorted(job.path.glob(_RULES_FILE.format("*"))))


def judge_job(rules: Rules, job: JobFile, headers: Headers, *, owner_key: str, simulated: bool) -> tuple[Decision, ...]:
    """Judge what is known of a job before it is sealed; `owner_key`: who will get its outputs, 64 hex digits."""
    inputs = facts(headers)
    return (
        *judge_ingestion(rules, container=job.container_digest, inputs=inputs, simulated=simulated),
        *judge_sealing(
            rules,
            inputs=(),
            network=job.network,
            destinations=job.destinations,
            access=_access(job.access),
            clients=job.access.clients,
            outputs=job.outputs,
            recipients=recipients_of(owner_key, job.recipients),
        ),
    )


def starting_rules(job: JobFile, base: Path, *, settings: Settings, keys: OwnerKeys) -> Rules:
    """Return rules that allow a job and little else. An image that is not built here is left to anybody.

    Raises:
        ConfigError, FormatError, VerificationError: as `input_headers`.
    """
    try:
        image: str | None = load_bundle(settings.bundles_dir / job.image).digest
    except (ConfigError, BuildError):
        image = None
    return rules_of_job(
        job,
        facts(input_headers(job, base)),
        image_digest=image,
        recipients=recipients_of(keys.public.hex(), job.recipients),
        # flows.train.run_policy states these.
        unchecked=stateable(vlek=False, id_block=True) - {"host-data", "tcb-floors", "id-block"},
    )


def input_headers(job: JobFile, base: Path) -> Headers:
    """Return what is said of a job's inputs; `base`: the directory that its paths are relative to.

    Raises:
        ConfigError, FormatError, VerificationError: an input is a pack whose header cannot be read or does not hold.
    """
    paths = {name: base / source for name, source in job.inputs.items()}
    return {name: read_pack(path).header if is_pack(path) else None for name, path in paths.items()}


def facts(headers: Headers) -> tuple[InputFacts, ...]:
    """Return what rules may know of inputs."""
    return tuple(
        InputFacts(
            name=name,
            metadata={key: str(value) for key, value in header.metadata.to_json().items()} if header else {},
            pipelines=tuple(
                step.pipeline
                for step in (header.lineage if header else ())
                if step.action is Action.SCRUBBED and step.pipeline is not None
            ),
        )
        for name, header in headers.items()
    )


def _access(access: JobAccess) -> tuple[Access, ...]:
    ways = ((access.exec, Access.EXEC), (bool(access.tunnels), Access.TUNNEL))
    return tuple(way for allowed, way in ways if allowed)


def recipients_of(owner_key: str, keys: Sequence[str]) -> tuple[str, ...]:
    """Return who gets a job's outputs, as rules name them: the owner, and the X25519 `keys` (hex) of age recipients."""
    return owner_key, *(render_recipient(bytes.fromhex(key)) for key in keys)


def read_rules(path: Path) -> RuleSet:
    """Read a file of rules.

    Raises:
        ConfigError: it cannot be read or holds no rules.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read", detail=str(error)) from error
    try:
        return RuleSet(text=text, rules=parse_rules(text))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", detail=error.detail, hint=error.hint) from error


def read_decisions(job: JobDir) -> list[dict[str, object]]:
    """Return the decisions of a run, as they were kept; none if it had no rules."""
    try:
        text = (job.path / DECISIONS_FILE).read_text("utf-8")
        return [dict(json.loads(line)) for line in text.splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{job.path / DECISIONS_FILE} cannot be read", detail=str(error)) from error
