# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The pages say what the code does: keys, codes, schemas, commands, files, links. A page that drifts fails here."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from cvmtool import errors
from cvmtool.config import HostSettings, Settings
from cvmtool.errors import ConfigError
from cvmtool.formats.job import MIN_MEMORY_MIB, Kind, OutputKind
from cvmtool.formats.policybits import PLATFORM_BITS, POLICY_BITS
from cvmtool.owner.jobfile import Restart, parse_job_file
from cvmtool.owner.jobkeys import KEYS
from cvmtool.owner.jobneeds import Optimizer
from cvmtool.owner.policy import OPTIONAL, Policy
from cvmtool.owner.policyfile import parse_policy
from tests.architecture.jobpage import END, REQUIRED, START, listen, render_keys, told
from tests.architecture.manpage import render_man
from tests.architecture.pages import commands, render_cli
from tests.architecture.source import MODULES, PACKAGE, ROOT
from tests.architecture.test_layers import MAY_IMPORT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("images/*/README.md")])
REFERENCE = ROOT / "docs/reference"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def first_cells(text: str) -> list[str]:
    """Return the first cell of each row of each table, heads left out."""
    lines = text.splitlines()
    return [
        line.strip("|").split("|")[0].strip()
        for at, line in enumerate(lines)
        if line.startswith("|") and not line.startswith("|---") and not [*lines, ""][at + 1].startswith("|---")
    ]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_resolves(path):
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_target_exists(path):
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", path.read_text("utf-8"), re.MULTILINE))
    assert named - targets == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_exists(path):
    """In code: `cvmtool words` on its own line or in backticks. A page may name what is missing only in plain words."""
    text = path.read_text("utf-8")
    code = re.findall(r"`(cvmtool [^`\n]+)`", text) + re.findall(r"^(?:\$ |    )(cvmtool [^\n]+)$", text, re.MULTILINE)
    assert [line for line in code if not is_command(line)] == []


@pytest.mark.parametrize("line", ["cvmtool fly", "cvmtool image fly", "cvmtool train --fly", "cvmtool jobs"])
def test_a_command_that_is_not_one_is_seen(line):
    assert not is_command(line)


def is_command(line: str) -> bool:
    words = re.sub(r"\[[^]]*\]|\(.*|#.*", " ", line).split()
    groups = {known.split()[1] for known in commands() if len(known.split()) == 3}
    default = {"measure": "bundle", "drill": "run"}.get([*words, "", ""][1])
    if default and f"cvmtool {words[1]} {[*words, ''][2]}" not in commands():
        words.insert(2, default)
    if " ".join(words[:4]) in commands():
        names = [" ".join(words[:4])]  # a group within a group: `cvmtool attest policy init`
    elif len(words) > 1 and words[1] in groups:
        names = [f"cvmtool {words[1]} {word}" for word in " ".join(words[2:3]).split("|")]
        if "|" in words:  # `cvmtool image build | list | show`
            names = [f"cvmtool {words[1]} {word}" for word in words[2:] if word != "|"]
    else:
        names = [" ".join(words[:2])]
    if not all(name in commands() for name in names):
        return words[1:2] == ["--version"]
    options = {option for name in names for param in commands()[name].params for option in param.opts} | {"--help"}
    return {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_line_is_about_one_machine(path):
    assert re.findall(r"/(?:root|work)/|localhost:\d+", path.read_text("utf-8")) == []


def test_the_readme_is_short_and_says_what_is_simulated():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    first_screen = "\n".join(text.splitlines()[:22])
    for words in ("make demo", "make test", "Debian 12 or 13", "SIMULATED / NOT CONFIDENTIAL", "root"):
        assert words in first_screen
    assert "virtee/cvmtool" in text


def test_every_module_has_its_line():
    table = page("architecture.md").split("## Modules")[1]
    named = set(re.findall(r"`([\w/]+\.py)`", "\n".join(first_cells(table))))
    existing = {module.path for module in MODULES if not module.path.endswith("__init__.py")} - {"__main__.py"}
    assert named - {"cvmtool/__init__.py", "cvmtool/__main__.py"} == existing


def test_the_arrows_are_those_that_are_held():
    section = page("architecture.md").split("## Import arrows")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", section, re.MULTILINE))
    listed = {
        zone: set() if "nothing" in cell else set(cell.replace(" ", "").split(",")) for zone, cell in rows.items()
    }
    assert listed == {zone: allowed for zone, allowed in MAY_IMPORT.items() if not zone.startswith("__")}


def test_every_function_of_the_life_of_a_run_exists():
    section = page("architecture.md").split("## Life of one run")[1].split("\n## ")[0]
    named = re.findall(r"`((?:cli|config|flows|owner|host|guest|data|image|formats|measure)\.[\w.]+)`", section)
    assert len(named) > 30
    for name in named:
        parts = name.split(".")
        split = next(n for n in range(len(parts), 0, -1) if _is_module(parts[:n]))
        found: object = importlib.import_module(".".join(["cvmtool", *parts[:split]]))
        for part in parts[split:]:
            found = getattr(found, part)


def _is_module(parts: list[str]) -> bool:
    path = PACKAGE.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_cli_is_what_the_commands_say(request):
    path = REFERENCE / "cli.md"
    if request.config.getoption("--update-golden"):
        path.write_text(render_cli(), "utf-8")
    assert path.read_text("utf-8") == render_cli(), "pytest tests/architecture/test_docs.py --update-golden"


def test_the_man_page_is_what_the_commands_say(request):
    path = ROOT / "docs/man/cvmtool.1"
    if request.config.getoption("--update-golden"):
        path.write_text(render_man(), "utf-8")
    assert path.read_text("utf-8") == render_man(), "pytest tests/architecture/test_docs.py --update-golden"


def test_man_reads_its_page_without_a_warning():
    """groff says what it does not understand."""
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("man and groff are not installed")
    command = ["man", "--warnings=all", "--local-file", str(ROOT / "docs/man/cvmtool.1")]
    environment = {**os.environ, "MANPAGER": "cat", "MANWIDTH": "100", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert done.stderr == ""
    for words in ("cvmtool train JOB.yaml", "--dry-run", "EXIT STATUS", "host failed us"):
        assert words in re.sub(r".\x08", "", done.stdout)


def test_errors_are_those_of_the_code():
    classes = {
        cls.__name__: cls.exit_code
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, errors.CvmError) and cls is not errors.CvmError
    }
    rows = re.findall(r"^\| (\d+) \| (?:`(\w+)`)? *\|", page("reference/errors.md"), re.MULTILINE)
    assert {name: int(code) for code, name in rows if name} == classes
    assert {int(code) for code, name in rows if not name} == {0, 1, 2, 130}


def _job_examples() -> list[str]:
    return blocks(page("reference/job.md"), "yaml")


def test_jobs_keys_are_what_the_readers_say(request, monkeypatch):
    path = REFERENCE / "job.md"
    before, keys, after = re.split(f"({START}.*?{END})", path.read_text("utf-8"), flags=re.DOTALL)
    rendered = START + render_keys(listen(monkeypatch, _job_examples())) + END
    if request.config.getoption("--update-golden"):
        path.write_text(before + rendered + after, "utf-8")
        keys = rendered
    assert keys == rendered, "pytest tests/architecture/test_docs.py --update-golden"


def test_every_key_of_a_job_is_read_and_no_other(monkeypatch):
    heard = listen(monkeypatch, _job_examples())
    tabled = {key.name for key in KEYS}
    assert set(heard.calls) <= tabled
    assert [key.name for key in KEYS if not told(key, heard)[0]] == []
    parents = {name.rpartition(".")[0] for name in tabled} - {"inputs", "outputs", "parties"}
    assert set(heard.known) == parents
    assert {f"{parent}.{name}".strip(".") for parent, names in heard.known.items() for name in names} == {
        name for name in tabled if not name.endswith(".NAME")
    }


def test_a_key_is_required_where_the_page_says_so(monkeypatch):
    """Each key of the examples is taken out in its turn."""
    heard = listen(monkeypatch, _job_examples())
    missed, spared = set(), set()
    for example in map(yaml.safe_load, _job_examples()):
        for path in _paths(example):
            left = deepcopy(example)
            parent = left
            for step in path[:-1]:
                parent = parent[step]
            del parent[path[-1]]
            name = ".".join(path)
            try:
                parse_job_file(yaml.safe_dump(left))
            except ConfigError as error:
                if f"key {name!r} is missing" in error.message:
                    missed.add(heard.name(name))
            else:
                spared.add(heard.name(name))
    required = {key.name for key in KEYS if told(key, heard)[1] == REQUIRED} - {"outputs.NAME"}  # any of them will do
    assert missed - {"serve"} == required  # which kind: serve alone asks for
    assert spared.isdisjoint(required)


def _paths(value: object, *above: str) -> Iterator[tuple[str, ...]]:
    """Yield the path of every key of a mapping in mappings."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield (*above, key)
            yield from _paths(below, *above, key)


def test_jobs_examples_are_jobs_and_the_page_names_every_word():
    least, everything, service, pooled = map(parse_job_file, _job_examples())
    assert pooled.parties
    assert (everything.limits.memory_mib, service.kind) == (3072, Kind.SERVE)
    assert f"all but {least.resources.memory_mib - least.limits.memory_mib} MiB" in page("reference/job.md")
    assert f"at least {MIN_MEMORY_MIB} MiB" in page("reference/job.md")
    for word in (*OutputKind, *Kind, *Restart, *Optimizer):
        assert word in page("reference/job.md").split(END)[0]


def test_policy_has_every_key_and_every_bit():
    table, _, rest = page("reference/policy.md").partition("A rule is")
    keys = {field.name for field in fields(Policy)} - {"unknown_platform_info"} | {"schema", "unchecked"}
    assert {cell.strip("`") for cell in first_cells(table)} == keys
    bits = dict(re.findall(r"^\| `(\w+)` \| (`.+`) \|$", rest, re.MULTILINE))
    assert set(re.findall(r"`([\w-]+)`", bits["guest_policy"])) == set(POLICY_BITS)
    assert set(re.findall(r"`([\w-]+)`", bits["platform_info"])) == set(PLATFORM_BITS) | {"unknown"}
    assert set(re.findall(r"`unchecked`: `([\w-]+)`", table)) == set(OPTIONAL)


def test_policys_example_is_the_baseline():
    from cvmtool.owner.amdroots import AmdRoots
    from cvmtool.owner.policy import baseline

    (example,) = blocks(page("reference/policy.md"), "toml")
    measurement = bytes.fromhex(tomllib.loads(example)["measurements"][0])
    assert parse_policy(example) == baseline(roots=AmdRoots(), measurements=frozenset({measurement}), host_data=None)


def test_files_has_every_setting_and_every_name():
    text = page("reference/files.md")
    settings, _, hosts = text.partition("## State directory")[0].partition("## Named hosts")
    assert {field.name for field in fields(Settings)} == {cell.strip("`") for cell in first_cells(settings)}
    assert {field.name for field in fields(HostSettings)} - {"name"} == {cell.strip("`") for cell in first_cells(hosts)}
    missing = []
    zones = (
        "config",
        "flows.jobdb",
        "flows.jobs",
        "flows.cases",
        "flows.packs",
        "flows.placing",
        "host.storage",
        "host.store",
        "image.bundle",
    )
    for module in zones:
        values = vars(importlib.import_module(f"cvmtool.{module}")).items()
        names = [value for name, value in values if name.endswith(("_FILE", "_DIR")) and isinstance(value, str)]
        assert names
        missing += [f"{module}: {name}" for name in names if not re.search(rf"`(\w+/)?{re.escape(name)}[/`]", text)]
    assert missing == []


def _emitted() -> dict[str, set[str]]:
    """Return what the command line emits: the fields named in the calls, by schema."""
    found: dict[str, set[str]] = {}
    for module in MODULES:
        if module.zone != "cli":
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "emit_schema" and node.args:
                names = {keyword.arg for keyword in node.keywords if keyword.arg}
                found.setdefault(str(ast.literal_eval(node.args[0])), set()).update(names)
            if isinstance(node, ast.Dict) and (document := _document(node)):
                schema, names = document
                found.setdefault(schema, set()).update(names)
    return found


def _document(node: ast.Dict) -> tuple[str, set[str]] | None:
    keys = [key.value if isinstance(key, ast.Constant) else "" for key in node.keys]
    if "schema" not in keys:
        return None
    value = node.values[keys.index("schema")]
    match = re.fullmatch(r"cvmtool/([a-z-]+)/v1", str(value.value)) if isinstance(value, ast.Constant) else None
    return (match[1], {str(key) for key in keys} - {"schema", ""}) if match else None


def test_json_has_every_schema_and_every_field():
    printed, _, kept = page("reference/json.md").partition("## In files")
    sections = dict(re.findall(r"^### `cvmtool/([a-z-]+)/v1`\n(.*?)(?=^##|\Z)", printed, re.MULTILINE | re.DOTALL))
    emitted = _emitted()
    assert set(sections) == set(emitted)
    unsaid = {
        schema: lacking
        for schema, names in emitted.items()
        if (lacking := names - set(re.findall(r"`([\w-]+)`", sections[schema])))
    }
    assert unsaid == {}
    written = {name for module in MODULES for name in re.findall(r"cvmtool/([a-z-]+)/v1", module.text)}
    assert written - {"release", "job-record"} <= set(sections) | set(re.findall(r"cvmtool/([a-z-]+)/v1", kept))


ADRS = sorted((ROOT / "docs/adr").glob("*.md"))


def test_decisions_are_numbered_without_a_gap():
    assert [path.name[:4] for path in ADRS] == [f"{number:04}" for number in range(1, len(ADRS) + 1)]


@pytest.mark.parametrize("path", ADRS, ids=lambda path: path.name)
def test_a_decision_has_its_parts_and_its_price(path):
    text = path.read_text("utf-8")
    assert text.startswith(f"# {int(path.name[:4]):04}: ")
    for head in ("Status: ", "## Context", "## Options", "## Decision", "## Negative consequences"):
        assert f"\n{head}" in text
    assert len(text.splitlines()) <= 60


def test_every_decision_that_is_cited_exists():
    numbers = {path.name[:4] for path in ADRS}
    sources = [*(PACKAGE.rglob("*.py")), *PAGES, ROOT / "pyproject.toml", ROOT / "setup.py"]
    cited = {match for path in sources for match in re.findall(r"ADR-(\d{4})", path.read_text("utf-8"))}
    assert cited - numbers == set()
