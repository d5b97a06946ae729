"""Our attention is transformers': outputs, gradients, with a cache, and no mask where it is compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from rewarm.model import attention
from rewarm.model.attention import CausalAttention, attend, rotate, use_causal_attention

CPU = torch.device("cpu")
VOCABULARY, CONTEXT = 61, 21


def build(kind: str = "gpt_neox", attention: str = "eager", **others: Any) -> Any:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **shape, **others)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def make_tokens(n: int = 3) -> Tensor:
    return torch.randint(0, VOCABULARY, (n, CONTEXT), generator=torch.Generator().manual_seed(1))


def run(model: Any, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits, and the gradients of what is no simple function of them."""
    logits = model(input_ids=tokens, use_cache=False).logits
    model.zero_grad()
    logits.float().log_softmax(-1).pow(2).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def use_sharpened(model: Any) -> None:
    """Scale weights up, so that attention is far from uniform."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "query_key_value" in name and parameter.dim() == 2:
                parameter.mul_(20)


@pytest.fixture(params=[1, 8, 256])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of the 21 queries are done at once: one, some with a rest, all."""
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", request.param)
    return int(request.param)


@pytest.mark.parametrize("rotary", [{}, {"partial_rotary_factor": 1.0}], ids=["a quarter rotated", "all rotated"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
@pytest.mark.usefixtures("at_once")
def test_outputs_and_gradients_are_those_of_transformers(
    dtype: torch.dtype, tolerance: float, rotary: dict[str, float]
) -> None:
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25, **rotary}
    # transformers' eager softmax is FP32 even in FP64; its SDPA is not.
    theirs, ours = (build("gpt_neox", "sdpa", rope_parameters=parameters).to(dtype) for _ in range(2))
    use_sharpened(theirs)
    use_sharpened(ours)
    use_causal_attention(ours, CPU)
    assert sum(isinstance(m, CausalAttention) for m in ours.modules()) == 2
    (logits, gradients), (expected, wanted) = run(ours, make_tokens()), run(theirs, make_tokens())
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            gradients[name], gradient, rtol=0, atol=tolerance * max(1.0, gradient.abs().max().item()), msg=name
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_to_fp32_as_transformers_is(dtype: torch.dtype) -> None:
    theirs, ours = build(), build()
    use_sharpened(theirs)
    use_sharpened(ours)
    use_causal_attention(ours, CPU)
    _, exact = run(theirs, make_tokens())

    def error(model: Any) -> float:
        with torch.autocast("cpu", dtype=dtype):
            _, found = run(model, make_tokens())
        return sum(((found[n] - g).norm() / g.norm()).item() for n, g in exact.items() if g.norm() > 1e-3)

    assert 0 < error(ours) < 1.2 * error(theirs)


def test_the_gradient_of_the_rotation_is_the_rotation_backwards() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 1, 3, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    angles = torch.randn(1, 3, 2, dtype=torch.float64, generator=generator).repeat(1, 1, 2)
    assert torch.autograd.gradcheck(lambda x: rotate(x, angles.cos(), angles.sin()), x)
    with torch.no_grad():
        turned = rotate(x, angles.cos(), angles.sin())
        torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
        torch.testing.assert_close(rotate(turned, angles.cos(), -angles.sin()), x.detach())
        assert torch.equal(turned[..., 4:], x[..., 4:])


@pytest.mark.usefixtures("at_once")
def test_later_tokens_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(2, CONTEXT, 4, generator=generator) for _ in range(3))
    before = attend(query, key, value, 0.5)
    key[:, 11:], value[:, 11:] = 1e4, float("nan")
    after = attend(query[:, :11], key[:, :11], value[:, :11], 0.5)
    torch.testing.assert_close(before[:, :11], after)
    torch.testing.assert_close(before[:, 0], value[:, 0])


def test_with_a_cache_of_earlier_tokens_it_is_transformers_own() -> None:
    model, tokens = build().eval(), make_tokens(1)
    with torch.no_grad():
        whole = model(input_ids=tokens).logits
        use_causal_attention(model, CPU)
        first = model(input_ids=tokens[:, :9], use_cache=True)
        cache = first.past_key_values
        rest = [model(input_ids=tokens[:, i : i + 1], past_key_values=cache).logits for i in range(9, CONTEXT)]
    torch.testing.assert_close(torch.cat([first.logits, *rest], 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "others"),
    [("gpt_neox", {"attention_dropout": 0.1}), ("llama", {}), ("mistral", {"sliding_window": 4})],
)
def test_on_a_cpu_others_stay_as_they_are(kind: str, others: dict[str, Any]) -> None:
    model = build(kind, **others)
    use_causal_attention(model, CPU)
    assert model.config._attn_implementation == "eager"
    assert not any(isinstance(m, CausalAttention) for m in model.modules())


@pytest.mark.parametrize(
    ("kind", "others", "masked"),
    [
        ("gpt_neox", {}, False),
        ("llama", {}, False),
        ("qwen3", {"head_dim": 16, "num_key_value_heads": 1}, False),
        ("mistral", {"sliding_window": None, "num_key_value_heads": 2}, False),
        ("mistral", {"sliding_window": 4, "num_key_value_heads": 2}, True),
        ("gemma3_text", {"sliding_window": 4, "num_key_value_heads": 1, "head_dim": 16}, True),
    ],
)
def test_off_the_cpu_full_attention_needs_no_mask_even_compiled(
    kind: str,
    others: dict[str, Any],
    masked: bool,  # noqa: FBT001
) -> None:
    """The model is told that it will be elsewhere; what is asked of torch can be seen here as well."""
    model = build(kind, "sdpa", **others)
    expected, _ = run(model, make_tokens())
    use_causal_attention(model, torch.device("cuda"))
    asked: list[dict[str, Any]] = []

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        asked.extend(
            dict(node.kwargs)
            for node in graph.graph.nodes
            if node.target is torch.nn.functional.scaled_dot_product_attention
        )
        return graph.forward

    compiled = torch.compile(model, backend=look, dynamic=False, fullgraph=True)
    logits = compiled(input_ids=make_tokens(), use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert len(asked) == 2
    for kwargs in asked:
        assert (kwargs["attn_mask"] is None and kwargs["is_causal"] is True) != masked


def test_a_checkpoint_does_not_tell_of_it(tmp_path: Any) -> None:
    model = build()
    use_causal_attention(model, CPU)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded.gpt_neox.layers[0].attention).__module__.startswith("transformers.")
