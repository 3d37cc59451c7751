# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""All that a run needs, kept with it before it begins, so that any process of its owner can carry it out or take it up again.

Zone: flows (owner's machine). The job as it was written, its manifest and the policy are files of the run already; here are the
options of the command, the guest image (links), and where the packs are. None of it is secret.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvmtool.config import Settings
from cvmtool.errors import ConfigError, FormatError
from cvmtool.flows.decisions import Gate, RuleSet, keep_rules, kept_rules, read_rules
from cvmtool.flows.images import keep_image
from cvmtool.flows.jobs import JOB_FILE, MANIFEST_FILE, POLICY_FILE, JobDir
from cvmtool.flows.launch import Site
from cvmtool.flows.packs import SealedPack
from cvmtool.flows.platform import Platform, dry_run, sev_snp
from cvmtool.flows.prepare import Prepared, load_keys
from cvmtool.formats.job import parse_job_manifest
from cvmtool.formats.packheader import read_pack_header
from cvmtool.formats.wire import members, natural, parse_json, typed
from cvmtool.host.domain import Placement
from cvmtool.host.gpu import Gpu
from cvmtool.image.bundle import load_bundle
from cvmtool.owner.gpupolicy import parse_gpu_policy
from cvmtool.owner.jobfile import parse_job_file
from cvmtool.owner.policy import Policy
from cvmtool.owner.policyfile import parse_policy

# Names in a job's directory.
PLAN_FILE = "plan.json"
GPU_POLICY_FILE = "gpu-policy.toml"
IMAGE_DIR = "image"
_SCHEMA = "cvmtool/job-plan/v1"
_MAX_PLAN = 1 << 20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a job is to be run: what its owner decided beside the job itself."""

    simulated: bool
    results: Path | None = None
    """Where the outputs go; None leaves that to the run."""
    host: str | None = None
    """A named host of the settings, or a libvirt URI; None chooses one on this machine."""
    boot_seconds: float = 300.0
    site: Site = Site()  # noqa: RUF009 - frozen
    key_service: str | None = None
    """URL of AMD's key service; None asks nobody."""
    rules: tuple[RuleSet, ...] = ()
    """The run's own rules."""
    gpu_policy: str | None = None
    """The policy about GPUs as it was written."""
    exchange: Path | None = None
    """Where the parties of the job are met."""

    def platform(self, settings: Settings) -> Platform:
        """Return what the run's machine runs on.

        Raises:
            ConfigError: the policy about GPUs is none.
        """
        if self.simulated:
            return dry_run(settings)
        gpus = None if self.gpu_policy is None else parse_gpu_policy(self.gpu_policy)
        return sev_snp(settings, key_service=self.key_service, gpu_policy=gpus)

    def gate(self, settings: Settings) -> Gate:
        """Return what asks the rules of the run: its own, and those that the settings name for every run now.

        Raises:
            ConfigError: a file of rules cannot be read or holds none.
        """
        sets = (*self.rules, *map(read_rules, settings.rules))
        return Gate(sets, settings.jobs_dir, simulated=self.simulated)


def keep_plan(job: JobDir, plan: Plan, prepared: Prepared) -> None:
    """Keep with a run all that it is made from."""
    keep_rules(job, plan.rules)
    if plan.gpu_policy is not None:
        job.write(GPU_POLICY_FILE, plan.gpu_policy.encode("utf-8"))
    keep_image(prepared.bundle, job.path / IMAGE_DIR)
    placement = plan.site.placement
    document = {
        "schema": _SCHEMA,
        "results": None if plan.results is None else str(plan.results.absolute()),
        "host": plan.host,
        "boot_milliseconds": round(plan.boot_seconds * 1000),
        "key_service": plan.key_service,
        "exchange": None if plan.exchange is None else str(plan.exchange.absolute()),
        "cpus": list(placement.cpus),
        "numa_node": placement.numa_node,
        "hugepages_kib": placement.hugepages_kib,
        "gpus": [gpu.address for gpu in plan.site.gpus],
        "packs": {pack.descriptor.name: str(pack.path.absolute()) for pack in prepared.packs},
        "headers": {name: header.to_json() for name, header in prepared.headers.items() if header},
    }
    job.write(PLAN_FILE, json.dumps(document, indent=1).encode("utf-8") + b"\n")


def load_plan(job: JobDir, settings: Settings) -> tuple[Plan, Prepared, Policy]:
    """Return a run's plan, its job as it was prepared, and the policy.

    Raises:
        ConfigError: the run has none, from before plans were kept, or a part of it is gone.
        FormatError, BuildError: a part of it is damaged.
    """
    value = parse_json(_read(job, PLAN_FILE), what=PLAN_FILE, limit=_MAX_PLAN)
    plan = _parse(job, value)
    manifest = parse_job_manifest(_read(job, MANIFEST_FILE))
    paths, headers = (typed(value, key, dict, what=PLAN_FILE) for key in ("packs", "headers"))
    missing = [pack.name for pack in manifest.packs if not Path(str(paths.get(pack.name))).is_file()]
    if missing:
        raise ConfigError(
            f"the sealed input {missing[0]!r} of job {job.record.id} is gone", hint="cvmtool train seals it anew"
        )
    prepared = Prepared(
        file=parse_job_file(_read(job, JOB_FILE).decode("utf-8", "replace")),
        manifest=manifest,
        packs=tuple(
            SealedPack(
                descriptor=pack,
                path=Path(str(paths[pack.name])),
                reused=True,
                header=read_pack_header(headers[pack.name]) if pack.name in headers else None,
            )
            for pack in manifest.packs
        ),
        keys=load_keys(settings),
        bundle=load_bundle(job.path / IMAGE_DIR),
    )
    return plan, prepared, parse_policy(_read(job, POLICY_FILE).decode("utf-8", "replace"))


def _parse(job: JobDir, value: dict[str, Any]) -> Plan:
    what = PLAN_FILE
    texts, numbers = ("host", "key_service", "results", "exchange"), ("numa_node", "hugepages_kib")
    members(
        value, what=what, required={"schema", "boot_milliseconds", "cpus", "gpus", "packs", "headers", *texts, *numbers}
    )
    cpus, gpus = value["cpus"], value["gpus"]
    if (
        value["schema"] != _SCHEMA
        or not all(value[name] is None or isinstance(value[name], str) for name in texts)
        or not all(value[name] is None or _is_natural(value[name]) for name in numbers)
        or not isinstance(cpus, list)
        or not all(map(_is_natural, cpus))
        or not isinstance(gpus, list)
        or not all(isinstance(gpu, str) for gpu in gpus)
    ):
        raise FormatError(f"{what} of job {job.record.id} does not follow {_SCHEMA}")
    return Plan(
        simulated=job.record.simulated,
        results=None if value["results"] is None else Path(value["results"]),
        host=value["host"],
        boot_seconds=natural(value, "boot_milliseconds", what=what) / 1000,
        site=Site(
            placement=Placement(cpus=tuple(cpus), numa_node=value["numa_node"], hugepages_kib=value["hugepages_kib"]),
            gpus=tuple(Gpu(address=gpu) for gpu in gpus),
        ),
        key_service=value["key_service"],
        rules=kept_rules(job),
        gpu_policy=_text(job, GPU_POLICY_FILE),
        exchange=None if value["exchange"] is None else Path(value["exchange"]),
    )


def _is_natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read(job: JobDir, name: str) -> bytes:
    try:
        with (job.path / name).open("rb") as file:
            return file.read(_MAX_PLAN + 1)
    except OSError as error:
        raise ConfigError(
            f"{name} of job {job.record.id} cannot be read: it cannot be taken up again",
            detail=str(error),
            hint="cvmtool train runs its job anew",
        ) from error


def _text(job: JobDir, name: str) -> str | None:
    return _read(job, name).decode("utf-8", "replace") if (job.path / name).exists() else None
