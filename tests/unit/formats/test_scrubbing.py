# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from cvmtool.formats.packheader import RuleCount
from cvmtool.formats.scrubbing import FileFormat, FileReport


def test_a_file_in_a_report():
    counts = (RuleCount(rule="*.csv: drop name", changed=3),)
    report = FileReport(path="a/b.csv", match="*.csv", format=FileFormat.CSV, records=4, counts=counts)
    assert report.to_json() == {
        "path": "a/b.csv",
        "match": "*.csv",
        "format": "csv",
        "records": 4,
        "counts": [{"rule": "*.csv: drop name", "changed": 3}],
    }
