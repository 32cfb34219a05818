"""Agent-SafetyBench: instructions and the tools of their environments, for agents that are chat models.

The source labels no call (its score is another model's opinion), so these tasks have no script and no grader: a judge has
to compare what becomes of them. Cases without tools are left out: a guard has nothing to judge there. Look-ups answer with
what the environment holds when the case begins, all other tools with success; the source's own environments are programs.

Public source: https://github.com/thu-coai/Agent-SafetyBench (data/ and environments/), MIT.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.sources.files import SourceFiles
from mosaic_guard_training.sources.toolkits import environment
from mosaic_guard_training.tasks import NO_PARAMETERS, CannedResult, Task, TaskTool

FILES = SourceFiles(
    "agent_safetybench",
    "https://github.com/thu-coai/Agent-SafetyBench (data/released_data.json and the JSON files of environments/)",
    "MIT",
    {
        "released_data.json": "59dd0333001ef767766d803e97086ec02af0fbf7ff1f7070b3797863b0dacbe2",
        # Over the names and contents of all specifications: see `_specifications`.
        "environment_specs": "690d001caf812598beddac4d4fe75b71d497aa9405a853a8e0b6014a20470459",
    },
)

_LOOK_UP = re.compile(
    r"(?:get|list|search|read|view|find|check|fetch|query|show|monitor|retrieve|scan|lookup|load)", re.I
)


def tasks(data: Path) -> Iterator[Task]:
    """The tasks of the cases that have tools.

    Args:
        data: The directory that holds `agent_safetybench/`.

    Raises:
        TrainingError: If a file is missing or is another one.
    """
    cases = FILES.json(data, "released_data.json")
    yield from tasks_of(cases, _specifications(data), FILES.origin("released_data.json"))


def tasks_of(
    cases: Sequence[Mapping[str, Any]],
    specifications: Mapping[str, Sequence[Mapping[str, Any]]],
    source: Mapping[str, str],
) -> Iterator[Task]:
    """The tasks of some cases.

    Args:
        cases: As in `released_data.json`.
        specifications: The tools of each environment, by its name.
        source: Where the cases are from.
    """
    for case in cases:
        worlds = [world for world in case["environments"] if world["name"] and world["tools"]]
        if not worlds:
            continue
        tools: dict[str, TaskTool] = {}
        results = []
        for world in worlds:
            stated = {tool["name"]: tool for tool in specifications[world["name"]]}
            holds = json.dumps(world.get("parameters") or {}, ensure_ascii=False)
            for name in world["tools"]:
                tool = stated[name]
                tools[name] = TaskTool(
                    name, tool.get("description") or "", tool.get("parameters") or dict(NO_PARAMETERS)
                )
                results.append(CannedResult(name, None, holds if _LOOK_UP.match(name) else '{"success": true}'))
        yield Task(
            id=f"agent_safetybench/{case['id']}",
            environment=environment("agent_safetybench", (world["name"] for world in worlds)),
            category="fulfillable" if case["fulfillable"] else "unfulfillable",
            user=(case["instruction"],),
            tools=tuple(tools.values()),
            results=tuple(results),
            source=source,
        )


def _specifications(data: Path) -> dict[str, Any]:
    """The specifications of all environments, by name."""
    files = sorted((data / FILES.name / "environment_specs").glob("*.json"))
    contents = {file.stem: file.read_bytes() for file in files}
    whole = hashlib.sha256()
    for name, content in contents.items():
        whole.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    if whole.hexdigest() != FILES.sha256["environment_specs"]:
        raise TrainingError(
            f"the {len(files)} files in {str(data / FILES.name / 'environment_specs')!r} are not those that are read here: "
            f"get them from {FILES.public}"
        )
    return {name: json.loads(content) for name, content in contents.items()}
