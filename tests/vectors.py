# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Real reports, certificates and launch digests that other projects published; they live beside the checkout.

`CVMTOOL_VECTORS` names the folder, else `<repository>/../shared/vectors`. Where it is absent a test that needs it skips
and says why; with CI=true, or CVMTOOL_REQUIRE containing `vectors` or `all`, it fails instead.
"""

import json
import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parent.parent
VECTORS = Path(os.environ.get("CVMTOOL_VECTORS") or _REPOSITORY.parent / "shared" / "vectors")


@dataclass(frozen=True)
class ReportVector:
    name: str
    product: str | None
    report: bytes
    vek: bytes | None
    result: str
    row: dict

    @property
    def at(self) -> datetime:
        """A month after the key's certificate was issued: a VLEK's lasts a year."""
        return datetime.fromisoformat(self.row["vek_notbefore"]) + timedelta(days=30)

    @property
    def certificates(self) -> tuple[bytes, ...]:
        return (self.vek, chain(self.product, vlek="SEV-VLEK" in self.row["vek_info"]))

    @property
    def genuine(self) -> bool:
        return "CHAIN_OK SIG_OK" in self.result


def present() -> bool:
    return (VECTORS / "vectors.json").is_file()


def required() -> bool:
    wanted = os.environ.get("CVMTOOL_REQUIRE", "").replace(",", " ").split()
    return os.environ.get("CI") == "true" or not {"vectors", "all"}.isdisjoint(wanted)


def need() -> Path:
    """The folder, or skip (fail where the vectors are required)."""
    if present():
        return VECTORS
    reason = f"no test vectors at {VECTORS}; set CVMTOOL_VECTORS to their folder"
    if required():
        pytest.fail(reason)
    pytest.skip(reason)


def read(path: str) -> bytes:
    return (need() / path).read_bytes()


def load(path: str):
    return json.loads(read(path))


def reports() -> list[ReportVector]:
    """Every row of vectors.json; empty when the folder is absent (`need` then says so in the test)."""
    if not present():
        return []
    return [
        ReportVector(
            name=row["name"],
            product=row["product"],
            report=(VECTORS / row["report"]).read_bytes(),
            vek=(VECTORS / row["vek"]).read_bytes() if row["vek"] else None,
            result=row["result"],
            row=row,
        )
        for row in json.loads((VECTORS / "vectors.json").read_text())
    ]


def report(name: str) -> ReportVector:
    need()
    return next(vector for vector in reports() if vector.name == name)


def chain(product: str, *, vlek: bool = False) -> bytes:
    """AMD's intermediate and root of a product line, PEM."""
    line = product.lower()
    if vlek:
        return read(f"amd-roots/ask_ark_{line}_vlek.pem")
    return read(f"amd-roots/ask_ark_{line}{'_vcek' if line == 'turin' else ''}.pem")
