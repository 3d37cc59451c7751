# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The package as syntax trees: what the architecture tests look at."""

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cvmtool"


@dataclass(frozen=True)
class Import:
    """One imported name: `module` as written, `name` behind `from`, and whether it is a relative one."""

    module: str
    name: str | None
    level: int
    lazy: bool
    typing_only: bool
    line: int


@dataclass(frozen=True)
class Module:
    """A module of the package. `path` is relative to the package: `owner/verify.py`."""

    path: str
    text: str = field(repr=False)

    @property
    def zone(self) -> str:
        return Path(self.path).with_suffix("").parts[0]

    @property
    def dotted(self) -> str:
        parts = list(Path(self.path).with_suffix("").parts)
        return ".".join(["cvmtool", *(parts[:-1] if parts[-1] == "__init__" else parts)])

    @property
    def tree(self) -> ast.Module:
        return _parse(self.text)

    def imports(self) -> list[Import]:
        found: list[Import] = []
        _collect(self.tree, found, lazy=False, typing_only=False)
        return found

    def zones(self) -> set[str]:
        """Return the zones of cvmtool that this module imports, its own aside."""
        used = set()
        for item in self.imports():
            parts = item.module.split(".")
            if parts[0] == "cvmtool":
                used.add(parts[1] if len(parts) > 1 else str(item.name))
        return used - {self.zone, "__version__"}

    def libraries(self) -> set[str]:
        """Return the top-level names of everything that this module imports from elsewhere."""
        return {item.module.split(".")[0] for item in self.imports()} - {"cvmtool", "__future__"}


@cache
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


def _collect(node: ast.AST, found: list[Import], *, lazy: bool, typing_only: bool) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found += [Import(alias.name, None, 0, lazy, typing_only, child.lineno) for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            found += [
                Import(child.module or "", alias.name, child.level, lazy, typing_only, child.lineno)
                for alias in child.names
            ]
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            guarded = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            _collect(child, found, lazy=lazy or inside, typing_only=typing_only or guarded)


def _load() -> tuple[Module, ...]:
    paths = sorted(path for path in PACKAGE.rglob("*.py") if "_share" not in path.parts)
    return tuple(Module(path.relative_to(PACKAGE).as_posix(), path.read_text("utf-8")) for path in paths)


MODULES = _load()
