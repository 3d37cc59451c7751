# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Presidio by its door. It brings 400 MB, so what needs it is left out of the ordinary tests: `make presidio` runs it."""

import sys
from collections import Counter

import pytest

from cvmtool.data.patterns import NAMED, Redactor
from cvmtool.data.presidio import finders
from cvmtool.errors import ConfigError
from cvmtool.formats.scrubbing import Recogniser

MODEL = "en_blank_for_tests"


def recogniser(*entities, model=MODEL):
    return Recogniser(language="en", model=model, entities=entities)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A spaCy model without weights: it splits words and knows no names. Presidio's own recognisers need no more."""
    package, info = tmp_path / MODEL, tmp_path / f"{MODEL}-0.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("import spacy\n\n\ndef load(**options):\n    return spacy.blank('en')\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {MODEL}\nVersion: 0.0\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(ConfigError) as refusal:
        finders(recogniser("PERSON"))
    assert "cvmtool[presidio]" in refusal.value.hint


@pytest.mark.parametrize("entity", ["EMAIL_ADDRESS", "URL"])
def test_what_would_ask_the_network(entity):
    with pytest.raises(ConfigError, match="on the network"):
        finders(recogniser(entity))


@pytest.mark.presidio
def test_a_model_that_is_not_installed_is_not_fetched():
    with pytest.raises(ConfigError, match="en_no_such_model is not installed"):
        finders(recogniser("PERSON", model="en_no_such_model"))


@pytest.mark.presidio
def test_an_entity_that_it_does_not_know(model):
    with pytest.raises(ConfigError, match="SHOE_SIZE"):
        finders(recogniser("SHOE_SIZE"))


@pytest.mark.presidio
def test_what_it_finds_is_redacted_with_what_patterns_find(model):
    redactor = Redactor([NAMED["email"]], first=finders(recogniser("IP_ADDRESS", "US_SSN")))
    counts = Counter()
    assert redactor("from 10.0.0.1, a@b.de", counts) == "from [ip-address], [email]"
    assert counts == {"ip-address": 1, "email": 1}
