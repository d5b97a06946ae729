"""The sizes of a transformer, from its config alone, and the floating-point operations that follow from them.

The counts of parameters are exact for the model types of `FAMILIES`. Other types have no shape here, because a count
that is nearly right would be taken for one that is right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewarm.config.plan import Plan
from rewarm.config.schema import Config, ModelConfig
from rewarm.data.tokenizers import ASSETS

ADAMW_BYTES = 16
"""Bytes a parameter takes in training: weight, gradient and both moments in FP32."""
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""Keys of a config.json that a checkpoint and the model that it is a checkpoint of have in common."""
PAYS_FROM = {"cpu": 1.5e14, "cuda": 1e17}
"""Training FLOPs of a run from which compiling is worth its time. On two CPU cores that are seven minutes or more, of
which a tenth or more is won for 35 seconds of compiling; on an H100 six, of which a
third is won for two at most (docs/performance.md)."""


@dataclass(frozen=True)
class Family:
    """How the blocks of a model type are built, where its config does not say so."""

    gated: bool = True
    """Whether the feed-forward layer has three matrices (gate, up, down), or two."""
    norms: int = 2
    """Normalisations in a block that are as wide as the residual stream."""
    norm_parameters: int = 1
    """Parameters of a normalisation for each unit of its width: 1 for RMSNorm, 2 for LayerNorm."""
    query_key_norm: str = ""
    """Width of the normalisations of queries and keys: that of one `head` or of `all`; empty where there are none."""
    attention_bias: bool = False
    """Whether the four products of attention have biases, where the config does not say so."""
    query_key_value_bias: bool = False
    """Whether the products for queries, keys and values have biases whatever the config says."""
    feed_forward_bias: bool = False
    """Whether the feed-forward layer has biases, where the config does not say so."""
    tied: bool = False
    """Whether the output matrix is the embedding, where the config does not say so."""
    window: int | None = None
    """The sliding window where the config does not say one, in tokens."""
    head_size: int | None = None
    """The size of a head where the config does not say it; None: the width of the residual stream, shared by all."""


FAMILIES = {
    "gpt_neox": Family(gated=False, norm_parameters=2, attention_bias=True, feed_forward_bias=True),
    "llama": Family(),
    "mistral": Family(window=4096),
    "qwen2": Family(query_key_value_bias=True, window=4096),
    "qwen3": Family(query_key_norm="head", window=4096, head_size=128),
    "gemma": Family(tied=True, head_size=256),
    "gemma2": Family(norms=4, tied=True, window=4096, head_size=256),
    "gemma3_text": Family(norms=4, query_key_norm="head", tied=True, window=4096, head_size=256),
    "olmo": Family(norm_parameters=0),
    "olmo2": Family(query_key_norm="all"),
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer that its costs follow from."""

    vocab: int
    hidden: int
    layers: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    family: Family = field(default_factory=Family)
    tied: bool = False
    attention_bias: bool = False
    feed_forward_bias: bool = False
    windowed_layers: int = 0
    """Layers in which a token sees no further back than `window`."""
    window: int = 0
    """Tokens that a token of a windowed layer sees, itself included."""

    @property
    def queries(self) -> int:
        """Return the width of all heads' queries together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Return the width of all heads' keys together, which is that of the values too."""
        return self.key_value_heads * self.head_size

    @property
    def matrices(self) -> int:
        """Return the parameters of a block's matrices."""
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        return attention + (3 if self.family.gated else 2) * self.hidden * self.intermediate

    @property
    def block(self) -> int:
        """Return the parameters of a block."""
        f, h = self.family, self.hidden
        biases = 0
        if self.attention_bias or f.query_key_value_bias:
            biases += self.queries + 2 * self.keys
        if self.attention_bias:
            biases += h
        if self.feed_forward_bias:
            biases += (2 if f.gated else 1) * self.intermediate + h
        between = {"": 0, "head": 2 * self.head_size, "all": self.queries + self.keys}[f.query_key_norm]
        return self.matrices + biases + f.norm_parameters * (f.norms * h + between)

    @property
    def blocks(self) -> int:
        """Return the parameters of all blocks and the last normalisation: all but the embeddings."""
        return self.layers * self.block + self.family.norm_parameters * self.hidden

    @property
    def embeddings(self) -> int:
        """Return the parameters of the input embedding, and of the output's where it is another matrix."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return self.blocks + self.embeddings

    def flops(self, context: int) -> int:
        """Return the floating-point operations that training takes for one token.

        6 for each parameter that multiplies (blocks and output), and for attention 12 * queries for each layer and
        each token of the context or the window, counted in full although half of it is masked (Chowdhery et al. 2022,
        appendix B).
        """
        windowed = self.windowed_layers if self.window < context else 0
        seen = (self.layers - windowed) * context + windowed * self.window
        return 6 * (self.blocks + self.vocab * self.hidden) + 12 * self.queries * seen


def config_of(model: ModelConfig) -> dict[str, Any] | None:
    """Return what the config.json of a model holds, without a network; None where it is not on this machine.

    That is the shape of the keys (a GPT-NeoX), or the file of `model.id`: in a folder, of those that come with the
    package, or in the hub's cache.
    """
    sizes = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": model.max_context,
    }
    if all(sizes.values()):
        neox = {"rotary_pct": model.rotary_pct, "use_parallel_residual": True, "tie_word_embeddings": False}
        none = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
        return {"model_type": "gpt_neox", **sizes, **neox, **none, "bos_token_id": 0, "eos_token_id": 0}
    path = local_config(model.id) if model.id else None
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # it is damaged: whoever loads the model says so
    return found if isinstance(found, dict) else None


def shape_of(model: ModelConfig) -> Shape | None:
    """Return the shape of a model whose config is on this machine and whose type is known; None for another."""
    found = config_of(model)
    return shape_from(found) if found else None


def shape_from(config: Mapping[str, Any]) -> Shape | None:
    """Return the shape that a config.json describes; None where its type is not one of `FAMILIES`."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        return None
    try:
        layers, hidden, heads = (config[key] for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
        windowed, window = _windows(config, layers, config.get("sliding_window", family.window))
        return Shape(
            vocab=config["vocab_size"],
            hidden=hidden,
            layers=layers,
            intermediate=config["intermediate_size"],
            heads=heads,
            key_value_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or family.head_size or hidden // heads,
            family=family,
            tied=bool(config.get("tie_word_embeddings", family.tied)),
            attention_bias=bool(config.get("attention_bias", family.attention_bias)),
            feed_forward_bias=bool(config.get("mlp_bias", family.feed_forward_bias)),
            windowed_layers=windowed,
            window=window,
        )
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def _windows(config: Mapping[str, Any], layers: int, window: int | None) -> tuple[int, int]:
    """Return how many layers have the sliding window, and its tokens.

    Mistral has it in all layers, Gemma 2 in every second, Gemma 3 in all but each `sliding_window_pattern`-th, Qwen
    in those from `max_window_layers` on if it says so. Newer configs list what each layer has.
    """
    kind = config["model_type"]
    if not window or (kind.startswith("qwen") and not config.get("use_sliding_window")):
        return 0, 0
    if kinds := config.get("layer_types"):
        windowed = list(kinds).count("sliding_attention")
    elif kind.startswith("qwen"):
        windowed = max(0, layers - config.get("max_window_layers", 28))
    else:
        every = {"gemma2": 2, "gemma3_text": config.get("sliding_window_pattern", 6)}.get(kind)
        windowed = layers - layers // every if every else layers
    return windowed, window if windowed else 0


def flops_per_token(config: Config) -> int | None:
    """Return the floating-point operations of training for one token; None where the model's shape is not known."""
    shape = shape_of(config.model)
    return shape.flops(config.train.context) if shape else None


def run_flops(config: Config, plan: Plan) -> int | None:
    """Return the floating-point operations of a whole training; None where the model's shape is not known."""
    flops = flops_per_token(config)
    return flops and flops * plan.steps * plan.tokens_per_step


def known_config(name: str) -> Path | None:
    """Return the config.json of a folder, or of a model of the hub whose config comes with the package."""
    files = (folder / "config.json" for folder in (Path(name).expanduser(), ASSETS / "models" / name))
    return next((file for file in files if file.is_file()), None)


def local_config(name: str) -> Path | None:
    """Return the config.json of a folder or of a model of the hub, where it is on this machine."""
    if known := known_config(name):
        return known
    from huggingface_hub import try_to_load_from_cache

    repo, _, revision = name.partition("@")
    cached = try_to_load_from_cache(repo, "config.json", revision=revision or None) if "/" in repo else None
    return Path(cached) if isinstance(cached, str) else None
