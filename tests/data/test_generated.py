"""Text that the start model writes: what is kept, that it begins anew anywhere, and what is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rewarm.commands.merge import merge
from rewarm.commands.report import report
from rewarm.config.schema import Config, GenerateConfig
from rewarm.data.documents import Cursor, Document
from rewarm.data.generated import GeneratedSource, Ids, repeated
from rewarm.data.layout import shard_path
from rewarm.data.tokenizers import load_tokenizer
from rewarm.errors import DataError, RewarmError, UserError
from rewarm.model.generation import StartModel
from rewarm.model.init import pin, resolve_init
from rewarm.runs.run import open_run
from rewarm.training.run import run as train
from tests.conftest import make_config
from tests.training.test_distributed import Processes, assert_close

TOKENIZER = load_tokenizer("builtin")
EMPTY = np.empty(0, dtype=np.int64)


class Drawn:
    """An author without a model, whose texts are random ids."""

    seconds = 0.0

    def __init__(self, loss: float = 3.0, words: int = 5000) -> None:
        self._loss, self._words = loss, words

    def identity(self) -> str:
        return "drawn"

    def write(self, prompts: Sequence[Ids], length: int, seed: int) -> list[Ids]:
        random = np.random.default_rng(seed)
        rows = [random.integers(10, 10 + self._words, length - len(prompt)) for prompt in prompts]
        return [np.concatenate(pair) for pair in zip(prompts, rows, strict=True)]

    def loss(self, texts: Sequence[Ids]) -> float:
        assert len(texts)
        return self._loss

    def close(self) -> None:
        self.closed = True


def source(author: Drawn, length: int = 20, **keys: object) -> GeneratedSource:
    return GeneratedSource(author, GenerateConfig(**keys), length, TOKENIZER)  # type: ignore[arg-type]


def read(source: GeneratedSource, number: int, cursor: Cursor | None = None) -> list[tuple[list[int], Cursor]]:
    def ids(document: Document) -> list[int]:
        assert document.ids is not None
        return document.ids.tolist()

    return [(ids(document), at) for document, at in islice(source.documents(cursor), number)]


def test_texts_end_and_go_on_after_any_of_them() -> None:
    author = Drawn(words=2)  # of two words, so that short texts come again
    rows = read(source(author, 6, batch_size=7, dedup=16, max_repeated=1), 25)
    assert all(ids[-1] == TOKENIZER.end_of_text and len(ids) == 7 for ids, _ in rows)
    assert rows[-1][1]["twice"] > 0
    latest = [tuple(ids) for ids, _ in rows[:16]]
    assert len(set(latest)) == 16
    for stop in (0, 6, 7, 13, 20):
        cursor = json.loads(json.dumps(rows[stop][1]))  # as a shard's manifest holds it
        assert read(source(author, 6, batch_size=7, dedup=16, max_repeated=1), 24 - stop, cursor) == rows[stop + 1 :]


def test_a_text_that_repeats_itself_is_left_out() -> None:
    assert repeated(np.arange(100)) == 0
    assert repeated(np.arange(7)) == 0
    assert repeated(np.tile(np.arange(10), 10)) == pytest.approx(1 - 10 / 93)
    once = Drawn(words=1)
    with pytest.raises(
        DataError, match=r"of 64 texts the start model repeats itself in 64 and wrote 0 before; raise"
    ):
        read(source(once, 40), 1)
    with pytest.raises(DataError, match=r"of 64 texts the start model repeats itself in 0 and wrote 63 before"):
        read(source(once, 40, max_repeated=1), 2)
    with pytest.raises(DataError, match=r"writes noise, with a loss of 8\.00 nats a token where tokens drawn"):
        read(source(Drawn(loss=8.0)), 1)


def test_prompts_begin_texts_by_turns_and_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("def f(x):\n\n  The set of  \n")
    with_prompts = source(Drawn(), prompts=str(path), batch_size=3)
    starts = [TOKENIZER.encode([text])[0].tolist() for text in ("def f(x):", "The set of")]
    for number, (ids, _) in enumerate(read(with_prompts, 7)):
        start = starts[number % 2]
        assert ids[: len(start)] == start
        assert len(ids) == 21
    assert with_prompts.fingerprint() != source(Drawn(), batch_size=3).fingerprint()
    for content, match in (
        ("\n \n", "holds no text; give a file with a prompt on each line"),
        ("word " * 30, "a prompt has 59 tokens, and a text has 20 at most; give a larger generate.length"),
        (None, "is no file of text; give one with a prompt"),
    ):
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(UserError, match=match):
            source(Drawn(), prompts=str(path))


def test_the_model_writes_the_same_again_and_a_shorter_prompt_is_not_touched_by_its_padding() -> None:
    start, device = pin(resolve_init("builtin")), torch.device("cpu")
    surely = GenerateConfig(temperature=1e-3)  # the likeliest token each time
    short, long = (ids.astype(np.int64) for ids in TOKENIZER.encode(["The", "def __init__(self, name):\n    self"]))
    author = StartModel(start, surely, TOKENIZER, device)
    both = author.write([short, long], 24, seed=0)
    alone = author.write([short], len(both[0]), seed=5)
    assert both[0].tolist() == alone[0].tolist()
    assert both[0][: len(short)].tolist() == short.tolist()
    assert both[1][: len(long)].tolist() == long.tolist()
    drawn = StartModel(start, GenerateConfig(), TOKENIZER, device)
    state = torch.get_rng_state()
    first = [ids.tolist() for ids in drawn.write([EMPTY] * 3, 12, seed=1)]
    assert first == [ids.tolist() for ids in drawn.write([EMPTY] * 3, 12, seed=1)]
    assert first != [ids.tolist() for ids in drawn.write([EMPTY] * 3, 12, seed=2)]
    assert torch.equal(state, torch.get_rng_state())
    assert all(TOKENIZER.end_of_text not in ids and len(ids) <= 12 for ids in first)
    assert 1 < drawn.loss([np.array(ids) for ids in first if ids]) < 7
    drawn.close()
    assert drawn.seconds > 0

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.GPTNeoXForCausalLM.generate", full, raising=True)
        with pytest.raises(UserError, match=r"generate\.batch_size=3: so many texts of 12 tokens do not fit the dev"):
            drawn.write([EMPTY] * 3, 12, seed=1)


SELF = ("replay=0.25", "replay_source=self", "init=builtin", "generate.batch_size=8")


def test_a_run_replays_what_its_start_wrote_and_others_read_it_again(
    small: Callable[..., Config], tmp_path: Path
) -> None:
    words = [*SELF, "generate.length=40", "data.shard_tokens=100"]
    before = train(small(*words))
    told = open_run(tmp_path / "run").manifest
    written = told.other["self_replay"]
    assert written["tokens"] >= 10 * 32 + 1
    assert written["kept"] >= 8
    assert written["seconds"] > 0
    store = next((Path(os.environ["REWARM_CACHE"]) / "stores").glob(told.data["replay"]))
    shard_path(store, 1, "tokens").unlink()  # made again from the middle of what was written
    assert train(small(*words, f"run_dir={tmp_path / 'again'}")) == before
    other = train(small(*words, "seed=1", f"run_dir={tmp_path / 'seed'}"))
    assert other != before
    assert open_run(tmp_path / "seed").manifest.other["self_replay"]["seconds"] == 0
    assert train(small("replay=0.25", "init=builtin", f"run_dir={tmp_path / 'old'}")) != before


def test_of_several_processes_the_first_writes(tmp_path: Path) -> None:
    Processes(1, tmp_path / "first").finish()
    model = AutoModelForCausalLM.from_pretrained(open_run(tmp_path / "first").checkpoint(9))
    model.get_output_embeddings().weight.data *= 30  # else so young a model writes noise
    model.save_pretrained(tmp_path / "start")
    words = (f"init={tmp_path / 'start'}", "replay=0.5", "replay_source=self", "generate.max_repeated=1")
    for count in (2, 1):  # so that two write
        Processes(count, tmp_path / str(count), *words).finish()
    assert_close(tmp_path / "2", tmp_path / "1")
    seconds = [open_run(tmp_path / name).manifest.other["self_replay"]["seconds"] for name in ("2", "1")]
    assert seconds[0] > 0 == seconds[1]


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (("replay_source=self", "init=scratch"), "random weights .* writes noise"),
        (("generate.top_p=0.9",), r"generate\.top_p: has no effect without replay_source=self"),
        (
            ("data=files", "data.upstream=self", "data.downstream=x"),
            r"data\.upstream=self: only replay_source can be",
        ),
        (("data=files", "data.upstream=x", "data.downstream=proxy"), r"only data\.upstream and replay_source can be"),
        (("data.upstream=proxy", "data.proxy=self"), r"data\.proxy=self: only replay_source can be that"),
        (("replay_source=self", "generate.temperature=0"), r"generate\.temperature=0: must be a number from 0\.001"),
        (("replay_source={kind:hub}",), r"replay_source\.id: a source of kind hub needs it"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(overrides: Sequence[str], match: str) -> None:
    with pytest.raises(RewarmError, match=match):
        make_config(*overrides)


def test_what_is_measured_on_a_proxy_says_so_everywhere(
    small: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sweep = tmp_path / "sweep"
    for lr in ("1e-3", "3e-3"):
        train(small("data.upstream=proxy", "init=builtin", f"max_lr={lr}", f"run_dir={sweep / lr}"))
    assert "\nupstream (proxy) " in capsys.readouterr().out
    assert "hardly text" not in caplog.text
    report([str(sweep)])
    merge(["builtin", str(sweep / "1e-3"), "alphas=0.5"])
    said = capsys.readouterr().out
    files = [sweep / "report" / "summary.md", sweep / "1e-3" / "report" / "merge.svg"]
    for text in (said, *(path.read_text() for path in files)):
        assert "pstream (proxy)" in text
        assert not re.search(r"(?<![\w./=@'\"-])upstream(?! \(proxy\)|[\w./=:-])", text)
    assert '"proxy":true' in (sweep / "report" / "index.html").read_text()
    other = tmp_path / "other.jsonl"
    lines = (json.dumps({"text": f"Zażółć gęślą jaźń {number}, ќe ѓон ѕвон."}) for number in range(3000))
    other.write_text("\n".join(lines))
    train(small("data.upstream=proxy", f"data.proxy={other}", "init=builtin", f"run_dir={tmp_path / 'other'}"))
    assert "that is hardly text of the kind that it was trained on" in caplog.text


def test_a_proxy_stands_in_for_upstream(tmp_path: Path) -> None:
    config = make_config("data.upstream=proxy", "replay=0.1")
    assert config.source("upstream") == config.source("replay") == config.data.proxy
    assert config.data.proxy.weights == {"prose": 1.0}
    mine = make_config("data.upstream=proxy", f"data.proxy={tmp_path}", "replay_source=proxy")
    assert mine.source("upstream").path == mine.source("replay").path == str(tmp_path)
    assert make_config("scale=paper", "data.upstream=proxy").source("upstream").id == "HuggingFaceFW/fineweb-edu"
    assert make_config("replay=0.1", f"replay_source={tmp_path}").source("replay").path == str(tmp_path)
