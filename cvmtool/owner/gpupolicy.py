# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What the owner accepts of a GPU, as a TOML file.

Zone: owner (trusted). Pure: no I/O.

As in `cvmtool.owner.policy`, no field has a default and what is not checked stands in `unchecked`. That the measurements are
those that NVIDIA signed for this driver and VBIOS is never optional.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cvmtool.errors import ConfigError
from cvmtool.owner.policy import Rule
from cvmtool.owner.toml import Table, load_table

GPU_POLICY_SCHEMA = "cvmtool/gpu-policy/v1"
OPTIONAL = ("devices", "revocation")
_CHIP = re.compile(r"[A-Z0-9]{3,16}")
_DEVICE = re.compile(r"[0-9a-f]{4,64}")
_DRIVER = re.compile(r"[0-9]{1,5}(\.[0-9]{1,5}){1,3}")
_VBIOS = re.compile(r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPolicy:
    """The owner's expectations of every GPU of a job.

    `chips`: by the name in NVIDIA's certificate, such as GH100. `min_driver`, `min_vbios`: the lowest versions, as NVIDIA
    writes them. `protected_pcie`: whether the GPU may trust its NVLink neighbours, whose links are not encrypted.
    `devices`: the GPUs that are trusted, by the serial number of their identity key in hex; None leaves it unchecked.
    `revocation`: whether NVIDIA's status service must have vouched for every certificate; False leaves it unchecked.

    Raises:
        ConfigError: an entry is not of its form, or there is none.
    """

    chips: frozenset[str]
    min_driver: str
    min_vbios: str
    protected_pcie: Rule
    devices: frozenset[str] | None
    revocation: bool

    def __post_init__(self) -> None:
        for name, values, form, required in (
            ("chips", self.chips, _CHIP, "names such as GH100"),
            ("min_driver", {self.min_driver}, _DRIVER, "a version such as 550.90.07"),
            ("min_vbios", {self.min_vbios}, _VBIOS, "a version such as 96.00.9F.00.01"),
            (
                "devices",
                {"0000"} if self.devices is None else self.devices,
                _DEVICE,
                "serial numbers in lower-case hex",
            ),
        ):
            odd = sorted(value for value in values if not form.fullmatch(value))
            if odd or not values:
                raise ConfigError(
                    f"gpu policy.{name} holds {odd[0][:64] if odd else 'nothing'!r}; required: {required}"
                )

    @property
    def unchecked(self) -> tuple[str, ...]:
        """The names of what this policy does not check; shown at each run."""
        left_out = (self.devices is None, not self.revocation)
        return tuple(f"gpu-{name}" for name, skipped in zip(OPTIONAL, left_out, strict=True) if skipped)


def parse_gpu_policy(text: str) -> GpuPolicy:
    """Read a policy.

    Raises:
        ConfigError: not TOML, another schema, a key missing or unknown, both stated and unchecked, or out of its form.
    """
    document = load_table(text, "gpu policy")
    schema = document.text("schema")
    if schema != GPU_POLICY_SCHEMA:
        raise ConfigError(f"gpu policy.schema is {schema!r}; required: {GPU_POLICY_SCHEMA!r}")
    skipped = _unchecked(document)
    if "revocation" not in skipped and document.text("revocation") != "required":
        raise document.wrong("revocation", document.text("revocation"), "'required', or its name in unchecked")
    policy = GpuPolicy(
        chips=frozenset(document.texts("chips")),
        min_driver=document.text("min_driver"),
        min_vbios=document.text("min_vbios"),
        protected_pcie=document.choice("protected_pcie", Rule),
        devices=None if "devices" in skipped else frozenset(document.texts("devices")),
        revocation="revocation" not in skipped,
    )
    document.finish()
    return policy


def encode_gpu_policy(policy: GpuPolicy) -> str:
    """Return the policy as TOML; `parse_gpu_policy` reads it back."""
    skipped = [name.removeprefix("gpu-") for name in policy.unchecked]
    lines = [
        f'schema = "{GPU_POLICY_SCHEMA}"',
        f"chips = {_texts(policy.chips)}",
        f'min_driver = "{policy.min_driver}"',
        f'min_vbios = "{policy.min_vbios}"',
        f'protected_pcie = "{policy.protected_pcie}"',
        *([] if policy.devices is None else [f"devices = {_texts(policy.devices)}"]),
        *(['revocation = "required"'] if policy.revocation else []),
        *([f"unchecked = {_texts(skipped)}"] if skipped else []),
    ]
    return "\n".join(lines) + "\n"


def version_numbers(version: str, *, base: int = 10) -> tuple[int, ...] | None:
    """Return a dotted version as numbers, for comparison; None if it is none."""
    form = _DRIVER if base == 10 else _VBIOS
    return tuple(int(part, base) for part in version.split(".")) if form.fullmatch(version) else None


def _unchecked(document: Table) -> set[str]:
    listed = set(document.texts("unchecked")) if document.has("unchecked") else set()
    unknown = sorted(listed - set(OPTIONAL))
    if unknown:
        raise ConfigError(f"gpu policy.unchecked holds {unknown[0]!r}; required: some of {', '.join(OPTIONAL)}")
    for name in OPTIONAL:
        if document.has(name) == (name in listed):
            raise ConfigError(
                f"gpu policy: {name!r} is {'both stated and unchecked' if name in listed else 'neither stated nor unchecked'}; "
                "required: one of them",
                hint="leave a check out only by name",
            )
    return listed


def _texts(values: frozenset[str] | list[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in sorted(values)) + "]"
