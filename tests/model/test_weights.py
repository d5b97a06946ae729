from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer

from rewarm.data.tokenizers import Tokenizer, load_tokenizer
from rewarm.errors import CheckpointError, DataError, UserError
from rewarm.model.init import Init, resolve_init
from rewarm.model.losses import TokenLoss
from rewarm.model.weights import check_fits, check_ids, load_model
from tests.conftest import make_config
from tests.hub import Hub
from tests.hub.content import MODEL, SHAPE, pythia, tokenizer_json

CPU = torch.device("cpu")
SHAPED = ("scale=paper", "train.context=32", *(f"model.{key}={value}" for key, value in SHAPE.items()))


def load(init: str, *overrides: str, seed: int = 0) -> torch.nn.Module:
    return load_model(resolve_init(init), make_config(*(overrides or SHAPED)).model, seed, CPU)


def half_pickled(model: Any, folder: Path) -> None:
    """Save a model as Pythia's older revisions are: a pickle of weights."""
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("/tmp/rewarm-evil-ran",)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("step", [0, 10_000, 143_000])
def test_a_revision_of_the_hub_is_loaded_in_fp32_whatever_it_was_saved_in(step: int) -> None:
    init = resolve_init(f"{MODEL}@step{step}")
    assert init.folder is not None
    assert json.loads((init.folder / "config.json").read_text())["dtype"] == "float16"
    model = load(f"{MODEL}@step{step}")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.training
    seed = {0: 0, 10_000: 1, 143_000: 2}[step]
    from safetensors.torch import load as load_tensors

    published = load_tensors(pythia(seed)["model.safetensors"])
    published["lm_head.weight"] = published.pop("embed_out.weight")  # what transformers calls it now
    state = model.state_dict()
    assert state.keys() == published.keys()
    assert all(torch.equal(state[name], weight.float()) for name, weight in published.items())


@pytest.mark.usefixtures("hub")
def test_an_unknown_revision_names_the_nearest() -> None:
    message = "init=EleutherAI/pythia-410m@step9500: has no revision step9500; the nearest are step8000, step9000"
    with pytest.raises(UserError, match=message):
        resolve_init(f"{MODEL}@step9500")


@pytest.mark.usefixtures("hub")
def test_an_unknown_repository_and_a_missing_run_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="init=owner/none@main: no such model on the hub"):
        resolve_init("owner/none")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match="init=runs/none: no such checkpoint"):
        resolve_init("runs/none")


def test_a_pickle_of_weights_is_loaded_as_weights_only(hub: Hub) -> None:
    hub.add("model", "owner/pickled", {"main": pythia(3, half_pickled)})
    model = load("owner/pickled")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_pickle_that_holds_more_is_refused_and_not_run(hub: Hub, tmp_path: Path) -> None:
    content = pickle.dumps({"weight": Evil()})
    hub.add("model", "owner/evil", {"main": dict(pythia(0, half_pickled)) | {"pytorch_model.bin": content}})
    with pytest.raises(CheckpointError, match="init=owner/evil: "):
        load("owner/evil")
    torch.save({"weight": Evil()}, tmp_path / "pytorch_model.bin")
    evil = (tmp_path / "pytorch_model.bin").read_bytes()
    hub.add("model", "owner/evil2", {"main": dict(pythia(0, half_pickled)) | {"pytorch_model.bin": evil}})
    with pytest.raises(CheckpointError, match="holds more than weights and was not loaded"):
        load("owner/evil2")
    assert not Path("/tmp/rewarm-evil-ran").exists()


def test_a_model_that_needs_code_is_refused(hub: Hub) -> None:
    config = {"model_type": "novel", "auto_map": {"AutoModelForCausalLM": "novel.Novel"}}
    files = {"config.json": json.dumps(config).encode(), "novel.py": b"raise SystemExit", "model.safetensors": b""}
    hub.add("model", "owner/novel", {"main": files})
    with pytest.raises(
        CheckpointError, match="type 'novel' needs code from its repository, which rewarm does not run"
    ):
        load("owner/novel", "model=hf", "model.id=owner/novel", "model.peak_lr=1e-3")


def test_a_damaged_checkpoint_is_one_line(hub: Hub) -> None:
    files = dict(pythia(0))
    hub.add("model", "owner/cut", {"main": files | {"model.safetensors": files["model.safetensors"][:5000]}})
    with pytest.raises(CheckpointError, match="init=owner/cut: cannot be loaded") as caught:
        load("owner/cut")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("hub")
def test_a_checkpoint_of_another_shape_than_the_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"has vocab_size 320, where model=tiny has 4096; choose the model"):
        load(MODEL, "model=tiny")


def other_architecture(kind: str, folder: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if kind == "gpt2":  # tied embeddings
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=32, n_embd=16, n_layer=2, n_head=2))
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=320,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=32,
            )
        )
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_other_architectures_are_trained_too(kind: str, tmp_path: Path) -> None:
    folder = other_architecture(kind, tmp_path / kind)
    overrides = ("model=hf", f"model.id={folder}", "model.peak_lr=1e-3")
    windows = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    for init in (str(folder), "scratch"):
        model = load(init, *overrides)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        losses = TokenLoss(model).each(windows)
        assert losses.shape == (2, 16)
        assert losses.mean().item() == pytest.approx(math.log(320), abs=0.5)
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight  # type: ignore[operator]
        assert tied == (kind == "gpt2")


def test_scratch_is_pythias_own_initialisation() -> None:
    wide = ("scale=paper", *SHAPED[1:], "model.hidden_size=256", "model.layers=4", "model.intermediate_size=512")
    model = load("scratch", *wide)
    small, wang = math.sqrt(2 / (5 * 256)), 2 / (4 * math.sqrt(256))
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            expected = wang if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")) else small
            assert weight.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(weight.mean().item()) < expected / 20
        else:
            assert torch.equal(weight, torch.full_like(weight, 0.0 if name.endswith("bias") else 1.0)), name
    again, other = load("scratch", *wide), load("scratch", *wide, seed=1)
    weights = [next(m.parameters()) for m in (model, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_scratch_of_a_hub_model_takes_its_config_and_no_weights(hub: Hub) -> None:
    hub.add("model", "owner/shape", {"main": {"config.json": pythia(0)["config.json"]}})
    model = load("scratch", "model=hf", "model.id=owner/shape", "model.peak_lr=1e-3")
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in load("scratch", *SHAPED).parameters())
    assert not any("safetensors" in request for request in hub.requests)


def tokenizer_of(folder: Path, size: int, *special: str, ordinary: str = "") -> Tokenizer:
    """Return a tokenizer of 300 tokens, padded with special ones up to `size` minus the number of those given."""
    fast = FastTokenizer.from_str(tokenizer_json().decode())
    fast.add_special_tokens([f"<unused{n}>" for n in range(size - 300 - len(special) - bool(ordinary))])
    if ordinary:
        fast.add_tokens([ordinary])
    fast.add_special_tokens([*special])
    fast.save(str(folder / "tokenizer.json"))
    return load_tokenizer(str(folder))


@pytest.mark.usefixtures("hub")
def test_a_padded_vocabulary_fits_and_a_smaller_one_does_not(tmp_path: Path) -> None:
    model = load(MODEL)
    check_fits(model, 32, tokenizer_of(tmp_path, 300))
    with pytest.raises(UserError, match="has 321 tokens, more than the 320 rows"):
        check_fits(model, 32, tokenizer_of(tmp_path, 321, ordinary="word"))
    with pytest.raises(UserError, match="longer than the model's 32"):
        check_fits(model, 33, tokenizer_of(tmp_path, 300))


@pytest.mark.usefixtures("hub")
def test_a_special_token_without_a_row_is_allowed_until_a_text_holds_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = load(MODEL), tokenizer_of(tmp_path, 321, "<image_soft_token>")
    with caplog.at_level("INFO"):
        check_fits(model, 32, tokenizer)
    assert "the model has no row for <image_soft_token>" in caplog.text
    plain, held = tokenizer.encode(["some text", "<image_soft_token> and text"])
    check_ids(plain.astype(np.int64), model)
    assert held[0] == 320
    with pytest.raises(DataError, match="hold the token id 320, and the model has the ids 0 to 319"):
        check_ids(held.astype(np.int64), model)
    with pytest.raises(DataError, match="hold the token id -1, "):
        check_ids(np.array([[-1, 5]]), model)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no config.json that says what model it is"):
        load_model(Init(str(tmp_path), tmp_path), make_config().model, 0, CPU)


def test_a_model_that_the_machine_cannot_hold_is_refused_before_it_is_built() -> None:
    with pytest.raises(UserError, match=r"model=tiny: [0-9,]+ parameters need [0-9,]+ GiB, and the machine has"):
        load("scratch", "model.hidden_size=131072", "model.layers=1000")
