# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The table of parsers is whole, its samples are good, and a short pass of what `make fuzz` does at length."""

import ast
from random import Random

import pytest

from cvmtool.errors import CvmError, FormatError
from tests.architecture.source import MODULES
from tests.fuzz.mutate import mutate
from tests.fuzz.parser import Parser, show
from tests.fuzz.parsers import PARSERS

INPUTS = 1_500


def public_parsers() -> set[str]:
    """Every public function that is named a parser and reads what others wrote, as the table names it."""
    return {
        f"{module.dotted.removeprefix('cvmtool.')}.{node.name}"
        for module in MODULES
        if module.zone in {"formats", "measure", "owner", "guest", "host", "image"}
        for node in module.tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("parse_")
    }


def test_every_parser_is_in_the_table():
    assert len(public_parsers()) > 30
    assert sorted(public_parsers() - PARSERS.keys()) == []


@pytest.mark.parametrize("name", [name for name in PARSERS if not name.startswith(("guest.kinds.", "owner.der."))])
def test_every_name_in_the_table_is_a_function_of_the_package(name):
    parts = name.split(".")
    module = max(MODULES, key=lambda module: len(module.dotted) * f"cvmtool.{name}".startswith(f"{module.dotted}."))
    assert parts[-1] in {node.name for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", PARSERS)
def test_every_sample_is_accepted_and_hostile_bytes_are_a_value_or_a_refusal(name):
    parser = PARSERS[name]
    samples = parser.seeds()
    assert samples
    assert all(show(parser, sample) for sample in samples)
    random = Random(name)
    inputs = [b"", b"\0", b"\xff" * 64, *(mutate(random.choice(samples), random, samples) for _ in range(INPUTS))]
    refused = sum(not show(parser, data) for data in inputs)
    assert refused or name in NEVER_REFUSES


NEVER_REFUSES = {
    *("formats.channel.find_last_open", "owner.certificate.p384_key", "owner.certificate.rsa_key"),
    *(f"host.doctor.texts.{name}" for name in ("parse_kernel_log", "parse_misc", "parse_nvidia_functions")),
    "image.licences.parse_copyright",
}
"""They pass over what is not theirs."""


@pytest.mark.parametrize(
    "broken",
    [
        Parser(lambda data: data[10], lambda: (b"",)),
        Parser(lambda data: data, lambda: (b"",), write=lambda value: value + b"x"),
        Parser(PARSERS["owner.toml.load_table"].read, lambda: (b"",), FormatError),
    ],
    ids=["raises another error", "is not written as it was read", "refuses as another parser does"],
)
def test_the_harness_notices_a_parser_that(broken):
    with pytest.raises((AssertionError, IndexError, CvmError)):
        show(broken, b"")


def test_a_mutant_is_often_near_its_sample_and_never_long():
    random = Random(0)
    sample = PARSERS["formats.job.parse_job_manifest"].seeds()[0]
    mutants = [mutate(sample, random) for _ in range(500)]
    assert all(len(mutant) <= 1 << 16 for mutant in mutants)
    assert len(set(mutants)) > 450
    assert sum(mutant[:1] == b"{" and mutant[-1:] == b"}" for mutant in mutants) > 350
