from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rewarm.data.documents import Source
from rewarm.data.layout import StoreSpec
from rewarm.data.producer import fill_store
from rewarm.data.store import TokenStore
from rewarm.data.tokenizers import load_tokenizer
from rewarm.errors import DataError, UserError
from rewarm.hub import asking
from rewarm.hub.asking import Repo, nearest_revisions, parse_id
from rewarm.hub.download import WEIGHTS, download
from rewarm.hub.splits import list_split
from rewarm.storage import cache_dir
from tests.conftest import ROOT
from tests.data import source_of
from tests.hub import GRANTED, Hub
from tests.hub.content import MODEL, PILE, PILE_VALIDATION, SLIMPAJAMA, jsonl, parquet, pile, slimpajama, zst

PAIR: dict[str, Any] = {
    "name": "pair",
    "tokenizer": "builtin",
    "upstream": {
        "kind": "hub",
        "id": PILE,
        "validation_id": PILE_VALIDATION,
        "domain_field": "meta.pile_set_name",
    },
    "downstream": {"kind": "hub", "id": SLIMPAJAMA, "domain_field": "meta.redpajama_set_name"},
}


def make(side: str, split: str, **options: Any) -> Source:
    return source_of(PAIR | options, side, split)


def read(source: Source) -> list[str]:
    return [document.text for document, _ in source.documents(None)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waits before another try be short."""
    monkeypatch.setattr(asking, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(asking, "START_PATIENCE", 0.2)
    monkeypatch.setattr(asking, "silence", asking.Silence())


@pytest.mark.usefixtures("hub")
def test_splits_are_those_that_datasets_finds() -> None:
    assert read(make("upstream", "train")) == [r["text"] for r in pile("pile 0", 150) + pile("pile 1", 150)]
    assert read(make("upstream", "validation")) == [r["text"] for r in pile("pile validation", 60)]
    assert read(make("downstream", "train")) == [
        r["text"] for r in slimpajama("slim 0", 150) + slimpajama("slim 1", 150)
    ]
    assert read(make("downstream", "validation")) == [r["text"] for r in slimpajama("slim validation", 60)]


@pytest.mark.usefixtures("hub")
def test_domains_come_from_a_struct_and_from_json() -> None:
    assert {d.domain for d, _ in make("upstream", "train").documents(None)} == {"Pile-CC", "Github", "Wikipedia (en)"}
    assert {d.domain for d, _ in make("downstream", "train").documents(None)} == {
        "RedPajamaCommonCrawl",
        "RedPajamaC4",
    }


def test_a_listing_is_pinned_and_needs_no_network_again(hub: Hub) -> None:
    repo = Repo("data.upstream.id", PILE, "main", "dataset")
    first = list_split(repo, None, "train")
    hub.requests.clear()
    hub.fail(".*", "500", times=1000)
    assert list_split(repo, None, "train") == first
    assert hub.requests == []
    pins = [json.loads(path.read_text()) for path in (cache_dir() / "hub").glob("*.json")]
    assert first.commit in {pin["commit"] for pin in pins}


def test_a_damaged_pin_is_asked_for_again_and_one_of_the_first_version_is_read(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("dataset", "owner/pinned", {"main": {"train.jsonl": jsonl(pile("pinned", 5))}})
    repo = Repo("data.upstream.id", "owner/pinned", "main", "dataset")
    before = set((cache_dir() / "hub").glob("*.json"))
    first = list_split(repo, None, "train")
    (pin,) = set((cache_dir() / "hub").glob("*.json")) - before
    held = json.loads(pin.read_text())
    pin.write_text(json.dumps({key: value for key, value in held.items() if key != "sha256"}))
    hub.requests.clear()
    assert list_split(repo, None, "train") == first
    assert hub.requests == []
    for number, content in enumerate((b"[]", b"{}", b"\xff", json.dumps(held | {"commit": "f" * 40}).encode()), 1):
        pin.write_bytes(content)
        assert list_split(repo, None, "train") == first
        assert pin.with_name(f"{pin.name}.damaged-{number}").read_bytes() == content
    assert sum("the hub is asked again" in message for message in caplog.messages) == 4


@pytest.mark.parametrize("how", ["500", "429", "reset"])
def test_a_hub_that_fails_while_a_dataset_is_listed_is_asked_again(hub: Hub, how: str) -> None:
    hub.add("dataset", f"owner/listed-{how}", {"main": {"train.jsonl": jsonl(pile("listed", 5))}})
    hub.fail("/revision/main$", how)
    hub.fail("/paths-info/", how)
    listing = list_split(Repo("data.upstream.id", f"owner/listed-{how}", "main", "dataset"), None, "train")
    assert [path for path, _ in listing.files] == ["train.jsonl"]
    assert all(fault.times == 0 for fault in hub.faults)


@pytest.mark.parametrize("how", ["500", "429", "reset", "cut"])
@pytest.mark.parametrize("side", ["upstream", "downstream"])
def test_a_hub_that_fails_in_the_middle_of_a_shard_is_asked_again(
    hub: Hub, side: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = make(side, "train")
    expected = read(source)
    hub.fail(r"/resolve/.*(zst|parquet)$", how, times=3)
    with caplog.at_level(logging.WARNING):
        assert read(source) == expected
    assert caplog.text.count("asked again in") == 3
    assert all(fault.times == 0 for fault in hub.faults)


@pytest.mark.parametrize("side", ["upstream", "downstream"])
def test_a_hub_that_keeps_failing_stops_clearly_and_a_rerun_goes_on(
    hub: Hub, tmp_path: Path, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewarm.data.encoding.BATCH_CHARACTERS", 1000)
    source, tokenizer = make(side, "train", patience=0.05), load_tokenizer("builtin")
    spec = StoreSpec(source.fingerprint(), tokenizer.fingerprint, tokenizer.end_of_text, tokenizer.size, 1000)

    def fill(root: Path) -> TokenStore:
        store = fill_store(root, spec, source, tokenizer, 10**9)
        store.ensure(10**9)
        return store

    straight = fill(tmp_path / "straight")
    second = "01.jsonl.zst" if side == "upstream" else "train-00001"
    hub.fail(second, "500", times=100_000)
    with pytest.raises(DataError, match=rf"{second}.*the hub failed for 0.05 s at byte 0 \(HTTP 500\).*rerun"):
        fill(tmp_path / "failed")
    held = TokenStore(tmp_path / "failed" / spec.digest, spec)
    assert not held.holds(10**9)
    assert 0 < held.n_tokens < straight.n_tokens
    hub.faults.clear()
    again = fill(tmp_path / "failed")
    assert again.read(0, again.n_tokens).tolist() == straight.read(0, straight.n_tokens).tolist()


def test_a_refused_file_is_not_asked_for_again(hub: Hub) -> None:
    source = make("upstream", "train")
    hub.fail("00.jsonl.zst", "403", times=1)
    with pytest.raises(DataError, match=r"00.jsonl.zst: the hub refuses it \(HTTP 403\); check HF_TOKEN"):
        read(source)


def test_a_dataset_that_needs_code_is_refused(hub: Hub) -> None:
    hub.add("dataset", "owner/coded", {"main": {"coded.py": b"raise SystemExit('ran')", "README.md": b"# coded"}})
    with pytest.raises(UserError, match="needs code from the hub to be read, which rewarm does not run"):
        list_split(Repo("data.upstream.id", "owner/coded", "main", "dataset"), None, "train")


def test_a_dataset_of_several_subsets_names_them(hub: Hub) -> None:
    card = (
        b"---\nconfigs:\n- config_name: en\n  data_files: en.jsonl\n- config_name: de\n  data_files: de.jsonl\n---\n"
    )
    files = {"README.md": card, "en.jsonl": jsonl(pile("en", 5)), "de.jsonl": jsonl(pile("de", 5))}
    hub.add("dataset", "owner/many", {"main": files})
    repo = Repo("data.upstream.id", "owner/many", "main", "dataset")
    with pytest.raises(UserError, match=r"subset=None: .*\['en', 'de'\]"):
        list_split(repo, None, "train")
    assert [path for path, _ in list_split(repo, "de", "train").files] == ["de.jsonl"]


@pytest.mark.usefixtures("hub")
def test_mistakes_in_a_dataset_are_named() -> None:
    with pytest.raises(UserError, match=r"owner/none@main: no such dataset on the hub"):
        list_split(Repo("data.upstream.id", "owner/none", "main", "dataset"), None, "train")
    with pytest.raises(UserError, match="has no revision v2; the nearest are main"):
        list_split(Repo("data.upstream.id", PILE, "v2", "dataset"), None, "train")
    with pytest.raises(UserError, match="split=validaton: unknown choice, did you mean 'validation'"):
        list_split(Repo("data.downstream.id", SLIMPAJAMA, "main", "dataset"), None, "validaton")


def test_a_dataset_at_another_commit_is_another_stream(hub: Hub) -> None:
    files = {"train.jsonl": jsonl(pile("v", 5))}
    hub.add("dataset", "owner/versions", {"main": files, "v1": {"train.jsonl.zst": zst(jsonl(pile("v1", 5)))}})
    sides = [{"kind": "hub", "id": "owner/versions", "revision": name} for name in ("main", "v1")]
    streams = [make("downstream", "train", downstream=side) for side in sides]
    assert streams[0].fingerprint() != streams[1].fingerprint()
    assert read(streams[0]) != read(streams[1])


def test_one_split_may_serve_training_and_validation_by_hash(hub: Hub) -> None:
    hub.add("dataset", "owner/single", {"main": {"train.parquet": parquet(pile("single", 80))}})
    side = {"kind": "hub", "id": "owner/single", "validation_split": "train", "validation_share": 0.3}
    train = read(make("downstream", "train", downstream=side))
    validation = read(make("downstream", "validation", downstream=side))
    assert sorted(train + validation) == sorted(record["text"] for record in pile("single", 80))
    assert 5 < len(validation) < 45


def test_the_nearest_revisions_are_those_of_the_nearest_steps() -> None:
    known = ["main", *(f"step{step}" for step in (0, 512, *range(1000, 144_000, 1000)))]
    assert nearest_revisions("step9999", known) == ["step8000", "step9000", "step10000", "step11000"]
    assert nearest_revisions("step999999", known)[-1] == "step143000"
    assert nearest_revisions("mian", ["main", "float16"])[0] == "main"


def test_ids_are_told_from_paths() -> None:
    assert parse_id("init", "EleutherAI/pythia-410m@step10000") == Repo("init", MODEL, "step10000")
    assert parse_id("init", MODEL) == Repo("init", MODEL, "main")
    for name in ("scratch", "a/b/c", "../runs/a", "/abs/path", "name@rev"):
        assert parse_id("init", name) is None


def test_what_was_downloaded_is_found_when_the_hub_is_away(hub: Hub) -> None:
    repo = Repo("init", MODEL, "step0")
    folder = download(repo, ["config.json"], WEIGHTS)
    hub.fail(".*", "500", times=1000)
    assert download(repo, ["config.json"], WEIGHTS) == folder


@pytest.mark.parametrize("how", ["refuses", "never answers"])
def test_an_unreachable_hub_is_one_line_that_names_the_way_out(tmp_path: Path, how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # takes connections, and says nothing
        url = "http://127.0.0.1:9" if how == "refuses" else f"http://127.0.0.1:{listening.getsockname()[1]}"
        result = subprocess.run(
            [sys.executable, "-m", "rewarm", "train", "scale=paper", "device=cpu", f"run_dir={tmp_path / 'run'}"],
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT / "src"),
                "HF_ENDPOINT": url,
                "HF_HOME": str(tmp_path / "home"),
                "REWARM_CACHE": str(tmp_path / "cache"),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith(f"rewarm: init=EleutherAI/pythia-410m@step143000: {url} cannot be reached")
    assert "scale=local" in line
    assert str(tmp_path / "home") in line


def test_a_hub_that_never_answers_is_asked_twice_and_then_left_alone(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 15 seconds are promised; the rest is for starting.
    assert 2 * asking.CONNECT_SECONDS + asking.FIRST_WAIT < 10
    monkeypatch.setattr(asking, "CONNECT_SECONDS", 0.3)
    hub.fail(".*", "silence", times=1000)
    with pytest.raises(DataError, match="cannot be reached, and this is not in the cache"):
        download(Repo("init", "owner/nowhere", "main"), ["config.json"], WEIGHTS)
    assert len(hub.requests) == 2
    with pytest.raises(DataError, match="cannot be reached"):
        list_split(Repo("data.upstream.id", "owner/nowhere", "main", "dataset"), None, "train")
    assert len(hub.requests) == 2


@pytest.mark.parametrize("token", [None, "hf_of_somebody_else"])
def test_a_gated_repository_names_the_page_of_its_licence(
    hub: Hub, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"owner/gated-{token}"
    hub.add("model", name, {"main": {"config.json": b"{}", "model.safetensors": b""}}, gated=True)
    hub.add("dataset", name, {"main": {"README.md": b"#", "train.jsonl": jsonl(pile("gated", 5))}}, gated=True)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=rf"init={name}@main: is gated; accept its licence at {hub.url}/{name}, and"):
        download(Repo("init", name, "main"), ["config.json"], WEIGHTS)
    side = {"kind": "hub", "id": name, "validation_split": "train"}
    page = rf"is gated; accept its licence at {hub.url}/datasets/{name}, and set HF_TOKEN"
    with pytest.raises((UserError, DataError), match=page):
        read(make("downstream", "train", downstream=side))
    monkeypatch.setenv("HF_TOKEN", GRANTED)
    assert (download(Repo("init", name, "main"), ["config.json"], WEIGHTS) / "config.json").is_file()
    assert len(read(make("downstream", "train", downstream=side | {"validation_share": 1e-12}))) == 5
