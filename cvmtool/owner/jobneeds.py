# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a job file says of its own needs, so that it can be seen beforehand whether it fits. None of it leaves the owner.

Zone: owner. Pure: no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from cvmtool.errors import ConfigError
from cvmtool.owner.jobkeys import below
from cvmtool.owner.strictyaml import Reader, in_short

MAX_ACTIVATIONS = 1 << 50  # bytes
_MAX_FEATURES = 64
_FEATURE = re.compile("[a-z0-9][a-z0-9.-]{0,31}")
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?)%")


class Optimizer(StrEnum):
    """What is kept of each parameter that is trained, besides its gradient."""

    NONE = "none"
    SGD = "sgd"
    MOMENTUM = "momentum"
    ADAM = "adam"

    @property
    def state_bytes(self) -> int:
        """Bytes a parameter, as float32: nothing, nothing, one moment, two."""
        return {Optimizer.MOMENTUM: 4, Optimizer.ADAM: 8}.get(self, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a model among the inputs is trained. `trained`: the share of its parameters, 0 to 1; `activations`: bytes of a batch."""

    trained: float
    optimizer: Optimizer
    activations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """CPU features in QEMU's words, and what training holds in memory; None where the file does not say."""

    features: frozenset[str] = frozenset()
    training: Training | None = None


def read_needs(job: Reader, resources: Reader) -> Needs:
    """Read `resources.requires` and `training`.

    Raises:
        ConfigError: an unknown key, or a value out of range.
    """
    return Needs(features=_features(resources), training=_training(job) if "training" in job.value else None)


def _features(resources: Reader) -> frozenset[str]:
    named = resources.strings("requires")
    for name in named:
        if not _FEATURE.fullmatch(name):
            raise ConfigError(
                f"{resources.name('requires')} names {name[:40]!r}; a CPU feature such as avx2 is required"
            )
    if len(named) > _MAX_FEATURES:
        raise ConfigError(f"{resources.name('requires')} has {len(named)} entries; at most {_MAX_FEATURES} are allowed")
    return frozenset(named)


def _training(job: Reader) -> Training:
    reader = job.child("training")
    reader.only(*below("training"))
    text = reader.text("trained", _SHARE, "a share such as 100% or 0.5%", "100%")
    share = float(text.removesuffix("%")) / 100
    if share > 1:
        raise ConfigError(f"{reader.name('trained')} is {in_short(text)}; at most 100% are possible")
    kinds = "|".join(Optimizer)
    optimizer = reader.text("optimizer", re.compile(kinds), f"one of {kinds.replace('|', ', ')}", Optimizer.ADAM)
    return Training(
        trained=share,
        optimizer=Optimizer(optimizer),
        activations=reader.size("activations", MAX_ACTIVATIONS) if "activations" in reader.value else 0,
    )
