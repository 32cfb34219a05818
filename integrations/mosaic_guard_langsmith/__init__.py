"""LangSmith's run exports as conversations.

A file holds runs as LangSmith's client writes them (`Run.model_dump(mode="json")`, or the API's JSON): a list, one run, or
JSON lines, nested by `child_runs` or flat with `parent_run_id`. Each trace is one conversation: the root's own message list if
it has one with tool calls (as LangGraph agents do), else that of the model run which saw most. Feedback counts for the
outcome: in `feedback_stats` of the root, or as records of their own (`key`, `score`, `trace_id`) in the same file.
The package `langsmith` is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, messages_from_dict

from mosaic_guard._trace import Outcome
from mosaic_guard_openai_messages import checked, records, tool_specs
from mosaic_guard_training.importing import Conversation, Malformed, MalformedConversationError, as_messages, attempt

__all__ = ["message_of", "outcome_of", "read"]

HARMFUL = frozenset({"harmful", "harm", "unsafe"})
"""Feedback keys whose score, at or above ½, says that harm was done."""
HARMLESS = frozenset({"harmless", "safe", "safety"})
"""Feedback keys whose score, below ½, says that harm was done."""
COMPLETED = frozenset({"completed", "correct", "correctness", "success", "helpful", "helpfulness"})
"""Feedback keys whose score, at or above ½, says that the task was done. All other keys are kept in the details only."""


def read(file: Path) -> Iterator[Conversation | Malformed]:
    """The conversation of each trace in a file, in the order of their first runs.

    Raises:
        ImportingError: If the file is neither JSON nor JSON lines; names file and line.
    """
    traces: dict[str, list[Mapping[str, Any]]] = {}
    feedback: dict[str, list[Mapping[str, Any]]] = {}
    for where, record in records(file):
        if not isinstance(record, Mapping):
            yield Malformed(where, "not a run")
        elif "run_type" in record and "id" in record:
            for run in _with_children(record):
                traces.setdefault(str(record.get("trace_id") or record["id"]), []).append(run)
        elif "key" in record and ("trace_id" in record or "run_id" in record):
            feedback.setdefault(str(record.get("trace_id") or record["run_id"]), []).append(record)
        else:
            yield Malformed(where, "neither a run nor feedback")
    for trace, runs in traces.items():
        yield attempt(f"{file.name}:{trace}", partial(_conversation, trace, runs, feedback.get(trace, [])))


def _with_children(run: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield run
    children = run.get("child_runs")
    for child in children if isinstance(children, list) else ():
        if isinstance(child, Mapping):
            yield from _with_children(child)


def _conversation(trace: str, runs: Sequence[Mapping[str, Any]], feedback: Sequence[Mapping[str, Any]]) -> Conversation:
    runs = sorted(runs, key=lambda run: str(run.get("dotted_order") or run.get("start_time") or ""))
    root = next((run for run in runs if not run.get("parent_run_id")), runs[0])
    models = [run for run in runs if run.get("run_type") == "llm"]
    messages = _of_chain(root)
    if not any(isinstance(message, AIMessage) and message.tool_calls for message in messages):
        seen = [_of_model(run) for run in models]
        messages = max(reversed(seen), key=len, default=[])
    if not messages:
        raise MalformedConversationError("none of its runs holds messages")
    said = (root.get("extra") or {}).get("metadata") or {}
    return Conversation(
        id=trace,
        messages=messages,
        tools=next((specs for run in reversed(models) if (specs := _tools(run))), []),
        task=str(said["mosaic_task"]) if "mosaic_task" in said else None,
        outcome=outcome_of([*_stats(root), *feedback]),
    )


def _of_chain(run: Mapping[str, Any]) -> list[BaseMessage]:
    """The messages that a graph's state ends with."""
    found = (run.get("outputs") or {}).get("messages")
    if not isinstance(found, list):
        return []
    given = (run.get("inputs") or {}).get("messages")
    messages = _messages(found)
    before = _messages(given) if isinstance(given, list) else []
    # A graph's state holds its input again; a plain function may return what is new alone.
    if before and [m.content for m in messages[: len(before)]] != [m.content for m in before]:
        messages = before + messages
    return as_messages(messages)


def _of_model(run: Mapping[str, Any]) -> list[BaseMessage]:
    """What one model run read and answered."""
    given, said = (run.get("inputs") or {}).get("messages") or [], run.get("outputs") or {}
    if given and isinstance(given[0], list):  # LangChain's models take batches
        given = given[0]
    answers: list[Any] = []
    generations = said.get("generations")
    while isinstance(generations, list) and generations:
        generations = generations[0]
    if isinstance(generations, Mapping) and generations.get("message"):
        answers = [generations["message"]]
    elif said.get("choices"):
        answers = [said["choices"][0].get("message") or {}]
    elif isinstance(said.get("message"), Mapping):
        answers = [said["message"]]
    elif "role" in said:
        answers = [said]
    return as_messages(_messages([*given, *answers]))


def _messages(given: Iterable[Any]) -> list[BaseMessage]:
    return [message_of(message) for message in given]


_CLASSES = {"HumanMessage": "human", "AIMessage": "ai", "SystemMessage": "system", "ToolMessage": "tool"}
_TYPES = frozenset(_CLASSES.values())


def message_of(record: Any) -> BaseMessage:
    """A message from any of the forms in which runs hold one: LangChain's constructor or dump, or chat completions.

    Raises:
        MalformedConversationError: If it is in none of them.
    """
    if not isinstance(record, Mapping):
        raise MalformedConversationError("a message is no object")
    if record.get("lc") == 1 and isinstance(record.get("id"), list) and record["id"]:
        kind = _CLASSES.get(str(record["id"][-1]).removesuffix("Chunk"))
        data = record.get("kwargs")
    elif record.get("role") == "tool":
        # Which call it answers is looked at with the whole conversation.
        kind, data = "tool", {"content": record.get("content") or "", "tool_call_id": str(record.get("tool_call_id"))}
    elif "role" in record:
        return as_messages([checked(record)])[0]
    else:
        kind = str(record.get("type", "")).removesuffix("MessageChunk").lower()
        data = record.get("data", record)
    if kind not in _TYPES or not isinstance(data, Mapping):
        raise MalformedConversationError("a message is of an unknown kind")
    try:
        return messages_from_dict([{"type": kind, "data": {**data, "type": kind}}])[0]
    except Exception as error:  # pydantic, on whatever the export holds
        raise MalformedConversationError(f"a message cannot be read ({type(error).__name__})") from error


def _tools(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    parameters = (run.get("extra") or {}).get("invocation_params") or {}
    return tool_specs(parameters.get("tools") or (run.get("inputs") or {}).get("tools"))


def _stats(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    stats = run.get("feedback_stats") or {}
    return [{"key": key, "score": found.get("avg")} for key, found in stats.items() if isinstance(found, Mapping)]


def outcome_of(feedback: Sequence[Mapping[str, Any]]) -> Outcome | None:
    """What feedback says: harm was done if any of it says so; the task was done if all that says anything says so."""
    scores = [(str(f["key"]), float(f["score"])) for f in feedback if isinstance(f.get("score"), (bool, int, float))]
    if not scores:
        return None
    harmful = [score >= 0.5 for key, score in scores if key in HARMFUL]
    harmful += [score < 0.5 for key, score in scores if key in HARMLESS]
    completed = [score >= 0.5 for key, score in scores if key in COMPLETED]
    return Outcome(
        harmful=any(harmful) if harmful else None,
        completed=all(completed) if completed else None,
        source="feedback:langsmith",
        details={"feedback": [{"key": key, "score": score} for key, score in scores]},
    )
