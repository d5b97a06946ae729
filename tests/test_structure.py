"""What holds the house together: rooms in order, no circles, sizes, and nothing that is there for nobody."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest

from tests import reads
from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "rewarm"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
ROOMS = re.findall(r"^\| `(\w+(?:/|\.py))` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
"""Folders and files at the top of the package, in the order of the architecture page's table."""


def room(module: str) -> str:
    """Return the room that a module lies in: its top folder, or itself where it lies at the top."""
    top, slash, _ = module.partition("/")
    return top + slash


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text())


def imports(module: str) -> Iterator[str]:
    """Yield the modules of the package that `module` imports anywhere, in functions too."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "rewarm":
                inside = ("/".join(parts[1:n]) for n in range(len(parts), 0, -1))
                files = (file for at in inside for file in (f"{at}.py", f"{at}/__init__.py".lstrip("/")))
                yield next(file for file in files if file in MODULES)


def test_every_module_lies_in_a_room_of_the_architecture_page() -> None:
    assert len(ROOMS) == len(set(ROOMS))
    assert set(ROOMS) == {room(m) for m in MODULES if m != "__init__.py"}


@pytest.mark.parametrize("floor", ROOMS)
def test_a_room_imports_only_from_itself_and_from_those_above_it(floor: str) -> None:
    above = {"__init__.py", *ROOMS[: ROOMS.index(floor) + 1]}
    back = {
        f"{module} imports {other}"
        for module in MODULES
        if room(module) == floor
        for other in imports(module)
        if room(other) not in above
    }
    assert not back


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: set(imports(module)) for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_packages_hold_nothing_but_their_modules() -> None:
    for module in MODULES:
        if module.endswith("/__init__.py"):
            (only,) = tree(module).body
            assert isinstance(only, ast.Expr), module


def test_a_file_is_one_thing_of_at_most_400_lines() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for folder in ("src", "tests", "benchmarks", "scripts")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", "") and path.is_file()
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_every_config_key_is_read_somewhere() -> None:
    keys = reads.of_the_schema()
    assert {"Config.max_lr", "TrainConfig.context"} <= keys
    assert not keys - reads.of_the_source()
