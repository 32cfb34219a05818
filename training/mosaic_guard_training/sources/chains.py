"""Chains: a call, what it returns, and wishes about what came back, which name none of its values.

"Cancel it again", "what is the average?", "take me there": most ordinary work goes on like this. The value of the next call
stands in a result, and no word of the user is in it. Each chain is a first call with the fields of its result, and a few calls
that may follow, with ways of asking for them. No name is that of a tool of AgentDojo, or of BFCL's conversations.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mosaic_guard_training.sources.deeds import slots_of, worded
from mosaic_guard_training.sources.values import FIRST, KINDS, WORDS, Draw
from mosaic_guard_training.tasks import TaskTool


@dataclass(frozen=True)
class Link:
    """A call of a chain.

    Attributes:
        tools: Names that its function has, one at a time.
        description: What the function is said to do.
        arguments: Names of an argument (separated by `|`) to a field of the result, a derived value, a kind of value, or text.
        requests: Ways of asking, as they would follow "please" or stand alone.
        look: Whether it changes nothing.
    """

    tools: tuple[str, ...]
    description: str
    arguments: Mapping[str, str]
    requests: tuple[str, ...]
    look: bool


@dataclass(frozen=True)
class Chain:
    """A first call and what may follow.

    Attributes:
        name: Its environment.
        first: The first call.
        result: Field of its result to its kind, and the names that it may have there.
        derived: Derived value to how it is worked out, and of which field.
        follow: What may follow.
    """

    name: str
    first: Link
    result: Mapping[str, tuple[str, tuple[str, ...]]]
    derived: Mapping[str, tuple[str, str]]
    follow: tuple[Link, ...]


@dataclass(frozen=True)
class Step:
    """A drawn call.

    Attributes:
        request: What a person says who wants it.
        tool: Its function.
        args: Its arguments.
        link: What it is.
        changed: The arguments of the same call about something else; None where it is about nothing that came back.
    """

    request: str
    tool: TaskTool
    args: Mapping[str, Any]
    link: Link
    changed: Mapping[str, Any] | None


@dataclass(frozen=True)
class Told:
    """A drawn chain.

    Attributes:
        first: The first call.
        follow: What may follow it, in drawn order.
        fields: The names and values of its result.
        others: Those of another result of the kind.
        form: How results are written.
    """

    first: Step
    follow: tuple[Step, ...]
    fields: Mapping[str, Any]
    others: Mapping[str, Any]
    form: Callable[[Mapping[str, Any]], str]

    def result(self, text: str = "", *, others: bool = False) -> str:
        """What the first call returns.

        Args:
            text: Stands in it.
            others: Whether the other result stands beside it.
        """
        found = dict(self.fields)
        if others:
            found["earlier"] = dict(self.others)
        if text:
            found["note"] = text
        return self.form(found)


def draw_chain(chain: Chain, rng: random.Random) -> Told:
    """A chain with functions' names, values, ways of asking and a form of results."""
    draw = Draw(rng)
    links = (chain.first, *rng.sample(chain.follow, len(chain.follow)))
    asks = [rng.choice(link.requests) for link in links]
    said = set().union(*(slots_of(ask) for ask in asks))
    said |= {slot for link in links for what in link.arguments.values() for slot in slots_of(what)}
    values: dict[str, Any] = {slot: draw(slot.rstrip(string.digits)) for slot in sorted(said) if _is_kind(chain, slot)}
    ours, others = ({field: _drawn(kind, draw) for field, (kind, _) in chain.result.items()} for _ in range(2))
    names = {field: rng.choice(known) for field, (_, known) in chain.result.items()}
    apart = {field for field, value in ours.items() if _are_numbers(value) and rng.random() < 0.4}
    values |= ours | _derived(chain, ours)
    steps = [_step(link, ask, values, others, rng) for link, ask in zip(links, asks, strict=True)]
    labels = rng.sample(rng.choice((FIRST, WORDS)), 8)

    def shown(fields: Mapping[str, Any]) -> dict[str, Any]:
        """Under the names that they have; some lists as a value for each of some labels."""
        found: dict[str, Any] = {}
        for field, value in fields.items():
            found[names[field]] = dict(zip(labels, value, strict=False)) if field in apart else value
        return found

    return Told(steps[0], tuple(steps[1:]), shown(ours), shown(others), rng.choice(_FORMS))


def _step(link: Link, ask: str, values: Mapping[str, Any], others: Mapping[str, Any], rng: random.Random) -> Step:
    names = [rng.choice(known.split("|")) for known in link.arguments]
    args = {name: _filled(what, values) for name, what in zip(names, link.arguments.values(), strict=True)}
    changed = {name: others.get(what, args[name]) for name, what in zip(names, link.arguments.values(), strict=True)}
    schema = {"type": "object", "properties": {n: _schema(v) for n, v in args.items()}, "required": names}
    request = ask.format(**values)
    # Only what could follow "please" can be put in other forms.
    if not request.endswith("?") and ask.split(maxsplit=1)[0].strip(",:").lower() not in _ALONE:
        request = worded(request, rng)
    elif request[-1] not in ".?!":
        request += rng.choice(("", "."))
    tool = TaskTool(rng.choice(link.tools), link.description, schema)
    return Step(request[0].upper() + request[1:], tool, args, link, changed if changed != args else None)


def _is_kind(chain: Chain, slot: str) -> bool:
    return slot not in chain.result and slot not in chain.derived and slot.rstrip(string.digits) in KINDS


def _filled(what: str, values: Mapping[str, Any]) -> Any:
    return what.format(**values) if "{" in what else values.get(what, what)


def _schema(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return {"type": "array", "items": _schema(value[0])}
    return {"type": "string" if isinstance(value, str) else "number"}


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and not isinstance(value[0], str)


def _drawn(kind: str, draw: Draw) -> Any:
    """A value of a result: one of `KINDS`, or one of those that only results have."""
    rng, (name, _, rest) = draw.rng, kind.partition(":")
    if name == "numbers":
        low, high = map(int, rest.split("-"))
        whole = rng.random() < 0.6
        return [rng.randint(low, high) if whole else round(rng.uniform(low, high), 1) for _ in range(rng.randint(3, 7))]
    if name == "float":
        low, high = map(int, rest.split("-"))
        return round(rng.uniform(low, high), rng.choice((1, 2)))
    if name == "one":
        return rng.choice(rest.split(","))
    made: Mapping[str, Callable[[], Any]] = {
        "ref": lambda: rng.choice(
            (rng.randint(1, 60), rng.randint(1000, 99999), f"{_letters(draw, 2)}-{draw.digits(4)}")
        ),
        "code": lambda: f"{_letters(draw, 1)}{rng.randint(1, 40)}",
        "code4": lambda: draw.digits(4),
        "count100": lambda: rng.randint(20, 400),
        "hex": lambda: f"{rng.randrange(16**7):07x}",
        "ip": lambda: f"10.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(2, 254)}",
        "names": lambda: rng.sample(FIRST, rng.randint(2, 5)),
    }
    return made[name]() if name in made else draw(name)


def _letters(draw: Draw, count: int) -> str:
    return draw.letters(count).upper()


def _derived(chain: Chain, fields: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, (how, field) in chain.derived.items():
        value, (what, _, by) = fields[field], how.partition(":")
        found[name] = round(value * float(by), 2) if what == "times" else _WORKED_OUT[what](value)
    return found


_ALONE = frozenset(
    "i i'd i'll it its that that's they we who what when where how and off no on average once in range total sum the which "
    "there good something my driest {minutes} {path}".split()
)
"""First words of requests that cannot follow "please"."""

_WORKED_OUT: Mapping[str, Callable[[Any], Any]] = {
    "mean": lambda many: round(sum(many) / len(many), 2),
    "sum": lambda many: round(sum(many), 2),
    "max": max,
    "min": min,
    "joined": lambda many: ", ".join(sorted(many)),
}


def _lines(fields: Mapping[str, Any]) -> str:
    return "\n".join(f"{key}: {_plain(value)}" for key, value in fields.items())


def _sentence(fields: Mapping[str, Any]) -> str:
    return "Done. " + ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in fields.items())


def _pairs(fields: Mapping[str, Any]) -> str:
    return "; ".join(f"{key}={_plain(value)}" for key, value in fields.items())


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}: {_plain(each)}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


_FORMS: Sequence[Callable[[Mapping[str, Any]], str]] = (
    lambda fields: json.dumps(fields, ensure_ascii=False),
    lambda fields: json.dumps(fields, ensure_ascii=False, indent=1),
    lambda fields: json.dumps({"status": "ok", "data": fields}, ensure_ascii=False),
    lambda fields: str(dict(fields)),
    lambda fields: str(dict(fields)),
    lambda fields: yaml.safe_dump(dict(fields), allow_unicode=True, sort_keys=False),
    _lines,
    _sentence,
    _pairs,
)


def _link(stated: Mapping[str, Any]) -> Link:
    return Link(
        tuple(stated["tools"].split()),
        stated["description"],
        stated["arguments"],
        tuple(stated["requests"]),
        bool(stated.get("look", False)),
    )


def _read() -> tuple[Chain, ...]:
    return tuple(
        Chain(
            name,
            _link(each["first"]),
            {field: (kind, tuple(names.split("|"))) for field, (kind, names) in _parted(each["result"])},
            dict(_parted(each.get("derived", {}))),
            tuple(map(_link, each["follow"])),
        )
        for name, each in yaml.safe_load(FILE.read_text(encoding="utf-8")).items()
    )


def _parted(stated: Mapping[str, str]) -> list[tuple[str, tuple[str, str]]]:
    """What comes before the last space of each text, and what behind it."""
    return [(key, (text.rpartition(" ")[0], text.rpartition(" ")[2])) for key, text in stated.items()]


FILE = Path(__file__).with_name("chains.yaml")
CHAINS = _read()
"""All chains."""
