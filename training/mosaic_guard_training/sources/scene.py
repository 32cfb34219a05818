"""What composed tasks are made of: records, deeds, chains and kinds of results of one side, and a family of tasks being made.

A family is a few tasks that share an id's beginning, their tools and most of their text, and differ in one span: what the
user asked for, which document was named, what stood in the result. Labels follow from the whole, never from one part.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mosaic_guard_training.sources.bfcl import Record
from mosaic_guard_training.sources.carriers import KINDS, Carrier, Kind, another, draw_carrier
from mosaic_guard_training.sources.chains import CHAINS, Chain
from mosaic_guard_training.sources.deeds import DEEDS, Deed, Done, draw_deed, patterns_of, worded
from mosaic_guard_training.sources.injections import Side, draw_template, planted
from mosaic_guard_training.sources.splits import split_of
from mosaic_guard_training.sources.values import Draw
from mosaic_guard_training.tasks import ScriptTurn, Task, TaskCall, TaskError, TaskTool, call_key

MOST_TOOLS = 12
"""Most tools of a task."""

MOST_CALLS = 4
"""Most calls of a record: a guard has to read all calls of a step at once."""

OF_BFCL = 0.45
"""Share of BFCL's records among those that change something; the rest are deeds."""


@dataclass(frozen=True)
class Pool:
    """What tasks of one side are composed of.

    Attributes:
        side: Whose templates are used, too.
        effects: Records that change something, by environment.
        looks: The other records, by environment.
        deeds: Deeds.
        kinds: Kinds of results.
        chains: Chains.
    """

    side: Side
    effects: Mapping[str, Sequence[Record]]
    looks: Mapping[str, Sequence[Record]]
    deeds: Sequence[Deed]
    kinds: Sequence[Kind]
    chains: Sequence[Chain]


def pool_of(side: Side, records: Sequence[Record]) -> Pool:
    """What belongs to a side, by `splits.json`.

    Args:
        side: `train`, `dev` or `test`.
        records: BFCL's, of all sides.
    """
    effects, looks = dict[str, list[Record]](), dict[str, list[Record]]()
    for record in records:
        if len(record.calls) <= MOST_CALLS and split_of("bfcl", record.environment) == side:
            (effects if record.effect else looks).setdefault(record.environment, []).append(record)
    deeds = [deed for deed in DEEDS if split_of("composed", f"deed-{deed.name}") == side]
    kinds = [kind for kind in KINDS if split_of("composed", f"kind-{kind.name}") == side]
    chains = [chain for chain in CHAINS if split_of("composed", f"chain-{chain.name}") == side]
    return Pool(side, effects, looks, deeds, kinds, chains)


class ClashError(Exception):
    """Two tools of a scene have one name, two of its wishes are the same, or a side has nothing to draw from: draw again."""


@dataclass
class Scene:
    """A family in the making.

    Attributes:
        pool: What it draws from.
        name: What its tasks' ids begin with.
        rng: Decides all that is drawn.
        tools: Those of everything drawn, by name.
        environments: Likewise.
        wishes: The calls that somebody asks for.
        taken: (slot, value) of what was drawn.
        deeds: The drawn deeds, by their records' ids.
    """

    pool: Pool
    name: str
    rng: random.Random
    tools: dict[str, TaskTool] = field(default_factory=dict)
    environments: set[str] = field(default_factory=set)
    wishes: set[str] = field(default_factory=set)
    taken: set[tuple[str, str]] = field(default_factory=set)
    deeds: dict[str, Done] = field(default_factory=dict)

    def chance(self, share: float) -> bool:
        """True in this share of the draws."""
        return self.rng.random() < share

    @property
    def draw(self) -> Draw:
        """Draws values."""
        return Draw(self.rng)

    def record(self, effect: bool = True) -> Record:
        """A record, with its tools in the scene; each function is as likely as any other."""
        by_environment = self.pool.effects if effect else self.pool.looks
        if not by_environment or (effect and not self.chance(OF_BFCL)):
            return self.done().record
        found = self.rng.choice(by_environment[self.rng.choice(sorted(by_environment))])
        called = {tool for tool, _ in found.calls}
        others = [
            tool for tool in found.tools if tool.name not in called and _may_stand_beside(tool.name, self.pool.side)
        ]
        kept = [tool for tool in others if self.chance(0.4)]
        self.add(found.environment, *(tool for tool in found.tools if tool.name in called or tool in kept))
        self.claim(found)
        return found

    def claim(self, record: Record) -> None:
        """Note what somebody asks for, so that nobody else of the scene asks for the same.

        Raises:
            ClashError: If somebody does already.
        """
        key = "\0".join(sorted(call_key(tool, args) for tool, args in record.calls))
        if key in self.wishes:
            raise ClashError("asked for twice")
        self.wishes.add(key)

    def reworded(self, record: Record) -> str:
        """A record's request in other words, where it is a deed's; else as it is."""
        done = self.deeds.get(record.id)
        if done is None:
            return record.request
        return worded(self.rng.choice(patterns_of(done)).format(**done.values), self.rng)

    def of_side(self, texts: Sequence[str]) -> str:
        """One of some ways to put something; the last but one is kept for tuning on, the last for testing."""
        kept = {"dev": texts[-2:-1], "test": texts[-1:]}
        return self.rng.choice(kept.get(self.pool.side, texts[:-2]))

    def done(self, deed: Deed | None = None, values: Mapping[str, Any] | None = None) -> Done:
        """A drawn deed, with its tool in the scene."""
        done = draw_deed(deed or self.choice(self.pool.deeds), self.rng, values)
        self.add(done.record.environment, *done.record.tools)
        self.claim(done.record)
        self.taken.update((slot, str(value)) for slot, value in done.values.items())
        self.deeds[done.record.id] = done
        return done

    def choice(self, options: Sequence[Any]) -> Any:
        """One of some.

        Raises:
            ClashError: If there are none.
        """
        if not options:
            raise ClashError("nothing to draw from")
        return self.rng.choice(options)

    def carrier(self, kind: Kind | None = None, ordinary: float = 0.3) -> Carrier:
        """A drawn result, with its tool in the scene."""
        found = draw_carrier(self.rng, kind or self.rng.choice(self.pool.kinds), ordinary=ordinary)
        self.add(f"kind-{found.kind.name}", found.tool)
        return found

    def another(self, carrier: Carrier) -> Carrier:
        """A result beside one: as often as not of the same tool, as two mails are.

        Raises:
            ClashError: If both are called alike.
        """
        found = another(self.rng, carrier) if self.chance(0.5) else self.carrier()
        if (found.tool, found.args) == (carrier.tool, carrier.args) or found.referred == carrier.referred:
            raise ClashError("one document")
        return found

    def add(self, environment: str, *tools: TaskTool) -> None:
        """Put tools into the scene.

        Raises:
            ClashError: If another one has the name.
        """
        self.environments.update(environment.split("+"))
        for tool in tools:
            if self.tools.setdefault(tool.name, tool) != tool:
                raise ClashError(tool.name)

    def planted(self, record: Record, style: str | None = None) -> str:
        """A record's request as text that stands in a result."""
        template = draw_template(self.rng, self.pool.side)[1] if style is None else style
        tool, args = record.calls[0]
        # A template that names the call can name one only.
        while len(record.calls) > 1 and "{ask}" not in template:
            template = draw_template(self.rng, self.pool.side)[1]
        said = json.dumps(args, ensure_ascii=False)
        return planted(template, ask=record.request, tool=tool, args=said, who=str(self.draw("person")))

    def together(self, parts: Sequence[str]) -> str:
        """Wishes as one request."""
        first, *rest = [part for part in parts if part]
        text = first
        for part in rest:
            if text[-1] not in ".!?:":
                text += "."
            text += self.rng.choice((" ", " ", "\n", "\n\n", " Also: ", " And: ", " Then: ", " Besides, "))
            text += part
        return text

    def said(self) -> str:
        """What the agent says beside a call; mostly nothing."""
        return self.rng.choice(_SAID) if self.chance(0.15) else ""

    def step(self, *calls: TaskCall) -> ScriptTurn:
        """A message of the agent with some calls."""
        return ScriptTurn(self.said(), calls)

    def task(
        self, variant: str, user: str | Sequence[str], script: Sequence[ScriptTurn], category: str | None = None
    ) -> Task:
        """A task of the family.

        Args:
            variant: Ends its id.
            user: The requests.
            script: What the agent proposes; steps without calls are left out, but for answers.
            category: Default: `injection` if a call is harmful, else `benign`.

        Raises:
            ClashError: If two of its calls are the same and have different labels.
        """
        harmful = any(call.harmful for turn in script for call in turn.calls)
        names = {call.tool for turn in script for call in turn.calls}
        others = [tool for name, tool in self.tools.items() if name not in names]
        kept = [tool for name, tool in self.tools.items() if name in names]
        kept += others[: max(MOST_TOOLS - len(kept), 0)]
        # By name: the order of drawing would tell which tool came with the injection.
        kept.sort(key=lambda tool: tool.name)
        try:
            return Task(
                id=f"{self.name}/{variant}",
                environment="composed/" + "+".join(sorted(self.environments)),
                category=category if category and harmful else "injection" if harmful else "benign",
                user=(user,) if isinstance(user, str) else tuple(user),
                tools=tuple(kept),
                script=tuple(script),
                answer=self.rng.choice(_ANSWERS),
            )
        except TaskError as error:
            raise ClashError(str(error)) from error


def _may_stand_beside(function: str, side: Side) -> bool:
    """Whether a function that is not called may be among the tools: none is that is called on another side."""
    try:
        return split_of("bfcl", function) == side
    except ValueError:  # called nowhere
        return True


def calls_of(record: Record, rng: random.Random, *, harmful: bool = False) -> tuple[TaskCall, ...]:
    """The calls of a record, with results."""
    results = _DONE if record.effect else _FOUND
    return tuple(
        TaskCall(tool, args, harmful=harmful, required=not harmful, result=rng.choice(results))
        for tool, args in record.calls
    )


def look_at(carrier: Carrier, text: str = "") -> TaskCall:
    """The call that returns a carrier's result, with some text in it."""
    return TaskCall(carrier.tool.name, carrier.args, result=carrier.filled(text))


def wish(carrier: Carrier, rng: random.Random) -> str:
    """What a person says who wants a carrier looked at."""
    return worded(carrier.look, rng) if "?" not in carrier.look else carrier.look[0].upper() + carrier.look[1:]


ANSWERED = ScriptTurn("Done.")
"""The agent's answer between two requests."""

_SAID = (
    "Let me do that.", "One moment.", "Next step.", "I will take care of it.", "I need to do this first.", "Working on it.",
    "OK.", "Now the following.", "Going on.", "Let me see.",
)  # fmt: skip
_ANSWERS = ("Done.", "All done.", "That is settled.", "Here you are.", "I have finished.", "It is taken care of.")
_DONE = (
    "ok",
    "Done.",
    '{"status": "success"}',
    '{"ok": true}',
    "success",
    '{"result": "completed", "code": 200}',
    "True",
    "null",
)
_FOUND = (
    '{"result": 42.5}', '{"results": []}', "3 entries found.", '{"value": 17, "unit": "x"}', "No further details.",
    '{"items": [{"id": 1}, {"id": 2}]}', "ok", "12.75", '{"status": "ok", "data": null}',
)  # fmt: skip
