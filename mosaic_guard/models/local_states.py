"""Attention states that grow in place: transformers' own concatenate, which copies the whole context for each new token."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 512
"""Least number of tokens that a layer reserves beyond what it needs when it is full; else half of what it holds."""


_Layer: Any = DynamicLayer  # its annotations say less than what it does
_States: Any = DynamicCache


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
            room = total - known + max(ROOM, total // 2)  # by a factor, so that a long thread is rarely copied
            self._stores = tuple(
                torch.cat([front, front.new_empty((*front.shape[:-2], room, front.shape[-1]))], dim=-2)
                for front in (self.keys, self.values)
            )
        for store, new in zip(self._stores, (key_states, value_states), strict=True):
            store[..., known:total, :] = new
        self.keys, self.values = (store[..., :total, :] for store in self._stores)
        return self.keys, self.values

    def front(self, length: int) -> GrowingLayer:
        """A layer of the first `length` tokens, without a copy: it is full, so its first new token makes it its own store.

        This layer may go on growing: it never writes where the other one reads.
        """
        other = GrowingLayer()
        if not self.is_initialized:
            return other
        other.dtype, other.device, other.is_initialized = self.dtype, self.device, True
        other._stores = tuple(store[..., :length, :] for store in self._stores)
        other.keys, other.values = other._stores
        return other


class GrowingStates(_States):  # type: ignore[misc]
    """A model's attention states, one layer each; layers with a sliding window stay transformers' own."""

    def __init__(self, model: Any) -> None:
        super().__init__(config=model.config)
        self.layers: list[Any] = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in self.layers]

    def front(self, length: int) -> GrowingStates:
        """The states of the first `length` tokens, for another continuation."""
        other = copy.copy(self)
        other.layers = [
            layer.front(length) if isinstance(layer, GrowingLayer) else copy.deepcopy(layer) for layer in self.layers
        ]
        for layer in other.layers:
            if not isinstance(layer, GrowingLayer):
                layer.crop(length - layer.get_seq_length())
        return other
