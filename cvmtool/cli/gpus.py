# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The GPUs of a machine as options name them, and what was verified of them as people and scripts see it.

Zone: cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cvmtool.flows.gpu import GpuWish
    from cvmtool.flows.vmrecords import VmRecord
    from cvmtool.owner.gpu import VerifiedGpus

_MAX_POLICY = 1 << 20  # bytes

GpuAddresses = Annotated[
    list[str] | None,
    typer.Option("--gpu", help="A GPU of the host, by its PCI address; once for each.", metavar="PCI"),
]
GpuPolicyFile = Annotated[
    Path | None,
    typer.Option("--gpu-policy", help="What is acceptable of the GPUs; required with them.", metavar="FILE"),
]


def gpu_wish(addresses: list[str] | None, policy: Path | None, *, dry_run: bool) -> GpuWish:
    """Return what the two options say together.

    Raises:
        ConfigError: one without the other, an address or a policy that is none, one GPU twice, or GPUs for a dry run.
    """
    from cvmtool.cli.files import read_file
    from cvmtool.flows.gpu import GpuWish, refuse_gpus_in_a_dry_run

    text = None if policy is None else read_file(policy, most=_MAX_POLICY).decode("utf-8", "replace")
    wish = GpuWish.named(addresses or (), text)
    if dry_run:
        refuse_gpus_in_a_dry_run(len(wish.devices))
    return wish


def gpu_fields(record: VmRecord, verified: VerifiedGpus | None) -> dict[str, Any]:
    """Return what JSON says of a machine's GPUs. `verified`: by this command; None if it did not ask them."""
    from cvmtool.flows.gpu import gpu_verdict

    return {"addresses": record.gpus, "verified": None if verified is None else gpu_verdict(verified)}


def gpu_line(record: VmRecord, verified: VerifiedGpus | None) -> str:
    """Return the same for people, of a machine that has some."""
    given = f"{len(record.gpus)} GPUs of its host ({', '.join(record.gpus)})"
    if verified is None:
        return f"{given}; they were not asked just now"
    return f"{given}; verified just now: {', '.join(verified.devices)}"
