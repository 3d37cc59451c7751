# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Rules as a person starts from them: what one job needs and nothing more, each key with what it means.

Zone: owner (trusted). Pure: no I/O.

`parse_rules(commented_rules(r)) == r`: comments change nothing, and no key is without one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence

from cvmtool.formats.packheader import Sensitivity
from cvmtool.formats.receipt import Access
from cvmtool.owner.floors import built_in_floors
from cvmtool.owner.jobfile import JobFile
from cvmtool.owner.pipeline import ANY, SAID, InputFacts, Rules, place_text
from cvmtool.owner.pipelinefile import BUILT_IN, RULES_SCHEMA
from cvmtool.owner.policy import OPTIONAL

_HEAD = """\
What a run may take, where it may run and what may come out. Every key is required. "any" leaves something to anybody,
and an empty list allows nothing. docs/reference/policy-pipeline.md"""
_KEYS = {
    "images": "Guest images by name, with the SHA-256 of the manifests that may run (cvmtool image show).",
    "containers": "OCI digests.",
    "inputs": "What is said of packs, under their owner's signature. A directory says nothing of itself.",
    "inputs.must_say": f"What every input must state, of {', '.join(SAID)}.",
    "inputs.sensitivity": f"{', '.join(Sensitivity)}.",
    "inputs.licences": "As the metadata spells them.",
    "inputs.must_be_scrubbed": "Sensitivities that a scrubbing pipeline must have gone over. No job can waive this.",
    "inputs.pipelines": "Digests of the pipelines that count (cvmtool data show).",
    "inputs.in_dry_runs": "What may enter a dry run, which is confidential to nobody.",
    "network": "none; allow: to destinations that the job names.",
    "destinations": "Of those, host:port that may be reached over TLS.",
    "plaintext": "The same, without TLS.",
    "access": f"Ways into the guest and the running job: {', '.join(Access)}.",
    "clients": "Ed25519 keys, as hex, of others who may use its tunnels.",
    "outputs": "Kinds, and sizes such as 64MiB: of the largest, and of all together.",
    "recipients": "Who may get the results: owner keys (cvmtool key show) and age recipients.",
    "evidence": "How strict the policy about the guest must be. floors: built-in has every built-in TCB floor, or a higher one.",
    "evidence.unchecked": f"What it may leave unchecked, of {', '.join(OPTIONAL)}.",
}


def rules_of_job(
    job: JobFile,
    inputs: Collection[InputFacts],
    *,
    image_digest: str | None,
    recipients: Sequence[str],
    unchecked: Iterable[str],
) -> Rules:
    """Return rules that allow this job and little else.

    Args:
        job: the job.
        inputs: what is said of its inputs; where one says nothing, nothing is asked of any.
        image_digest: of the guest image's manifest, 64 hex digits; None leaves the image to anybody.
        recipients: who gets its outputs.
        unchecked: what the policy that judges its guests leaves unchecked.
    """
    said = [Sensitivity(item.metadata["sensitivity"]) for item in inputs if "sensitivity" in item.metadata]
    licences = [item.metadata["licence"] for item in inputs if "licence" in item.metadata]
    pipelines = frozenset(digest for item in inputs for digest in item.pipelines)
    access = [(job.access.exec, Access.EXEC), (bool(job.access.tunnels), Access.TUNNEL)]
    all_say = len(said) == len(inputs)
    return Rules(
        images=None if image_digest is None else {job.image: frozenset({image_digest})},
        containers=frozenset({job.container_digest}),
        must_say=frozenset.intersection(*(frozenset(item.metadata) for item in inputs)) if inputs else frozenset(),
        sensitivity=frozenset(said) if all_say else None,
        licences=frozenset(licences) if len(licences) == len(inputs) else None,
        must_be_scrubbed=frozenset({Sensitivity.PERSONAL}),
        pipelines=pipelines or None,
        in_dry_runs=frozenset({Sensitivity.PUBLIC, Sensitivity.INTERNAL}) if all_say else None,
        network=frozenset({job.network}),
        destinations=frozenset(place_text(place) for place in job.destinations if place.tls),
        plaintext=frozenset(place_text(place) for place in job.destinations if not place.tls),
        access=frozenset(way for allowed, way in access if allowed),
        clients=frozenset(job.access.clients),
        output_kinds=frozenset(output.kind for output in job.outputs),
        largest_output=max((output.max_bytes for output in job.outputs), default=None),
        all_outputs=sum(output.max_bytes for output in job.outputs) or None,
        recipients=frozenset(recipients),
        unchecked=frozenset(unchecked),
        built_in_floors=bool(built_in_floors()),
    )


def commented_rules(rules: Rules, *, preface: str = "") -> str:
    """Return rules as YAML with a comment above each key; `preface` goes on top."""
    values = {
        "images": None if rules.images is None else {name: sorted(rules.images[name]) for name in sorted(rules.images)},
        "containers": rules.containers,
        "inputs": {
            "must_say": rules.must_say,
            "sensitivity": rules.sensitivity,
            "licences": rules.licences,
            "must_be_scrubbed": rules.must_be_scrubbed,
            "pipelines": rules.pipelines,
            "in_dry_runs": rules.in_dry_runs,
        },
        "network": rules.network,
        "destinations": rules.destinations,
        "plaintext": rules.plaintext,
        "access": rules.access,
        "clients": rules.clients,
        "outputs": {
            "kinds": rules.output_kinds,
            "largest": _size(rules.largest_output),
            "together": _size(rules.all_outputs),
        },
        "recipients": rules.recipients,
        "evidence": {"floors": BUILT_IN if rules.built_in_floors else ANY, "unchecked": rules.unchecked},
    }
    lines = [*_comment(f"{_HEAD}\n{preface}".rstrip(), ""), "", f"schema: {RULES_SCHEMA}"]
    for key, value in values.items():
        lines += ["", *_comment(_KEYS[key], "")]
        if not isinstance(value, dict) or not value:
            lines.append(f"{key}: {_value(value)}")
            continue
        lines.append(f"{key}:")
        for name, item in value.items():
            lines += _comment(_KEYS.get(f"{key}.{name}", ""), "  ")
            lines.append(f"  {name}: {_value(item)}")
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """JSON is YAML; `any` and words stand bare, as people write them."""
    if value is None:
        return ANY
    return json.dumps(sorted(value)) if isinstance(value, frozenset | list) else str(value)


def _size(size: int | None) -> str | None:
    """Return a size as rules have it, rounded up to KiB: a sum of sizes may be of none."""
    if size is None:
        return None
    kibibytes = -(-size >> 10)
    return f"{kibibytes >> 10}MiB" if kibibytes % 1024 == 0 else f"{kibibytes}KiB"


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}".rstrip() for line in text.splitlines()]
