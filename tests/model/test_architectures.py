"""Models that people have, small and random: their loss and their files are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rewarm.errors import UserError
from rewarm.model.architectures import balance_of, linear_head
from rewarm.model.attention import CausalAttention
from rewarm.model.init import Init
from rewarm.model.losses import TokenLoss
from rewarm.model.weights import load_model
from rewarm.training.checkpoints import folder as checkpoints
from rewarm.training.checkpoints.snapshot import Snapshot, weights_of
from tests.conftest import make_config

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "output_router_logits": True}
KINDS: dict[str, dict[str, Any]] = {
    "gpt_neox": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
    "gpt2": {},  # tied, dropout of 0.1 everywhere
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},  # dropout that is no module
    "llama": {"tie_word_embeddings": True},
    "olmo2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 4},
    "gemma2": {"sliding_window": 4, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"sliding_window": 4},
    "cohere": {"logit_scale": 0.25},
    "mixtral": {"num_local_experts": 4, "output_router_logits": True},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS,
    "olmoe": EXPERTS,
    "gpt_oss": EXPERTS | {"num_local_experts": 4, "sliding_window": 4},
    "granitemoe": EXPERTS | {"num_local_experts": 4, "logits_scaling": 8.0},  # experts and scaled logits
}
"""What a small model of each type is made of, beside its sizes."""
WHOLE_LOGITS = ("gemma2", "cohere", "granitemoe")
EXPERT_KINDS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe")


def save_random(kind: str, folder: Path, **more: Any) -> Path:
    """Write a small random model as transformers does, and return its folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | KINDS.get(kind, {}) | more))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 10  # so that windows, caps and routers matter
    model.save_pretrained(folder)
    return folder


def load(folder: Path, *overrides: str) -> Any:
    config = make_config("model=hf", f"model.id={folder}", "model.peak_lr=1e-3", *overrides)
    return load_model(Init(str(folder), folder), config.model, 0, CPU)


def loaded_by_transformers(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def make_windows() -> Tensor:
    return torch.randint(0, 64, (3, 18), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers(kind: str, tmp_path: Path) -> None:
    folder, windows = save_random(kind, tmp_path), make_windows()
    model, theirs = load(folder), loaded_by_transformers(folder)
    token_loss = TokenLoss(model, balance_of(model, None))
    assert (linear_head(model) is None) == (kind in WHOLE_LOGITS)
    inputs, targets = windows[:, :-1], windows[:, 1:].contiguous()
    expected = theirs(input_ids=inputs, labels=inputs, shift_labels=targets, use_cache=False)
    loss = token_loss(windows, torch.tensor(1.0)) / targets.numel()
    torch.testing.assert_close(loss, expected.loss, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        size = gradients[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5 * size + 1e-6, msg=name)
    token_loss.eval()
    logits = theirs(input_ids=inputs, use_cache=False).logits.flatten(0, 1)
    plain = torch.nn.functional.cross_entropy(logits, targets.flatten())
    torch.testing.assert_close(token_loss.each(windows).mean(), plain, rtol=1e-6, atol=1e-6)
    assert (token_loss.balance is not None) == (kind in EXPERT_KINDS)
    assert kind not in EXPERT_KINDS or loss > plain + 1e-4


def test_experts_are_balanced_where_the_config_or_the_user_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_random("mixtral", tmp_path, output_router_logits=False, router_aux_loss_coef=0.25)
    model = load(folder)
    with caplog.at_level("INFO"):
        assert balance_of(model, None) is None
    assert "trained without a load-balancing loss, as its config says; model.router_loss=0.25 adds it" in caplog.text
    assert balance_of(model, 0.0) is None
    balance = balance_of(model, 0.5)
    assert balance is not None
    even = torch.zeros(5, 4)
    assert balance((even, even)).item() == pytest.approx(0.5 * 2)  # two of four experts for each token
    with pytest.raises(UserError, match=r"model.router_loss=0.1: the model has no experts to balance"):
        balance_of(load(save_random("llama", tmp_path / "llama")), 0.1)
    doge = load(save_random("doge", tmp_path / "doge", is_moe=True, num_experts=16, output_router_logits=True))
    with pytest.raises(UserError, match=r"doge balances its experts in a way that rewarm does not know"):
        balance_of(doge, None)


def test_dropout_is_off_unless_it_is_asked_for_and_the_config_keeps_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, windows, one = save_random("gpt_neox", tmp_path), make_windows(), torch.tensor(1.0)
    with caplog.at_level("INFO"):
        model = load(folder)
    assert "dropout is off, where the model's config has" in caplog.text
    assert "attention_dropout=0.5" in caplog.text
    assert isinstance(model.gpt_neox.layers[0].attention, CausalAttention)
    assert model.config.attention_dropout == 0.5
    token_loss = TokenLoss(model)
    assert token_loss(windows, one) == token_loss(windows, one)
    kept = TokenLoss(load(folder, "model.dropout=true"))
    assert kept(windows, one) != kept(windows, one)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_what_transformers_itself_would_write(kind: str, tmp_path: Path) -> None:
    theirs = save_random(kind, tmp_path / "theirs")
    model = load(theirs)
    snapshot = Snapshot(1, 1, weights_of(model), {}).copy()
    assert len({t.data_ptr() for t in snapshot.weights.values()}) == len({p.data_ptr() for p in model.parameters()})
    ours = checkpoints.write(tmp_path, snapshot, model, None)
    expected, found = (load_file(folder / "model.safetensors") for folder in (theirs, ours))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert json.loads((ours / "config.json").read_text()) == json.loads((theirs / "config.json").read_text())
    again = load(ours).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in model.state_dict().items())
