"""Which config keys the source reads: a little type inference over the syntax trees, from annotations alone.

A read is an attribute of an expression whose type is known to be one of the schema's dataclasses, the same of a saved
config (`config["model"]["name"]`), or an interpolation in `conf/`. Checks do not count: what is only checked does
nothing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from rewarm.config import SIDES
from rewarm.schedules import SHAPE_PARAMETERS
from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "rewarm"
SCHEMA = {
    node.name: {
        item.target.id: ast.unparse(item.annotation)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    for node in ast.parse((PACKAGE / "config.py").read_text()).body
    if isinstance(node, ast.ClassDef)
}
"""The keys of each dataclass of the schema, and their types."""
Env = dict[str, str]
"""Types of names: only those that are dataclasses of the schema."""


def _group(annotation: ast.expr | None) -> str | None:
    """Return the dataclass that an annotation names, if it names just one."""
    found = [word for word in re.findall(r"\w+", ast.unparse(annotation)) if word in SCHEMA] if annotation else []
    return found[0] if len(found) == 1 else None


@dataclass
class _Reader:
    trees: list[ast.Module]
    returns: Env = field(default_factory=dict)
    """Functions, by what they return."""
    members: Env = field(default_factory=dict)
    """Attributes of other classes."""
    found: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for node in (node for tree in self.trees for node in ast.walk(tree)):
            if isinstance(node, ast.FunctionDef) and (group := _group(node.returns)):
                self.returns[node.name] = group
            elif (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and (g := _group(node.annotation))
            ):
                self.members[node.target.id] = g
        for function in self._functions():
            for target, value in self._assignments(function):
                if isinstance(target, ast.Attribute) and (group := self._type(value, self._env(function))):
                    self.members[target.attr] = group

    def _functions(self) -> Iterator[ast.FunctionDef]:
        for tree in self.trees:
            yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))

    @staticmethod
    def _assignments(function: ast.FunctionDef) -> Iterator[tuple[ast.expr, ast.expr]]:
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        yield from zip(target.elts, node.value.elts, strict=False)
                    else:
                        yield target, node.value

    def _env(self, function: ast.FunctionDef) -> Env:
        """Return the types of a function's arguments and of the names that it assigns."""
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        env = {a.arg: group for a in arguments if (group := _group(a.annotation))}
        for target, value in self._assignments(function):
            if isinstance(target, ast.Name) and (group := self._type(value, env)):
                env[target.id] = group
        return env

    def _type(self, node: ast.expr, env: Env) -> str | None:
        """Return the dataclass of an expression's value, where it can be told."""
        if isinstance(node, ast.Name):
            return env.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._type(node.value, env)
            group = SCHEMA[owner].get(node.attr) if owner else self.members.get(node.attr)
            return group if group in SCHEMA else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("replace", "check"):
                return self._type(node.args[0], env)
            return self.returns.get(node.func.id)
        return None

    def reads(self) -> set[str]:
        """Return the keys that the trees read, as Dataclass.key."""
        found = set()
        for function in self._functions():
            env = self._env(function)
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    owner = self._type(node.value, env)
                    if owner and node.attr in SCHEMA[owner]:
                        found.add(f"{owner}.{node.attr}")
        return found


def _paths(text: str, pattern: str) -> set[str]:
    """Return the dotted keys that a pattern with the groups `group` and `key` finds, as Dataclass.key."""
    found = set()
    for match in re.finditer(pattern, text):
        owner = SCHEMA["Config"].get(match["group"]) if match["group"] else "Config"
        found.add(f"{owner}.{match['key']}")
    return found


def _without_checks(module: str, tree: ast.Module) -> ast.Module:
    """Return the tree without the functions of checks.py that only check."""
    if module == "checks.py":
        tree.body = [n for n in tree.body if not (isinstance(n, ast.FunctionDef) and re.match("_?check", n.name))]
    return tree


def of_the_schema() -> set[str]:
    """Return the keys that anything reads, as Dataclass.key."""
    texts = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}
    del texts["config.py"]
    trees = [_without_checks(name, ast.parse(text)) for name, text in texts.items()]
    conf = "".join(path.read_text() for path in (ROOT / "conf").rglob("*.yaml"))
    # The two places that read keys by a computed name, each over one of these lists.
    computed = {f"DataConfig.{side}" for side in SIDES}
    computed |= {f"ScheduleConfig.{key}" for keys in SHAPE_PARAMETERS.values() for key in keys}
    saved = r"""config\["(?P<group>\w+)"\](?:\.get\(|\[)"(?P<key>\w+)\""""
    return (
        _Reader(trees).reads()
        | _paths(conf, r"\$\{(?:(?P<group>[a-z_]+)\.)?(?P<key>[a-z_]+)\b")
        | _paths("".join(texts.values()), saved)
        | computed
    )
