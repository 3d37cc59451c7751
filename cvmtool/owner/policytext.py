# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A policy as a person starts from it: every line says what it asks and why.

Zone: owner (trusted). Pure: no I/O.

`parse_policy(commented_policy(p)) == p`: comments change nothing, and no key is without one.
"""

from __future__ import annotations

from cvmtool.owner.policy import OPTIONAL, Policy
from cvmtool.owner.policyfile import encode_policy

_HEAD = """\
What this owner accepts. Nothing has a default: a key that is missing here is an error, and so is one that is misspelt.
A rule is "required", "forbidden" or "any". Every run prints what is left unchecked."""

_KEYS = {
    "schema": "The form of this file.",
    "roots": 'Whose processors: "amd", or "simulated" for dry runs, which prove nothing.',
    "simulated_root": "SHA-256 of the dry run's root on this machine. No production policy has this line.",
    "products": 'Product lines: "Milan", "Genoa" (also Bergamo and Siena), "Turin". Milan needs chips or allow_milan = true,\n'
    "since its chip keys can be extracted in software by whoever owns the chip.",
    "allow_milan": "Any Milan chip will do: a report then proves nothing against somebody who owns one.",
    "signing_keys": 'Which keys may sign: "vcek", the chip\'s own; "vlek", the provider\'s, which does not say which chip signed.',
    "min_report_version": "Version 3 and later say which processor it is, and whether memory was checked for aliases.",
    "measurements": "Launch digests that are accepted at any time: firmware, kernel, initrd, command line, CPU model and count.",
    "revoked_measurements": "Launch digests that are refused whatever else names them.",
    "vmpl": "Privilege levels that may ask for a report: 0 without a paravisor.",
    "min_abi": "The lowest firmware ABI that the guest may demand of its host.",
    "provisional_firmware": "Firmware that the host can still roll back.",
    "revocation": '"required": AMD\'s revocation list must have been looked at. "report": its absence is only printed.',
    "host_data": "The owner and job that the launch must be for.",
    "chips": "Hardware identifiers of the chips that are trusted: the only defence against a relay to an attacker's own machine.",
    "providers": "Providers whose VLEK may sign.",
    "min_firmware": "The lowest SEV firmware, as MAJOR.MINOR.BUILD.",
    "mitigations": "Bits that both mitigation vectors must have.",
    "family_ids": "FAMILY_ID of the ID block.",
    "image_ids": "IMAGE_ID of the ID block.",
    "unchecked": "What is not checked, said aloud. To check one of these, state its key and take its name out:\n"
    + "\n".join(f"  {name}: {key}" for name, key in OPTIONAL.items()),
    "[guest_policy]": "What the launch demanded, bit by bit (GUEST_POLICY).",
    "[platform_info]": "What the host has switched on, bit by bit (PLATFORM_INFO); unknown: bits that have no name yet.",
    "[id_block]": "Who must have signed the launch: digests of ID keys or of author keys (cvmtool measure id-block).",
    "[[measurement_sets]]": "Launch digests that are accepted for a time; not_before and not_after count as inside.",
    "[[tcb_floors]]": "A lowest security version, the bulletin that asks for it, and when somebody last looked it up.",
}


def commented_policy(policy: Policy, *, preface: str = "") -> str:
    """Return the policy as TOML with a comment above each key and each kind of table; `preface` goes on top.

    Raises:
        ConfigError: a text in the policy cannot stand in a TOML string.
    """
    lines = _comment(f"{_HEAD}\n{preface}".rstrip())
    said: set[str] = set()
    for line in encode_policy(policy).splitlines():
        key = line.partition(" = ")[0]
        if key in _KEYS and key not in said:
            said.add(key)
            # A table's comment stands with it, behind the blank line that is there already.
            lines += [*([] if line.startswith("[") else [""]), *_comment(_KEYS[key])]
        lines.append(line)
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return [f"# {line}".rstrip() for line in text.splitlines()]
