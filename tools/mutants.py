# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.mutants [--jobs N] [--out FILE] [MODULE ...]`: what do the tests notice?

One small change at a time is made to a module of `cvmtool/formats`, `measure` or `owner` (its path, `owner/crl.py`; without one
every module of formats and owner), and the unit tests of that module run until one fails: first the file that mirrors it, then
every other of the three zones that names the module. A change that no test notices has survived. `tools/equivalent.toml` lists
those that change nothing that anybody could notice, each with its reason; the score leaves them out. Exit 1: below 95 %.

Nothing is written to the package. The tests are collected once; a change within a function is put into the function of a
forked copy of that process, one outside of functions (a constant, a default, a table) into a copy that imports all anew.
Why not a packaged tool, by what they say of themselves (neither was run here): mutmut 3 leaves out decorated functions and
everything outside of functions, where our properties, sizes and tables are; cosmic-ray starts the tests in a new process for each
change, and importing and collecting them takes longer here than the tests that notice most changes.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib.abc
import importlib.util
import itertools
import json
import os
import pickle
import re
import resource
import shutil
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cvmtool"
TESTS = ROOT / "tests" / "unit"
ZONES = ("formats", "measure", "owner")
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
REQUIRED = 95.0  # percent
SECONDS = 60  # of CPU beyond five times what its tests take unchanged; then a change counts as noticed: it is endless

_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}


# ---- changes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One change. `code` is the whole module with it; `function` the outermost function that it is in, if it is in one."""

    module: str
    line: int
    what: str
    text: str
    function: tuple[str, int] | None
    code: CodeType

    @property
    def key(self) -> str:
        return f"{self.module}: {self.text} [{self.what}]"


def mutants(path: str) -> Iterator[Mutant]:
    """Every change of a module, in the order of its lines."""
    source = (PACKAGE / path).read_text("utf-8")
    lines = source.splitlines()
    tree = ast.parse(source)
    places = {id(node): place for place, node in enumerate(ast.walk(tree))}
    for node, function in _within(tree, None, ()):
        for what, change in _changes(node):
            changed = ast.parse(source)
            change(next(itertools.islice(ast.walk(changed), places[id(node)], None)))
            ast.fix_missing_locations(changed)
            code = compile(changed, str(PACKAGE / path), "exec", dont_inherit=True)
            yield Mutant(path, node.lineno, what, lines[node.lineno - 1].strip(), function, code)


def _within(
    node: ast.AST, function: tuple[str, int] | None, names: tuple[str, ...]
) -> Iterator[tuple[ast.AST, tuple[str, int] | None]]:
    """Yield each node that may be changed with the outermost function whose body it is in."""
    for name, child in _children(node):
        if isinstance(child, ast.Raise):
            yield child, function  # what it says may change freely
            continue
        if isinstance(node, ast.Call) and _called(node) in _LABELLED and isinstance(child, ast.Constant):
            continue
        if _is_text(child) or name in {"annotation", "returns", "decorator_list", "type_params"}:
            continue
        inside, below = function, names
        if isinstance(node, ast.FunctionDef) and name == "body" and function is None:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            inside = (".".join(names), first)
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            below = (*names, child.name)
        if hasattr(child, "lineno"):
            yield child, inside
        yield from _within(child, inside, below)


def _children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for name, value in ast.iter_fields(node):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                yield name, item


_LABELS = {"what", "where", "hint", "detail", "why", "_WHY", "title"}
_LABELLED = {
    "Der",
    "open_signed",
    "require_pss",
    "parse_extensions",
    "_size",
    "_object",
    "_distinct",
    "_integer",
    "_require",
}
_LABELLED |= {"_take", "wrong", "_ca_key", "_no_unknown_critical", "_refuse_floats", "TypeVar", "require_distinct"}


def _is_text(node: ast.AST) -> bool:
    """Docstrings, f-strings (they are messages), the making of an error, and what names a thing in messages."""
    if isinstance(node, ast.keyword) and node.arg in _LABELS:
        return True
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in _LABELS:
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Call) and _called(node).endswith("Error"))


def _called(call: ast.Call) -> str:
    """The last name of what is called."""
    return ast.unparse(call.func).rpartition(".")[2]


def _changes(node: Any) -> Iterator[tuple[str, Callable[[Any], None]]]:
    match node:
        case ast.Compare(ops=ops):
            for at, op in enumerate(ops):
                yield _name(op, _SWAPS[type(op)]), lambda n, at=at: n.ops.__setitem__(at, _SWAPS[type(n.ops[at])]())
        case ast.BoolOp(op=op):
            yield _name(op, _SWAPS[type(op)]), lambda n: setattr(n, "op", _SWAPS[type(n.op)]())
            for at in range(len(node.values)):
                neutral = ast.Constant(value=isinstance(op, ast.And))
                yield f"operand {at + 1} left out", lambda n, at=at, neutral=neutral: n.values.__setitem__(at, neutral)
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in _SWAPS:
            yield _name(op, _SWAPS[type(op)]), lambda n: setattr(n, "op", _SWAPS[type(n.op)]())
        case ast.UnaryOp(op=ast.Not()):
            yield "not left out", lambda n: setattr(n, "op", ast.UAdd()) or setattr(n, "operand", _truth(n.operand))
        case ast.If() | ast.While() | ast.IfExp():
            yield "condition is false", lambda n: setattr(n, "test", ast.Constant(value=False))
            if not isinstance(node, ast.While):
                yield "condition is true", lambda n: setattr(n, "test", ast.Constant(value=True))
        case ast.Constant(value=bool()):
            yield "the other truth", lambda n: setattr(n, "value", not n.value)
        case ast.Constant(value=int()):
            yield "+ 1", lambda n: setattr(n, "value", n.value + 1)
        case ast.Constant(value=str()) if node.value:
            yield "other text", lambda n: setattr(n, "value", n.value + "X")
        case ast.Constant(value=bytes()):
            yield "other bytes", lambda n: setattr(n, "value", n.value + b"X")
        case ast.Raise():
            yield "not raised", _becomes(ast.Pass)
        case ast.Expr(value=ast.Call()):
            yield "not called", _becomes(ast.Pass)
        case ast.Return(value=ast.expr()) if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield "returns None", lambda n: setattr(n, "value", ast.Constant(value=None))
        case ast.Break():
            yield "continue", _becomes(ast.Continue)
        case ast.Continue():
            yield "break", _becomes(ast.Break)


def _name(old: ast.AST, new: type) -> str:
    return f"{type(old).__name__} to {new.__name__}"


def _truth(operand: ast.expr) -> ast.expr:
    return ast.Call(func=ast.Name(id="bool", ctx=ast.Load()), args=[operand], keywords=[])


def _becomes(kind: type[ast.stmt]) -> Callable[[Any], None]:
    def change(node: Any) -> None:
        place = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
        node.__class__ = kind
        node.__dict__.clear()
        node.lineno, node.col_offset, node.end_lineno, node.end_col_offset = place

    return change


# ---- running the tests ----------------------------------------------------------------------------------------------


def test_files(path: str) -> list[str]:
    """The file that mirrors a module, then those of the three zones that name the module, as paths below the checkout."""
    zone, name = path.removesuffix(".py").split("/")
    mirror = TESTS / zone / f"test_{name}.py"
    named = re.compile(rf"cvmtool\.{zone}(\.{name}| import (\([^)]*|.*)\b{name})\b")
    every = [file for part in ZONES for file in sorted((TESTS / part).glob("test_*.py"))]
    others = [file for file in every if file != mirror and named.search(file.read_text("utf-8"))]
    if path in SUITES:
        others = [file for file in every if file != mirror and file.stem in SUITES[path]]
    found = [str(file.relative_to(ROOT)) for file in ([mirror] if mirror.exists() else []) + others]
    if not found:
        raise SystemExit(f"no unit test names {path}")
    return found


SUITES: dict[str, set[str]] = {
    "owner/judge.py": {"test_appraise", "test_checks", "test_plain"},
    "owner/policy.py": {"test_policyfile", "test_appraise"},
    "owner/checks.py": {"test_verify", "test_appraise", "test_checks"},
    "owner/crl.py": {"test_verify"},
    "owner/der.py": {"test_certificate", "test_crl", "test_chain"},
    "owner/toml.py": {"test_policyfile", "test_floors"},
    "owner/vek.py": {"test_verify"},
}
"""Modules whose checks are tested through the one door to them: these files, rather than those that import the module."""


def _settle() -> None:
    """Make Hypothesis draw the same few examples in each copy."""
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "mutants",
        derandomize=True,
        max_examples=20,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutants")


class _Stop:
    """A pytest plugin that ends the process at the first failure, before it is described: that takes seconds."""

    def pytest_runtest_makereport(self, call: Any) -> None:
        if call.excinfo is not None and type(call.excinfo.value).__name__ != "Skipped":
            os._exit(1)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            os._exit(1)


class _Failures:
    """A pytest plugin that notes which tests fail."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and report.nodeid not in self.names:
            self.names.append(report.nodeid)


class _Hot:
    """A pytest plugin that, in place of running the tests, runs them in a copy of the process for each change."""

    def __init__(self, work: list[Mutant], run: Runner) -> None:
        self._work = work
        self._run = run
        self.late: list[Mutant] = []
        """Changes of functions that ran while the tests were collected, and never again."""
        self.failing: list[str] = []
        """Tests that fail without any change: they can notice nothing."""

    def pytest_runtestloop(self, session: Any) -> bool:
        from cvmtool.formats.tcb import ProductLine
        from tests import fakes

        for line in ProductLine:
            fakes.fake_amd(line)
        functions, caches = _of_the_package()
        gc.freeze()

        def child(mutant: Mutant, place: Path) -> None:
            if mutant.function is None:
                raise ValueError(mutant.key)
            new = _find(mutant.code, *mutant.function)
            for function in functions[str(PACKAGE / mutant.module), *mutant.function]:
                function.__code__ = new
            for cache in caches:
                cache.cache_clear()
            key = (str(PACKAGE / mutant.module), mutant.function[0])
            files = test_files(mutant.module)
            _bound(SECONDS + 5 * sum(seconds[item.nodeid] for item in session.items if key in called[item.nodeid]))
            for items in ([i for i in session.items if i.nodeid.partition("::")[0] == file] for file in files):
                calling = [item for item in items if key in called[item.nodeid]]
                show(sorted(calling, key=lambda item: seconds[item.nodeid]), place)

        def show(items: list[Any], place: Path, before: Callable[[Any], None] | None = None) -> None:
            session.config._tmp_path_factory._basetemp = place
            if before is None and not session.config.pluginmanager.has_plugin("stop"):
                session.config.pluginmanager.register(_Stop(), "stop")
            for item, after in itertools.zip_longest(items, items[1:]):
                if before is not None:
                    before(item)
                session.config.hook.pytest_runtest_protocol(item=item, nextitem=after)

        def watch(place: Path) -> None:
            """Run every test unchanged, and write down which functions each calls and how long it takes."""
            calls: dict[str, set[tuple[str, str]]] = {}
            starts: dict[str, float] = {}

            def before(item: Any) -> None:
                for cache in caches:
                    cache.cache_clear()
                now = calls.setdefault(item.nodeid, set())
                starts[item.nodeid] = time.process_time()

                def note(frame: Any, event: str, _: Any) -> None:
                    if event == "call" and frame.f_code.co_filename.startswith(package):
                        now.add((frame.f_code.co_filename, frame.f_code.co_qualname.partition(".<locals>")[0]))

                sys.setprofile(note)

            package = str(PACKAGE)
            failures = _Failures()
            session.config.pluginmanager.register(failures)
            show(session.items, place / "tmp", before)
            sys.setprofile(None)
            ends = [*list(starts.values())[1:], time.process_time()]
            took = {name: end - start for (name, start), end in zip(starts.items(), ends, strict=True)}
            (place / "watched").write_bytes(pickle.dumps((calls, took, failures.names)))

        called, seconds, self.failing = self._run.unchanged(watch)
        now: list[Mutant] = []
        session.items[:] = [item for item in session.items if item.nodeid not in self.failing]
        everything = set().union(*called.values())
        for mutant in self._work:
            here = mutant.function is not None and (str(PACKAGE / mutant.module), mutant.function[0]) in everything
            (now if here else self.late).append(mutant)
        self._run(now, child)
        return True


def _of_the_package() -> tuple[dict[tuple[str, str, int], list[FunctionType]], list[Any]]:
    """Every function of the package by file, name and line, and everything that remembers what a function returned."""
    functions: dict[tuple[str, str, int], list[FunctionType]] = {}
    caches = [thing for thing in gc.get_objects() if hasattr(type(thing), "cache_clear")]
    for thing in [*gc.get_objects(), *(getattr(cache, "__wrapped__", None) for cache in caches)]:
        if isinstance(thing, FunctionType) and thing.__code__.co_filename.startswith(str(PACKAGE)):
            code = thing.__code__
            functions.setdefault((code.co_filename, code.co_qualname, code.co_firstlineno), []).append(thing)
    return functions, caches


def _find(code: CodeType, qualname: str, line: int) -> CodeType:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_qualname == qualname and inner.co_firstlineno == line:
                return inner
            if qualname.startswith(f"{inner.co_qualname}."):
                return _find(inner, qualname, line)
    raise LookupError(qualname)


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module as a mutant has it."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = f"cvmtool.{mutant.module.removesuffix('.py').replace('/', '.')}"
        self._mutant = mutant

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> Any:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, PACKAGE / self._mutant.module, loader=self)

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(self._mutant.code, module.__dict__)


def _cold(mutant: Mutant, place: Path, failing: list[str]) -> None:
    """Run the tests, but those that fail anyway, with everything of cvmtool imported anew."""
    import pytest

    _bound(10 * SECONDS)
    sys.meta_path.insert(0, _Changed(mutant))
    options = ["-q", "-x", "-p", "no:cacheprovider", f"--basetemp={place / 'tmp'}", f"--rootdir={ROOT}"]
    options += [f"--deselect={name}" for name in failing]
    code = pytest.main([*options, *test_files(mutant.module)], plugins=[_Stop()])
    if code:
        os._exit(1)


def run_hot(work: list[Mutant], runner: Runner, paths: list[str]) -> tuple[list[Mutant], list[str]]:
    """Run the changes that a collected session can show; return those that it cannot, and the tests that fail anyway.

    It does so in a copy of the process, so that this one goes on having imported nothing of cvmtool.
    """
    import pytest

    number = {id(mutant): at for at, mutant in enumerate(work)}
    with tempfile.TemporaryDirectory() as place:
        result = Path(place) / "result"
        process = os.fork()
        if not process:
            hot = _Hot(work, runner)
            files = sorted({file for path in paths for file in test_files(path)})
            pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *files], plugins=[hot])
            tried = [(number[id(mutant)], verdict) for mutant, verdict in runner.verdicts]
            result.write_text(json.dumps([tried, [number[id(mutant)] for mutant in hot.late], hot.failing]))
            os._exit(0)
        os.waitpid(process, 0)
        tried, late, failing = json.loads(result.read_text())
    runner.verdicts += [(work[at], verdict) for at, verdict in tried]
    return [work[at] for at in late], failing


def _few_keys() -> None:
    """Have RSA-4096 keys made once: each takes a second, and the tests ask for six."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    made = [rsa.generate_private_key(public_exponent=65537, key_size=4096) for _ in range(6)]
    real = rsa.generate_private_key
    pool = itertools.cycle(made)

    def generate_private_key(public_exponent: int, key_size: int, backend: Any = None) -> rsa.RSAPrivateKey:
        if (public_exponent, key_size) == (65537, 4096):
            return next(pool)
        return real(public_exponent=public_exponent, key_size=key_size)

    rsa.generate_private_key = generate_private_key


def _bound(seconds: float) -> None:
    """Have this process killed once it has used so many seconds of CPU: the clock would count what others do."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, resource.RLIM_INFINITY))


def _fork(child: Callable[[], None]) -> int:
    """Run `child` in a copy of this process, which ends with 0 if it returns; return the copy's number."""
    process = os.fork()
    if process:
        return process
    quiet = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(quiet, number)
    try:
        child()
    except BaseException:  # noqa: BLE001 - whatever a change does to the tests, it is noticed
        os._exit(1)
    os._exit(0)


class Runner:
    """Runs changes in forked copies, `jobs` at a time, and keeps what became of each."""

    def __init__(self, jobs: int, out: Path) -> None:
        self.jobs = jobs
        self.out = out.open("a")
        self.verdicts: list[tuple[Mutant, str]] = []

    def __call__(self, work: list[Mutant], child: Callable[[Mutant, Path], None]) -> None:
        running: dict[int, tuple[Mutant, Path]] = {}
        for mutant in work:
            if len(running) >= self.jobs:
                self._reap(running)
            place = Path(tempfile.mkdtemp(prefix="cvmtool-mutant-"))
            running[_fork(lambda mutant=mutant, place=place: child(mutant, place))] = (mutant, place)
        while running:
            self._reap(running)

    @staticmethod
    def unchanged(child: Callable[[Path], None]) -> Any:
        """Return what `child` wrote to `watched`."""
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "tmp").mkdir()
            os.waitpid(_fork(lambda: child(Path(place))), 0)
            return pickle.loads((Path(place) / "watched").read_bytes())

    def _reap(self, running: dict[int, tuple[Mutant, Path]]) -> None:
        process, status = os.wait()
        mutant, place = running.pop(process)
        shutil.rmtree(place, ignore_errors=True)
        verdict = "survived" if status == 0 else "endless" if os.WIFSIGNALED(status) else "noticed"
        self.verdicts.append((mutant, verdict))
        row = {
            "module": mutant.module,
            "line": mutant.line,
            "what": mutant.what,
            "text": mutant.text,
            "verdict": verdict,
        }
        self.out.write(json.dumps(row) + "\n")
        self.out.flush()


# ---- the account ----------------------------------------------------------------------------------------------------


def equivalent() -> dict[str, str]:
    """What is listed as unnoticeable: the change's key and the reason."""
    if not EQUIVALENT.exists():
        return {}
    rows = tomllib.loads(EQUIVALENT.read_text("utf-8")).get("reason", [])
    return {key: row["why"] for row in rows for key in row["changes"]}


def account(verdicts: Iterable[tuple[Mutant, str]]) -> float:
    """Print the score of each module and every survivor; return the score of all."""
    listed = equivalent()
    total: Counter[str] = Counter()
    modules: dict[str, Counter[str]] = {}
    for mutant, verdict in sorted(verdicts, key=lambda row: (row[0].module, row[0].line)):
        kind = "equivalent" if verdict == "survived" and mutant.key in listed else verdict
        modules.setdefault(mutant.module, Counter())[kind] += 1
        total[kind] += 1
        if kind == "survived":
            print(f"survived {mutant.module}:{mutant.line}: {mutant.text} [{mutant.what}]")
    for name, counts in [*sorted(modules.items()), ("all", total)]:
        relevant = counts.total() - counts["equivalent"]
        killed = relevant - counts["survived"]
        print(
            f"{name:26} {killed:5} of {relevant:5} noticed {100 * killed / max(1, relevant):6.1f} %"
            f"   {counts['equivalent']} equivalent, {counts['endless']} endless"
        )
    relevant = total.total() - total["equivalent"]
    return 100 * (relevant - total["survived"]) / max(1, relevant)


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tools.mutants", description="Which changes do the tests notice?")
    options.add_argument(
        "modules", nargs="*", metavar="MODULE", help="owner/crl.py (default: all of formats and owner)"
    )
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="changes at a time")
    options.add_argument("--out", type=Path, default=Path("build/mutants.jsonl"), help="every change and its verdict")
    given = options.parse_args()
    paths = given.modules or [
        str(path.relative_to(PACKAGE))
        for zone in ("formats", "owner")
        for path in sorted((PACKAGE / zone).glob("[!_]*.py"))
    ]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    started = time.monotonic()
    work = [mutant for path in paths for mutant in mutants(path)]
    _settle()
    _few_keys()
    runner = Runner(given.jobs, given.out)
    hot = [mutant for mutant in work if mutant.function is not None]
    late, failing = run_hot(hot, runner, paths)
    print("left out, because they fail without any change:", *(failing or ["none"]), sep="\n  ")
    cold = [*(mutant for mutant in work if mutant.function is None), *late]
    runner(cold, lambda mutant, place: _cold(mutant, place, failing))
    if len(runner.verdicts) != len(work):
        print(f"{len(work) - len(runner.verdicts)} changes were not tried")
        return 1
    score = account(runner.verdicts)
    print(f"{score:.1f} % noticed in {time.monotonic() - started:.0f} s; required: {REQUIRED} %")
    return 0 if score >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
