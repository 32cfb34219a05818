"""Traces: what was judged, token for token, as append-only JSON lines.

One writer per file. A line is written with one system call and taken back if the disk fills up in the middle of it, so a
reader finds whole records, plus at most one torn last line after a crash. `docs/architecture.md` lists the fields.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mosaic_guard._decision import Decision, canonical_json
from mosaic_guard._transcript import Piece

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

TRACE_VERSION = 1

Redact = Callable[[dict[str, Any]], "dict[str, Any] | None"]
"""Sees every record before it is written; returns the record to write, or None to drop it."""


class TraceError(ValueError):
    """A trace file that cannot be read; the message names file and line."""


class TraceWarning(UserWarning):
    """Something about a trace that loses nothing but should be known: a torn last line, a full disk."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trajectory.

    Attributes:
        harmful: Whether harm was done; None where nobody knows.
        completed: Whether the user's task was completed; None where nobody knows.
        harmful_calls: (step, call index) of each call known to be harmful, whether it ran or was refused.
        source: Who says so, such as `grader:agentdojo` or `human`.
        details: Anything else worth keeping.
    """

    harmful: bool | None = None
    completed: bool | None = None
    harmful_calls: Sequence[tuple[int, int]] = ()
    source: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepRecord:
    """One judged step as logged; the attributes are the fields of a `step` record."""

    step: int
    segment: int
    calls: Sequence[Mapping[str, Any]]
    decisions: Sequence[Decision]
    think: str
    safety_thoughts: str | None
    pieces: Sequence[Piece]
    messages: Sequence[Mapping[str, Any]]
    time: str
    seconds: Mapping[str, float]
    at: str = ""
    after: str = ""
    tools: Sequence[Mapping[str, Any]] = ()
    """The tools that the graph knew, each with `name`, `description`, `parameters` (JSON Schema), `metadata`, `tags`; empty
    where the trace does not say."""
    feedback: Sequence[Mapping[str, Any]] = ()
    """What people answered about its calls, each with `digest`, `type`, `message`, `action`, in the order of answering."""


@dataclass
class Trajectory:
    """All steps of one task, with outcome.

    Attributes:
        id: Unique over the traces.
        task: Trajectories with the same task can be compared.
        steps: In order.
        outcome: None where none was logged.
        guard: The header of the guard that judged the steps (`model`, `base_model`, `adapter`, …).
        file: Where its first record stands.
    """

    id: str
    task: str
    guard: Mapping[str, Any]
    file: Path
    steps: list[StepRecord] = field(default_factory=list)
    outcome: Outcome | None = None


class TraceWriter:
    """Appends records to one new file in `directory`; safe to share between threads.

    Args:
        directory: Created (readable by its owner only) if it does not exist.
        redact: Sees every record before it is written. It sees `pieces` too, which hold the same text again as tokens.
            A hook that raises keeps the record out of the file, with a warning.

    A full disk does not stop the guarded run: records wait in memory and are written as soon as there is room, and
    `close` raises `OSError` if some could not be.
    """

    def __init__(self, directory: str | os.PathLike[str], *, redact: Redact | None = None) -> None:
        self.directory = Path(directory)
        self.path: Path | None = None
        self._redact = redact
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._size = 0
        self._fd: int | None = None
        self._pid = os.getpid()
        self._headers: set[str] = set()
        self._specs: dict[tuple[int, ...], tuple[list[BaseTool], list[dict[str, Any]]]] = {}

    def header(self, guard: Mapping[str, Any]) -> str:
        """Write which guard judges (once per file and guard) and return the id that step records name it by."""
        from mosaic_guard import __version__

        key = hashlib.sha256(canonical_json(dict(guard)).encode()).hexdigest()[:12]
        with self._lock:
            self._after_fork()
            if key not in self._headers:
                self._headers.add(key)
                self._put(
                    {
                        "type": "header",
                        "version": TRACE_VERSION,
                        "created": _now(),
                        "mosaic_guard": __version__,
                        "id": key,
                        "guard": dict(guard),
                    }
                )
        return key

    def tools(self, tools: Mapping[str, BaseTool]) -> str:
        """Write the tools that a graph knows (once per file and set of tools) and return the id that steps name them by."""
        known = list(tools.values())
        # Schemas are slow to make: once for the same objects, which the entry keeps alive, so that ids stay theirs.
        key = tuple(map(id, known))
        if key not in self._specs:
            if len(self._specs) >= _TOOL_SETS:
                self._specs.clear()
            self._specs[key] = (known, [tool_spec(tool) for tool in known])
        return self.tool_specs(self._specs[key][1])

    def tool_specs(self, specs: Sequence[Mapping[str, Any]]) -> str:
        """`tools`, for tools that are known by their description only: `StepRecord.tools` has the fields."""
        digest = hashlib.sha256(canonical_json(specs).encode("utf-8", "surrogatepass")).hexdigest()[:12]
        with self._lock:
            self._after_fork()
            if digest not in self._headers:
                self._headers.add(digest)
                self._put({"type": "tools", "id": digest, "tools": [dict(spec) for spec in specs]})
        return digest

    def step(self, record: Mapping[str, Any]) -> None:
        """Append one judged step."""
        with self._lock:
            self._put({"type": "step", "time": _now(), **record})

    def outcome(self, trajectory: str, outcome: Outcome) -> None:
        """Append what became of a trajectory; the last outcome logged for it counts."""
        with self._lock:
            self._after_fork()
            self._put(
                {
                    "type": "outcome",
                    "trajectory": trajectory,
                    "harmful": outcome.harmful,
                    "completed": outcome.completed,
                    "harmful_calls": [list(pair) for pair in outcome.harmful_calls],
                    "source": outcome.source,
                    "details": dict(outcome.details),
                    "time": _now(),
                }
            )

    def feedback(self, trajectory: str, step: int, at: str, answers: Sequence[Mapping[str, Any]]) -> None:
        """Append what a person answered where the guard asked.

        Args:
            trajectory: The trajectory.
            step: Number of the step.
            at: The step's `at`.
            answers: `{"digest", "type", "message", "action"}` of each asked call; `digest` names the call as proposed.
        """
        with self._lock:
            self._after_fork()
            record = {"type": "feedback", "trajectory": trajectory, "step": step, "at": at, "answers": list(answers)}
            self._put({**record, "time": _now()})

    def close(self) -> None:
        """Write what still waits and close the file.

        Raises:
            OSError: If records could not be written; they stay in memory, so `close` can be called again.
        """
        with self._lock:
            self._flush()
            if self._waiting:
                raise OSError(
                    errno.ENOSPC,
                    f"{len(self._waiting)} trace records wait for room on the disk; free some and close again",
                    str(self.directory),
                )
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
                # A record after close goes to a new file, never into one that a reader may hold complete.
                self._headers.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: a copy would be a second writer."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _after_fork(self) -> None:
        """A forked child gets a file of its own: one writer per file."""
        if os.getpid() != self._pid:
            self._pid, self._fd, self._size = os.getpid(), None, 0
            self._waiting.clear()
            self._headers.clear()

    def _put(self, record: dict[str, Any]) -> None:
        if self._redact is not None:
            try:
                redacted = self._redact(record)
            except Exception as error:  # unredacted text must not reach the disk
                warnings.warn(
                    f"the redaction hook failed ({error!r}); a {record['type']} record was left out",
                    TraceWarning,
                    stacklevel=4,
                )
                return
            if redacted is None:
                return
            record = redacted
        try:
            line = _line(record)
        except (TypeError, ValueError, RecursionError) as error:  # such as an artifact that holds itself
            warnings.warn(
                f"a {record.get('type')} record has no JSON form and was left out: {error}", TraceWarning, stacklevel=4
            )
            return
        self._waiting.append(line)
        self._flush()

    def _flush(self) -> None:
        while self._waiting:
            try:
                self._write(self._waiting[0])
            except OSError as error:
                warnings.warn(
                    f"trace records wait in memory, {self.directory} cannot be written: {error.strerror}",
                    TraceWarning,
                    stacklevel=5,
                )
                return
            self._waiting.pop(0)

    def _write(self, line: bytes) -> None:
        if self._fd is None:
            self._fd = self._open()
            self._size = 0
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            # Take back the half-written line; if even that fails, the reader skips it as torn.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(line)

    def _open(self) -> int:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self.path = self.directory / name
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)


_TOOL_SETS = 64
"""How many sets of tools a writer remembers; a graph that makes its tools anew for each run has another set each time."""


def tool_spec(tool: BaseTool) -> dict[str, Any]:
    """A tool as a `tools` record holds it; without `parameters` where its schema has no JSON form."""
    from langchain_core.utils.function_calling import convert_to_openai_tool

    try:
        parameters = convert_to_openai_tool(tool)["function"].get("parameters") or {}
    except Exception:  # a schema that pydantic cannot write; the tool works all the same
        parameters = {}
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": parameters,
        "metadata": dict(tool.metadata or {}),
        "tags": list(tool.tags or ()),
    }


def _line(record: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(record, ensure_ascii=True, default=repr)
    except TypeError:  # a key that is no string
        text = json.dumps(json.loads(canonical_json(record)), ensure_ascii=True)
    return text.encode("ascii") + b"\n"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def read_traces(path: str | os.PathLike[str]) -> list[Trajectory]:
    """Trajectories of a trace file, or of all `*.jsonl` files of a directory, in the order of their first step.

    A step that was logged twice (a crash between judging and checkpointing) counts once, as last logged. A thread that went
    on from an earlier checkpoint (time travel) is a trajectory of its own from there on, with the earlier steps before it:
    its id is the first one's and `#2`, `#3`, …; an outcome counts for the one that was logged last before it.

    Raises:
        FileNotFoundError: If there is no such file or directory.
        TraceError: For a bad record, with file and line. A torn last line is skipped with a `TraceWarning`.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"no traces at {str(root)!r}: name a directory that a TraceWriter wrote to")
    files = sorted(root.glob("*.jsonl")) if root.is_dir() else [root]
    logged: list[tuple[str, Trajectory, StepRecord | Outcome | _Feedback]] = []
    for file in files:
        headers: dict[str, Mapping[str, Any]] = {}
        tools: dict[str, Sequence[Mapping[str, Any]]] = {}
        for line, record in _records(file):
            try:
                kind = record["type"]
                if kind == "header":
                    _check_version(record)
                    headers[record["id"]] = record["guard"]
                elif kind == "tools":
                    tools[record["id"]] = record["tools"]
                elif kind == "step":
                    # A redaction hook may have dropped the header, or the tools.
                    start = Trajectory(record["trajectory"], record["task"], headers.get(record["guard"], {}), file)
                    logged.append((record["time"], start, _step(record, tools.get(record.get("tools") or "", ()))))
                elif kind == "outcome":
                    logged.append((record["time"], Trajectory(record["trajectory"], "", {}, file), _outcome(record)))
                elif kind == "feedback":
                    said = _Feedback(int(record["step"]), record["at"], [dict(answer) for answer in record["answers"]])
                    logged.append((record["time"], Trajectory(record["trajectory"], "", {}, file), said))
                # Unknown types are from a later minor version: skipped.
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                what = f"missing field {error}" if isinstance(error, KeyError) else str(error)
                raise TraceError(f"{file}:{line}: bad trace record: {what}") from error
    found: dict[str, list[Trajectory]] = {}
    # Processes may take turns on a thread, each with a file of its own.
    for _, start, entry in sorted(logged, key=lambda item: item[0]):
        if isinstance(entry, StepRecord):
            _append(found.setdefault(start.id, []), start, entry)
        elif isinstance(entry, _Feedback):
            _answer(found.get(start.id, []), entry)
        elif branches := found.get(start.id):
            branches[-1].outcome = entry
    return [trajectory for branches in found.values() for trajectory in branches]


def _append(branches: list[Trajectory], start: Trajectory, step: StepRecord) -> None:
    """Add a step to the branch that it continues, last used branch last; open a new one where it continues none's end."""
    for branch in reversed(branches):
        known = len(branch.steps)
        if step.step == known and (not known or branch.steps[-1].at == step.after):
            branch.steps.append(step)
        elif step.step < known and (branch.steps[step.step].at, branch.steps[step.step].after) == (step.at, step.after):
            # Judged again: what came of the first judgement is not on record as this one's.
            branch.steps[step.step :] = [step]
        else:
            continue
        branches.remove(branch)
        branches.append(branch)
        return
    parent = next(
        (b for b in reversed(branches) if 0 < step.step <= len(b.steps) and b.steps[step.step - 1].at == step.after),
        None,
    )
    start.steps = [*(parent.steps[: step.step] if parent else ()), step]
    if branches:
        start.id = f"{start.id}#{len(branches) + 1}"
    branches.append(start)


@dataclass(frozen=True)
class _Feedback:
    """What people answered about one step."""

    step: int
    at: str
    answers: list[dict[str, Any]]


def _answer(branches: Sequence[Trajectory], said: _Feedback) -> None:
    """Add answers to the step that they are about, in the branch that was logged last."""
    for branch in reversed(branches):
        if said.step < len(branch.steps) and branch.steps[said.step].at == said.at:
            step = branch.steps[said.step]
            branch.steps[said.step] = replace(step, feedback=[*step.feedback, *said.answers])
            return


def _records(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, record) of each line; a torn last line is reported and skipped."""
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                record = json.loads(raw)
                if not isinstance(record, dict):
                    raise ValueError("not a JSON object")
            except ValueError as error:
                if not raw.endswith(b"\n"):
                    warnings.warn(f"{file}:{number}: torn last line skipped", TraceWarning, stacklevel=4)
                    return
                raise TraceError(f"{file}:{number}: not a trace record: {error}") from error
            yield number, record


def _check_version(record: Mapping[str, Any]) -> None:
    if record["version"] != TRACE_VERSION:
        raise ValueError(f"trace version {record['version']!r}; this release reads version {TRACE_VERSION}")


def _step(record: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> StepRecord:
    return StepRecord(
        step=int(record["step"]),
        segment=int(record["segment"]),
        calls=record["calls"],
        decisions=[Decision.from_dict(item) for item in record["decisions"]],
        think=record["think"],
        safety_thoughts=record["safety_thoughts"],
        pieces=pieces_from(record["pieces"]),
        messages=record["messages"],
        time=record["time"],
        seconds=record["seconds"],
        at=record.get("at", ""),
        after=record.get("after") or "",
        tools=tools,
    )


def pieces_from(records: Iterable[Mapping[str, Any]]) -> list[Piece]:
    """Read what `Piece.to_dict` wrote."""
    return [Piece.from_dict(item) for item in records]


def _outcome(record: Mapping[str, Any]) -> Outcome:
    return Outcome(
        harmful=record["harmful"],
        completed=record["completed"],
        harmful_calls=[(int(step), int(call)) for step, call in record["harmful_calls"]],
        source=record["source"],
        details=record["details"],
    )
