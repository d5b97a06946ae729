"""The built-in corpora: prose and code of the installed Python and of the libraries that rewarm needs.

Prose is docstrings and pydoc's topics; code is the functions and classes around them; cpp is the C++ headers
that come with torch, which no built-in model has seen. A paragraph or a block that occurs twice is kept once.
Which side a document falls on, and whether it serves validation, is decided by a hash of its text: another
version of Python or of a library adds and removes documents, and never moves one into validation.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import platform
import re
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rewarm.data.documents import Cursor, Document
from rewarm.errors import DataError, UserError, nearest

VERSION = 1
"""To be raised with every change of what the documents are."""
LIBRARIES = ("numpy", "scipy", "pandas", "matplotlib", "sympy", "networkx")
DOMAINS = ("prose", "code", "cpp")
MIN_CHARACTERS = 200
TOTAL_CHARACTERS = 24_000_000
"""At most this much text for training; the shares of the domains hold all the way through."""
VALIDATION_CHARACTERS = 400_000

_SKIPPED = {"test", "tests", "testing", "idle_test", "idlelib", "site-packages", "lib2to3", "__pycache__"}
_DOCSTRING = re.compile(r'[rRuU]?"""(.*?)"""|[rRuU]?\'\'\'(.*?)\'\'\'', re.DOTALL)
_BLOCK = re.compile(r"\n(?=(?:def |class |@|async def ))")

# Shares of the hash's range: both validation sets, then upstream; downstream takes the rest.
_UPSTREAM_SHARE = {"prose": 0.76, "code": 0.36, "cpp": 0.36}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _part(digest: bytes, domain: str) -> str:
    """Return which part a document of this digest and domain belongs to."""
    share = int.from_bytes(digest, "big") / 2**64
    if share < 0.03:
        return "upstream validation"
    if share < 0.06:
        return "downstream validation"
    return "upstream train" if share < _UPSTREAM_SHARE[domain] else "downstream train"


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if path.name not in _SKIPPED:
                yield from _files(path, suffixes)
        elif path.suffix in suffixes:
            yield path


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DataError(f"{name}: is not installed, and the built-in corpora need it; pip install {name}")
    return Path(spec.origin).parent


class _Collector:
    """Gathers documents by (part, domain), and keeps nothing twice."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._parts: dict[tuple[str, str], list[tuple[bytes, str]]] = {}

    def add(self, text: str, domain: str) -> None:
        """Take a text, less the paragraphs that occurred before, unless too little of it is left."""
        text = "\n\n".join(p for p in text.split("\n\n") if len(p) < 80 or self._is_new(p.strip()))
        if len(text) >= MIN_CHARACTERS and self._is_new(text):
            digest = _digest(text)
            self._parts.setdefault((_part(digest, domain), domain), []).append((digest, text))

    def _is_new(self, text: str) -> bool:
        digest = _digest(text)
        if digest in self._seen:
            return False
        self._seen.add(digest)
        return True

    def by_part(self) -> Mapping[tuple[str, str], list[str]]:
        """Return the documents, each list in the order of its hashes."""
        return {key: [text for _, text in sorted(found)] for key, found in self._parts.items()}


def _prose_and_code(source: str) -> tuple[list[str], list[str]]:
    prose = [inspect.cleandoc(m[1] or m[2] or "") for m in _DOCSTRING.finditer(source)]
    return prose, _BLOCK.split(_DOCSTRING.sub("", source))


@functools.cache
def _python_documents() -> Mapping[tuple[str, str], list[str]]:
    """Return all prose and code documents by (part, domain)."""
    collector = _Collector()
    roots = [Path(sysconfig.get_paths()["stdlib"]), *(_package(name) for name in LIBRARIES)]
    for root in roots:
        for path in _files(root, (".py",)):
            prose, code = _prose_and_code(path.read_text(encoding="utf-8", errors="replace"))
            for text in prose:
                collector.add(text, "prose")
            for text in code:
                collector.add(text, "code")
    from pydoc_data.topics import topics

    for text in topics.values():
        collector.add(text, "prose")
    return collector.by_part()


@functools.cache
def _cpp_documents() -> Mapping[tuple[str, str], list[str]]:
    """Return the C++ documents, likewise: one header is one document."""
    collector = _Collector()
    for path in _files(_package("torch") / "include", (".h", ".hpp")):
        collector.add(path.read_text(encoding="utf-8", errors="replace"), "cpp")
    return collector.by_part()


def interleave(pools: Mapping[str, list[str]], weights: Mapping[str, float], limit: int) -> Iterator[Document]:
    """Yield documents so that each domain's share of the characters stays at its weight.

    Stops after `limit` characters, or when the domain whose turn it is has no more: the shares always hold.
    """
    total = sum(weights.values())
    share = {domain: weight / total for domain, weight in weights.items() if weight > 0}
    given = dict.fromkeys(share, 0)
    remaining = {domain: iter(pools.get(domain, ())) for domain in share}
    while (so_far := sum(given.values())) < limit:
        behind = max(share, key=lambda domain: share[domain] * (so_far + 1) - given[domain])
        text = next(remaining[behind], None)
        if text is None:
            return
        given[behind] += len(text)
        yield Document(text, behind)


class BuiltinSource:
    """One part (`upstream` or `downstream`, `train` or `validation`) of the built-in corpora, as a stream."""

    def __init__(self, side: str, split: str, weights: Mapping[str, float]) -> None:
        for domain in weights:
            if domain not in DOMAINS:
                raise UserError(f"data.{side}.weights.{domain}: unknown domain{nearest(domain, DOMAINS)}")
        if not any(weight > 0 for weight in weights.values()) or min(weights.values()) < 0:
            raise UserError(f"data.{side}.weights={dict(weights)}: must be shares, at least one above 0")
        self.part = f"{side} {split}"
        self.weights = dict(weights)
        self.limit = VALIDATION_CHARACTERS if split == "validation" else TOTAL_CHARACTERS

    def fingerprint(self) -> Mapping[str, Any]:
        """Return the part, the shares, and the versions of everything that the text comes from."""
        names = (*LIBRARIES, "torch") if "cpp" in self.weights else LIBRARIES
        versions = {name: importlib.metadata.version(name) for name in names}
        return {
            "kind": "builtin",
            "version": VERSION,
            "part": self.part,
            "weights": self.weights,
            "limit": self.limit,
            "python": platform.python_version(),
            "libraries": versions,
        }

    def documents(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield the documents; the cursor counts them."""
        pools: dict[str, list[str]] = {}
        for domain in self.weights:
            found = _cpp_documents() if domain == "cpp" else _python_documents()
            pools[domain] = found.get((self.part, domain), [])
        start = cursor["documents"] if cursor else 0
        for number, document in enumerate(interleave(pools, self.weights, self.limit), start=1):
            if number > start:
                yield document, {"documents": number}
