"""Deterministic rules, evaluated before the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mosaic_guard._decision import Call, Decision


@dataclass(frozen=True)
class Policy:
    """Rules by tool name. A refusal rule wins over an allow rule; an allow rule is final: the model cannot refuse the call.

    Attributes:
        allow: Patterns (`fnmatch`, case sensitive) of tools whose calls always run.
        refuse: Patterns of tools whose calls never run.
        text: The operator's policy in words, for the guard model to read.

    Raises:
        TypeError: If `allow` or `refuse` is one string: every letter of it would be a pattern.
    """

    allow: Sequence[str] = ()
    refuse: Sequence[str] = ()
    text: str = ""

    def __post_init__(self) -> None:
        for name in ("allow", "refuse"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"Policy.{name} is a list of patterns: write {name}=[{getattr(self, name)!r}]")

    def decide(self, call: Call) -> Decision | None:
        """The decision that a rule makes about a call; None where no rule matches."""
        for verdict, patterns in (("refuse", self.refuse), ("act", self.allow)):
            for pattern in patterns:
                if fnmatchcase(call.name, pattern):
                    reason = f"the operator's policy {'refuses' if verdict == 'refuse' else 'allows'} {pattern!r}"
                    return Decision(call.index, "refuse" if verdict == "refuse" else "act", reason, source="policy")
        return None
