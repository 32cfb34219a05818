"""`recursion_limit` counted in the user's own steps: supersteps in which only the guard worked are added to it.

langgraph computes the last step of a run as `step + recursion_limit + 1` and compares with it (so do its managed values
`RemainingSteps` and `IsLastStep`). The limit of a guarded run is an integer whose sums grow when the guard takes a
superstep, which keeps all three exact without touching langgraph's loop.
"""

from __future__ import annotations

from typing import Any, Self

from langchain_core.runnables import RunnableConfig

SCRATCHPAD = "__pregel_scratchpad"
"""Where langgraph puts the running step and the last step into a task's config."""


class UserSteps(int):
    """A `recursion_limit` that makes stretching last steps."""

    def __radd__(self, step: int) -> LastStep:
        return LastStep(int(step) + int(self))


class LastStep(int):
    """The last step of a run; each superstep that the guard takes moves it on by one."""

    _granted: set[int]

    def __new__(cls, value: int) -> Self:
        last = super().__new__(cls, value)
        last._granted = set()
        return last

    @property
    def now(self) -> int:
        """The last step as of now."""
        return int(self) + len(self._granted)

    def grant(self, step: int) -> None:
        """Count superstep `step` as the guard's, once."""
        self._granted.add(step)

    def __add__(self, more: int) -> LastStep:
        total = LastStep(int(self) + more)
        total._granted = self._granted
        return total

    def __sub__(self, step: int) -> int:
        return self.now - step

    def __lt__(self, step: int) -> bool:
        return self.now < step

    def __le__(self, step: int) -> bool:
        return self.now <= step

    def __gt__(self, step: int) -> bool:
        return self.now > step

    def __ge__(self, step: int) -> bool:
        return self.now >= step

    # Equality and hash stay those of the starting value: nothing compares a last step for equality.


def grant_superstep(config: RunnableConfig) -> None:
    """Called by a guard node: the running superstep does not count against the user's limit."""
    scratchpad: Any = config.get("configurable", {}).get(SCRATCHPAD)
    stop = getattr(scratchpad, "stop", None)
    if isinstance(stop, LastStep):
        stop.grant(scratchpad.step)
