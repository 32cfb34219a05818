"""Conversations that other systems logged, as traces: what was said and called, without any guard's judgement.

    python -m mosaic_guard_training.importing openai chats.jsonl --output traces/imported

Each AI message with tool calls becomes a step; its calls ran, so they are `act`, with source `imported`. There are no guard
tokens, but `--hindsight default` writes some to train on (`hindsight.py`), and `replay.py` has a guard judge the steps. A
conversation that cannot be read is left out, with its reason and count; a file that cannot be read is an error, and then
nothing is written.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage, convert_to_messages, messages_to_dict

from mosaic_guard._digest import messages_digest
from mosaic_guard._errors import MissingExtraError, ModelLoadError
from mosaic_guard._final_answer import final_answer
from mosaic_guard._trace import Outcome, TraceWriter, read_traces
from mosaic_guard._waiting import as_calls, task_of

FORMATS = {
    "openai": "mosaic_guard_openai_messages",
    "langsmith": "mosaic_guard_langsmith",
    "opentelemetry": "mosaic_guard_opentelemetry",
    "toolemu": "mosaic_guard_training.sources.toolemu",
}
"""Names of formats, and the modules whose `read(path)` yields their conversations."""

IMPORTED = {"model": "imported", "base_model": None, "adapter": None}
"""The guard that a trace of imported conversations names."""


class ImportingError(ValueError):
    """A file that cannot be imported; the message names it, and the line where there is one."""


class MalformedConversationError(ValueError):
    """A conversation that cannot become steps; the message says why, in words that are the same for each of its kind."""


@dataclass(frozen=True)
class Conversation:
    """What was said and done in one run of an agent.

    Attributes:
        id: Unique among the conversations imported together.
        messages: LangChain messages, or dictionaries with `role` and `content` in the form of chat completions.
        tools: What is known of the agent's tools, each with at least `name`; see `StepRecord.tools`.
        task: Conversations of the same task can be compared; default: a digest of the first human message.
        outcome: What became of it, where that is known.
        judge_answer: Whether the answer that ends it is a step too, in the form of a call of `final_answer`, as
            `check_final` has it.
    """

    id: str
    messages: Sequence[BaseMessage | Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    task: str | None = None
    outcome: Outcome | None = None
    judge_answer: bool = False


@dataclass(frozen=True)
class Malformed:
    """A conversation that an adapter could not read.

    Attributes:
        where: File, and line or id.
        reason: Why, in words that are the same for each of its kind.
    """

    where: str
    reason: str


def attempt(where: str, make: Callable[[], Conversation]) -> Conversation | Malformed:
    """A conversation, or why there is none: an adapter need not check the shape of all that it reaches into."""
    try:
        return make()
    except MalformedConversationError as error:
        return Malformed(where, str(error))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return Malformed(where, f"not in the form of this format ({type(error).__name__})")


@dataclass
class Imported:
    """What became of some conversations.

    Attributes:
        trajectories: How many were written.
        steps: How many steps they have.
        skipped: Why conversations were left out, with how many.
        examples: For each reason, one conversation that it is about.
    """

    trajectories: int = 0
    steps: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def skip(self, where: str, reason: str) -> None:
        """Count a conversation that was left out."""
        self.skipped[reason] += 1
        self.examples.setdefault(reason, where)


def import_conversations(found: Iterable[Conversation | Malformed], writer: TraceWriter) -> Imported:
    """Write conversations to a trace.

    Args:
        found: The conversations, and what could not be read as one.
        writer: Where to.
    """
    result = Imported()
    seen: set[str] = set()
    for conversation in found:
        if isinstance(conversation, Malformed):
            result.skip(conversation.where, conversation.reason)
            continue
        try:
            if conversation.id in seen:
                raise MalformedConversationError("its id came before")
            records = step_records(conversation)
        except MalformedConversationError as error:
            result.skip(conversation.id, str(error))
            continue
        seen.add(conversation.id)
        named = {"guard": writer.header(IMPORTED), "tools": writer.tool_specs(conversation.tools)}
        for record in records:
            writer.step({**named, **record})
        if conversation.outcome is not None:
            writer.outcome(conversation.id, conversation.outcome)
        result.trajectories += 1
        result.steps += len(records)
    return result


def step_records(conversation: Conversation) -> list[dict[str, Any]]:
    """The `step` records of a conversation, without guard and tools.

    Raises:
        MalformedConversationError: If it is no valid conversation, or has no step.
    """
    messages = as_messages(conversation.messages)
    task = conversation.task or task_of(messages)
    records: list[dict[str, Any]] = []
    logged, after = 0, None
    for end, message in enumerate(messages, 1):
        calls: Sequence[Mapping[str, Any]] = message.tool_calls if isinstance(message, AIMessage) else ()
        if not calls and conversation.judge_answer and end == len(messages):
            calls = final_answer(messages)
        if not calls:
            continue
        at = messages_digest(messages[:end])
        judged = as_calls(calls)
        records.append(
            {
                "trajectory": conversation.id,
                "task": task,
                "step": len(records),
                "at": at,
                "after": after,
                "segment": 0,
                "thread": None,
                "messages": messages_to_dict(messages[logged:end]),
                "calls": [call.to_dict() for call in judged],
                "decisions": [
                    {"call": call.index, "verdict": "act", "reason": "", "p_refuse": None, "source": "imported"}
                    for call in judged
                ],
                "think": "",
                "safety_thoughts": None,
                "pieces": [],
                "seconds": {},
            }
        )
        logged, after = end, at
    if not records:
        raise MalformedConversationError("no tool calls")
    return records


def as_messages(given: Sequence[BaseMessage | Mapping[str, Any]]) -> list[BaseMessage]:
    """LangChain messages, each tool result after the call that it answers.

    Raises:
        MalformedConversationError: If a message has no readable form, or a tool result answers no open call.
    """
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise MalformedConversationError("its messages are no list")
    try:
        messages = convert_to_messages([m if isinstance(m, BaseMessage) else _plain(m) for m in given])
    except MalformedConversationError:
        raise
    except Exception as error:  # langchain raises whatever its parsers do
        raise MalformedConversationError(f"a message cannot be read ({type(error).__name__})") from error
    open_calls: dict[Any, str] = {}
    for number, message in enumerate(messages):
        if isinstance(message, AIMessage):
            if message.invalid_tool_calls:
                raise MalformedConversationError("the arguments of a call are no JSON object")
            open_calls.update({call["id"]: call["name"] for call in message.tool_calls})
        elif isinstance(message, ToolMessage):
            if message.tool_call_id not in open_calls:
                raise MalformedConversationError("a tool result answers no call")
            if not message.name:
                # The transcript says which tool a result is of; chat completions do not.
                messages[number] = message.model_copy(update={"name": open_calls[message.tool_call_id]})
    return messages


def _plain(message: Any) -> dict[str, Any]:
    """A message in the form of chat completions, without what LangChain would trip over."""
    if not isinstance(message, Mapping) or "role" not in message:
        raise MalformedConversationError("a message has no role")
    plain = {key: value for key, value in message.items() if value is not None}
    plain.setdefault("content", "")
    if plain["role"] == "developer":
        plain["role"] = "system"
    return plain


def import_files(kind: str, files: Sequence[Path], output: Path, *, hindsight_for: str | None = None) -> Imported:
    """Read files of one format and write a directory of traces, whole or not at all.

    Args:
        kind: A key of `FORMATS`.
        files: Files, or what else the format reads.
        output: A directory that does not exist or is empty.
        hindsight_for: Base model whose tokens to write guard blocks with, `default` for the default one; None for none.

    Raises:
        ModelLoadError: If there is no such base model.
        ImportingError: If a file cannot be read, nothing was found in them, or `output` holds something.
        OSError: If the output cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ImportingError(f"{str(output)!r} exists already: name a new directory with --output")
    part = output.with_name(f".{output.name}.part")
    for old in part.glob("*.jsonl") if part.is_dir() else ():
        old.unlink()
    with TraceWriter(part) as writer:
        result = import_conversations(_read(kind, files), writer)
    if not result.trajectories:
        reasons = ", ".join(f"{number} {reason}" for reason, number in result.skipped.items()) or "they are empty"
        raise ImportingError(f"no conversation to import in {', '.join(map(str, files))}: {reasons}")
    if hindsight_for is not None:
        _write_blocks(part, None if hindsight_for == "default" else hindsight_for)
    if output.exists():
        output.rmdir()
    part.rename(output)
    return result


def _write_blocks(directory: Path, base: str | None) -> None:
    """Put hindsight blocks into the traces of a directory."""
    from mosaic_guard.models.weights import DEFAULT_BASE, load_base_model
    from mosaic_guard_training.hindsight import HindsightModel, hindsight, write_trajectory

    model, tokenizer = load_base_model(base)
    window = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 8192)
    teacher = HindsightModel(tokenizer, name=base or DEFAULT_BASE, window=window)
    plain = list(directory.glob("*.jsonl"))
    with TraceWriter(directory) as writer:
        for trajectory in read_traces(directory):
            write_trajectory(writer, hindsight(trajectory, teacher))
    for file in plain:
        file.unlink()


def _read(kind: str, files: Sequence[Path]) -> Iterator[Conversation | Malformed]:
    adapter = importlib.import_module(FORMATS[kind])
    for file in files:
        if not file.exists():
            raise ImportingError(f"{file}: there is no such file")
        try:
            yield from adapter.read(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ImportingError(f"{file}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """`import FORMAT FILES --output DIR`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mosaic_guard import", description="Conversations that other systems logged, as traces."
    )
    parser.add_argument("format", choices=sorted(FORMATS), help="what the files hold")
    parser.add_argument("files", nargs="+", type=Path, help="files to read; for toolemu, the directory of its data")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new directory for the traces")
    parser.add_argument(
        "--hindsight",
        metavar="BASE",
        help="write guard blocks in the tokens of this base model ('default', a path or a hub id), to train it on",
    )
    options = parser.parse_args(arguments)
    try:
        result = import_files(options.format, options.files, options.output, hindsight_for=options.hindsight)
    except (ImportingError, MissingExtraError, ModelLoadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{result.trajectories} trajectories of {result.steps} steps in {options.output}")
    for reason, number in result.skipped.most_common():
        print(f"  left out: {number}, {reason} (such as {result.examples[reason]})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
