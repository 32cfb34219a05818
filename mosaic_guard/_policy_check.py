"""What a policy does to a given call, rule by rule: `python -m mosaic_guard policy check`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool

from mosaic_guard._decision import Call, Step
from mosaic_guard._policy import Placed
from mosaic_guard._policy_file import PolicyFile
from mosaic_guard._policy_rule import Rule


@dataclass(frozen=True)
class Question:
    """A call, and the thread that it is proposed in.

    Attributes:
        tool: Name of the tool.
        args: Arguments of the call.
        user: What the user says.
        results: Texts of tool results that the agent has read, in order.
        annotations: The tool's `metadata`.
        tags: The tool's tags.
        earlier: How many calls of the tool have run in the thread.
    """

    tool: str
    args: Mapping[str, Any]
    user: str = ""
    results: Sequence[str] = ()
    annotations: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    earlier: int = 0

    def step(self) -> Step:
        """The step in which the call is proposed."""
        messages: list[AnyMessage] = [HumanMessage(self.user)] if self.user else []
        for number, (name, text) in enumerate(
            [*((self.tool, "") for _ in range(self.earlier)), *(("a tool", text) for text in self.results)]
        ):
            call_id = f"earlier-{number}"
            messages.append(AIMessage("", tool_calls=[{"name": name, "args": {}, "id": call_id}]))
            messages.append(ToolMessage(text, tool_call_id=call_id, name=name))
        messages.append(AIMessage("", tool_calls=[{"name": self.tool, "args": dict(self.args), "id": "asked"}]))
        tool = StructuredTool.from_function(
            lambda: None, name=self.tool, description=self.tool, metadata=dict(self.annotations), tags=list(self.tags)
        )
        return Step(messages, (Call(0, "asked", self.tool, dict(self.args)),), {self.tool: tool})


def json_object(option: str, text: str) -> dict[str, Any]:
    """The value of an option that is a JSON object.

    Raises:
        ValueError: If it is none.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{option} is a JSON object such as '{{\"x\": 1}}', not {text!r}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{option} is a JSON object such as '{{\"x\": 1}}', not {text!r}")
    return value


def list_rules(file: PolicyFile) -> Iterator[str]:
    """One line per rule, in the order in which they are tried."""
    yield f"{file.path}: {len(file.policy.in_order)} rules, refuse before ask before allow"
    for placed in file.policy.in_order:
        yield f"  {_place(file, placed):<28} {_said(placed.rule)}"
    if file.policy.text:
        yield f"  the guard model also reads: {file.policy.text.strip()}"


def explain_call(file: PolicyFile, question: Question) -> Iterator[str]:
    """One line per rule with what it makes of a call, then what becomes of it."""
    step = question.step()
    call = step.calls[0]
    yield f"{call.name}({json.dumps(call.args, ensure_ascii=False)})"
    deciding: Placed | None = None
    for placed in file.policy.in_order:
        found = placed.rule.match(call, step)
        if found.matches and deciding is None:
            deciding = placed
        matches = "matches" if found.matches else "does not match"
        yield f"  {placed.rule.verdict:<7}{_place(file, placed):<28} {matches}: {found.because}"
    decision = file.policy.decide(call, step)
    if decision is None or deciding is None:
        yield "no rule matches: the guard model decides"
        return
    meaning = {"refuse": "does not run", "ask": "waits for a person", "act": "runs; the guard model cannot refuse it"}
    yield f"{deciding.rule.verdict}, by {_place(file, deciding)}: the call {meaning[decision.verdict]}"
    yield f"reason: {decision.reason}"


def _place(file: PolicyFile, placed: Placed) -> str:
    key = placed.rule.verdict if placed.number is None else None
    return f"{placed.name} (line {file.line(placed.number, key)})"


def _said(rule: Rule) -> str:
    """A rule on one line."""
    parts = [f"{rule.verdict} {' or '.join(map(repr, rule.tools))}"]
    for name in ("annotations", "tags", "arguments", "after", "first", "origin"):
        value = getattr(rule, name)
        if value is not None and value != 0:
            parts.append(f"{name} {json.dumps(value, ensure_ascii=False)}")
    return ", ".join(parts)
