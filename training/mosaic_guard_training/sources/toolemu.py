"""ToolEmu's cases, and what 25 agents did in them, as conversations with both judges' scores; families and splits of cases.

Read from a directory that holds `all_cases.json` and `all_toolkits.json` (ToolEmu, Apache-2.0) and
`scored_trajectories.jsonl.gz` (github.com/bplaut/safety-persists-llm-agents at cde0b8f0b898, MIT: the steps, outputs and
scores of `data/raw_data_by_eval/` as one file). Two language models scored each trajectory from 0 (worst) to 3 for safety
and for helpfulness. They often differ, so a trajectory counts as harmful only where both say at most 1, as harmless only
where both say at least 2, and is unknown between; `completed` likewise.

Nobody says which step did the harm. The answer that ends a trajectory is a step too: agents that call no tool and claim
success anyway were scored for that claim.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from mosaic_guard._trace import Outcome
from mosaic_guard_training.importing import Conversation, ImportingError

if TYPE_CHECKING:
    from mosaic_guard._trace import Trajectory

CASES, TOOLKITS, TRAJECTORIES = "all_cases.json", "all_toolkits.json", "scored_trajectories.jsonl.gz"

JUDGES = ("gpt5mini", "qwen32b")

HUBS = ("Gmail", "Terminal")
"""Toolkits that stand beside those of most other families: they tie no cases together, or all would be one family."""

_READING = ("Get", "Search", "List", "Read", "View", "Check", "Find", "Retrieve", "Query", "Show", "Lookup", "Fetch")


def read(directory: Path) -> Iterator[Conversation]:
    """All trajectories as conversations; the task is the case.

    Raises:
        ImportingError: If a file is missing or broken.
    """
    known = {case["name"]: case for case in read_cases(directory)}
    specs = tool_specs(directory)
    file = directory / TRAJECTORIES
    for number, line in enumerate(_lines(file), 1):
        try:
            row = json.loads(line)
            case = known[row["case"]]
            found = _conversation(row, [spec for kit in case["Toolkits"] for spec in specs[kit]], number)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImportingError(
                f"{file}:{number}: not a scored trajectory ({type(error).__name__}: {error})"
            ) from error
        yield found


def _conversation(row: Mapping[str, Any], tools: Sequence[Mapping[str, Any]], number: int) -> Conversation:
    messages: list[BaseMessage] = [HumanMessage(row["input"])]
    for at, step in enumerate(row["steps"]):
        call = {"name": step["tool"], "args": _arguments(step["input"]), "id": f"call_{at}", "type": "tool_call"}
        thought = step["thought_action"].partition("Action:")[0].strip()
        messages.append(AIMessage(thought, tool_calls=[call]))
        messages.append(ToolMessage(step["observation"], name=step["tool"], tool_call_id=call["id"]))
    messages.append(AIMessage(row["output"].removeprefix(":").strip(), id="answer"))
    scores = {f"{kind}_{judge}": int(row[f"{kind}_{judge}"]) for kind in ("safety", "help") for judge in JUDGES}
    unsafe = _agreed([scores[f"safety_{judge}"] for judge in JUDGES])
    outcome = Outcome(
        harmful=None if unsafe is None else not unsafe,
        completed=_agreed([scores[f"help_{judge}"] for judge in JUDGES]),
        source="judges:toolemu",
        details={**scores, "agent": row["agent"]},
    )
    # The same agent comes twice in some cases.
    identity = f"toolemu/{row['case']}/{row['agent']}/{number}"
    return Conversation(identity, messages, tools, row["case"], outcome, judge_answer=True)


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call; what the agent wrote instead of a JSON object stands under `input`."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"input": text.strip()}


def _agreed(scores: Sequence[int]) -> bool | None:
    """Whether both scores are good; None where they are neither both good nor both bad."""
    return True if min(scores) >= 2 else False if max(scores) <= 1 else None


def read_cases(directory: Path) -> list[dict[str, Any]]:
    """The cases, in their order: `name`, `Toolkits`, `User Instruction`, ….

    Raises:
        ImportingError: If the file is missing or broken.
    """
    found = _json(directory / CASES)
    if not isinstance(found, list) or not all(isinstance(c, dict) and c.get("Toolkits") and "name" in c for c in found):
        raise ImportingError(f"{directory / CASES}: not a list of cases with `name` and `Toolkits`")
    return found


def tool_specs(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """The tools of each toolkit, as traces describe tools.

    Raises:
        ImportingError: If the file is missing or broken.
    """
    file = directory / TOOLKITS
    try:
        return {
            kit["toolkit"]: [_spec(kit.get("name_for_model") or kit["toolkit"], tool) for tool in kit["tools"]]
            for kit in _json(file)
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ImportingError(f"{file}: not a list of toolkits ({type(error).__name__}: {error})") from error


_TYPES = {"string", "integer", "number", "boolean", "array", "object"}


def _spec(kit: str, tool: Mapping[str, Any]) -> dict[str, Any]:
    properties = {
        p["name"]: {
            **({"type": p["type"]} if p.get("type") in _TYPES else {}),
            "description": p.get("description", ""),
        }
        for p in tool["parameters"]
    }
    required = [p["name"] for p in tool["parameters"] if p.get("required")]
    return {
        "name": f"{kit}{tool['name']}",
        "description": tool.get("summary", ""),
        "parameters": {"type": "object", "properties": properties, "required": required},
        "metadata": {},
        "tags": [],
    }


def only_reads(tool: str, kits: Sequence[str]) -> bool:
    """Whether a tool's name begins, after its toolkit's, with a verb of looking; ToolEmu marks no side effects itself."""
    kit = max((k for k in kits if tool.startswith(k)), key=len, default="")
    return tool[len(kit) :].startswith(_READING)


def agreed_pairs(trajectories: Sequence[Trajectory], gap: int = 2) -> list[tuple[Trajectory, Trajectory]]:
    """(safer, less safe) of each two trajectories of one case on whose safety the judges agree.

    Args:
        trajectories: As imported.
        gap: How far apart the first judge's scores are at least; the second judge's must differ in the same direction.
    """
    cases: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        cases.setdefault(trajectory.task, []).append(trajectory)
    pairs = []
    for members in cases.values():
        for one, other in combinations(members, 2):
            first, second = (safety(one, judge) - safety(other, judge) for judge in JUDGES)
            if abs(first) >= gap and first * second > 0:
                pairs.append((one, other) if first > 0 else (other, one))
    return pairs


def safety(trajectory: Trajectory, judge: str) -> int:
    """A judge's safety score of an imported trajectory, 0 to 3."""
    assert trajectory.outcome is not None  # every one is scored
    return int(trajectory.outcome.details[f"safety_{judge}"])


def families(cases: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Case name to the name of its family: cases that share a toolkit, directly or by way of others, are of one.

    `HUBS` do not count, but for cases that use nothing else.
    """
    parent: dict[str, str] = {}

    def root(kit: str) -> str:
        parent.setdefault(kit, kit)
        while parent[kit] != kit:
            kit = parent[kit]
        return kit

    kits = {c["name"]: [k for k in c["Toolkits"] if k not in HUBS] or sorted(c["Toolkits"])[:1] for c in cases}
    for first, *others in kits.values():
        for other in others:
            parent[max(root(first), root(other))] = min(root(first), root(other))
    return {name: root(first) for name, (first, *_) in kits.items()}


def split_cases(
    cases: Sequence[Mapping[str, Any]], *, held_out: int = 44, seed: int = 0, splits: Path | None = None
) -> tuple[list[str], list[str]]:
    """(names of the cases to train on, names of the held-out ones); no family is on both sides.

    Args:
        cases: As `read_cases` returns them.
        held_out: How many cases to hold out; fewer if the families do not add up to it.
        seed: Decides which families.
        splits: `splits.json`, which settles it instead: its `sources.toolemu.cases` says `train` or `test` of each case.

    Raises:
        ImportingError: If the file does not name every case.
    """
    if splits is not None:
        try:
            said = _json(splits)["sources"]["toolemu"]["cases"]
        except (KeyError, TypeError) as error:
            raise ImportingError(f"{splits}: it has no `sources.toolemu.cases`") from error
        if missing := [c["name"] for c in cases if said.get(c["name"]) not in ("train", "test")]:
            raise ImportingError(
                f"{splits}: `sources.toolemu.cases` puts {missing[0]} and {len(missing) - 1} more on no side"
            )
        test = {name for name, side in said.items() if side == "test"}
    else:
        of = families(cases)
        sizes = Counter(of.values())
        order = sorted(sizes)
        random.Random(f"{seed}\0toolemu").shuffle(order)
        taken: set[str] = set()
        room = held_out
        for family in order:
            if sizes[family] <= room:
                taken.add(family)
                room -= sizes[family]
        test = {name for name, family in of.items() if family in taken}
    names = [case["name"] for case in cases]
    return [name for name in names if name not in test], [name for name in names if name in test]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ImportingError(f"{file}:{error.lineno}: no JSON ({error.msg})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ImportingError(f"{file}: {error}") from error


def _lines(file: Path) -> Iterator[str]:
    try:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            yield from stream
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ImportingError(f"{file}: {error}") from error
