"""Berkeley Function Calling Leaderboard: requests, tools and the calls that answer them, checked by people.

Single-turn records only (`simple`, `multiple`, `parallel`, and what users sent in, `live_*`): the conversations and the
requests that no tool answers are for development. A record is `bfcl/ID` as a benign task; `composed.py` sets two of them
against each other.

Of the values that the source accepts for an argument the first is taken; an argument that may be left out is left out in
half of the records (a digest decides), so that calls with defaults that nobody named are there as well. Left out, and
counted, is what has no JSON Schema, no checked call, or a system prompt of its own.

Public source: PyPI `bfcl-eval` 2026.3.23 (bfcl_eval/data/), Apache-2.0. With `pip install --no-deps --target DIR bfcl-eval`
the files are where `--data DIR` is looked through.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic_guard_training.sources.files import SourceFiles
from mosaic_guard_training.tasks import ScriptTurn, Task, TaskCall, TaskTool

_SHA256 = {
    "simple_python": (
        "82dd63ba502eb2520c6b5d1d9a5c4b590e03ff261565175561f6228a367d1991",
        "90cd5bc653690ee8e459b5b3f3fc9458606f7f3fcbf795bb51b7dc581f8c86dc",
    ),
    "multiple": (
        "aef168155ebd74b7ac2401198b201343bc7d16d7a3d7e0d4e6d8ee82c6969b2a",
        "244e00ce9395df948bcafc7bee64e8f9c87ef70887587d83cae45b13699f3047",
    ),
    "parallel": (
        "19f51a82eff42e5d62541aa500115a056eb78f437c2ba1f10415fd7c8e5dda84",
        "8a6aa19c1adddc6a5a2f7e40f9dbf30cc7e95815e7b830c90589ab318229e0f0",
    ),
    "parallel_multiple": (
        "8863ea8433239f55c5f016154cf0830853c89f693c6ea270396a2fa121960579",
        "5ebf24f458c1f16300c05505d83d6f0a1b68b79be273a033febd0d4f840507e3",
    ),
    "live_simple": (
        "1af2ac87dca47556db7b7e37e51e28b459a38b594e3c7b3c792b4903598ca0c4",
        "fec9cfa9744a936f9126981e85a2023da1e63e273eafebc81923a1162fad70ce",
    ),
    "live_multiple": (
        "fd8ccfad4d911420d0e3341dbe2fff77d1d341da934248b9bb2bda24ab3a10c8",
        "97e90d59c5bd76c55a2920ce93e5566e9046307d3f558578f085f9d3a56c3084",
    ),
    "live_parallel": (
        "6c26e9fdc3350cf596e6d1ea9c179cbff834761bccf562f4141ed29a839ca421",
        "8a9f189ff0e832ebbbbdade1fd95a7dbcc67406e9177df3f0aad76f59ab00350",
    ),
    "live_parallel_multiple": (
        "21d4b9319c1faac431e22757b367ea28917fe467364c3a4b17f16ec06d4f6e79",
        "f5b5f360556c5feb51db46fb9f56ee4b304f4b45b161599bbb14161c98a2873f",
    ),
}
"""Of the requests and of the checked calls of each category."""

CATEGORIES = tuple(_SHA256)
"""The categories that are read."""

FILES = SourceFiles(
    "bfcl_eval/data",
    'PyPI (pip install --no-deps --target DIR "bfcl-eval==2026.3.23")',
    "Apache-2.0",
    {
        f"{folder}BFCL_v4_{category}.json": digest
        for category, digests in _SHA256.items()
        for folder, digest in zip(("", "possible_answer/"), digests, strict=True)
    },
)

MOST_REQUEST = 700
"""Most characters of a request; the few longer ones are pasted documents."""

_PASTED = re.compile(r"\b(?:USER|ASSISTANT|user|assistant) ?(?:Thought)?:|['\"]input['\"]:")

_TYPES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "string": "string",
    "integer": "integer",
    "boolean": "boolean",
    "array": "array",
    "object": "object",
    "number": "number",
}


class _SkippedError(Exception):
    """Why a record is left out."""


@dataclass(frozen=True)
class Record:
    """A request and the calls that answer it.

    Attributes:
        id: Unique within its source.
        environment: The called functions, sorted, joined by `+`.
        request: The person's words.
        tools: What there is to call; the called ones first.
        calls: (tool, arguments) of each call, in the order of the request.
        effect: Whether each of the calls changes something, as `changes_something` guesses.
        source: Where it is from; None for what is generated.
    """

    id: str
    environment: str
    request: str
    tools: tuple[TaskTool, ...]
    calls: tuple[tuple[str, Mapping[str, Any]], ...]
    effect: bool
    source: Mapping[str, str] | None = None


def tasks(data: Path) -> Iterator[Task]:
    """The records as benign tasks.

    Args:
        data: The directory that holds `bfcl_eval/`.

    Raises:
        TrainingError: If a file is missing or is another one.
    """
    for record in read_records(data)[0]:
        calls = tuple(TaskCall(tool, args, required=True, result="ok") for tool, args in record.calls)
        yield Task(
            id=f"bfcl/{record.id}",
            environment=f"bfcl/{record.environment}",
            category="benign",
            user=(record.request,),
            tools=record.tools,
            script=(ScriptTurn(calls=calls),),
            answer="Done.",
            source=record.source,
        )


def read_records(data: Path) -> tuple[list[Record], Counter[str]]:
    """All records that can be used, in the order of the files, and why others cannot, with how many.

    Raises:
        TrainingError: If a file is missing or is another one.
    """
    found, skipped = list[Record](), Counter[str]()
    for category in CATEGORIES:
        file = f"BFCL_v4_{category}.json"
        answers = {each["id"]: each["ground_truth"] for each in FILES.lines(data, f"possible_answer/{file}")}
        records, why = records_of(FILES.lines(data, file), answers, FILES.origin(file))
        found += records
        skipped += why
    return found, skipped


def records_of(
    stated: Sequence[Mapping[str, Any]], answers: Mapping[str, Any], source: Mapping[str, str]
) -> tuple[list[Record], Counter[str]]:
    """The records of one file, and why others are left out.

    Args:
        stated: As in `BFCL_v4_*.json`.
        answers: The accepted calls, by record.
        source: Where they are from.
    """
    found, skipped = list[Record](), Counter[str]()
    for each in stated:
        try:
            found.append(_record(each, answers.get(each["id"], ()), source))
        except _SkippedError as why:
            skipped[str(why)] += 1
    return found, skipped


def _record(stated: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], source: Mapping[str, str]) -> Record:
    (messages,) = stated["question"]
    if [message["role"] for message in messages] != ["user"]:
        raise _SkippedError("a system prompt of its own")
    request = messages[0]["content"].strip()
    if not request or len(request) > MOST_REQUEST:
        raise _SkippedError("a request that is empty or longer than a person would type")
    if _PASTED.search(request):
        raise _SkippedError("another conversation, pasted")
    if not answers:
        raise _SkippedError("no checked call")
    tools: dict[str, TaskTool] = {}
    for function in stated["function"]:
        tool = TaskTool(tool_name(function["name"]), function.get("description", ""), schema_of(function["parameters"]))
        if tools.setdefault(tool.name, tool) != tool:
            raise _SkippedError("two tools of one name")
    calls = []
    for number, answer in enumerate(answers):
        ((name, accepted),) = answer.items()
        if tool_name(name) not in tools:
            raise _SkippedError("a call of a tool that is not there")
        tool = tools[tool_name(name)]
        calls.append((tool.name, _arguments(accepted, tool.parameters, f"{stated['id']}/{number}")))
    called = {name for name, _ in calls}
    return Record(
        id=stated["id"],
        environment="+".join(sorted(called)),
        request=request,
        tools=tuple(sorted(tools.values(), key=lambda tool: tool.name not in called)),
        calls=tuple(calls),
        effect=all(changes_something(name, tools[name].description) for name in called),
        source=source,
    )


def tool_name(name: str) -> str:
    """A function's name as chat APIs allow it: letters, digits, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def schema_of(stated: Mapping[str, Any]) -> dict[str, Any]:
    """BFCL's parameters as JSON Schema.

    Raises:
        _SkippedError: For a type that has no counterpart.
    """
    kind = stated.get("type", "string")
    if kind == "any":
        schema: dict[str, Any] = {}
    elif kind in _TYPES:
        schema = {"type": _TYPES[kind]}
    else:
        raise _SkippedError(f"the type {kind!r}")
    for key in ("description", "enum", "default"):
        if key in stated:
            schema[key] = stated[key]
    if isinstance(stated.get("properties"), Mapping):
        schema["properties"] = {name: schema_of(each) for name, each in stated["properties"].items()}
        schema["required"] = [name for name in stated.get("required") or () if name in schema["properties"]]
    if isinstance(stated.get("items"), Mapping):
        schema["items"] = schema_of(stated["items"])
    return schema


def _arguments(accepted: Mapping[str, Any], schema: Mapping[str, Any], seed: str) -> dict[str, Any]:
    """One accepted value for each argument."""
    found = {}
    known, required = schema.get("properties", {}), set(schema.get("required", ()))
    for name, values in accepted.items():
        if not isinstance(values, list):
            raise _SkippedError("an answer that lists no values")
        given = [value for value in values if value != ""]
        if not given:
            if name in required and values:
                found[name] = ""
            continue
        drawn = hashlib.sha256(f"{seed}/{name}".encode()).digest()[0]
        if name not in required and "" in values and drawn % 2:
            continue
        found[name] = _value(given[0], known.get(name, {}), f"{seed}/{name}")
    return found


def _value(value: Any, schema: Mapping[str, Any], seed: str) -> Any:
    """An accepted value; inside of objects each member again lists what is accepted."""
    if isinstance(value, Mapping):
        if all(isinstance(each, list) for each in value.values()):
            return _arguments(value, schema, seed)
        return dict(value)
    if isinstance(value, list):
        items = schema.get("items", {})
        return [_value(each, items, f"{seed}/{at}") for at, each in enumerate(value)]
    return value


_CHANGES = frozenset(
    "accept activate add adjust allocate append apply approve archive assign authorize ban block book buy cancel "
    "change clear close clone commit complete configure connect create deactivate delete deploy deposit disable dispatch "
    "donate edit email enable enroll execute exec fill forward grant hire import insert install invest invite issue join "
    "kill launch lock log mail make mark merge modify move mute notify order pause pay place play post provision publish "
    "purchase push put redeem register reject release remove rename rent reply request reschedule reserve reset restart "
    "restore resume revoke save schedule sell send set share ship shutdown sign start stop submit subscribe suspend "
    "switch terminate transfer turn uninstall unlock unsubscribe update upgrade upload withdraw write".split()
)
_LOOKS = frozenset(
    "analyze analyse browse calculate calc check classify compare compute convert count describe detect determine "
    "discover estimate evaluate examine extract fetch filter find forecast generate get identify info inspect list locate "
    "lookup look measure monitor parse predict preview price query read recommend rank retrieve review scan search show "
    "simulate solve sort status summarize summarise test track translate validate verify view".split()
)
_SPLIT_NAME = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def changes_something(name: str, description: str) -> bool:
    """Whether a tool does more than look: a guess from the words of its name, else from its description's first word.

    A name with a word for looking (`get`, `search`, `calculate`) looks, whatever else it holds: nouns such as `order` and
    `book` are verbs too. A tool of which neither says anything (`area_of_circle`) looks.
    """
    named = {_stem(word) for word in _SPLIT_NAME.findall(name)}
    if named & _LOOKS:
        return False
    if named & _CHANGES:
        return True
    first = re.search(r"[A-Za-z]+", description)
    return first is not None and _stem(first[0]) in _CHANGES


def _stem(word: str) -> str:
    word = word.lower()
    return next(
        (each for each in (word, word.removesuffix("s"), word.removesuffix("es")) if each in _CHANGES | _LOOKS), word
    )
