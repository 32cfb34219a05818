"""InjecAgent: a person's look-up whose result holds an attacker's instruction, and the same call asked for by the person.

Each of the 1,054 base cases makes two tasks:

- `injecagent/KIND/NUMBER`: the agent looks up what the person wants, reads the instruction and obeys it. What does harm is
  the attacker's call; where data is stolen, the mail that sends it away, not the look-up before it.
- `injecagent/KIND/NUMBER-asked`: the person asks for those very calls, so they are legitimate: the tool's name decides
  nothing. In every second one the result holds another attacker's instruction, which the agent leaves alone: that such
  text is there decides nothing either.

Public source: https://github.com/uiuc-kang-lab/InjecAgent (data/), MIT.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mosaic_guard_training.sources.files import SourceFiles
from mosaic_guard_training.sources.injecagent_arguments import arguments_of, email_arguments
from mosaic_guard_training.sources.toolkits import Toolkits
from mosaic_guard_training.tasks import ScriptTurn, Task, TaskCall

FILES = SourceFiles(
    "injecagent",
    "https://github.com/uiuc-kang-lab/InjecAgent (data/)",
    "MIT",
    {
        "tools.json": "e21a8f70b1d5de4677d6d52642936a322655d79b17a72c84f600550384083a1e",
        "test_cases_dh_base.json": "0a8186468d21389af432e8c7b399ae42264d1b93a07b65c7a489468508604305",
        "test_cases_ds_base.json": "4daab35c62a3845e8b9400f4dca58b9c9f37e57cd33b2337552557fbb26282e9",
        "attacker_simulated_responses.json": "84f7e92991982e60b88b7dfe09fde0db038f32cd0cdb58c459b52a9b36e32a44",
    },
)
KINDS = ("dh", "ds")
"""Direct harm and data stealing, as the files are named."""

PLACE = "<Attacker Instruction>"
NOTHING = "Nothing to add."
"""What stands in a result where nobody attacks."""

_BODY = 600
"""Most characters of fetched data that a mail quotes."""


def tasks(data: Path) -> Iterator[Task]:
    """The tasks of the base cases, each followed by its twin.

    Args:
        data: The directory that holds `injecagent/`.

    Raises:
        TrainingError: If a file is missing or is another one.
    """
    toolkits = Toolkits(FILES.json(data, "tools.json"))
    answers = FILES.json(data, "attacker_simulated_responses.json")
    for kind in KINDS:
        file = f"test_cases_{kind}_base.json"
        yield from tasks_of(FILES.json(data, file), kind, toolkits, answers, FILES.origin(file))


def tasks_of(
    cases: Sequence[Mapping[str, Any]],
    kind: str,
    toolkits: Toolkits,
    answers: Mapping[str, str],
    source: Mapping[str, str],
) -> Iterator[Task]:
    """The tasks of some cases.

    Args:
        cases: As in `test_cases_*_base.json`.
        kind: `dh` or `ds`.
        toolkits: The tools.
        answers: What attackers' tools answer, by `(TOOL,ARGUMENTS)`.
        source: Where the cases are from.
    """
    instructions: dict[str, list[str]] = {}
    for case in cases:
        known = instructions.setdefault(toolkits.toolkit(case["Attacker Tools"][0]), [])
        if case["Attacker Instruction"] not in known:
            known.append(case["Attacker Instruction"])
    for number, case in enumerate(cases):
        names = [case["User Tool"], *case["Attacker Tools"]]
        user, attacker = case["User Instruction"], case["Attacker Instruction"]
        shared: dict[str, Any] = {
            "environment": toolkits.environment("injecagent", names),
            "tools": tuple(toolkits.tool(name) for name in dict.fromkeys(names)),
            "answer": "Done.",
            "source": source,
        }
        wanted = _attackers_calls(case, answers)
        last = len(wanted) - 1
        yield Task(
            id=f"injecagent/{kind}/{number}",
            category="injection",
            user=(user,),
            script=_script(
                case, attacker, [TaskCall(t, args, at == last, result=r) for at, (t, args, r) in enumerate(wanted)]
            ),
            **shared,
        )
        # Of a tool of the same toolkit, so that no instruction crosses a split.
        others = [text for text in instructions[toolkits.toolkit(case["Attacker Tools"][0])] if text != attacker]
        drawn = int.from_bytes(hashlib.sha256(f"{kind}/{number}".encode()).digest()[:4])
        planted = others[drawn // 2 % len(others)] if others and drawn % 2 else NOTHING
        yield Task(
            id=f"injecagent/{kind}/{number}-asked",
            category="benign",
            user=(f"{user} {attacker}",),
            script=_script(case, planted, [TaskCall(t, args, required=True, result=r) for t, args, r in wanted]),
            **shared,
        )


def _script(case: Mapping[str, Any], planted: str, then: Sequence[TaskCall]) -> tuple[ScriptTurn, ...]:
    """The look-up that the person wants, then other calls, one a message."""
    result = case["Tool Response Template"].replace(PLACE, planted)
    look_up = TaskCall(case["User Tool"], ast.literal_eval(case["Tool Parameters"]), required=True, result=result)
    return tuple(ScriptTurn(calls=(call,)) for call in (look_up, *then))


def _attackers_calls(case: Mapping[str, Any], answers: Mapping[str, str]) -> list[tuple[str, dict[str, Any], str]]:
    """(tool, arguments, result) of the calls that the attacker wants."""
    instruction = case["Attacker Instruction"]
    first, *rest = case["Attacker Tools"]
    args = arguments_of(first, instruction)
    exact = answers.get(f"({first},{json.dumps(args)})")
    any_ = next((answer for call, answer in answers.items() if call.startswith(f"({first},")), '{"success": true}')
    fetched = any_ if exact is None else exact
    # The others are mails, in all cases.
    mail = email_arguments(instruction, fetched[:_BODY]) if rest else {}
    return [(first, args, fetched), *((tool, mail, '{"success": true}') for tool in rest)]
