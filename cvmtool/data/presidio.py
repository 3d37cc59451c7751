# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The one door to Presidio's analyser, which finds names and places in prose: an extra, and an estimate, not a pattern.

Zone: data (the owner's machine).
What it finds depends on its version and its model's. It is asked once, before the patterns, since it would find something else
in text that was redacted. It fetches nothing: a model that is not installed is an error here, and entities whose recognisers
look up domains on the network are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cvmtool.data.patterns import Finder, Span
from cvmtool.errors import ConfigError
from cvmtool.formats.scrubbing import Recogniser

_BY_NETWORK = {"EMAIL_ADDRESS": "email", "URL": "url"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entity:
    name: str
    find: Callable[[str], Sequence[Span]]

    def spans(self, text: str) -> Iterator[Span]:
        """Yield where it stands; of what lies over one another the first, and of these the longest."""
        at = 0
        for start, end in sorted(self.find(text), key=lambda span: (span[0], -span[1])):
            if start >= at:
                yield start, end
                at = end


def finders(recogniser: Recogniser) -> tuple[Finder, ...]:
    """Return a finder for each entity, its name in lower case.

    Raises:
        ConfigError: Presidio or the model is not installed, or knows no such entity in this language.
    """
    for entity in recogniser.entities:
        if entity in _BY_NETWORK:
            raise ConfigError(
                f"Presidio looks for {entity} on the network; required: the pattern {_BY_NETWORK[entity]!r} instead"
            )
    try:
        import spacy.util  # noqa: PLC0415 - an extra, and slow to load
        from presidio_analyzer import AnalyzerEngine  # noqa: PLC0415
        from presidio_analyzer.nlp_engine import NlpEngineProvider  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "the pipeline asks for Presidio, which is not installed", hint="pip install 'cvmtool[presidio]'"
        ) from None
    if not spacy.util.is_package(recogniser.model):
        raise ConfigError(
            f"the spaCy model {recogniser.model} is not installed", hint=f"python -m spacy download {recogniser.model}"
        )
    models = [{"lang_code": recogniser.language, "model_name": recogniser.model}]
    engine = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models}).create_engine()
    analyser = AnalyzerEngine(nlp_engine=engine, supported_languages=[recogniser.language])
    known = analyser.get_supported_entities(recogniser.language)
    if unknown := sorted(set(recogniser.entities) - set(known)):
        raise ConfigError(
            f"Presidio knows no {unknown[0]} in {recogniser.language}; required: of {', '.join(sorted(known))}"
        )

    def finder(entity: str) -> Finder:
        def find(text: str) -> list[Span]:
            found = analyser.analyze(text=text, entities=[entity], language=recogniser.language)
            return [(item.start, item.end) for item in found]

        return _Entity(name=entity.lower().replace("_", "-"), find=find)

    return tuple(map(finder, recogniser.entities))
