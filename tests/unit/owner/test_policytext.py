# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import re

import pytest

from cvmtool.owner.policyfile import encode_policy, parse_policy
from cvmtool.owner.policytext import commented_policy
from tests.unit.owner.test_policyfile import BASE, FULL


@pytest.mark.parametrize("policy", [BASE, FULL], ids=["base", "full"])
def test_comments_change_nothing(policy):
    text = commented_policy(policy, preface="made for a test\nof two lines")
    assert parse_policy(text) == policy
    bare = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert bare == [line for line in encode_policy(policy).splitlines() if line]
    assert "# made for a test\n# of two lines\n" in text


@pytest.mark.parametrize("policy", [BASE, FULL], ids=["base", "full"])
def test_every_key_and_every_kind_of_table_has_a_comment(policy):
    lines = commented_policy(policy).splitlines()
    seen = set()
    for at, line in enumerate(lines):
        if line.startswith("["):
            if line not in seen:
                assert lines[at - 1].startswith("# "), line
            seen.add(line)
        elif " = " in line and not line.startswith("#") and not seen:
            assert lines[at - 1].startswith("# "), line
    assert {"[guest_policy]", "[platform_info]", "[[tcb_floors]]"} <= seen


@pytest.mark.parametrize("policy", [BASE, FULL], ids=["base", "full"])
def test_a_comment_stands_once_behind_one_empty_line_and_within_no_table(policy):
    text = commented_policy(policy)
    blocks = re.findall(r"(?:^# .*\n)+", text, re.MULTILINE)
    assert len(set(blocks)) == len(blocks)
    assert "\n\n\n" not in text
    assert all(text.startswith(block) or f"\n\n{block}" in text for block in blocks)
    within = re.split(r"^\[+\w+\]+$", text, flags=re.MULTILINE)[1:]
    assert not any(re.search(r"^#.*\n\w", table, re.MULTILINE) for table in within)


@pytest.mark.parametrize("policy", [BASE, FULL], ids=["base", "full"])
def test_a_comment_is_of_sentences_or_ends_with_a_list(policy):
    for block in re.findall(r"(?:^# .*\n)+", commented_policy(policy), re.MULTILINE):
        assert block.endswith(".\n") or block.splitlines()[-1].startswith("#   "), block


def test_no_line_is_too_long_to_read():
    assert all(len(line) <= 132 for line in commented_policy(BASE).splitlines() if line.startswith("#"))
