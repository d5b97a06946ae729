"""The paper's setting: every number of it, and the whole run against the loopback hub, made small."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rewarm.config.plan import make_plan
from rewarm.schedules import lr
from rewarm.training.run import run
from tests.conftest import make_config
from tests.hub import Hub
from tests.hub.content import MODEL, PILE, PILE_SETS, PILE_VALIDATION, SHAPE, SLIMPAJAMA, SLIMPAJAMA_SETS

SMALL = (
    *(f"model.{key}={value}" for key, value in SHAPE.items()),
    "train.batch_size=4",
    "train.context=16",
    "train.threads=1",
    "train.log_every=1",
    "budget=1280",
    "warmup=0.1",
    "evaluation.every=10",
    "evaluation.dense_every=5",
    "data.validation_tokens=1024",
    "data.shard_tokens=2000",
    "data.shuffle_window=8",
    "data.workers=0",
    "tracker=none",
    "device=cpu",
)


def test_every_number_of_the_papers_setting_is_in_the_config() -> None:
    config = make_config("scale=paper")
    model, optimizer, scaler = config.model, config.optimizer, config.scaler
    assert (model.layers, model.hidden_size, model.heads, model.intermediate_size) == (24, 1024, 16, 4096)
    assert (model.rotary_pct, model.vocab_size, model.max_context) == (0.25, 50_304, 2048)
    assert config.init == "EleutherAI/pythia-410m@step143000"
    assert (config.train.batch_size, config.train.context) == (1104, 2048)
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.95, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip) == (0.1, 1.0)
    assert config.precision == "fp16"
    assert (scaler.init_scale, scaler.growth_interval, scaler.hysteresis, scaler.min_scale) == (2**12, 1000, 2, 1)
    assert (config.max_lr, config.min_lr_ratio, config.warmup) == (3e-4, 0.1, 0.01)
    assert (model.peak_lr, model.final_lr) == (3e-4, 3e-5)
    assert (config.evaluation.every, config.evaluation.dense_every) == (100, 50)
    assert config.data.validation_tokens == 10 * 1104 * 2048
    upstream, downstream = config.data.upstream, config.data.downstream
    assert (upstream.id, upstream.validation_id, upstream.domain_field) == (
        PILE,
        PILE_VALIDATION,
        "meta.pile_set_name",
    )
    assert (downstream.id, downstream.domain_field) == (SLIMPAJAMA, "meta.redpajama_set_name")
    assert config.data.tokenizer == MODEL


def test_the_papers_plan_is_131_296_steps_of_2_260_992_tokens() -> None:
    plan = make_plan(make_config("scale=paper", "schedule=cosine_neox"))
    assert (plan.tokens_per_step, plan.steps) == (2_260_992, 131_296)
    assert plan.schedule.warmup_steps == 1313
    assert plan.dense_steps == 1313
    assert lr(plan.schedule, 1313) == pytest.approx(3e-4)
    assert lr(plan.schedule, 105_714) > 3e-5
    assert lr(plan.schedule, 105_716) == lr(plan.schedule, 131_296) == pytest.approx(3e-5)
    assert 105_715 * plan.tokens_per_step == pytest.approx(239.0e9, rel=1e-3)


def test_the_first_step_waits_for_no_more_than_the_first_shard() -> None:
    data, context = make_config("scale=paper").data, 2048
    assert data.shard_tokens > data.shuffle_window * context


def test_the_same_data_pair_trains_on_the_pile_and_scores_both() -> None:
    config = make_config("scale=paper", "data=pile-pile")
    assert config.data.train == "upstream"
    assert config.data.upstream.id == PILE
    assert config.data.downstream.id == SLIMPAJAMA


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("init", "precision", "extra"),
    [
        (f"{MODEL}@step143000", "fp16", ()),
        (f"{MODEL}@step143000", "bf16", ("replay=0.25",)),
        (f"{MODEL}@step10000", "fp16", ("schedule=cosine_neox",)),
        (f"{MODEL}@step10000", "bf16", ()),
        ("scratch", "bf16", ()),
        ("scratch", "fp16", ("data=pile-pile",)),
    ],
)
def test_twenty_steps_of_the_papers_run_end_to_end(
    tmp_path: Path, init: str, precision: str, extra: tuple[str, ...]
) -> None:
    run(
        make_config(
            "scale=paper", *SMALL, f"init={init}", f"precision={precision}", f"run_dir={tmp_path / 'run'}", *extra
        )
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    by_step = {row["step"]: row for row in rows}
    assert list(by_step) == list(range(21))
    last = by_step[20]
    assert last["tokens"] == 1280
    assert last["skipped"] == 0
    assert last.get("loss_scale", 1) == (2**12 if precision == "fp16" else 1)
    for side, names in (("upstream", PILE_SETS), ("downstream", SLIMPAJAMA_SETS)):
        losses = [last[f"{side}/domain/{name}/loss"] for name in names]
        assert min(losses) <= last[f"{side}/loss"] <= max(losses)
        assert last[f"{side}/loss"] < by_step[0][f"{side}/loss"]
        assert last[f"{side}/ppl"] == pytest.approx(math.exp(last[f"{side}/loss"]))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-20"
    from transformers import AutoModelForCausalLM

    saved = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert saved.config.hidden_size == SHAPE["hidden_size"]


def test_a_second_run_reads_the_stores_that_the_first_one_made(tmp_path: Path, hub: Hub) -> None:
    for number in range(2):
        hub.requests.clear()
        run(make_config("scale=paper", *SMALL, "precision=fp32", "seed=5", f"run_dir={tmp_path / str(number)}"))
    assert not any("/datasets/" in request for request in hub.requests)
