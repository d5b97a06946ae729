from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.hub import Hub
from tests.hub.content import jsonl, parquet, pile, texts, zst

KILLS = 20


def fill(data: dict[str, Any], root: Path, kills: int) -> dict[str, bytes]:
    """Return the files of the store that a producer makes that is killed so many times."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.data.kill_stream", json.dumps(data), str(root), str(kills)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "RAYON_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    if kills:  # they came all along the way, and more than once between two shards
        assert len(set(told["progress"][:-1])) > 5
        assert len(set(told["progress"][:-1])) < kills
    files = sorted(Path(told["folder"]).iterdir())
    return {
        path.name: path.read_bytes() for path in files if not path.name.endswith((".tmp", "lock", "checked.jsonl"))
    }


def check(data: dict[str, Any], tmp_path: Path) -> None:
    straight, killed = fill(data, tmp_path / "straight", 0), fill(data, tmp_path / "killed", KILLS)
    assert "complete.json" in straight
    assert len(straight) > 30
    assert killed == straight


def test_a_stream_of_files_killed_twenty_times_gives_the_same_store_byte_for_byte(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.jsonl.zst").write_bytes(zst(jsonl(pile("a", 500))) + zst(jsonl(pile("a2", 100))))
    (folder / "b.jsonl").write_bytes(jsonl(pile("b", 200)) + b"{broken\n" + jsonl(pile("b2", 200)))
    (folder / "c.parquet").write_bytes(parquet(pile("c", 500)))
    (folder / "d.txt").write_text("\n\n".join(texts("d", 2000)))
    side = {"path": str(folder), "domain_field": "meta.pile_set_name"}
    check({"name": "t", "upstream": side, "downstream": side}, tmp_path)


@pytest.mark.usefixtures("hub")
def test_a_stream_of_the_hub_killed_twenty_times_gives_the_same_store_byte_for_byte(tmp_path: Path, hub: Hub) -> None:
    hub.add(
        "dataset",
        "owner/long",
        {
            "main": {
                "data/train-00000-of-00002.parquet": parquet(pile("p0", 600)),
                "data/train-00001-of-00002.parquet": parquet(pile("p1", 600)),
                "data/validation-00000-of-00001.parquet": parquet(pile("pv", 10)),
            }
        },
    )
    side = {"kind": "hub", "id": "owner/long", "domain_field": "meta.pile_set_name"}
    check({"name": "t", "upstream": side, "downstream": side}, tmp_path)
