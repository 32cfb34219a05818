"""Rendering of the transcript's turns for a tokenizer: its chat template's marks, cut out once and put in by us.

Templates rewrite what they render (Qwen3's drops earlier `<think>` blocks), which would break the append-only transcript.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mosaic_guard._transcript import Role

_SENTINELS = ("SENTINEL-SYSTEM", "SENTINEL-USER-1", "SENTINEL-ASSISTANT", "SENTINEL-USER-2", "SENTINEL-ASSISTANT-2")


class ChatFormat:
    """Encodes turns of a transcript for one tokenizer.

    Args:
        tokenizer: A transformers tokenizer; without a chat template, plain headings stand for its marks.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
        self._marks = _template_marks(tokenizer) or {
            (None, "system"): "### system\n",
            ("system", "user"): "\n\n### user\n",
            ("user", "assistant"): "\n\n### guard\n",
            ("assistant", "user"): "\n\n### user\n",
        }

    def before(self, last: Role | None, role: Role) -> tuple[str, tuple[int, ...]]:
        """(text, token ids) of the template's marks between a turn of role `last` (None at the start) and one of `role`."""
        text = self._marks[(last, role)]
        return text, tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def content(self, text: str) -> tuple[int, ...]:
        """Token ids of free text; none of them is a special or added token, whatever the text says."""
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        if self._special.isdisjoint(ids):
            return ids
        pieces = text
        for token in sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True):
            pieces = pieces.replace(token, " ".join(token))
        ids = tuple(self.tokenizer.encode(pieces, add_special_tokens=False))
        return tuple(i for i in ids if i not in self._special)


def _template_marks(tokenizer: Any) -> dict[tuple[Role | None, Role], str] | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    roles: Sequence[Role] = ("system", "user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": text} for role, text in zip(roles, _SENTINELS, strict=True)]
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # templates raise whatever they like, for instance on a system turn
        return None
    marks: dict[tuple[Role | None, Role], str] = {}
    last: Role | None = None
    rest = rendered
    for role, text in zip(roles[:4], _SENTINELS, strict=False):
        before, found, rest = rest.partition(text)
        if not found:
            return None
        marks[(last, role)] = before
        last = role
    return marks
