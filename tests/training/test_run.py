"""A whole run, as the command line does it, and what it leaves behind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewarm.data.prepare import open_validation
from rewarm.data.tokenizers import load_tokenizer
from rewarm.runs.run import open_run
from tests.conftest import SMALL, make_config, rewarm

OVERRIDES = (*SMALL, "init=scratch", "data.validation_tokens=2048", "evaluation.batch_size=16", "checkpoint.every=5")
FIRST = ("profile=true", "train.peak_tflops=0.1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    done = rewarm("train", *OVERRIDES, *FIRST, "run_dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line][:3] == ["perplexity", "upstream", "downstream"]
    assert lines[-1].startswith("next: ")
    return folder / "run"


def test_the_folder_has_the_public_format(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert (config["init"], config["train"]["batch_size"], config["max_lr"]) == ("scratch", 4, 1e-3)
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["torch"] == torch.__version__
    assert manifest["parameters"] > 1_000_000
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["steps"], summary["tokens"]) == (10, 1280)
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["step-10", "step-5"]


def test_metrics_have_the_public_keys(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(11))
    assert rows[0].keys() == {
        "step",
        "tokens",
        *(f"{s}/{k}" for s in ("upstream", "downstream") for k in ("loss", "ppl", "bpb")),
        *(f"{s}/domain/{d}/loss" for s in ("upstream", "downstream") for d in ("prose", "code")),
    }
    assert rows[3].keys() == {
        *("step", "tokens", "lr", "train/loss", "grad_norm"),
        *("loss_scale", "skipped", "tokens_per_second", "mfu"),
    }
    assert rows[10]["tokens"] == 1280
    assert rows[10]["train/loss"] < rows[1]["train/loss"]
    assert rows[10]["upstream/ppl"] == pytest.approx(math.exp(rows[10]["upstream/loss"]))


def last_line(folder: Path) -> dict[str, float]:
    return {name: float(values[-1]) for name, values in open_run(folder).metrics.columns.items()}


def test_mfu_is_the_share_of_the_peak_that_the_models_products_take(finished: Path) -> None:
    matrices = 4 * (4 * 128 * 128 + 2 * 128 * 512) + 128 * 4096
    flops_per_token = 6 * matrices + 12 * 4 * 128 * 32
    last = last_line(finished)
    assert last["mfu"] == pytest.approx(last["tokens_per_second"] * flops_per_token / 0.1e12, rel=0.02)


def test_a_profile_says_where_the_time_of_a_step_went(finished: Path) -> None:
    table = (finished / "profile/table.txt").read_text()
    assert table.startswith("3 steps\n")
    for row in ("aten::mm", "\nbatch: ", "\nforward and backward: ", "\noptimizer: "):
        assert row in table
    events = json.loads((finished / "profile/trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "optimizer" and event.get("ph") == "X" for event in events) == 3


def test_transformers_loads_the_checkpoint_and_finds_the_logged_perplexity(finished: Path) -> None:
    folder = finished / "checkpoints" / "step-10"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert next(model.parameters()).dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("def f(x):")["input_ids"] == list(load_tokenizer("builtin").encode(["def f(x):"])[0])
    last = last_line(finished)
    config = make_config(*OVERRIDES)
    for side, data in open_validation(config, load_tokenizer("builtin")).items():
        total = 0.0
        with torch.no_grad():
            for row in torch.from_numpy(data.tokens):
                total += model(input_ids=row[None], labels=row[None]).loss.item() * (len(row) - 1)
        assert math.exp(total / data.n_tokens) == pytest.approx(last[f"{side}/ppl"], rel=1e-3)
        assert data.n_tokens == config.data.validation_tokens


def test_eval_gives_the_perplexities_that_the_run_logged_to_the_last_digit(finished: Path) -> None:
    done = rewarm("eval", f"init={finished}", "device=cpu")
    assert done.returncode == 0, done.stderr
    scores = dict(line.split() for line in done.stdout.splitlines())
    last = last_line(finished)
    for key in ("upstream/ppl", "downstream/ppl", "upstream/bpb", "downstream/domain/code/loss"):
        assert float(scores[key]) == last[key]


def test_an_earlier_step_of_a_run_can_be_started_from(finished: Path) -> None:
    done = rewarm("eval", f"init={finished / 'checkpoints' / 'step-5'}")
    scores = dict(line.split() for line in done.stdout.splitlines())
    logged = dict(zip(*open_run(finished).loss("upstream", against="step"), strict=True))
    assert float(scores["upstream/loss"]) == logged[5]


def test_a_step_that_is_not_there_is_refused_with_the_nearest(finished: Path) -> None:
    done = rewarm("train", *OVERRIDES, f"init={finished}@step7", "run_dir=never")
    assert done.returncode == 2
    assert "there is no checkpoint step7; the nearest are step5, step10" in done.stderr


def test_a_context_or_vocabulary_larger_than_the_models_is_refused(finished: Path, tmp_path: Path) -> None:
    done = rewarm(
        "train", *OVERRIDES, f"init={finished}", "model.max_context=null", "train.context=300", cwd=tmp_path
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "train.context=300: is longer than the model's 256" in done.stderr
    done = rewarm("train", *OVERRIDES, "model.vocab_size=1000", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "has 4096 tokens, more than the 1000 rows" in done.stderr
