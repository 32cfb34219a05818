"""The supported families by the shapes that their configurations publish, and the memory that training them takes.

The figures are computed: nothing is loaded, and nothing here was measured on a GPU. `scripts/gpu_step.py` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "max_position_embeddings": 32768, "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-4B-Thinking-2507": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 262144, "tie_word_embeddings": True,
    },
    "microsoft/phi-4": {
        "model_type": "phi3", "vocab_size": 100352, "hidden_size": 5120, "intermediate_size": 17920,
        "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 10,
        "max_position_embeddings": 16384, "tie_word_embeddings": False, "pad_token_id": 0,
    },
}  # fmt: skip
"""Fields of the published `config.json` of each, by hub id."""

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
"""What makes a configuration small enough to try it on a CPU."""

GIB = 2**30
Tune = Literal["lora", "qlora", "full"]


def config_of(name: str, *, tiny: bool = False) -> Any:
    """The transformers configuration of an architecture.

    Args:
        name: A key of `ARCHITECTURES`.
        tiny: Keep the kind of architecture and make it small.
    """
    from transformers import AutoConfig

    # Which ids are special is no part of the shape, and a tiny vocabulary does not have them.
    shape = {**ARCHITECTURES[name], **(TINY if tiny else {}), "bos_token_id": None, "eos_token_id": None}
    return AutoConfig.for_model(shape.pop("model_type"), **shape)


@dataclass(frozen=True)
class Shape:
    """What memory depends on.

    Attributes:
        weights: Number of weights.
        linear: Of them, those that 4 bits hold: linear layers but the language-model head.
        lora: Weights of an adapter.
        layers: Number of layers.
        hidden: Width of a layer.
        intermediate: Width of its feed-forward part.
    """

    weights: int
    linear: int
    lora: int
    layers: int
    hidden: int
    intermediate: int


def shape_of(config: Any, rank: int = 16) -> Shape:
    """The shape of an architecture with an adapter on all linear layers, counted on a model without storage."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = [each for each in model.modules() if isinstance(each, torch.nn.Linear) and each is not head]
    return Shape(
        model.num_parameters(),
        sum(each.weight.numel() for each in linear),
        sum(rank * (each.in_features + each.out_features) for each in linear),
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
    )


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        weights: The model's.
        training: Trained weights beside them, gradients and both moments.
        activations: What one row keeps for the backward pass, with checkpointing.
    """

    weights: float
    training: float
    activations: float

    @property
    def total(self) -> float:
        """All of it; the CUDA context, fragmentation and buffers of communication come on top, some 2 GiB."""
        return self.weights + self.training + self.activations


def memory_of(shape: Shape, tune: Tune, tokens: int, gpus: int = 1) -> Memory:
    """The memory that training takes on each of some GPUs, one row in memory at once, weights and moments spread evenly.

    Args:
        shape: Of the architecture.
        tune: lora: bfloat16 weights; qlora: NF4, quantised twice; full: float32 weights and their bfloat16 copies.
        tokens: Of the row.
        gpus: How many share them (FSDP or ZeRO 3); 1 for none.
    """
    half = 2 * (shape.weights - shape.linear)
    weights = {
        "lora": 2 * shape.weights,
        "qlora": half + shape.linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8,
        "full": 2 * shape.weights,
    }[tune]
    # In float32: the trained weights, their gradients, two moments.
    trained = 16 * (shape.weights if tune == "full" else shape.lora)
    kept = 2 * tokens * shape.hidden * shape.layers
    # Of the layer that is computed again: norms, projections and attention about 8 widths, the feed-forward part 4.
    again = 2 * tokens * (8 * shape.hidden + 4 * shape.intermediate)
    mask = 3 * tokens**2
    return Memory(weights / gpus, trained / gpus, kept + again + mask)


def table(tokens: int = 4096) -> list[str]:
    """The table of `docs/scaling.md`, as lines of Markdown."""
    lines = [
        "| model | weights | LoRA weights, rank 16 | GiB: LoRA | GiB: QLoRA | GiB: LoRA, FSDP on 4 | GiB: full, FSDP on 8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ARCHITECTURES:
        shape = shape_of(config_of(name))
        ways: list[tuple[Tune, int]] = [("lora", 1), ("qlora", 1), ("lora", 4), ("full", 8)]
        sizes = [f"{memory_of(shape, tune, tokens, gpus).total / GIB:.1f}" for tune, gpus in ways]
        lines.append(f"| {name} | {shape.weights:,} | {shape.lora:,} | " + " | ".join(sizes) + " |")
    return lines
