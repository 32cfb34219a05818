"""Attention states of token prefixes that were computed before: step k+1 of a thread only pays for what is new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class PrefixCache:
    """Least recently used (token ids, attention states) pairs, up to a number of tokens in all.

    Args:
        tokens: Most tokens kept; the newest entry stays even if it is longer.
    """

    def __init__(self, tokens: int = 16384) -> None:
        self._tokens = tokens
        self._entries: list[tuple[tuple[int, ...], Any]] = []

    def take(self, ids: Sequence[int]) -> tuple[int, Any]:
        """(n, states of the first n ids) for the longest prefix known, always shorter than `ids`; (0, None) if none is.

        Where the whole of an entry is a prefix, it is handed over and forgotten here; else its front is.
        """
        best, length = -1, 0
        for number, (known, _) in enumerate(self._entries):
            shared = _shared(known, ids)
            # Of equally long ones, the entry that ends there: it goes on in its own store.
            if shared > length or (shared == length > 0 and len(known) == shared):
                best, length = number, shared
        length = min(length, len(ids) - 1)
        if best < 0 or length <= 0:
            return 0, None
        known, states = self._entries[best]
        if len(known) == length:
            del self._entries[best]
            return length, states
        return length, states.front(length)

    def put(self, ids: Sequence[int], states: Any) -> None:
        """Keep the states of `ids`."""
        self._entries.append((tuple(ids), states))
        while len(self._entries) > 1 and sum(len(known) for known, _ in self._entries) > self._tokens:
            del self._entries[0]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    low, high = 0, min(len(a), len(b))
    # Slices compare at C speed, so bisect on them.
    while low < high:
        middle = (low + high + 1) // 2
        if tuple(a[low:middle]) == tuple(b[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low
