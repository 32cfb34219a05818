"""Tasks: what a person asks for, the tools there are and what they answer, as JSON lines.

A task has a *script*, what an agent proposes whatever a guard decides, with a label on each call; or none, and then it is
for agents that are chat models. `docs/architecture.md` lists the fields. Nothing here runs a task: `simulated.py` does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mosaic_guard._decision import canonical_json

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
"""The parameters of a tool that states none."""


class TaskError(ValueError):
    """A task that cannot be read or makes no sense; the message names the file, the line and the place in it."""


@dataclass(frozen=True)
class TaskTool:
    """A tool as the task states it.

    Attributes:
        name: Unique within the task.
        description: What the agent and the guard are told about it.
        parameters: JSON Schema of its arguments, an object.
        metadata: Annotations, such as MCP's hints.
        tags: LangChain's tags.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(NO_PARAMETERS))
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class TaskCall:
    """A call of the script.

    Attributes:
        tool: Name of one of the task's tools.
        args: Its arguments.
        harmful: Whether it must not run.
        required: Whether the person's request is done only if it ran.
        result: What the tool answers, text or JSON; None: what `Task.results` says.
    """

    tool: str
    args: Mapping[str, Any] = field(default_factory=dict)
    harmful: bool = False
    required: bool = False
    result: Any = None


@dataclass(frozen=True)
class ScriptTurn:
    """One message of the scripted agent: what it says, and the calls that it proposes at once.

    A turn without calls answers the request; the next request follows.
    """

    text: str = ""
    calls: tuple[TaskCall, ...] = ()


@dataclass(frozen=True)
class CannedResult:
    """What a tool answers to any call whose arguments match.

    Attributes:
        tool: Name of one of the task's tools.
        args: Arguments that a call must have, with these values; None for any call.
        result: Text or JSON.
    """

    tool: str
    args: Mapping[str, Any] | None = None
    result: Any = ""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        id: Unique; trajectories of one task can be compared.
        environment: Its family. What is trained on and what is tested on never share one.
        category: `benign`, `injection`, `harmful_request`, ….
        user: The requests, asked in turn; at least one.
        tools: What the agent can call.
        script: What the scripted agent proposes; empty for chat models only.
        answer: The scripted agent's last words.
        results: For calls that are not in the script.
        system: The agent's system prompt; None for none.
        source: Where it is from: `file`, `sha256`, `licence`.
    """

    id: str
    environment: str
    category: str
    user: tuple[str, ...]
    tools: tuple[TaskTool, ...] = ()
    script: tuple[ScriptTurn, ...] = ()
    answer: str = ""
    results: tuple[CannedResult, ...] = ()
    system: str | None = None
    source: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.user:
            raise TaskError("user: at least one request is needed")
        names = [tool.name for tool in self.tools]
        if len(names) != len(set(names)):
            raise TaskError(f"tools: two have the name {next(n for n in names if names.count(n) > 1)!r}")
        for where, name in self._named():
            if name not in names:
                raise TaskError(f"{where}: the task has no tool {name!r}{_meant(name, names)}")
        answers = sum(not turn.calls for turn in self.script)
        if self.script and answers != len(self.user) - 1:
            raise TaskError(
                f"script: {len(self.user)} requests need {len(self.user) - 1} turns without calls, which answer all but "
                f"the last, and it has {answers}"
            )
        labels: dict[str, bool] = {}
        for call in self.calls:
            if call.harmful and call.required:
                raise TaskError(f"script: a call of {call.tool!r} is both harmful and required")
            if labels.setdefault(call_key(call.tool, call.args), call.harmful) != call.harmful:
                raise TaskError(
                    f"script: the same call of {call.tool!r} is harmful in one place and harmless in another"
                )

    @property
    def calls(self) -> list[TaskCall]:
        """The calls of the script, in order."""
        return [call for turn in self.script for call in turn.calls]

    def _named(self) -> Iterator[tuple[str, str]]:
        for number, turn in enumerate(self.script):
            yield from ((f"script[{number}].calls[{at}]", call.tool) for at, call in enumerate(turn.calls))
        yield from ((f"results[{number}]", result.tool) for number, result in enumerate(self.results))

    def to_dict(self) -> dict[str, Any]:
        """JSON-like; `task_from_dict` reads it."""
        record = {each.name: getattr(self, each.name) for each in fields(self)}
        record["user"] = self.user[0] if len(self.user) == 1 else list(self.user)
        record["tools"] = [_plain(tool) for tool in self.tools]
        record["script"] = [{"text": t.text, "calls": [_plain(call) for call in t.calls]} for t in self.script]
        record["results"] = [_plain(result) for result in self.results]
        return record


def call_key(tool: str, args: Any) -> str:
    """Names a call by its tool and arguments: equal for calls that are the same."""
    return canonical_json([tool, args])


def read_tasks(path: str | os.PathLike[str]) -> list[Task]:
    """The tasks of a file of JSON lines, in their order; empty lines are passed over.

    Raises:
        FileNotFoundError: If there is no such file.
        TaskError: For a line that is no task, with file, line and place.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no tasks at {str(path)!r}: name a file of JSON lines, one task each")
    tasks: dict[str, Task] = {}
    lines: dict[str, int] = {}
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            if not raw.strip():
                continue
            try:
                task = task_from_dict(json.loads(raw, parse_constant=_no_constant))
            except (ValueError, RecursionError) as error:
                what = error if isinstance(error, TaskError) else f"not JSON: {error}"
                raise TaskError(f"{file}:{number}: {what}") from error
            if task.id in tasks:
                raise TaskError(f"{file}:{number}: id {task.id!r} is line {lines[task.id]}'s already")
            tasks[task.id], lines[task.id] = task, number
    return list(tasks.values())


def write_tasks(path: str | os.PathLike[str], tasks: Iterable[Task]) -> int:
    """Write tasks as JSON lines, so that the file is either whole or not there.

    Returns:
        How many.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    lines = [json.dumps(task.to_dict(), allow_nan=False) + "\n" for task in tasks]
    part.write_text("".join(lines), encoding="ascii")
    os.replace(part, file)
    return len(lines)


def task_from_dict(record: Any) -> Task:
    """Read a task from JSON.

    Raises:
        TaskError: If it is none; the message names the place.
    """
    return Task(**_read(Task, record, ""))


_Check = Callable[[Any, str], Any]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise TaskError(f"{where}: a text is needed, not {_kind(value)}")
    return value


def _name(value: Any, where: str) -> str:
    if not _text(value, where).strip() or not value.isprintable():
        raise TaskError(f"{where}: a name on one line is needed, not {value!r}")
    return str(value)


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise TaskError(f"{where}: true or false is needed, not {_kind(value)}")
    return value


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TaskError(f"{where}: an object is needed, not {_kind(value)}")
    return value


def _or_null(check: _Check) -> _Check:
    return lambda value, where: None if value is None else check(value, where)


def _list(check: _Check) -> _Check:
    def checked(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise TaskError(f"{where}: a list is needed, not {_kind(value)}")
        return tuple(check(each, f"{where}[{number}]") for number, each in enumerate(value))

    return checked


def _of(kind: type) -> _Check:
    return lambda value, where: kind(**_read(kind, value, where))


def _user(value: Any, where: str) -> tuple[str, ...]:
    requests = (value,) if isinstance(value, str) else _list(_text)(value, where)
    if not all(request.strip() for request in requests):
        raise TaskError(f"{where}: a request is empty")
    return tuple(requests)


def _schema(value: Any, where: str) -> dict[str, Any]:
    schema = _object(value, where)
    if schema.get("type", "object") != "object" or not isinstance(schema.get("properties", {}), dict):
        raise TaskError(f"{where}: the JSON Schema of a tool's arguments is an object with properties")
    return schema


def _source(value: Any, where: str) -> dict[str, str]:
    return {_name(key, where): _text(each, f"{where}.{key}") for key, each in _object(value, where).items()}


_CHECKS: Mapping[type, Mapping[str, _Check]] = {
    TaskTool: {
        "name": _name,
        "description": _text,
        "parameters": _schema,
        "metadata": _object,
        "tags": _list(_text),
    },
    TaskCall: {
        "tool": _text,
        "args": _object,
        "harmful": _flag,
        "required": _flag,
        "result": lambda value, where: value,
    },
    ScriptTurn: {"text": _text, "calls": _list(_of(TaskCall))},
    CannedResult: {"tool": _text, "args": _or_null(_object), "result": lambda value, where: value},
    Task: {
        "id": _name,
        "environment": _name,
        "category": _name,
        "user": _user,
        "tools": _list(_of(TaskTool)),
        "script": _list(_of(ScriptTurn)),
        "answer": _text,
        "results": _list(_of(CannedResult)),
        "system": _or_null(_text),
        "source": _or_null(_source),
    },
}
_NEEDED: Mapping[type, tuple[str, ...]] = {
    Task: ("id", "environment", "category", "user"),
    TaskTool: ("name",),
    TaskCall: ("tool",),
    ScriptTurn: (),
    CannedResult: ("tool", "result"),
}


def _read(kind: type, record: Any, where: str) -> dict[str, Any]:
    """The checked fields of an object."""
    place = where or "the line"
    checks = _CHECKS[kind]
    for key in _object(record, place):
        if key not in checks:
            raise TaskError(f"{place}: unknown key {key!r}{_meant(key, checks)}")
    for key in _NEEDED[kind]:
        if key not in record:
            raise TaskError(f"{place}: {key!r} is missing")
    return {key: checks[key](value, f"{where}.{key}" if where else key) for key, value in record.items()}


def _meant(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, list(names), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a truth value", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _plain(item: Any) -> dict[str, Any]:
    record = {each.name: getattr(item, each.name) for each in fields(item)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in record.items()}
