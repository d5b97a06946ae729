from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewarm.config.schema import SourceConfig
from rewarm.config.values import build
from rewarm.data.sources import Builtin, Files, HubSplit, Indexed, Origin, origin
from rewarm.data.streams import Part
from rewarm.hub.asking import Repo

FILES, TOKENS = {"path": "text.jsonl"}, {"path": "tokens.idx"}
HUB = {"kind": "hub", "id": "owner/set", "subset": "en"}
BUILTIN = {"kind": "builtin", "weights": {"code": 1}}
OWN_FILE, OWN_TOKENS = {"validation_path": "held.jsonl"}, {"validation_path": "held.idx"}
OWN_SET = {"validation_id": "owner/held", "validation_revision": "v2", "validation_split": "test"}
REPO = Repo("data.upstream.id", "owner/set", "main", "dataset")
HELD = Repo("data.upstream.validation_id", "owner/held", "v2", "dataset")
TEXT, HELD_TEXT = (Path("text.jsonl"),), (Path("held.jsonl"),)


def hashed(split: str) -> Part:
    return Part(split, 0.25)


@pytest.mark.parametrize(
    ("source", "train", "validation"),
    [
        (FILES, Files(TEXT, hashed("train")), Files(TEXT, hashed("validation"))),
        (FILES | OWN_FILE, Files(TEXT, None), Files(HELD_TEXT, None)),
        (FILES | {"validation_path": "text.jsonl"}, Files(TEXT, hashed("train")), Files(TEXT, hashed("validation"))),
        (FILES | OWN_SET, Files(TEXT, None), HubSplit(HELD, None, "test", None)),
        (
            FILES | OWN_TOKENS,
            Files(TEXT, None),
            Indexed("data.upstream.validation_path", Path("held.idx")),
        ),
        (
            TOKENS,
            Indexed("data.upstream.path", Path("tokens.idx"), 0, 0.75),
            Indexed("data.upstream.path", Path("tokens.idx"), 0.75, 1),
        ),
        (TOKENS | OWN_FILE, Indexed("data.upstream.path", Path("tokens.idx"), 0, 1), Files(HELD_TEXT, None)),
        (HUB, HubSplit(REPO, "en", "train", None), HubSplit(REPO, "en", "validation", None)),
        (
            HUB | {"validation_split": "train"},
            HubSplit(REPO, "en", "train", hashed("train")),
            HubSplit(REPO, "en", "train", hashed("validation")),
        ),
        (HUB | OWN_SET, HubSplit(REPO, "en", "train", None), HubSplit(HELD, None, "test", None)),
        (HUB | OWN_FILE, HubSplit(REPO, "en", "train", None), Files(HELD_TEXT, None)),
        (BUILTIN, Builtin("upstream", "train", {"code": 1}), Builtin("upstream", "validation", {"code": 1})),
        (BUILTIN | OWN_FILE, Builtin("upstream", "train", {"code": 1}), Files(HELD_TEXT, None)),
    ],
)
def test_where_text_comes_from(
    source: dict[str, Any], train: Origin, validation: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.jsonl", "held.jsonl", "tokens.idx", "held.idx"):
        Path(name).touch()
    config = build(SourceConfig, source | {"validation_share": 0.25})
    assert origin(config, "upstream", "train") == train
    assert origin(config, "upstream", "validation") == validation
