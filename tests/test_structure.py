"""What holds the house together: layers, sizes, and nothing that is there for nobody."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests import reads
from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "rewarm"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
ORDER = re.findall(r"^\| `([\w/]+\.py)` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
"""The order of the layers: that of the tables in the architecture page."""


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


def test_every_module_has_its_place_in_the_architecture_page() -> None:
    assert len(ORDER) == len(set(ORDER))
    assert set(ORDER) == {m for m in MODULES if not m.endswith("/__init__.py")}


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_those_above_it(module: str) -> None:
    above = {*ORDER[: ORDER.index(module)], *(m for m in MODULES if m.endswith("/__init__.py"))}
    assert set(imports(module)) <= above


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
    assert reads.SCHEMA["Config"]["max_lr"] == "float"
    unread = {f"{group}.{key}" for group, keys in reads.SCHEMA.items() for key in keys} - reads.of_the_schema()
    assert not unread
