"""Which config keys the source reads, told by names: `train.context`, or `own.context` where `own: TrainConfig`.

An interpolation in `conf/` reads too. Checks do not count: what is only checked does nothing.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from rewarm.config import schema
from rewarm.config.values import taken_by
from rewarm.schedules import SHAPE_PARAMETERS
from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "rewarm"
GROUPS = {name: kind for name, kind in vars(schema).items() if getattr(kind, "__module__", "") == schema.__name__}
OWNERS = {"config": "Config", "source": "SourceConfig"} | {
    name: kind.__name__ for name, kind in taken_by(schema.Config).items() if is_dataclass(kind)
}
"""The group that a name holds, or the last part of a dotted one, wherever it stands."""


def of_the_schema() -> set[str]:
    """Return all keys, as Dataclass.key."""
    return {f"{name}.{f.name}" for name, kind in GROUPS.items() if is_dataclass(kind) for f in fields(kind)}


def _last(node: ast.expr) -> str:
    """Return the last part of a dotted name, of what is called where it is a call."""
    if isinstance(node, ast.Call):
        return _last(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _in(tree: ast.Module) -> Iterator[str]:
    nodes = list(ast.walk(tree))
    groups = defaultdict(set, {name: {kind} for name, kind in OWNERS.items()})
    for node in nodes:
        if isinstance(node, ast.arg) and node.annotation:
            groups[node.arg].update(GROUPS.keys() & set(re.findall(r"\w+", ast.unparse(node.annotation))))
    for node in nodes:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            pair = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            for name, of in zip(target.elts, value.elts, strict=False) if pair else [(target, value)]:
                groups[_last(name)] |= groups[_last(of)]
    for node in nodes:
        if isinstance(node, ast.Attribute):
            yield from (f"{group}.{node.attr}" for group in groups[_last(node.value)])


def _by_itself() -> Iterator[str]:
    """Yield what methods of the schema read of their own group."""
    for group in ast.parse((PACKAGE / "config" / "schema.py").read_text()).body:
        for node in ast.walk(group):
            if isinstance(group, ast.ClassDef) and isinstance(node, ast.Attribute) and _last(node.value) == "self":
                yield f"{group.name}.{node.attr}"


def of_the_source() -> set[str]:
    """Return what is read as a key, as Dataclass.key."""
    modules = [path for path in PACKAGE.rglob("*.py") if path.name not in ("schema.py", "checks.py")]
    texts = [path.read_text() for path in modules]
    found = {key for text in texts for key in _in(ast.parse(text))}.union(_by_itself())
    conf = "".join(path.read_text() for path in (ROOT / "conf").rglob("*.yaml"))
    for group, key in re.findall(r"\$\{(?:([a-z_]+)\.)?([a-z_]+)\b", conf):
        found.add(f"{OWNERS.get(group, 'Config')}.{key}")
    for group, key in re.findall(r'config\["(\w+)"\](?:\.get\(|\[)"(\w+)"', "".join(texts)):
        found.add(f"{OWNERS.get(group)}.{key}")
    # The two places that read keys by a computed name, each over one of these lists.
    found |= {f"DataConfig.{side}" for side in schema.SIDES}
    return found | {f"ScheduleConfig.{key}" for keys in SHAPE_PARAMETERS.values() for key in keys}
