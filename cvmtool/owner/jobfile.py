# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""job.yaml: what a user writes, read strictly.

Zone: owner. Pure: the text comes in; paths are returned as written.
An unknown key is an error that names the nearest known one. docs/reference/job.md lists every key.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import yaml

from cvmtool.errors import ConfigError, FormatError
from cvmtool.formats.gpu import MAX_GPUS
from cvmtool.formats.job import (
    ENV_NAME,
    MAX_ARGUMENTS,
    MAX_LOG_MIB,
    MAX_MIB,
    MAX_OUTPUT_BYTES,
    MAX_OUTPUTS,
    MAX_PACKS,
    MAX_SECONDS,
    MAX_TEXT,
    MIN_MEMORY_MIB,
    OUTPUT_NAME,
    Limits,
    Network,
    Output,
    OutputKind,
    Resources,
    refuse_clash,
)
from cvmtool.formats.pack import NAME

MAX_JOB_FILE = 1 << 20  # bytes
DEFAULT_CPU = "EPYC-Genoa"
_DECIMAL = re.compile("0|-?[1-9][0-9]{0,17}")
_SIZE = re.compile(r"([1-9][0-9]{0,8})(KiB|MiB|GiB|TiB)")
_TIME = re.compile(r"([1-9][0-9]{0,8})(s|m|h|d)")
_SIZE_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
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
    command: tuple[str, ...]
    """Empty: the container's own entry point."""
    workdir: str | None
    env: Mapping[str, str]
    inputs: Mapping[str, str]
    outputs: tuple[Output, ...]
    resources: Resources
    smt: bool
    """Whether the host may have SMT switched on: its threads share a core's caches, which leak timing."""
    limits: Limits
    network: Network
    restart: Restart
    text: str = field(repr=False)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may stand once, a number is decimal and nothing carries a tag of its own."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 - yaml's signature
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise ConfigError(f"line {event.start_mark.line + 1}: the tag {event.tag!r} is not allowed; leave it out")
        return super().compose_node(parent, index)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    pairs = [(loader.construct_object(key, deep=True), key) for key, _ in node.value]
    seen: set[object] = set()
    for key, where in pairs:
        if not isinstance(key, str):
            raise ConfigError(f"line {where.start_mark.line + 1}: the key {key!r} is not a string; quote it")
        if key in seen:
            raise ConfigError(f"line {where.start_mark.line + 1}: the key {key!r} stands twice")
        seen.add(key)
    return {loader.construct_object(key): loader.construct_object(value, deep=True) for key, value in node.value}


def _integer(_loader: _Loader, node: yaml.ScalarNode) -> int:
    # YAML reads 010 as 8, 1_0 as 10 and 1:30 as 90.
    if not _DECIMAL.fullmatch(node.value):
        raise ConfigError(
            f"line {node.start_mark.line + 1}: the number {node.value[:40]} is not decimal; write it so, or quote it"
        )
    return int(node.value)


def _string(_loader: _Loader, node: yaml.ScalarNode) -> str:
    if any("\ud800" <= char <= "\udfff" for char in node.value):
        raise ConfigError(f"line {node.start_mark.line + 1}: half a surrogate pair is no character")
    return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:str", _string)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_job_file(text: str) -> JobFile:
    """Read job.yaml.

    Raises:
        ConfigError: not YAML, an unknown or missing key, or a value out of range. The message names the key.
    """
    if len(text) > MAX_JOB_FILE:
        raise ConfigError(f"the job file has {len(text)} characters; at most {MAX_JOB_FILE} are allowed")
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise ConfigError("the job file is not YAML", detail=str(error)) from error
    job = _Reader(document, "job")
    job.only(
        *("name", "image", "container", "command", "workdir", "env", "inputs", "outputs", "resources", "network"),
        *("limits", "restart"),
    )
    name = job.text("name", NAME, "lower-case letters, digits, '.', '_' and '-'")
    container = job.child("container")
    container.only("image", "digest")
    network = job.text("network", None, default="none")
    if network not in tuple(Network):
        raise ConfigError(f"network is {network!r}; 'none' is required", hint="allow-lists come with a later version")
    machine = job.child("resources", default={})
    resources = _resources(machine)
    return JobFile(
        name=name,
        image=job.text("image", NAME, "the name of a guest image", default="base"),
        container_image=container.text("image"),
        container_digest=container.text("digest", re.compile("sha256:[0-9a-f]{64}"), "sha256: and 64 hex digits"),
        command=job.strings("command"),
        workdir=job.text("workdir", re.compile("/[^\0]*"), "an absolute path") if "workdir" in job.value else None,
        env=_env(job.child("env", default={})),
        inputs=_inputs(job.child("inputs", default={})),
        outputs=_outputs(job.child("outputs")),
        resources=resources,
        smt=machine.boolean("smt", default=True),
        limits=_limits(job.child("limits", default={}), resources),
        network=Network(network),
        restart=Restart(job.text("restart", re.compile("|".join(Restart)), "never or on-failure", Restart.NEVER)),
        text=text,
    )


class _Reader:
    """A mapping that knows where it stands, for errors that say so."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is a {type(value).__name__}; a mapping of keys is required")
        self.value: dict[str, Any] = value
        self.where = where

    def _name(self, key: str) -> str:
        return key if self.where == "job" else f"{self.where}.{key}"

    def only(self, *known: str) -> None:
        for key in self.value:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
                raise ConfigError(f"unknown key {self._name(key)!r}", hint=hint)

    def child(self, key: str, default: dict[str, Any] | None = None) -> _Reader:
        if key not in self.value and default is None:
            raise ConfigError(f"the key {self._name(key)!r} is missing", hint="docs/reference/job.md shows every key")
        return _Reader(self.value.get(key, default), self._name(key))

    def text(
        self, key: str, pattern: re.Pattern[str] | None = None, expected: str = "a string", default: str | None = None
    ) -> str:
        value = self.value.get(key, default)
        if value is None:
            raise ConfigError(f"the key {self._name(key)!r} is missing", hint="docs/reference/job.md shows every key")
        if not isinstance(value, str) or (pattern and not pattern.fullmatch(value)):
            raise ConfigError(f"{self._name(key)} is {_shown(value)}; {expected} is required")
        return value

    def number(self, key: str, default: int, least: int, most: int) -> int:
        value = self.value.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ConfigError(f"{self._name(key)} is {_shown(value)}; a number from {least} to {most} is required")
        return value

    def boolean(self, key: str, *, default: bool) -> bool:
        value = self.value.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self._name(key)} is {_shown(value)}; true or false is required")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        value = self.value.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and _is_text(item) for item in value):
            raise ConfigError(
                f"{self._name(key)} is {_shown(value)}; a list of strings is required",
                hint='quote numbers: ["--epochs", "3"]',
            )
        if len(value) > MAX_ARGUMENTS:
            raise ConfigError(f"{self._name(key)} has {len(value)} entries; at most {MAX_ARGUMENTS} are allowed")
        return tuple(value)

    def size(self, key: str, most: int, default: str | None = None) -> int:
        return self._quantity(key, _SIZE, _SIZE_UNITS, "a size such as 64MiB", most=most, default=default)

    def mib(self, key: str, default: str, *, most: int = MAX_MIB) -> int:
        size = self.size(key, most << 20, default)
        if size % (1 << 20):
            raise ConfigError(f"{self._name(key)} is {self.value[key]!r}; whole MiB are required")
        return size >> 20

    def seconds(self, key: str, default: str) -> int:
        return self._quantity(key, _TIME, _TIME_UNITS, "a time such as 10m", most=MAX_SECONDS, default=default)

    def _quantity(
        self,
        key: str,
        pattern: re.Pattern[str],
        units: dict[str, int],
        expected: str,
        *,
        most: int,
        default: str | None,
    ) -> int:
        text = self.text(key, pattern, expected, default)
        match = pattern.fullmatch(text)
        quantity = int(match[1]) * units[match[2]] if match else 0
        if quantity > most:
            unit = "bytes" if units is _SIZE_UNITS else "seconds"
            raise ConfigError(f"{self._name(key)} is {text}; at most {most} {unit} are allowed")
        return quantity


def _shown(value: object) -> str:
    """A value for a message: short, however large an alias has made it."""
    return reprlib.repr(value) if isinstance(value, list | dict) else repr(value)[:200]


def _is_text(value: str) -> bool:
    return "\0" not in value and len(value) <= MAX_TEXT


def _resources(reader: _Reader) -> Resources:
    reader.only("vcpus", "memory", "cpu", "smt", "gpus")
    memory = reader.mib("memory", "1GiB")
    if memory < MIN_MEMORY_MIB:
        raise ConfigError(f"resources.memory is {memory} MiB; at least {MIN_MEMORY_MIB} are required")
    return Resources(
        vcpus=reader.number("vcpus", 1, 1, 512),
        memory_mib=memory,
        cpu=reader.text("cpu", re.compile("[A-Za-z0-9-]{1,64}"), "a CPU model such as EPYC-Genoa", DEFAULT_CPU),
        gpus=reader.number("gpus", 0, 0, MAX_GPUS),
    )


def _limits(reader: _Reader, resources: Resources) -> Limits:
    reader.only("memory", "pids", "scratch", "outputs", "log", "time")
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


def _env(reader: _Reader) -> dict[str, str]:
    for key, value in reader.value.items():
        if not ENV_NAME.fullmatch(key):
            raise ConfigError(f"env has the name {key!r}; letters, digits and '_' are required")
        if not isinstance(value, str) or not _is_text(value):
            shown = _shown(value)
            raise ConfigError(f"env.{key} is {shown}; a string is required", hint=f'quote it: {key}: "{shown}"')
    return dict(reader.value)


def _inputs(reader: _Reader) -> dict[str, str]:
    for key in reader.value:
        if not NAME.fullmatch(key) or key == "container":
            raise ConfigError(f"inputs has the name {key!r}; lower-case letters, digits, '.', '_' and '-' are required")
        reader.text(key, re.compile("[^\0]+"), "a path")
    if len(reader.value) >= MAX_PACKS:
        raise ConfigError(f"inputs has {len(reader.value)} entries; at most {MAX_PACKS - 1} are allowed")
    return dict(reader.value)


def _outputs(reader: _Reader) -> tuple[Output, ...]:
    outputs = []
    for name in reader.value:
        if not OUTPUT_NAME.fullmatch(name):
            raise ConfigError(f"outputs has the name {name!r}; a relative path of plain names is required")
        entry = reader.child(name)
        entry.only("kind", "max")
        kinds = "|".join(OutputKind)
        kind = OutputKind(entry.text("kind", re.compile(kinds), f"one of {kinds.replace('|', ', ')}"))
        outputs.append(Output(name=name, kind=kind, max_bytes=entry.size("max", MAX_OUTPUT_BYTES)))
    if len(outputs) > MAX_OUTPUTS:
        raise ConfigError(f"outputs has {len(outputs)} entries; at most {MAX_OUTPUTS} are allowed")
    try:
        refuse_clash([output.name for output in outputs], what="outputs")
    except FormatError as error:
        raise ConfigError(error.message) from error
    if not outputs:
        raise ConfigError("outputs is empty; a job that returns nothing is not worth its start")
    return tuple(outputs)
