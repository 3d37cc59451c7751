# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Say why a launch digest is not the expected one: find what was launched instead.

Zone: measure (shared mathematics). Pure: no I/O.

A digest says only that something differs. But the space of mistakes is small (`cvmtool.measure.deviations`), and a digest for n
virtual CPUs is a step on the way to n + 1, so one pass tries every count. The search goes in rounds: nothing but the count
differs, one thing, two, then what is rare. The first round that finds anything ends it, and of what it found only that with
the fewest differences is told. What is found this way is a hint for people and never a reason to trust.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, product

from cvmtool.errors import ConfigError
from cvmtool.measure.deviations import (
    MOST_FEATURES,
    VMM_TEXT,
    Deviation,
    Launch,
    Part,
    cpu_text,
    every_feature_set,
    every_signature,
    features_text,
    vcpus_text,
)
from cvmtool.measure.hashes import KernelHashes
from cvmtool.measure.launch import FirmwareSeed, extend_with_equal, image_digest, vcpu_pages
from cvmtool.measure.vmsa import Vmm

SEARCHED_VCPUS = 512

Choice = tuple[Deviation, ...]
Progress = Callable[[str], None]

_KINDS = {
    Part.CPU: ("CPU signature", "CPU signatures"),
    Part.FEATURES: ("set of SEV_FEATURES", "sets of SEV_FEATURES"),
    Part.VMM: ("initial CPU state", "initial CPU states"),
    Part.CMDLINE: ("command line", "command lines"),
    Part.MODE: ("mode", "modes"),
    Part.INITRD: ("initrd", "initrds"),
    Part.KERNEL: ("kernel", "kernels"),
    Part.FIRMWARE: ("firmware", "firmwares"),
    Part.IMAGE: ("guest image", "guest images"),
}
_OF_THE_MACHINE = (Part.CPU, Part.FEATURES, Part.VMM)
_TOLD_EVERY = 256  # choices; some 0.1 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What was launched in one respect, and what was expected; both continue "launched with"."""

    part: Part
    actual: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A launch that has the digest, and in what it differs from the expected one: in nothing, perhaps."""

    launch: Launch
    differences: tuple[Difference, ...]

    @property
    def sentence(self) -> str:
        """The explanation in one sentence."""
        if not self.differences:
            return f"launched as expected, with {vcpus_text(self.launch.vcpus)}"
        actual = _listed([difference.actual for difference in self.differences])
        expected = _listed([difference.expected for difference in self.differences])
        return f"launched with {actual}; expected: {expected}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuledOut:
    """What was tried in vain: `what` in words, and how many `launches` that were."""

    what: str
    launches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The equally good explanations, none if there are none; and what was ruled out on the way."""

    explanations: tuple[Explanation, ...]
    ruled_out: tuple[RuledOut, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """The launch that was expected, and the names of its parts that no number tells (files, image, command line)."""

    launch: Launch
    names: Mapping[Part, str]

    def name(self, part: Part) -> str:
        """Return what was expected of a part, in words."""
        match part:
            case Part.VCPUS:
                return vcpus_text(self.launch.vcpus)
            case Part.CPU:
                return cpu_text(self.launch.cpu)
            case Part.FEATURES:
                return features_text(self.launch.guest_features)
            case Part.VMM:
                return VMM_TEXT[self.launch.vmm]
            case _:
                return self.names[part]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """Choices that are tried together, with every number of virtual CPUs or with the expected one alone."""

    what: str
    choices: Iterable[Choice]
    every_count: bool = True


def explain(
    expected: Expectation, deviations: Iterable[Deviation], digest: bytes, *, progress: Progress | None = None
) -> Findings:
    """Find the launches that have `digest` (48 bytes), those nearest to the expected one.

    `deviations`, likely ones first, are tried alone and two at a time; `progress` is told what is being tried.

    Raises:
        FormatError, ConfigError: the expected launch itself is impossible, as `launch_digests`.
    """
    launch = expected.launch
    image_digest(launch.firmware, launch.hashes, launch.vmm)
    search = _Search(launch, digest)
    ruled_out: list[RuledOut] = []
    for step in _rounds(_worth_trying(launch, deviations), launch):
        tried = 0
        found: list[Explanation] = []
        for number, choice in enumerate(step.choices):
            if progress is not None and number % _TOLD_EVERY == 0:
                progress(step.what)
            launched = replace(launch, **{field: value for one in choice for field, value in one.values.items()})
            counts, count_tried = search.counts(launched, every_count=step.every_count)
            tried += count_tried
            found += [_explanation(expected, choice, replace(launched, vcpus=count)) for count in counts]
        if found:
            fewest = min(len(explanation.differences) for explanation in found)
            nearest = tuple(item for item in found if len(item.differences) == fewest)
            return Findings(explanations=nearest, ruled_out=tuple(ruled_out))
        ruled_out.append(RuledOut(what=step.what, launches=tried))
    return Findings(explanations=(), ruled_out=tuple(ruled_out))


class _Search:
    """Looks for one digest; what does not depend on the virtual CPUs is worked out once for each firmware and kernel."""

    def __init__(self, expected: Launch, digest: bytes) -> None:
        self._expected = expected
        self._digest = digest
        self._images: dict[tuple[bytes, KernelHashes | None, Vmm], bytes | None] = {}

    def counts(self, launch: Launch, *, every_count: bool) -> tuple[list[int], int]:
        """Return the numbers of virtual CPUs with which `launch` has the digest, and how many were tried."""
        image = self._image(launch.firmware, launch.hashes, launch.vmm)
        if image is None:
            return [], 0
        # Two are enough: every processor but the first starts alike.
        first, other = vcpu_pages(
            launch.firmware.firmware.reset_eip,
            cpu=launch.cpu,
            vcpus=2,
            guest_features=launch.guest_features,
            vmm=launch.vmm,
        )
        (digest,) = extend_with_equal(image, first, 1)
        most = SEARCHED_VCPUS if every_count else launch.vcpus
        digests = (digest, *extend_with_equal(digest, other, most - 1))
        if not every_count:
            return ([most] if digests[-1] == self._digest else []), 1
        return [count for count, digest in enumerate(digests, 1) if digest == self._digest], most

    def _image(self, firmware: FirmwareSeed, hashes: KernelHashes | None, vmm: Vmm) -> bytes | None:
        key = (firmware.digest, hashes, vmm)
        if key not in self._images:
            try:
                self._images[key] = image_digest(firmware, hashes, vmm)
            except ConfigError:
                # A firmware that does not measure a kernel: QEMU refuses kernel-hashes=on with it.
                self._images[key] = None
        return self._images[key]


def _rounds(deviations: Sequence[Deviation], launch: Launch) -> Iterator[_Round]:
    """Yield what to try, likely things first."""
    counts = f"each with 1 to {SEARCHED_VCPUS} vCPUs"
    yield _Round(what=f"the expected launch with 1 to {SEARCHED_VCPUS} vCPUs", choices=((),))
    by_part = Counter(deviation.part for deviation in deviations)
    kinds = ", ".join(f"{count} other {_KINDS[part][count != 1]}" for part, count in by_part.items())
    yield _Round(what=f"one of {kinds}, {counts}", choices=((deviation,) for deviation in deviations))
    machine = [deviation for deviation in deviations if deviation.part in _OF_THE_MACHINE]
    others = [deviation for deviation in deviations if deviation.part not in _OF_THE_MACHINE]
    yield _Round(what=f"two things about the virtual CPUs at once, {counts}", choices=_apart(combinations(machine, 2)))
    pairs = chain(product(others, machine), combinations(others, 2))
    yield _Round(
        what=f"two of these at once of which one is a file or the command line, {counts}", choices=_apart(pairs)
    )
    signatures = _worth_trying(launch, every_signature())
    yield _Round(
        what=f"each of {len(signatures)} CPU signatures of processors with SEV-SNP, {counts}",
        choices=((deviation,) for deviation in signatures),
    )
    features = _worth_trying(launch, every_feature_set())
    yield _Round(
        what=f"each of {len(features)} sets of at most {MOST_FEATURES} SEV_FEATURES bits, with the expected number of vCPUs",
        choices=((deviation,) for deviation in features),
        every_count=False,
    )
    cpus, sets, monitors = ([deviation for deviation in machine if deviation.part is part] for part in _OF_THE_MACHINE)
    starts = [deviation for deviation in others if deviation.part in (Part.MODE, Part.KERNEL, Part.IMAGE)]
    yield _Round(
        what=f"CPU signature, SEV_FEATURES and initial CPU state all different, with the expected files or others, {counts}",
        choices=(
            (*start, *three) for start in ((), *((one,) for one in starts)) for three in product(cpus, sets, monitors)
        ),
    )


def _apart(pairs: Iterable[tuple[Deviation, Deviation]]) -> Iterator[Choice]:
    """Leave out the pairs that want to change the same."""
    return ((a, b) for a, b in pairs if a.values.keys().isdisjoint(b.values))


def _worth_trying(launch: Launch, deviations: Iterable[Deviation]) -> list[Deviation]:
    """Leave of each what differs from the expected launch, and of those that come to the same the first."""
    kept: dict[object, Deviation] = {}
    for deviation in deviations:
        values = {field: value for field, value in deviation.values.items() if getattr(launch, field) != value}
        if values:
            kept.setdefault(frozenset(values.items()), replace(deviation, values=values))
    return list(kept.values())


def _explanation(expected: Expectation, choice: Choice, launch: Launch) -> Explanation:
    differences = [Difference(part=one.part, actual=one.actual, expected=expected.name(one.part)) for one in choice]
    differences.sort(key=lambda difference: list(Part).index(difference.part))
    if launch.vcpus != expected.launch.vcpus:
        differences.insert(
            0,
            Difference(part=Part.VCPUS, actual=vcpus_text(launch.vcpus), expected=expected.name(Part.VCPUS)),
        )
    return Explanation(launch=launch, differences=tuple(differences))


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
