# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A run's rules, asked at each stage: every decision is kept in the run's record, and what is denied stops the run.

Zone: flows (owner's machine). What the rules say is `cvmtool.owner.pipeline`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cvmtool.errors import ConfigError
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import JobDir
from cvmtool.formats.job import JobManifest
from cvmtool.image.bundle import Bundle
from cvmtool.owner.appraise import VerifiedGuest
from cvmtool.owner.jobfile import JobFile
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
from cvmtool.owner.policy import Policy
from cvmtool.owner.receipts import VerifiedReceipt

DECISIONS_FILE = "decisions.jsonl"


class Gate:
    """The rules of one run, and what they decided; without rules every stage is open and nothing is decided.

    Each stage raises RulesError if anything in it is denied, after all its decisions were kept.
    """

    def __init__(self, rules: Rules | None, jobs_dir: Path, *, simulated: bool) -> None:
        self._rules = rules
        self._jobs_dir = jobs_dir
        self._simulated = simulated
        self._job: JobDir | None = None
        self._inputs: tuple[InputFacts, ...] = ()
        self.decisions: list[Decision] = []

    def ingest(self, job: JobFile) -> None:
        """Before anything is sealed."""
        if self._rules is None:
            return
        self._inputs = tuple(_facts(name) for name in job.inputs)
        decided = judge_ingestion(
            self._rules, container=job.container_digest, inputs=self._inputs, simulated=self._simulated
        )
        self._decide(decided, job.name)

    def seal(self, manifest: JobManifest) -> None:
        """Before the manifest is used."""
        if self._rules is None:
            return
        decided = judge_sealing(
            self._rules, network=manifest.network, outputs=manifest.outputs, owner_key=manifest.owner_key
        )
        self._decide(decided, manifest.name)

    def launch(self, job: JobDir, bundle: Bundle, policy: Policy) -> None:
        """Before anything leaves this machine. From now on decisions are kept with `job`, the earlier ones too."""
        self._job = job
        if self._rules is None:
            return
        decided = judge_launch(
            self._rules,
            image=bundle.manifest.name,
            image_digest=bundle.digest,
            unchecked=policy.unchecked,
            floors=policy.tcb_floors,
        )
        self._decide(decided, job.record.name)

    def release(self, guest: VerifiedGuest) -> None:
        """Before the keys leave."""
        if self._rules is not None:
            decided = judge_release(
                self._rules, inputs=self._inputs, simulated=guest.simulated, unchecked=guest.unchecked
            )
            self._decide(decided, "")

    def export(self, receipt: VerifiedReceipt) -> None:
        """Before the outputs are fetched."""
        if self._rules is not None:
            statement = receipt.statement
            decided = judge_export(
                self._rules, outputs=statement.outputs, access=statement.access, owner_key=statement.owner_key.hex()
            )
            self._decide(decided, "")

    def _decide(self, decided: Sequence[Decision], name: str) -> None:
        self.decisions.extend(decided)
        denied = None if all(decision.allowed for decision in decided) else RulesError(decided)
        if self._job is not None:
            self._keep(self._job)
        elif denied is not None:  # refused before there was a run: it is on record all the same
            job = JobDir.create(self._jobs_dir, name, simulated=self._simulated)
            self._keep(job)
            job.finish(JobState.REFUSED, error=denied.message)
        if denied is not None:
            raise denied

    def _keep(self, job: JobDir) -> None:
        lines = (json.dumps(decision.to_json(), ensure_ascii=False) for decision in self.decisions)
        job.write(DECISIONS_FILE, "".join(f"{line}\n" for line in lines).encode())


def judge_job(rules: Rules, job: JobFile, *, owner_key: str, simulated: bool) -> tuple[Decision, ...]:
    """Judge what is known of a job before it is sealed; `owner_key`: who will get its outputs, 64 hex digits."""
    inputs = tuple(_facts(name) for name in job.inputs)
    return (
        *judge_ingestion(rules, container=job.container_digest, inputs=inputs, simulated=simulated),
        *judge_sealing(rules, network=job.network, outputs=job.outputs, owner_key=owner_key),
    )


def _facts(name: str) -> InputFacts:
    """Return what is said of an input: nothing yet, since a job's inputs are directories, which say nothing of themselves."""
    return InputFacts(name=name, metadata={}, scrubbed=False)


def read_rules(path: Path) -> Rules:
    """Read a file of rules.

    Raises:
        ConfigError: it cannot be read or holds no rules.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read", detail=str(error)) from error
    try:
        return parse_rules(text)
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
