# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Records of runs from before there was a database: a `job.json` in each run's directory.

Zone: flows (owner's machine).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from cvmtool.errors import FormatError
from cvmtool.flows.attempts import parse_attempts
from cvmtool.flows.jobrecord import JobRecord, JobState

OLD_RECORD = "job.json"
SCHEMA = "cvmtool/job-record/v1"
MAX_RECORD = 1 << 20  # bytes


def old_records(jobs_dir: Path) -> Iterator[JobRecord]:
    """Yield what such files hold; one that cannot be read, or whose directory has another name, is passed over."""
    for path in sorted(jobs_dir.glob(f"*/{OLD_RECORD}")):
        try:
            with path.open("rb") as file:
                record = parse_old_record(file.read(MAX_RECORD + 1))
        except (OSError, FormatError):
            continue
        if record.id == path.parent.name:
            yield record


def parse_old_record(data: bytes) -> JobRecord:
    """Read a `job.json`.

    Raises:
        FormatError: it does not follow the schema.
    """
    try:
        value = json.loads(data) if len(data) <= MAX_RECORD else None
    except (ValueError, RecursionError) as error:
        raise FormatError("the job's record is not JSON") from error
    names = {item.name for item in fields(JobRecord)} - {"pid"}
    texts = ("id", "name", "created", "machine")
    if (
        not isinstance(value, dict)
        or value.pop("schema", None) != SCHEMA
        or not value.keys() <= names
        or not all(isinstance(value.get(key), str) for key in texts)
        or not all(value.get(key) is None or isinstance(value[key], str) for key in ("finished", "error", "results"))
        or value.get("state") not in tuple(JobState)
        or not isinstance(value.get("simulated"), bool)
        or not (value.get("exit_code") is None or _is_code(value["exit_code"]))
        or not _are_seconds(value.get("stages", {}))
    ):
        raise FormatError(f"the job's record does not follow {SCHEMA}")
    attempts = parse_attempts(value.get("attempts", []))
    return JobRecord(**{**value, "state": JobState(value["state"]), "attempts": attempts})


def _is_code(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _are_seconds(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(seconds, int | float) and not isinstance(seconds, bool) and abs(seconds) < 1 << 53
        for seconds in value.values()
    )
