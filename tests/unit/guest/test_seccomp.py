# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.guest.seccomp import convert_profile

KERNEL = (6, 12)


def profile(*rules, **changes):
    base = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "defaultErrno": "ENOSYS", "archMap": []}
    base["syscalls"] = list(rules)
    return json.dumps({**base, **changes}).encode()


def rule(name="read", action="SCMP_ACT_ALLOW", **more):
    return {"names": [name], "action": action, "args": [], "comment": "", "includes": {}, "excludes": {}, **more}


def names(*rules):
    converted = convert_profile(profile(*rules), kernel=KERNEL)
    return [name for item in converted["syscalls"] for name in item["names"] if name != "clone"]


def test_form_for_the_runtime():
    masked = {"index": 0, "value": 2_114_060_288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    converted = convert_profile(profile(rule(args=[masked], errnoRet=1)), kernel=KERNEL)
    plain_clone = {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [masked]}
    assert converted == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [plain_clone, {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [masked], "errnoRet": 1}],
    }


def test_calls_for_containers_in_containers_are_taken_out():
    assert names(rule() | {"names": ["mount", "read", "unshare", "clone", "clone3"]}) == ["read"]
    assert names(rule() | {"names": ["mount", "setns"]}) == []
    assert names(rule(action="SCMP_ACT_ERRNO") | {"names": ["bpf", "setns"]}) == ["bpf", "setns"]


CONDITIONS = {
    "none": ({}, True),
    "for a capability": ({"includes": {"caps": ["CAP_SYS_ADMIN"]}}, False),
    "for those without it": ({"excludes": {"caps": ["CAP_SYS_ADMIN"]}}, True),
    "for us": ({"includes": {"arches": ["amd64", "x86"]}}, True),
    "for another architecture": ({"includes": {"arches": ["s390x"]}}, False),
    "not for us": ({"excludes": {"arches": ["amd64"]}}, False),
    "not for another": ({"excludes": {"arches": ["s390"]}}, True),
    "since an older kernel": ({"includes": {"minKernel": "4.8"}}, True),
    "since a newer kernel": ({"includes": {"minKernel": "6.13"}}, False),
    "until an older kernel": ({"excludes": {"minKernel": "4.8"}}, False),
    "null": ({"includes": None}, True),
}


@pytest.mark.parametrize(("condition", "kept"), CONDITIONS.values(), ids=CONDITIONS)
def test_conditions(condition, kept):
    assert names(rule(**condition)) == (["read"] if kept else [])


BAD = {
    "not json": b"{",
    "allows by default": profile(defaultAction="SCMP_ACT_ALLOW"),
    "unknown default": profile(defaultAction="SCMP_ACT_NOTIFY"),
    "unknown action": profile(rule(action="SCMP_ACT_NOTIFY")),
    "unknown condition": profile(rule(includes={"selinux": True})),
    "no names": profile(rule() | {"names": []}),
    "a number for a name": profile(rule() | {"names": [1]}),
    "no kernel": profile(rule(includes={"minKernel": "new"})),
    "no rules": json.dumps({"defaultAction": "SCMP_ACT_ERRNO"}).encode(),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_unknown_profile_is_refused(data):
    with pytest.raises(FormatError):
        convert_profile(data, kernel=KERNEL)


KEYS = st.sampled_from(["names", "action", "includes", "excludes", "caps", "arches", "minKernel", "args", "errnoRet"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("SCMP_ACT_ALLOW")


@given(
    st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=12
    )
)
def test_any_rule_is_converted_or_refused(value):
    try:
        convert_profile(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [value]}).encode(), kernel=KERNEL)
    except FormatError:
        return


REAL = Path("/usr/share/containers/seccomp.json")


@pytest.mark.skipif(not REAL.exists(), reason="the distribution's profile is not installed; the guest image has it")
def test_the_distribution_s_profile():
    converted = convert_profile(REAL.read_bytes(), kernel=KERNEL)
    rules = [item for item in converted["syscalls"] if item["action"] == "SCMP_ACT_ALLOW" and not item.get("args")]
    allowed = {name for item in rules for name in item["names"]}
    assert {"read", "futex", "execve", "openat2"} <= allowed
    assert not allowed & {"mount", "bpf", "init_module", "reboot", "setns", "unshare", "open_by_handle_at", "clone"}
