# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Rules to start from: they are rules, they allow the job that they were written for, and not much else."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.formats.job import Network, OutputKind
from cvmtool.formats.jobterms import Destination
from cvmtool.formats.packheader import Sensitivity
from cvmtool.formats.receipt import Access
from cvmtool.owner.jobfile import parse_job_file
from cvmtool.owner.pipeline import SAID, InputFacts, Rules, judge_ingestion, judge_sealing
from cvmtool.owner.pipelinefile import KEYS, parse_rules, unrestricted
from cvmtool.owner.pipelinetext import commented_rules, rules_of_job
from cvmtool.owner.policy import OPTIONAL
from tests import samples
from tests.unit.owner.test_pipeline import AGE, DIGEST, KEY, PIPELINE, RULES

JOB = parse_job_file(samples.JOB_YAML)
SILENT = tuple(InputFacts(name=name, metadata={}, pipelines=()) for name in JOB.inputs)
SAYING = tuple(
    InputFacts(name=name, metadata={"sensitivity": "personal", "licence": "CC0-1.0"}, pipelines=(PIPELINE,))
    for name in JOB.inputs
)


def rules(inputs=SILENT, job=JOB, **changes):
    options = {"image_digest": DIGEST, "recipients": [KEY], "unchecked": ["chips"], **changes}
    return rules_of_job(job, inputs, **options)


def denied(made, inputs, *, simulated, recipients=(KEY,)):
    decisions = (
        *judge_ingestion(made, container=JOB.container_digest, inputs=inputs, simulated=simulated),
        *judge_sealing(
            made,
            inputs=inputs,
            network=JOB.network,
            destinations=JOB.destinations,
            access=[],
            clients=[],
            outputs=JOB.outputs,
            recipients=recipients,
        ),
    )
    return {decision.rule for decision in decisions if not decision.allowed}


@pytest.mark.parametrize("made", [RULES, rules(), rules(SAYING), rules(image_digest=None)])
def test_comments_change_nothing(made):
    text = commented_rules(made, preface="for a test")
    assert parse_rules(text) == made
    lines = text.splitlines()
    for key in KEYS:
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{key}:"))
        assert lines[at - 1].startswith("# ")


def test_every_comment_is_of_sentences_but_the_first_which_ends_with_the_page():
    head, *comments = re.findall(r"(?:^ *# .*\n)+", commented_rules(RULES), re.MULTILINE)
    assert (Path(__file__).parents[3] / head.split()[-1]).is_file()
    assert len(comments) == 18
    for comment in comments:
        assert comment.endswith(".\n"), comment


@pytest.mark.parametrize(
    ("key", "words"),
    [("must_say", SAID), ("  sensitivity", Sensitivity), ("access", Access), ("unchecked", OPTIONAL)],
)
def test_a_comment_names_every_word_that_its_key_may_have(key, words):
    lines = commented_rules(RULES).splitlines()
    at = next(number for number, line in enumerate(lines) if line.lstrip().startswith(f"{key.lstrip()}:"))
    assert set(re.findall(r"[a-z-]+", lines[at - 1])) >= set(words)


def test_sizes_are_written_as_people_write_them_and_never_too_small():
    def written(size):
        return re.search(r"largest: (\S+)", commented_rules(replace(RULES, largest_output=size)))[1]

    assert [written(size) for size in (1, 1 << 10, 1025, 1 << 20, (1 << 20) + 1, 3 << 20)] == [
        "1KiB",
        "1KiB",
        "2KiB",
        "1MiB",
        "1025KiB",
        "3MiB",
    ]


def test_a_job_without_inputs_and_outputs():
    made = rules((), replace(JOB, inputs={}, outputs=()))
    assert made.must_say == frozenset()
    assert (made.largest_output, made.all_outputs) == (None, None)


def test_each_destination_stands_where_it_belongs():
    tls = Destination(host="a.example", port=443, addresses=(), tls=True)
    made = rules(job=replace(JOB, network=Network.ALLOW, destinations=(tls, replace(tls, port=80, tls=False))))
    assert (made.destinations, made.plaintext) == ({"a.example:443"}, {"a.example:80"})


def test_the_job_is_allowed():
    assert denied(rules(), SILENT, simulated=True) == set()
    assert denied(rules(SAYING), SAYING, simulated=False) == set()


def test_another_is_not():
    assert denied(rules(SAYING), SILENT, simulated=False) == {
        "inputs.must_say",
        "inputs.sensitivity",
        "inputs.licences",
    }
    assert denied(rules(SAYING), SAYING, simulated=True) == {"inputs.in_dry_runs"}
    unscrubbed = [replace(item, pipelines=()) for item in SAYING]
    assert denied(rules(SAYING), unscrubbed, simulated=False) == {"inputs.must_be_scrubbed"}
    assert denied(rules(), SILENT, simulated=True, recipients=[KEY, AGE]) == {"recipients"}


def test_what_nobody_says_is_left_to_anybody():
    assert unrestricted(rules()) == ("inputs.sensitivity", "inputs.licences", "inputs.pipelines", "inputs.in_dry_runs")
    assert unrestricted(rules(SAYING)) == ()
    assert "images" in unrestricted(rules(image_digest=None))


SETS = st.one_of(st.none(), st.frozensets(st.sampled_from([DIGEST, KEY]), max_size=2))
KINDS = st.sampled_from(list(OutputKind))


@given(
    st.builds(
        Rules,
        images=st.one_of(
            st.none(), st.dictionaries(st.sampled_from(["base", "operator"]), st.just(frozenset({DIGEST})))
        ),
        containers=st.one_of(st.none(), st.just(frozenset({PIPELINE}))),
        must_say=st.frozensets(st.sampled_from(["owner", "licence"])),
        sensitivity=st.one_of(st.none(), st.frozensets(st.sampled_from(list(Sensitivity)))),
        licences=st.one_of(
            st.none(), st.frozensets(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
        ),
        must_be_scrubbed=st.frozensets(st.sampled_from(list(Sensitivity))),
        pipelines=st.one_of(st.none(), st.just(frozenset({PIPELINE}))),
        in_dry_runs=st.one_of(st.none(), st.frozensets(st.sampled_from(list(Sensitivity)))),
        network=st.just(frozenset({JOB.network})),
        destinations=st.one_of(st.none(), st.just(frozenset({"[::1]:443", "a.example:1"}))),
        plaintext=st.one_of(st.none(), st.just(frozenset())),
        access=st.frozensets(st.sampled_from(list(Access))),
        clients=SETS,
        output_kinds=st.one_of(st.none(), st.frozensets(KINDS)),
        largest_output=st.one_of(st.none(), st.integers(1, 5000).map(lambda size: size << 10)),
        all_outputs=st.one_of(st.none(), st.integers(1, 5000).map(lambda size: size << 10)),
        recipients=SETS,
        unchecked=st.frozensets(st.sampled_from(["chips", "id-block"])),
        built_in_floors=st.booleans(),
    )
)
def test_any_rules_come_back(made):
    assert parse_rules(commented_rules(made)) == made
