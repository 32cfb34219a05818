"""The guard as a LangChain decision model (langchain-core ≥ 1.8, langchain ≥ 1.5): found where it is, never required.

A decision model answers questions about a state. The guard can answer one: whether a proposed tool call is to be refused.
Not here: the step judged whole, clearances and traces; `MosaicMiddleware` and `guarded_graph` have those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.tools import BaseTool, StructuredTool

from mosaic_guard._channel import digest_of, proposing
from mosaic_guard._decision import Call, Step
from mosaic_guard._guard import Guard, Judgement, as_guard


def decision_model(guard: Guard | None = None) -> Any:
    """The guard as a `BaseDecisionModel`, for `AutoModeMiddleware(classifier=...)` and other code that takes one.

    It reads `tool_call`, `messages` and `tool_description` of the state. Its answer to any yes-or-no question (`Noul`) is the
    probability that the call is to be refused, scaled so that 0.5 is the guard's own threshold: at least 0.5 means refused.

    Args:
        guard: Judges the call. Default: `Guard.load("default")`, the local model.

    Raises:
        ImportError: If the installed langchain-core has no decision models.
    """
    try:
        decisions = import_module("langchain_core.decisions")
    except ImportError as error:
        raise ImportError('decision models need langchain-core 1.8: run pip install "langchain-core>=1.8"') from error
    chosen = as_guard(guard)
    return _model_class(decisions)(model=chosen.model.name, guard=chosen)


@cache
def _model_class(decisions: Any) -> Any:
    class GuardDecisionModel(decisions.BaseDecisionModel):  # type: ignore[misc]  # not known before it is imported
        """Answers whether a proposed tool call is to be refused."""

        guard: Any

        @property
        def _provider(self) -> str:
            return "mosaic_guard"

        def _classify(self, state: Any, questions: Mapping[str, Any]) -> Any:
            step = _step(state, questions)
            return self._response(questions, self.guard.check(step, self.guard.plan(step)))

        async def _aclassify(self, state: Any, questions: Mapping[str, Any]) -> Any:
            step = _step(state, questions)
            return self._response(questions, await self.guard.acheck(step, await self.guard.aplan(step)))

        def _response(self, questions: Mapping[str, Any], judgement: Judgement) -> Any:
            answer = {"type": "noul", "noul": _scaled(judgement, self.guard.threshold)}
            return decisions.ClassifierResponse(model=self.model, answers=dict.fromkeys(questions, answer))

    return GuardDecisionModel


def _step(state: Any, questions: Mapping[str, Any]) -> Step:
    other = sorted({str(question.type) for question in questions.values()} - {"noul"})
    if other:
        raise ValueError(
            f"a guard answers yes-or-no questions ('noul') about a tool call, not {', '.join(map(repr, other))}"
        )
    call = state.get("tool_call") if isinstance(state, Mapping) else None
    if not isinstance(call, Mapping) or not call.get("name"):
        raise ValueError("a guard judges a tool call: the state has to have a 'tool_call' with name, args and id")
    messages = _history(state.get("messages") or (), call)
    name = str(call["name"])
    return Step(
        messages, (Call(0, call.get("id"), name, call.get("args")),), _described(name, state.get("tool_description"))
    )


def _history(given: Sequence[Any], call: Mapping[str, Any]) -> list[BaseMessage]:
    """The messages up to the one that proposes the call; one that does so, if none of them does."""
    messages = convert_to_messages(given)
    index = proposing(messages)
    proposal = messages[index] if index >= 0 else None
    if isinstance(proposal, AIMessage) and digest_of(call) in map(digest_of, proposal.tool_calls):
        return messages[: index + 1]
    made = {"name": call["name"], "args": call.get("args") or {}, "id": call.get("id"), "type": "tool_call"}
    return [*messages, AIMessage("", tool_calls=[made])]


def _described(name: str, description: Any) -> dict[str, BaseTool]:
    if not description:
        return {}
    schema = {"title": name, "type": "object", "properties": {}}
    return {name: StructuredTool(name=name, description=str(description), args_schema=schema)}


def _scaled(judgement: Judgement, threshold: float) -> float:
    """The probability of refusal, with the guard's threshold at 0.5; the verdict has the last word."""
    (decision,) = judgement.decisions
    acts, p = decision.verdict == "act", decision.p_refuse
    if p is None:
        return 0.0 if acts else 1.0
    above = 1 - threshold or 1.0
    scaled = 0.5 * p / threshold if p < threshold else 0.5 + 0.5 * (p - threshold) / above
    return min(scaled, _BELOW_HALF) if acts else max(scaled, 0.5)


_BELOW_HALF = 0.4999999
"""The most that a call which may run gets: AutoModeMiddleware blocks from 0.5 on."""
