"""What a task keeps over an interrupt: a node runs again from its start once a person has answered, and a guard judges once.

langgraph stores the answers that a task was given with its interrupt, as a list. What is kept goes into the same list, before
the answer to the interrupt that it is kept over.
"""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.types import RESUME
from langgraph.types import interrupt

from mosaic_guard._channel import SEND
from mosaic_guard._recursion import SCRATCHPAD

RESUME_MAP = "__pregel_resume_map"
"""Where langgraph puts the answers of this run, by id of the interrupt, into a task's config."""


class Kept:
    """What one task keeps. Nothing else in the task may call `interrupt`.

    Args:
        config: The task's config.
    """

    def __init__(self, config: RunnableConfig) -> None:
        self._conf: Any = config["configurable"]
        self._scratchpad = self._conf[SCRATCHPAD]
        self._passed = 0
        """How many places of the list langgraph has counted."""
        self._place: int | None = None
        """Of what was recalled and not asked about again."""
        self._recalled = False

    def recall(self) -> dict[str, Any] | None:
        """What was kept last, once; None in a task that was not interrupted."""
        known = self._scratchpad.resume
        if self._recalled or not known:
            return None
        self._recalled = True
        place = (len(known) - 1) // 2 * 2
        if any(known[place] is answer for answer in (self._conf.get(RESUME_MAP) or {}).values()):
            # An answer to what was never asked: it stands in the place of what this task would have kept.
            del known[place:]
            return None
        self._place = place
        return dict(known[place])

    def ask(self, payload: Any, keep: dict[str, Any]) -> Any:
        """A person's answer.

        Args:
            payload: The interrupt's payload.
            keep: What `recall` returns when the task runs again. Plain values.

        Raises:
            GraphInterrupt: Where there is no answer yet.
        """
        known = self._scratchpad.resume
        place, self._place = self._place, None
        if place is None:
            place = len(known)
            known.append(keep)
        while self._passed <= place:
            self._passed = self._scratchpad.interrupt_counter() + 1
        self._conf[SEND]([(RESUME, known[: place + 1])])
        self._passed += 1
        return interrupt(payload)
