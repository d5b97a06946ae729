"""What tests share: a cache of their own, configs composed as the command line does, and the command itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from rewarm.config.compose import compose_config
from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.data.documents import Cursor, Document
from rewarm.data.layout import StoreSpec
from rewarm.data.producer import fill_store
from rewarm.data.store import TokenStore
from rewarm.data.tokenizers import load_tokenizer
from rewarm.runs.manifest import Manifest, Pinned
from rewarm.runs.run import Run
from rewarm.storage import exclusive
from tests.hub import Hub

HUB = Hub()
# The hub's libraries read these when they are imported: no test can reach another hub than ours.
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": tempfile.mkdtemp(prefix="rewarm-hub-"),
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "train.batch_size=4",
    "train.context=32",
    "budget=1280",  # 10 steps
    "data.validation_tokens=512",
    "data.shuffle_window=64",
    "evaluation.every=5",
    "evaluation.dense_every=5",
    "checkpoint.every=5",
    "train.log_every=1",
    "train.threads=1",
    "precision=fp32",
    "tracker=none",
    "device=cpu",
)
"""Overrides for a run of ten steps that takes a second."""


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all processes of a session share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def made_once(together: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return a function to a folder of that name, which the first process of the session that needs it fills."""

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        path, done = together / name, together / f"{name}.done"
        with exclusive(together / f"{name}.lock", wait=True):
            if not done.exists():
                fill(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(together: Path) -> Iterator[Path]:
    """Give all tests of a session one cache folder, so that text is tokenised once."""
    folder = together / "cache"
    previous = os.environ.get("REWARM_CACHE")
    os.environ["REWARM_CACHE"] = str(folder)
    yield folder
    if previous is None:
        del os.environ["REWARM_CACHE"]
    else:
        os.environ["REWARM_CACHE"] = previous


@pytest.fixture(scope="session")
def filled_hub() -> Hub:
    """Return the loopback hub with the repositories of the paper's setting."""
    from tests.hub.content import fill

    fill(HUB)
    return HUB


@pytest.fixture
def hub(filled_hub: Hub) -> Iterator[Hub]:
    """Return the filled loopback hub, without faults and with nothing asked yet."""
    filled_hub.requests.clear()
    yield filled_hub
    filled_hub.faults.clear()
    filled_hub.speak()


def make_config(*overrides: str) -> Config:
    """Return the checked config that these overrides give."""
    GlobalHydra.instance().clear()
    return compose_config(*overrides)


def planned(config: Config, init: Pinned | None = None) -> Run:
    """Return the run of a config that was only begun, from where `init` says."""
    return Run(Path(config.run_dir), config, Manifest(init=init), make_plan(config), None)


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Config]:
    """Return a function from overrides to the config of a ten-step run in a folder of the test's own."""

    def build(*overrides: str) -> Config:
        return make_config(*SMALL, f"run_dir={tmp_path / 'run'}", *overrides)

    return build


def rewarm(*arguments: str, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the `rewarm` command in a process of its own and return what came of it."""
    return subprocess.run(
        [sys.executable, "-m", "rewarm", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )


class ListSource:
    """A source of documents that are given as a list."""

    def __init__(self, documents: Sequence[Document], name: str = "list") -> None:
        self._documents, self._name = documents, name

    def fingerprint(self) -> Mapping[str, Any]:
        return {"kind": "list", "name": self._name, "documents": len(self._documents)}

    def documents(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        start = cursor["documents"] if cursor else 0
        for number in range(start, len(self._documents)):
            yield self._documents[number], {"documents": number + 1}


WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while"),
    *("seven", "wizards", "box", "with", "liquid", "jugs", "of", "ink"),
)


def make_documents(count: int, seed: int = 0, domains: Sequence[str] = ("prose", "code")) -> list[Document]:
    """Return documents of 5 to 60 words each, the same on every machine."""
    random = np.random.default_rng(seed)
    return [
        Document(" ".join(random.choice(WORDS, size=random.integers(5, 60))), domains[number % len(domains)])
        for number in range(count)
    ]


def make_store(
    folder: Path,
    documents: Sequence[Document],
    *,
    shard_tokens: int = 1000,
    limit: int | None = None,
    name: str = "list",
) -> TokenStore:
    """Return a store of these documents that is being filled to its end."""
    listed, tokenizer = ListSource(documents, name), load_tokenizer("builtin")
    spec = StoreSpec(
        listed.fingerprint(), tokenizer.fingerprint, tokenizer.end_of_text, tokenizer.size, shard_tokens, limit
    )
    return fill_store(folder, spec, listed, tokenizer, until=10**9)
