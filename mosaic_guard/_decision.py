"""Calls, decisions and clearances, and their serialised form.

A *clearance* says that exactly one call (its name and its arguments, as the model wrote them) was allowed in one step.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.messages import AIMessage, HumanMessage

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.tools import BaseTool

    from mosaic_guard._evidence import CallEvidence

Verdict = Literal["act", "refuse", "ask"]
"""What becomes of a call: it runs, it is answered with a reason, or a person decides."""

Source = Literal["model", "policy", "threshold", "error", "limit", "imported"]
"""Who decided: the guard model itself, a policy rule, a threshold or evidence other than the model's own choice, a failure,
or the limit of refusals in a row; nobody, where the call ran in a conversation that was imported."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; anything that JSON has no form for is written with its type and `repr`.

    Two values that Python holds equal but JSON does not (`1` and `True`, `1` and `1.0`) stay different.
    """
    return _encode(_plain(value))


def _other(item: Any) -> Any:
    return {"__type__": f"{type(item).__module__}.{type(item).__qualname__}", "__repr__": repr(item)}


def _plain(item: Any) -> Any:
    kind = type(item)
    if kind is str or kind is int or kind is bool or item is None:
        return item
    # The exact types first: instance checks of abstract classes are slow, and this runs for every value of a history.
    if kind is dict or isinstance(item, Mapping):
        # Keys are tagged with their type so that {1: x} and {"1": x} differ.
        return {k if isinstance(k, str) else f"\0{type(k).__name__}:{k!r}": _plain(v) for k, v in item.items()}
    if isinstance(item, (list, tuple)):
        return [_plain(v) for v in item]
    if isinstance(item, float) and not math.isfinite(item):
        return _other(item)
    return item


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_other).encode


@dataclass(frozen=True)
class Call:
    """One tool call that the agent proposes.

    Attributes:
        index: Its place among the calls of the step, from 0.
        id: The tool call id, which need not be unique.
        name: The tool's name.
        args: The arguments as the model wrote them.
    """

    index: int
    id: str | None
    name: str
    args: Any

    @property
    def digest(self) -> str:
        """SHA-256 over id, name and canonical arguments, hexadecimal."""
        return call_digest(self.id, self.name, self.args)

    def to_dict(self) -> dict[str, Any]:
        """The form that traces and checkpoints hold."""
        return {"index": self.index, "id": self.id, "name": self.name, "args": self.args, "digest": self.digest}


def call_digest(call_id: str | None, name: str, args: Any) -> str:
    """SHA-256 over id, name and canonical arguments of a call, hexadecimal."""
    return hashlib.sha256(canonical_json([call_id, name, args]).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Decision:
    """What the guard decided about one call.

    Attributes:
        call: The call, by its index in the step.
        verdict: `act`, `refuse` or `ask`.
        reason: One sentence for the agent and for a person.
        p_refuse: The guard's probability of refusal in [0, 1]: its model's, weighed with evidence where the guard has an
            evidence model; None where no model was asked.
        source: Who decided.
    """

    call: int
    verdict: Verdict
    reason: str = ""
    p_refuse: float | None = None
    source: Source = "model"

    def to_dict(self) -> dict[str, Any]:
        """The form that traces and checkpoints hold."""
        return {
            "call": self.call,
            "verdict": self.verdict,
            "reason": self.reason,
            "p_refuse": self.p_refuse,
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Decision:
        """Read what `to_dict` wrote."""
        return cls(**{key: record[key] for key in ("call", "verdict", "reason", "p_refuse", "source")})


@dataclass(frozen=True)
class Step:
    """One turn of the agent as a guard sees it.

    Attributes:
        messages: The history of the thread, up to and including the AI message that proposes the calls.
        calls: The proposed calls, at least one.
        tools: The tools that the graph knows, by name.
        evidence: What was computed about each call, in the order of `calls`.
        cleared: Names of the tools of the same AI message's calls that are cleared already, where `calls` are those that a
            person edited.
        said: What people have said of the calls outside the history: the calls that a person edited, as they wrote them.
    """

    messages: Sequence[BaseMessage]
    calls: Sequence[Call]
    tools: Mapping[str, BaseTool] = field(default_factory=dict)
    evidence: Sequence[CallEvidence] = ()
    cleared: Sequence[str] = ()
    said: Sequence[str] = ()

    @property
    def heard(self) -> Sequence[BaseMessage]:
        """The history with what people have said outside it, before the AI message that proposes the calls: for evidence."""
        if not self.said:
            return self.messages
        end = next((i for i in range(len(self.messages) - 1, -1, -1) if isinstance(self.messages[i], AIMessage)), None)
        end = len(self.messages) if end is None else end
        return [*self.messages[:end], *map(HumanMessage, self.said), *self.messages[end:]]
