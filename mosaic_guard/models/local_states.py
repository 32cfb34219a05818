"""Attention states that grow in place: transformers' own concatenate, which copies the whole context for each new token."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 512
"""Tokens that a layer reserves beyond what it needs, each time that it is full."""


_Layer: Any = DynamicLayer  # its annotations say less than what it does


class GrowingLayer(_Layer):  # type: ignore[misc]
    """Keys and values are the front of a larger store; a new token is written behind it.

    `keys` and `values` have shape (batch, heads, tokens, width of a head), as the base class says.
    """

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make an empty store."""
        self.dtype, self.device = key_states.dtype, key_states.device
        both = (key_states, value_states)
        self._stores = tuple(states.new_empty((*states.shape[:-2], 0, states.shape[-1])) for states in both)
        self.keys, self.values = self._stores
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        known = self.keys.shape[-2]
        total = known + key_states.shape[-2]
        if total > self._stores[0].shape[-2]:
            self._stores = tuple(
                torch.cat([front, front.new_empty((*front.shape[:-2], total - known + ROOM, front.shape[-1]))], dim=-2)
                for front in (self.keys, self.values)
            )
        for store, new in zip(self._stores, (key_states, value_states), strict=True):
            store[..., known:total, :] = new
        self.keys, self.values = (store[..., :total, :] for store in self._stores)
        return self.keys, self.values


def growing_states(model: Any) -> DynamicCache:
    """Empty attention states for a model; layers with a sliding window stay transformers' own."""
    states = DynamicCache(config=model.config)
    states.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in states.layers]
    return states
