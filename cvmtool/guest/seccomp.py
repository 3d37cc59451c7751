# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Turn the container tools' seccomp profile into what an OCI runtime reads, for a process without capabilities.

Zone: guest (measured). Pure: no I/O.
Spec: the containers-common profile (its rules name the capabilities, architectures and kernels they are for); OCI
runtime specification, config-linux, "Seccomp".

The profile leaves it to capabilities to refuse what mounts file systems or enters namespaces, so that a container may
contain containers. A training job needs none of that: those calls are taken out, and `clone` makes no namespace.

Only x86-64 calls stay possible: the profile's 32-bit and x32 entries are left out, and with them a second way into the
kernel.
"""

from __future__ import annotations

from typing import Any

from cvmtool.errors import FormatError
from cvmtool.formats.wire import JsonObject, parse_json, typed

MAX_PROFILE = 1 << 20  # bytes
_ARCHITECTURE = "SCMP_ARCH_X86_64"
_ARCHITECTURE_NAMES = frozenset({"amd64", "x86_64"})
_ACTIONS = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS"})
# clone3 keeps its flags where a filter cannot see them. Without it, C libraries fall back to clone.
_NEVER = frozenset({
    "clone3", "fanotify_mark", "fsconfig", "fsmount", "fsopen", "fspick", "keyctl", "modify_ldt", "mount", "mount_setattr",
    "move_mount", "name_to_handle_at", "open_tree", "pivot_root", "ptrace", "reboot", "setns", "syslog", "umount", "umount2",
    "unshare",
})  # fmt: skip
_CLONE_NAMESPACES = 0x7E02_0000  # every CLONE_NEW* flag
_PLAIN_CLONE: JsonObject = {
    "names": ["clone"],
    "action": "SCMP_ACT_ALLOW",
    "args": [{"index": 0, "value": _CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
}
_CONDITIONS = frozenset({"arches", "caps", "minKernel"})


def convert_profile(data: bytes, *, kernel: tuple[int, int]) -> JsonObject:
    """Return the OCI `linux.seccomp` object for a profile; `kernel` is (major, minor).

    Raises:
        FormatError: not such a profile, or it has an action or a condition that is not known here.
    """
    what = "seccomp profile"
    profile = parse_json(data, what=what, limit=MAX_PROFILE)
    default = _action(profile, "defaultAction", what=what)
    if default == "SCMP_ACT_ALLOW":
        raise FormatError(f"{what}.defaultAction is {default}; a refusal is required")
    rules = [_PLAIN_CLONE]
    for entry in typed(profile, "syscalls", list, what=what):
        if not isinstance(entry, dict):
            raise FormatError(f"{what}.syscalls holds a {type(entry).__name__}; an object is required")
        if _applies(entry, kernel):
            rules += _rules(entry)
    converted: JsonObject = {"defaultAction": default, "architectures": [_ARCHITECTURE], "syscalls": rules}
    if "defaultErrnoRet" in profile:
        converted["defaultErrnoRet"] = typed(profile, "defaultErrnoRet", int, what=what)
    return converted


def _applies(entry: JsonObject, kernel: tuple[int, int]) -> bool:
    """Whether a rule is for us: every condition under `includes` holds and none under `excludes` does."""
    includes, excludes = _conditions(entry, "includes"), _conditions(entry, "excludes")
    if includes.get("caps"):  # we have none
        return False
    if includes.get("arches") and not _ARCHITECTURE_NAMES & set(includes["arches"]):
        return False
    if includes.get("minKernel") and kernel < _version(includes["minKernel"]):
        return False
    if _ARCHITECTURE_NAMES & set(excludes.get("arches") or ()):
        return False
    return not (excludes.get("minKernel") and kernel >= _version(excludes["minKernel"]))


def _conditions(entry: JsonObject, key: str) -> dict[str, Any]:
    conditions = entry.get(key) or {}
    known = isinstance(conditions, dict) and not conditions.keys() - _CONDITIONS
    if not known or not all(_is_names(conditions.get(name)) for name in ("arches", "caps")):
        raise FormatError(f"seccomp rule.{key} is {str(conditions)[:80]}; a known condition is required")
    return conditions


def _is_names(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _version(text: object) -> tuple[int, int]:
    try:
        major, minor = str(text).split(".")
        return int(major), int(minor)
    except ValueError as error:
        raise FormatError(f"seccomp profile names the kernel {str(text)[:32]!r}; major.minor is required") from error


def _rules(entry: JsonObject) -> list[JsonObject]:
    """Return the entry as the runtime spells it, without what is never allowed; nothing if nothing is left."""
    what = "seccomp rule"
    names = typed(entry, "names", list, what=what)
    if not names or not _is_names(names):
        raise FormatError(f"{what}.names is {str(names)[:60]}; a list of system calls is required")
    action = _action(entry, "action", what=what)
    if action == "SCMP_ACT_ALLOW":
        names = [name for name in names if name not in _NEVER and name != "clone"]
    if not names:
        return []
    rule: JsonObject = {"names": names, "action": action}
    if entry.get("args"):
        rule["args"] = typed(entry, "args", list, what=what)
    if "errnoRet" in entry:
        rule["errnoRet"] = typed(entry, "errnoRet", int, what=what)
    return [rule]


def _action(value: JsonObject, key: str, *, what: str) -> str:
    action = value.get(key)
    if action not in _ACTIONS:
        raise FormatError(f"{what}.{key} is {str(action)[:40]!r}; one of {', '.join(sorted(_ACTIONS))} is required")
    return str(action)
