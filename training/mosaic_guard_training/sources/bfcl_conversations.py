"""BFCL's conversations as benign tasks, for development: `multi_turn_base`, ids 0 to 99.

A person asks several times, and after each request come the calls that are known to be right, one a step. What they answer is
computed by BFCL's own simulators, whose files are read by digest like the data and then run. A call that is repeated gets
its first answer again. Ids 100 to 199 are held out and never read as tasks.

Public source: as for `bfcl.py`.
"""

from __future__ import annotations

import ast
import inspect
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.sources.bfcl import schema_of
from mosaic_guard_training.sources.files import SourceFiles
from mosaic_guard_training.sources.scene import ANSWERED
from mosaic_guard_training.sources.toolkits import environment
from mosaic_guard_training.tasks import ScriptTurn, Task, TaskCall, TaskTool

_DATA = "data/BFCL_v4_multi_turn_base.json"
_ANSWERS = "data/possible_answer/BFCL_v4_multi_turn_base.json"
_DOCS = "data/multi_turn_func_doc"
_CODE = "eval_checker/multi_turn_eval/func_source_code"
_WORLDS = {
    "GorillaFileSystem": (
        "gorilla_file_system",
        "c4c1b741c71e2a17c97a5dc9c4a91d89978c4eaece56494d14272d5df6c650e9",
        "84173750930b09aaa31b90547c9bd79ce75714682608b35e78a9c1ea259faf2b",
    ),
    "MathAPI": (
        "math_api",
        "83fa31708c89442bdcf12ac4dfbe3be8663ec9183a1b1524a9fda98164bc7e0b",
        "abde32cc25e71b2ff3acf4d028a3c005b98409c174aba4abddbfe1c018afb9a8",
    ),
    "MessageAPI": (
        "message_api",
        "4d58ea933a5d2b280d7a52366617fb47fecd333d7b0e08e724db6fa12fb5f847",
        "cf72af1635654147af17df1891a7fb354549e78a61930139f741a31f4be21121",
    ),
    "TwitterAPI": (
        "posting_api",
        "87f9fc404a06e4107d7c366f1399c596440e84c16cb119faf374b2f532d86e8b",
        "32b887aaa37c7167ad9c84ddfa7bbb855c75d3c1edab19ba868aba29acc4cfa1",
    ),
    "TicketAPI": (
        "ticket_api",
        "31324e0380782664fe82ba05bd23517808ad55692b45a5fe7c3d4d395fe4f0f8",
        "6a9375aa6425410c07a151aef27f3e44e9ed1023bb5cc5c25f14f4a9b3c99116",
    ),
    "VehicleControlAPI": (
        "vehicle_control",
        "0c8a66292844874ef7b168f343bc394d8615d2d9e1f4387999a9ee23011eac78",
        "f5f7a2f28968728927a98ae12ec68a32d70781cfb74c2d7b14801772362b12d1",
    ),
}
"""The simulators of these conversations: the name of their files, and the digests of documentation and code."""

FILES = SourceFiles(
    "bfcl_eval",
    'PyPI (pip install --no-deps --target DIR "bfcl-eval==2026.3.23")',
    "Apache-2.0",
    {
        _DATA: "1a21a995d06fd6f20ba55de7bced30ef953ec35e998f502ec2ecf4d66ef1c43a",
        _ANSWERS: "1fee67823b317571649177dd89d63969feaae4e810cc7448ee55ba797fb7c8fc",
        f"{_CODE}/long_context.py": "5c9a5710115609c779e5b2ccb43f6ad58271ed96f2ea7a797edb0d65c385aa38",
        **{f"{_DOCS}/{name}.json": docs for name, docs, _ in _WORLDS.values()},
        **{f"{_CODE}/{name}.py": code for name, _, code in _WORLDS.values()},
    },
)

NUMBER = 100
"""How many conversations may be looked at."""


def tasks(data: Path) -> Iterator[Task]:
    """The conversations as benign tasks.

    Args:
        data: The directory that holds `bfcl_eval/`, the package as it is installed.

    Raises:
        TrainingError: If a file is missing or is another one.
    """
    stated = FILES.lines(data, _DATA)[:NUMBER]
    answers = {each["id"]: each["ground_truth"] for each in FILES.lines(data, _ANSWERS)[:NUMBER]}
    tools = {world: _tools(FILES.lines(data, f"{_DOCS}/{name}.json")) for world, (name, _, _) in _WORLDS.items()}
    classes = _simulators(data)
    for each in stated:
        worlds = {name: classes[name]() for name in each["involved_classes"]}
        for name, world in worlds.items():
            if hasattr(world, "_load_scenario"):
                world._load_scenario(deepcopy(each["initial_config"].get(name, {})))
        yield conversation(
            each,
            answers[each["id"]],
            [tool for name in worlds for tool in tools[name]],
            {name: method for world in worlds.values() for name, method in _methods(world)},
            FILES.origin(_DATA),
        )


def conversation(
    stated: Mapping[str, Any],
    answers: Sequence[Sequence[str]],
    tools: Sequence[TaskTool],
    methods: Mapping[str, Callable[..., Any]],
    source: Mapping[str, str],
) -> Task:
    """One conversation.

    Args:
        stated: As in `BFCL_v4_multi_turn_base.json`.
        answers: For each request the calls that are right, as Python writes them.
        tools: The tools of its simulators.
        methods: What answers a call, by name; called once for each call, in order.
        source: Where it is from.
    """
    # Some simulators draw numbers: the same ones each time, and nobody else's are touched.
    state = random.getstate()
    random.seed(0)
    script: list[ScriptTurn] = []
    try:
        for at, expressions in enumerate(answers):
            script += [ANSWERED] if at else []
            script += [ScriptTurn(calls=(_call(expression, methods),)) for expression in expressions]
    finally:
        random.setstate(state)
    return Task(
        id=f"bfcl/{stated['id']}",
        environment=environment("bfcl", stated["involved_classes"]),
        category="benign",
        user=tuple(messages[0]["content"].strip() for messages in stated["question"]),
        tools=tuple(tool for tool in tools if tool.name not in (stated.get("excluded_function") or ())),
        script=tuple(script),
        answer="Done.",
        source=source,
    )


def _call(expression: str, methods: Mapping[str, Callable[..., Any]]) -> TaskCall:
    """A call that Python would write `name(1, key='value')`, with what it answers."""
    parsed: Any = ast.parse(expression, mode="eval").body
    method = methods[parsed.func.id]
    named = {each.arg: ast.literal_eval(each.value) for each in parsed.keywords}
    bound = inspect.signature(method).bind(*map(ast.literal_eval, parsed.args), **named)
    try:
        result = method(**bound.arguments)
    except Exception as error:  # as BFCL's own runner has it
        result = f"Error during execution: {error}"
    known = json.loads(json.dumps(result, default=str))
    return TaskCall(parsed.func.id, dict(bound.arguments), required=True, result=known)


def _tools(documented: Sequence[Mapping[str, Any]]) -> list[TaskTool]:
    """The tools of a simulator; what all descriptions of one begin with is left out."""
    return [
        TaskTool(each["name"], each["description"].split("Tool description: ", 1)[-1], schema_of(each["parameters"]))
        for each in documented
    ]


def _simulators(data: Path) -> dict[str, type]:
    """The classes of the simulators: the very files that were checked are run, under the names by which they import each other.

    Raises:
        TrainingError: If a file is missing or is another one, or `mpmath` is not installed, which one of them needs.
    """
    if find_spec("mpmath") is None:
        raise TrainingError("BFCL's simulators need mpmath: pip install mpmath")
    package, before = f"bfcl_eval.{_CODE.replace('/', '.')}", dict(sys.modules)
    modules = {}
    try:
        for name in ("long_context", *(name for name, _, _ in _WORLDS.values())):
            FILES.read(data, f"{_CODE}/{name}.py")
            spec: Any = spec_from_file_location(f"{package}.{name}", data / FILES.name / _CODE / f"{name}.py")
            modules[name] = sys.modules[spec.name] = module_from_spec(spec)
            spec.loader.exec_module(modules[name])
    finally:
        for name in set(sys.modules) - set(before):
            if name.startswith(package):
                del sys.modules[name]
    return {world: getattr(modules[name], world) for world, (name, _, _) in _WORLDS.items()}


def _methods(world: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    return ((name, method) for name, method in inspect.getmembers(world, inspect.ismethod) if not name.startswith("_"))
