# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What job.yaml says of the model that a job begins with.

Zone: owner. Pure: paths are returned as written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cvmtool.errors import ConfigError
from cvmtool.owner.jobkeys import below
from cvmtool.owner.strictyaml import Reader

MODEL = "model"
"""The input that it becomes: it appears at /inputs/model."""
_PATH = re.compile("[^\0]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWish:
    """A model's directory or pack, and the file with the public key of who must have signed it."""

    path: str
    signer: str | None = None


def read_model(job: Reader) -> ModelWish | None:
    """Read `model`: a path, or `path` and `signer`.

    Raises:
        ConfigError: something else, or an input of that name as well.
    """
    if MODEL not in job.value:
        return None
    if MODEL in job.child("inputs", default={}).value:
        raise ConfigError(
            "model and inputs.model are both given; one of them is required",
            hint="model: is checked to be a model; inputs.model: takes any files",
        )
    if isinstance(job.value[MODEL], str):
        return ModelWish(path=job.text(MODEL, _PATH, "a path"))
    model = job.child(MODEL)
    model.only(*below("model"))
    signer = model.text("signer", _PATH, "a path") if "signer" in model.value else None
    return ModelWish(path=model.text("path", _PATH, "a path"), signer=signer)
