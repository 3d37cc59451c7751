# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""job.yaml: what a user writes, read strictly.

Zone: owner. Pure: the text comes in; paths are returned as written.
An unknown key is an error that names the nearest known one; `cvmtool.owner.jobkeys` has them all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from cvmtool.errors import ConfigError, FormatError
from cvmtool.formats.gpu import MAX_GPUS
from cvmtool.formats.job import (
    ENV_NAME,
    MAX_LOG_MIB,
    MAX_OUTPUT_BYTES,
    MAX_OUTPUTS,
    MAX_PACKS,
    MIN_MEMORY_MIB,
    OUTPUT_NAME,
    Kind,
    Limits,
    Network,
    Output,
    OutputKind,
    Resources,
    refuse_clash,
)
from cvmtool.formats.jobterms import Access
from cvmtool.formats.pack import NAME
from cvmtool.owner.jobkeys import below
from cvmtool.owner.jobmodel import MODEL, ModelWish, read_model
from cvmtool.owner.jobneeds import Needs, read_needs
from cvmtool.owner.jobparties import read_parties
from cvmtool.owner.jobterms import (
    CheckpointWish,
    Wish,
    read_access,
    read_checkpoint,
    read_kind,
    read_network,
    read_recipients,
)
from cvmtool.owner.strictyaml import Reader, in_short, is_text, load_yaml

DEFAULT_CPU = "EPYC-Genoa"
# Of the VM's memory: what the kernel, the agent and sshd need, so that the container's limit is met before the guest's.
_GUEST_MIB = 224


class Restart(StrEnum):
    """What to do when the machine dies, whatever its host did to it. A refusal is never tried again."""

    NEVER = "never"
    ON_FAILURE = "on-failure"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFile:
    """A job as its owner describes it."""

    name: str
    image: str
    container_image: str
    container_digest: str
    container_pack: str | None
    """A pack that holds that image's files already: ours, or a party's."""
    command: tuple[str, ...]
    """Empty: the container's own entry point."""
    workdir: str | None
    env: Mapping[str, str]
    inputs: Mapping[str, str]
    """Name -> path; the model is one of them."""
    model: ModelWish | None
    outputs: tuple[Output, ...]
    resources: Resources
    smt: bool
    """Whether the host may have SMT switched on: its threads share a core's caches, which leak timing."""
    limits: Limits
    kind: Kind
    network: Network
    destinations: tuple[Wish, ...]
    access: Access
    checkpoint: CheckpointWish | None
    recipients: tuple[str, ...]
    """X25519 keys as hex."""
    parties: Mapping[str, str]
    """What the coordinator calls each other owner of packs -> its Ed25519 key, as hex."""
    restart: Restart
    waive: tuple[str, ...]
    """Inputs that may be personal and never scrubbed."""
    needs: Needs
    """What it needs to fit: for the owner alone, beforehand."""
    text: str = field(repr=False)


def parse_job_file(text: str) -> JobFile:
    """Read job.yaml.

    Raises:
        ConfigError: not YAML, an unknown or missing key, or a value out of range. The message names the key.
    """
    job = Reader(load_yaml(text, "the job file"), "job", page="docs/reference/job.md")
    job.only(*below())
    name = job.text("name", NAME, "lower-case letters, digits, '.', '_' and '-'")
    container = job.child("container")
    container.only(*below("container"))
    kind = read_kind(job)
    network, wishes = read_network(job)
    machine = job.child("resources", default={})
    resources = _resources(machine)
    model = read_model(job)
    return JobFile(
        name=name,
        image=job.text("image", NAME, "the name of a guest image", default="base"),
        container_image=container.text("image"),
        container_digest=container.text("digest", re.compile("sha256:[0-9a-f]{64}"), "sha256: and 64 hex digits"),
        container_pack=container.text("pack") if "pack" in container.value else None,
        command=job.strings("command"),
        workdir=job.text("workdir", re.compile("/[^\0]*"), "an absolute path") if "workdir" in job.value else None,
        env=_env(job.child("env", default={})),
        inputs=_inputs(job.child("inputs", default={}), model),
        model=model,
        outputs=_outputs(job.child("outputs", default={} if kind is Kind.SERVE else None), kind),
        resources=resources,
        smt=machine.boolean("smt", default=True),
        limits=_limits(job.child("limits", default={}), resources),
        kind=kind,
        network=network,
        destinations=wishes,
        access=read_access(job, kind),
        checkpoint=read_checkpoint(job),
        recipients=read_recipients(job),
        parties=read_parties(job),
        restart=Restart(job.text("restart", re.compile("|".join(Restart)), "never or on-failure", Restart.NEVER)),
        waive=job.strings("waive"),
        needs=read_needs(job, machine),
        text=text,
    )


def _resources(reader: Reader) -> Resources:
    reader.only(*below("resources"))
    memory = reader.mib("memory", "1GiB")
    if memory < MIN_MEMORY_MIB:
        raise ConfigError(f"resources.memory is {memory} MiB; at least {MIN_MEMORY_MIB} are required")
    return Resources(
        vcpus=reader.number("vcpus", 1, 1, 512),
        memory_mib=memory,
        cpu=reader.text("cpu", re.compile("[A-Za-z0-9-]{1,64}"), "a CPU model such as EPYC-Genoa", DEFAULT_CPU),
        gpus=reader.number("gpus", 0, 0, MAX_GPUS),
    )


def _limits(reader: Reader, resources: Resources) -> Limits:
    reader.only(*below("limits"))
    room = resources.memory_mib - _GUEST_MIB
    memory = reader.mib("memory", f"{max(room, 1)}MiB")
    if not 16 <= memory <= room:
        raise ConfigError(
            f"limits.memory is {memory} MiB and resources.memory {resources.memory_mib} MiB; "
            f"the guest itself needs {_GUEST_MIB} MiB and the container at least 16",
            hint="raise resources.memory",
        )
    return Limits(
        memory_mib=memory,
        pids=reader.number("pids", 512, 1, 1 << 22),
        scratch_mib=reader.mib("scratch", "64MiB"),
        outputs_mib=reader.mib("outputs", "64MiB"),
        log_mib=reader.mib("log", "16MiB", most=MAX_LOG_MIB),
        seconds=reader.seconds("time", "1h"),
    )


def _env(reader: Reader) -> dict[str, str]:
    for key, value in reader.value.items():
        if not ENV_NAME.fullmatch(key):
            raise ConfigError(f"env has the name {key!r}; letters, digits and '_' are required")
        if not isinstance(value, str) or not is_text(value):
            shown = in_short(value)
            raise ConfigError(f"env.{key} is {shown}; a string is required", hint=f'quote it: {key}: "{shown}"')
    return dict(reader.value)


def _inputs(reader: Reader, model: ModelWish | None) -> dict[str, str]:
    for key in reader.value:
        if not NAME.fullmatch(key) or key == "container":
            raise ConfigError(f"inputs has the name {key!r}; lower-case letters, digits, '.', '_' and '-' are required")
        reader.text(key, re.compile("[^\0]+"), "a path")
    inputs = reader.value | ({MODEL: model.path} if model else {})
    if len(inputs) >= MAX_PACKS:
        raise ConfigError(f"inputs has {len(inputs)} entries; at most {MAX_PACKS - 1} are allowed")
    return inputs


def _outputs(reader: Reader, job: Kind) -> tuple[Output, ...]:
    outputs = []
    for name in reader.value:
        if not OUTPUT_NAME.fullmatch(name):
            raise ConfigError(f"outputs has the name {name!r}; a relative path of plain names is required")
        entry = reader.child(name)
        entry.only(*below("outputs.NAME"))
        kinds = "|".join(OutputKind)
        kind = OutputKind(entry.text("kind", re.compile(kinds), f"one of {kinds.replace('|', ', ')}"))
        outputs.append(Output(name=name, kind=kind, max_bytes=entry.size("max", MAX_OUTPUT_BYTES)))
    if len(outputs) > MAX_OUTPUTS:
        raise ConfigError(f"outputs has {len(outputs)} entries; at most {MAX_OUTPUTS} are allowed")
    try:
        refuse_clash([output.name for output in outputs], what="outputs")
    except FormatError as error:
        raise ConfigError(error.message) from error
    if not outputs and job is not Kind.SERVE:
        raise ConfigError("outputs is empty; a job that returns nothing is not worth its start")
    return tuple(outputs)
