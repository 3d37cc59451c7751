# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Parsers of what is said of packs and models, of the rules for them and of how they are scrubbed, each with its samples."""

from cvmtool.errors import ConfigError
from cvmtool.formats import modelsig, packheader, wire
from cvmtool.owner import pipelinefile, scrubfile
from tests.fuzz.parser import Parser, encode, json_object, seeds, text
from tests.unit.formats import test_modelsig, test_packheader
from tests.unit.owner import test_pipeline, test_scrubfile

_HEADER = test_packheader.header()

PARSERS: dict[str, Parser] = {
    "formats.modelsig.parse_bundle": Parser(modelsig.parse_bundle, seeds(test_modelsig.BUNDLE.encode()), write=encode),
    "formats.modelsig.parse_statement": Parser(
        modelsig.parse_statement, seeds(test_modelsig.STATEMENT.encode()), write=encode
    ),
    "formats.packheader.parse_pack_header": Parser(
        packheader.parse_pack_header, lambda: (packheader.encode_header(_HEADER),), write=packheader.encode_header
    ),
    "formats.packheader.parse_metadata": Parser(
        json_object(packheader.parse_metadata),
        lambda: (b"{}", wire.canonical_json(_HEADER.metadata.to_json())),
        write=lambda value: wire.canonical_json(value.to_json()),
    ),
    "owner.pipelinefile.parse_rules": Parser(
        text(pipelinefile.parse_rules), seeds(test_pipeline.TEXT.encode()), ConfigError
    ),
    "owner.scrubfile.parse_pipeline": Parser(
        text(scrubfile.parse_pipeline), seeds(test_scrubfile.TEXT.encode()), ConfigError
    ),
}
