"""Reading one token on a CPU in bfloat16: torch takes 10 to 20 times as long where the weights are frozen.

torch multiplies a single row, shape (1, 1, n), by a weight that needs no gradient with a kernel for batches of matrices, which
has no fast path in bfloat16; by a weight that needs one, with the ordinary kernel. Of the default model, a token took 160 ms in
place of 28. Where no gradients are computed the flag has no other effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def slow_weights(model: Any) -> list[Any]:
    """The weights of a model with which one row takes long: frozen, bfloat16, on the CPU."""
    import torch

    return [
        each
        for each in model.parameters()
        if each.dtype == torch.bfloat16 and each.device.type == "cpu" and not each.requires_grad
    ]


@contextmanager
def ordinary_kernels(weights: Sequence[Any]) -> Iterator[None]:
    """Let rows be multiplied by these weights as fast as by others; only for where no gradients are computed.

    Args:
        weights: `slow_weights` of a model, which nobody else uses meanwhile.
    """
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
