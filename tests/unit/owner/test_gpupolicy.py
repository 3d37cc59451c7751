# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError
from cvmtool.owner.gpupolicy import GpuPolicy, encode_gpu_policy, parse_gpu_policy
from cvmtool.owner.policy import Rule

POLICY = GpuPolicy(
    chips=frozenset({"GH100"}),
    min_driver="550.90.07",
    min_vbios="96.00.9F.00.01",
    protected_pcie=Rule.FORBIDDEN,
    devices=frozenset({"41431d480fe5e87274"}),
    revocation=True,
)
LOOSE = replace(POLICY, devices=None, revocation=False)


@pytest.mark.parametrize("policy", [POLICY, LOOSE, replace(POLICY, devices=None), replace(POLICY, revocation=False)])
def test_what_is_written_is_read_back(policy):
    assert parse_gpu_policy(encode_gpu_policy(policy)) == policy


def test_what_is_left_out_is_said():
    assert POLICY.unchecked == ()
    assert LOOSE.unchecked == ("gpu-devices", "gpu-revocation")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cvmtool/gpu-policy/v1", "cvmtool/gpu-policy/v2"),
        ('chips = ["GH100"]', "chips = []"),
        ('chips = ["GH100"]', ""),
        ('chips = ["GH100"]', 'chips = ["hopper"]'),
        ('"550.90.07"', '"550"'),
        ('"550.90.07"', '"550.90.07b"'),
        ('"96.00.9F.00.01"', '"96.00.9f.00.01"'),
        ('"96.00.9F.00.01"', '"96.00.9F.00"'),
        ('"forbidden"', '"off"'),
        ('["41431d480fe5e87274"]', '["41431D480FE5E87274"]'),
        ('revocation = "required"', 'revocation = "report"'),
        ('revocation = "required"', ""),
        ('revocation = "required"', 'revocation = "required"\nunchecked = ["revocation"]'),
        ('revocation = "required"', 'unchecked = ["measurements"]'),
        ("chips", "chipz"),
    ],
)
def test_anything_else_is_refused(old, new):
    text = encode_gpu_policy(POLICY)
    assert old in text
    with pytest.raises(ConfigError):
        parse_gpu_policy(text.replace(old, new, 1))


@given(st.text(max_size=200))
def test_any_text_is_refused(text):
    with pytest.raises(ConfigError):
        parse_gpu_policy(text)
