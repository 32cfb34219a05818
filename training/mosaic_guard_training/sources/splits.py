"""Which data is trained on, tuned on and tested on: one committed file, `splits.json`, for every stage.

Families never cross: a case is on the side of the environments that it uses. ToolEmu and InjecAgent share their toolkits
and are split together: 100 of ToolEmu's cases are for training, 44 for testing; toolkits that appear together in a case
are on one side, but for Terminal and Gmail, which appear with almost all others (`shared`: what is found on them is to be
reported apart). An InjecAgent case whose person and attacker use toolkits of different sides is on none. Of
Agent-SafetyBench the cases that repeat an instruction of ToolEmu or InjecAgent are on none.

BFCL's records are split by the functions that they call: functions that are called together, that stand in one group of
`live_*` records, or whose names differ in a digit only are on one side. Composed tasks take both records from one side, and
deeds, chains and kinds of results from the same; their environment names all of them.

`python -m mosaic_guard_training.sources splits --data DIR` makes the file; the same data and seed make the same file.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mosaic_guard_training.errors import TrainingError

if TYPE_CHECKING:
    from mosaic_guard_training.sources.bfcl import Record
    from mosaic_guard_training.tasks import Task

Split = Literal["train", "dev", "test", "none"]
"""`none`: on no side; no stage uses it."""

FILE = Path(__file__).with_name("splits.json")
SHARED = ("Gmail", "Terminal")
"""Toolkits that almost all others appear with."""

SEED = 0
TEST_CASES = 44
"""Of ToolEmu's 144."""

HELD_OUT: Mapping[str, str] = {
    "agentdojo/travel": "AgentDojo's travel suite",
    "agentdojo/slack": "AgentDojo's slack suite",
    "agentharm": "AgentHarm",
    "privacylens": "PrivacyLens",
    "r-judge": "R-Judge",
    "rjudge": "R-Judge",
    "agent_threat_bench": "Agent Threat Bench",
    **{
        f"bfcl/multi_turn_{kind}_{number}": "BFCL's held-out conversations"
        for kind in ("base", "long_context", "miss_func", "miss_param")
        for number in range(100, 200)
    },
}
"""What nobody trains or tunes on, by what the names of its tasks and environments begin with."""


def held_out(name: str) -> str | None:
    """What a task or environment is held out as; None if it may be trained on."""
    parts = name.strip("/").lower().split("/")
    return next((HELD_OUT[key] for n in range(len(parts), 0, -1) if (key := "/".join(parts[:n])) in HELD_OUT), None)


def refuse_held_out(names: Iterable[str]) -> None:
    """Make sure that somebody may train or tune on tasks or environments of these names.

    Raises:
        TrainingError: If one is held out.
    """
    for name in names:
        if (held := held_out(name)) is not None:
            raise TrainingError(f"{name!r} is of {held}, on which nobody trains or tunes: take other tasks")


def split_of(source: str, name: str) -> Split:
    """The side of a case or an environment.

    Args:
        source: Such as `injecagent`.
        name: A case's id, or an environment: `SOURCE/ONE+OTHER`, with or without the source.

    Raises:
        ValueError: If the source, or what is named, is in no split.
    """
    table = _table()
    if source not in table["sources"]:
        raise ValueError(f"{source!r} is not split: {', '.join(table['sources'])} are")
    sides = table["sources"][source]
    name = name.removeprefix(f"{source}/")
    if name in sides["cases"]:
        return sides["cases"][name]  # type: ignore[no-any-return]
    environments = sides["environments"] or table["toolkits"]
    if source == "composed":
        environments = {**table["sources"]["bfcl"]["environments"], **environments}
    unknown = [part for part in name.split("+") if part not in environments]
    if unknown:
        raise ValueError(f"{source} has no case or environment {unknown[0]!r}")
    return _side(environments[part] for part in name.split("+"))


def split_of_task(task: Task) -> Split:
    """The side of a task of one of the sources.

    Raises:
        ValueError: If it is of none.
    """
    source, _, case = task.id.partition("/")
    if case in _table()["sources"].get(source, {}).get("cases", {}):
        return split_of(source, case)
    return split_of(source, task.environment)


def _side(sides: Iterable[str]) -> Split:
    """The side of what uses several environments."""
    found = set(sides) - {"shared"}
    if len(found) > 1:
        return "none"
    return found.pop() if found else "train"  # type: ignore[return-value]


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


def make_splits(data: Path, seed: int = SEED) -> dict[str, Any]:
    """What `splits.json` holds.

    Args:
        data: The directory that holds the sources' directories.
        seed: Decides what goes where.

    Raises:
        TrainingError: If a file is missing or is another one.
    """
    from mosaic_guard_training.sources import agent_safetybench, agentalign, asb, bfcl, injecagent, intents
    from mosaic_guard_training.sources.carriers import KINDS
    from mosaic_guard_training.sources.chains import CHAINS
    from mosaic_guard_training.sources.deeds import DEEDS
    from mosaic_guard_training.sources.files import SourceFiles

    toolemu = SourceFiles(
        "toolemu",
        "https://github.com/ryoungj/ToolEmu (assets/)",
        "Apache-2.0",
        {
            "all_cases.json": "38812d86f4b55494a0d82fe5c38e54d9ccffe85393b77a65637203ed584a45fa",
            "all_toolkits.json": injecagent.FILES.sha256["tools.json"],
        },
    )
    cases = toolemu.json(data, "all_cases.json")
    names = [kit["name_for_model"] for kit in toolemu.json(data, "all_toolkits.json")]
    toolkits = split_toolkits({case["name"]: case["Toolkits"] for case in cases}, names, seed)
    agents = [agent["agent_name"] for agent in asb.FILES.lines(data, "agent_task.jsonl")]
    harms = {agentalign.FILES.json(data, file)["params"]["category"] for file in agentalign.FILES.sha256}
    injected = [
        case[key]
        for kind in injecagent.KINDS
        for case in injecagent.FILES.json(data, f"test_cases_{kind}_base.json")
        for key in ("User Instruction", "Attacker Instruction")
    ]
    bench = agent_safetybench.FILES.json(data, "released_data.json")
    worlds = {str(c["id"]): [e["name"] for e in c["environments"] if e["name"]] for c in bench}
    repeated = repeats([*injected, *(case["User Instruction"] for case in cases)], {str(c["id"]): c for c in bench})
    return {
        "seed": seed,
        "toolkits": toolkits,
        "sources": {
            "toolemu": {
                "environments": {},
                "cases": {c["name"]: _side(toolkits[k] for k in c["Toolkits"]) for c in cases},
            },
            "injecagent": {"environments": {}, "cases": {}},
            "asb": {"environments": _dealt(agents, {"train": 7, "dev": 3}, seed), "cases": {}},
            "agent_safetybench": {
                "environments": split_worlds({n: w for n, w in worlds.items() if w}, seed),
                "cases": dict.fromkeys(repeated, "none"),
            },
            "agentalign": {"environments": _dealt(sorted(harms), {"train": 5, "dev": 1, "test": 2}, seed), "cases": {}},
            "intents": {"environments": dict(intents.SIDES), "cases": {}},
            "bfcl": {"environments": split_functions(bfcl.read_records(data)[0], seed), "cases": {}},
            "composed": {
                "environments": {
                    **_dealt_by_share([f"deed-{deed.name}" for deed in DEEDS], seed),
                    **_dealt_by_share([f"kind-{kind.name}" for kind in KINDS], seed),
                    **_dealt_by_share([f"chain-{chain.name}" for chain in CHAINS], seed),
                },
                "cases": {},
            },
        },
    }


def split_functions(records: Sequence[Record], seed: int) -> dict[str, str]:
    """The side of each function that BFCL's records call: families are dealt out as Agent-SafetyBench's environments are."""
    cases = {}
    for record in records:
        called = record.environment.split("+")
        linked = {f"~{re.sub(r'[^a-z]', '', name.lower())}" for name in called}
        linked |= {f"~{match[1]}" for name in called if (match := re.match(r"(.+?)_\d+_", name))}
        if match := re.match(r"(live_[a-z_]+)_\d+-(\d+)-\d+$", record.id):
            linked.add(f"~{match[1]}/{match[2]}")
        cases[record.id] = [*called, *sorted(linked)]
    return {name: side for name, side in split_worlds(cases, seed).items() if not name.startswith("~")}


def split_toolkits(cases: Mapping[str, Sequence[str]], names: Sequence[str], seed: int) -> dict[str, str]:
    """The side of each toolkit, such that exactly `TEST_CASES` cases are tested on.

    Args:
        cases: The toolkits of each case.
        names: All toolkits, those that no case uses included.
        seed: Decides which.

    Raises:
        TrainingError: If no choice of families gives that number.
    """
    own = {name: [kit for kit in kits if kit not in SHARED] for name, kits in cases.items()}
    families = _families([kits for kits in own.values() if kits])
    families += [[name] for name in names if name not in SHARED and not any(name in family for family in families)]
    random.Random(seed).shuffle(families)
    sizes = [sum(bool(kits) and kits[0] in family for kits in own.values()) for family in families]
    # Which sums the first families can make, then backwards which of them to take.
    reach: list[set[int]] = [{0}]
    for size in sizes:
        reach.append(reach[-1] | {total + size for total in reach[-1]})
    wanted, tested = TEST_CASES, set[str]()
    if wanted not in reach[-1]:
        raise TrainingError(f"no choice of toolkits gives {TEST_CASES} test cases")
    for at in range(len(families) - 1, -1, -1):
        if wanted not in reach[at]:
            wanted -= sizes[at]
            tested.update(families[at])
    sides = {name: "shared" if name in SHARED else "test" if name in tested else "train" for name in names}
    return dict(sorted(sides.items()))


def split_worlds(cases: Mapping[str, Sequence[str]], seed: int) -> dict[str, str]:
    """The side of each environment: families are dealt out until 15 % of the cases are tested on and 15 % tuned on."""
    families = _families(list(cases.values()))
    random.Random(seed).shuffle(families)
    sides, filled = dict[str, str](), {"test": 0, "dev": 0}
    most = 0.15 * len(cases)
    for family in families:
        size = sum(worlds[0] in family for worlds in cases.values())
        side = next((s for s in filled if filled[s] + size <= most), "train")
        if side != "train":
            filled[side] += size
        sides.update(dict.fromkeys(family, side))
    return dict(sorted(sides.items()))


def repeats(texts: Iterable[str], cases: Mapping[str, Any]) -> list[str]:
    """The cases that hold one of some texts of 20 letters and more, whatever the spaces, case and punctuation."""
    sought = {letters for text in texts if len(letters := _letters(text)) >= 20}
    said = {
        name: _letters(re.sub(r"\\[nt]", " ", json.dumps(case, ensure_ascii=False))) for name, case in cases.items()
    }
    return [name for name, letters in said.items() if any(text in letters for text in sought)]


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _families(together: Sequence[Sequence[str]]) -> list[list[str]]:
    """What appears together, directly or through others; sorted."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for names in together:
        for name in names:
            parent[root(name)] = root(names[0])
    found: dict[str, list[str]] = {}
    for name in sorted(parent):
        found.setdefault(root(name), []).append(name)
    return sorted(found.values())


def _dealt_by_share(names: Sequence[str], seed: int) -> dict[str, str]:
    """Some names, about one in eight to tune on and one in eight to test on."""
    few = len(names) // 8
    return _dealt(names, {"train": len(names) - 2 * few, "dev": few, "test": few}, seed)


def _dealt(names: Sequence[str], numbers: Mapping[str, int], seed: int) -> dict[str, str]:
    """Some names, as many on each side as said."""
    sides = [side for side, number in numbers.items() for _ in range(number)]
    mixed = sorted(names)
    random.Random(seed).shuffle(mixed)
    return dict(sorted(zip(mixed, sides, strict=True)))
