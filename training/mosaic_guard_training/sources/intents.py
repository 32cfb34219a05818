"""Requests of users, harmful ones and harmless look-alikes, with the calls that an agent would do them by.

    python -m mosaic_guard_training.sources intents --data DIR --output FILE --split train

Who asked decides nothing here: the user asked for all of it, and what is wanted decides. `intents/CATEGORY.yaml` has, for each
category of harm, themes with requests of both kinds, in like words and for the same tools; the tools' names, the names of their
arguments, the values and how a wish is put are drawn. A family is a harmful request and a harmless one of one theme and, now
and then, both in one request, where each call is judged by what it is for. `splits.json` deals the categories to sides, those
that AgentAlign has too as AgentAlign's are.

All of it was written for this project; DIR is not read. All sides share the tools and the forms of a wish, and a category that
is held back borders on others: who stalks also harasses, and spies.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from mosaic_guard_training.sources.deeds import value_of, worded
from mosaic_guard_training.sources.values import Draw
from mosaic_guard_training.tasks import ScriptTurn, Task, TaskCall, TaskError, TaskTool

PLACE = Path(__file__).with_name("intents")
SIDES: Mapping[str, str] = {
    "bias_and_fairness": "train",
    "cheating": "dev",
    "cyber_crime": "train",
    "exploitation": "train",
    "extremism": "train",
    "financial_crime": "train",
    "forgery": "train",
    "harassment": "train",
    "illicit_trade": "train",
    "intellectual_property": "dev",
    "misinformation": "train",
    "online_fraud": "train",
    "privacy": "test",
    "sabotage": "train",
    "self_harm": "test",
    "weapons": "train",
}
"""The side of each category, as `splits.json` says it."""

ROUNDS = 8
"""How often each request is drawn anew, beside another one of its theme most times."""


@dataclass(frozen=True)
class Kind:
    """A kind of tool.

    Attributes:
        names: That it has, one at a time.
        description: What it is said to do.
        arguments: Names of each argument, separated by `|`.
    """

    names: str
    description: str
    arguments: tuple[str, ...]


KINDS: Mapping[str, Kind] = {
    "search": Kind(
        "find_online web_lookup internet_search query_search_engine look_on_web", "Searches the web.", ("query|q|text",)
    ),
    "visit": Kind("open_page browse_to load_url read_web_page", "Opens a page of the web.", ("url|address|page",)),
    "mail": Kind(
        "mail_out compose_mail deliver_email smtp_send",
        "Sends an e-mail.",
        ("to|recipient", "subject|title", "body|text"),
    ),
    "message": Kind(
        "text_somebody send_chat dm_user sms_send messenger_send",
        "Sends a message.",
        ("to|recipient|contact", "text|message"),
    ),
    "post": Kind(
        "publish_post submit_post post_online share_publicly", "Publishes a text.", ("where|place|site", "text|content")
    ),
    "write": Kind("write_document new_file save_text store_file", "Writes a file.", ("path|file|name", "content|text")),
    "read": Kind("open_document load_file view_file", "Reads a file.", ("path|file|name",)),
    "code": Kind(
        "write_program code_assistant make_script generate_program", "Writes a program.", ("task|purpose|description",)
    ),
    "run": Kind("shell run_in_terminal exec_shell bash_command", "Runs a command.", ("command|cmd|line",)),
    "pay": Kind(
        "wire_money pay_out make_transfer settle_payment",
        "Pays money.",
        ("to|payee|account", "amount|sum", "note|reference"),
    ),
    "order": Kind(
        "buy_item place_purchase shop_order order_goods", "Orders something.", ("item|product", "quantity|count")
    ),
    "picture": Kind("draw_picture image_maker render_image paint", "Makes a picture.", ("prompt|description",)),
    "speak": Kind("phone_call voice_call call_and_say", "Calls somebody and speaks.", ("number|phone", "words|script")),
    "person": Kind("find_person people_directory who_is person_lookup", "Looks a person up.", ("name|person",)),
    "account": Kind("sign_up open_account register_user", "Opens an account.", ("service|site", "name|user")),
    "records": Kind("search_records query_records registry_lookup", "Searches records.", ("what|query|filter",)),
    "device": Kind(
        "control_device device_action operate_device", "Controls a device.", ("device|name", "action|command")
    ),
    "book": Kind("reserve make_booking book_service", "Books something.", ("what|service", "date|day")),
    "translate": Kind(
        "translate_into translator text_to_language", "Translates a text.", ("text|content", "language|target")
    ),
}
"""What `do` names."""


@dataclass(frozen=True)
class Wish:
    """A request and what does it, with slots.

    Attributes:
        ask: As it would follow "please".
        do: Kind of tool and arguments of each call.
    """

    ask: str
    do: tuple[tuple[str, ...], ...]

    @property
    def slots(self) -> list[str]:
        """What is drawn."""
        return list(dict.fromkeys(re.findall(r"{(\w+)}", self.ask)))


@dataclass(frozen=True)
class Theme:
    """Requests about one thing.

    Attributes:
        category: Of harm.
        name: Its own.
        harmful: Requests that nobody may do.
        harmless: Others in like words.
    """

    category: str
    name: str
    harmful: tuple[Wish, ...]
    harmless: tuple[Wish, ...]


@lru_cache(maxsize=1)
def themes() -> tuple[Theme, ...]:
    """All themes, those of a category one after the other."""
    found = []
    for category in SIDES:
        stated = yaml.safe_load((PLACE / f"{category}.yaml").read_text(encoding="utf-8"))
        found += [
            Theme(category, name, _wishes(each["harmful"]), _wishes(each["harmless"])) for name, each in stated.items()
        ]
    return tuple(found)


def _wishes(stated: Sequence[Mapping[str, Any]]) -> tuple[Wish, ...]:
    return tuple(Wish(each["ask"], tuple(tuple(map(str, call)) for call in each["do"])) for each in stated)


def tasks(_data: Path | None = None) -> Iterator[Task]:
    """Families of all themes; the first of each theme come before the second."""
    for number in range(ROUNDS * 5):
        for theme in themes():
            yield from family(theme, number)


def family(theme: Theme, number: int, seed: int = 0) -> list[Task]:
    """A harmful request, a harmless one, and in some families both at once.

    Args:
        theme: Of which.
        number: Decides, with the seed, which requests, and all that is drawn.
        seed: As said.
    """
    name = f"intents/{theme.category}-{theme.name}-{seed}-{number}"
    rng = random.Random(name)
    # Every harmful request meets every harmless one, sooner or later.
    bad = theme.harmful[number % len(theme.harmful)]
    good = theme.harmless[(number + number // len(theme.harmful)) % len(theme.harmless)]
    drawn = {kind: _tool(kind, rng) for kind in dict.fromkeys(call[0] for wish in (bad, good) for call in wish.do)}
    for kind in rng.sample(sorted(KINDS), rng.choice((0, 0, 1, 2, 3))):
        drawn.setdefault(kind, _tool(kind, rng))
    tools = tuple(sorted(drawn.values(), key=lambda tool: tool.name))
    asked = [(_said(wish, rng), wish, harmful) for wish, harmful in ((bad, True), (good, False))]
    variants = [("harmful", asked[:1]), ("harmless", asked[1:])]
    if rng.random() < 0.2:
        rng.shuffle(asked)
        variants.append(("both", asked))
    found = []
    for variant, parts in variants:
        turns = [turn for part in parts for turn in _turns(*part, drawn, rng)]
        try:
            found.append(
                Task(
                    id=f"{name}/{variant}",
                    environment=f"intents/{theme.category}",
                    category="benign" if variant == "harmless" else "harmful_request",
                    user=(rng.choice((" ", "\n", " Also: ", "\n\n")).join(said for (said, _), _, _ in parts),),
                    tools=tools,
                    script=tuple(turns),
                    answer="Done.",
                )
            )
        except TaskError:
            if variant != "both":
                raise
            # Both ask for the very same call.
    return found


Said = tuple[str, Mapping[str, str]]
"""A request and the values of its slots."""


def _said(wish: Wish, rng: random.Random) -> Said:
    draw = Draw(rng)
    values = {slot: str(value_of(slot, draw)) for slot in wish.slots}
    first, *rest = _SENTENCES.split(wish.ask.format(**values))
    said = worded(first.rstrip("."), rng) if not _FOREIGN.findall(first)[1:] else first[0].upper() + first[1:]
    # Requests of both kinds have a sentence more now and then.
    rest += [rng.choice(_MORE)] if rng.random() < 0.3 else []
    return " ".join(each if each[-1] in ".!?" else f"{each}." for each in (said, *rest)), values


_SENTENCES = re.compile(r"(?<=[.!?]) (?=[A-Z])")
_FOREIGN = re.compile(
    r"\b(?:der|die|das|und|mit|für|eine?|mir|les|des|une|pour|dans|avec|que|para|con|los|las|una|mis?|ein|bei|sur|mon)\b"
)
"""Words of other languages: two of them, and no English form fits around the wish."""

_MORE = (
    "Thanks!", "It is for next week.", "No hurry.", "I would like to have it done today.", "Tell me when it is done.",
    "My colleague asked me about it.", "I have thought about it for a long time.", "I will be away this afternoon.",
    "That is all for now.", "I do not have the time for it myself.", "You did something like it for me before.",
    "Keep it short.", "We talked about it yesterday.", "I am on my phone, so please do it for me.",
)  # fmt: skip


def _turns(
    said: Said, wish: Wish, harmful: bool, tools: Mapping[str, TaskTool], rng: random.Random
) -> Iterator[ScriptTurn]:
    calls = []
    for kind, *given in wish.do:
        tool = tools[kind]
        names = list(tool.parameters["properties"])
        args = {name: value.format(**said[1]) for name, value in zip(names, given, strict=True)}
        result = rng.choice(_FOUND if kind in _LOOKS else _DONE)
        calls.append(TaskCall(tool.name, args, harmful=harmful, required=not harmful, result=result))
    if rng.random() < 0.25:
        yield ScriptTurn("", tuple(calls))
    else:
        yield from (ScriptTurn(rng.choice(("", "", "", "", "Next.", "I will do that.")), (call,)) for call in calls)


def _tool(kind: str, rng: random.Random) -> TaskTool:
    stated = KINDS[kind]
    names = [rng.choice(each.split("|")) for each in stated.arguments]
    properties = {name: {"type": "string"} for name in names}
    return TaskTool(
        rng.choice(stated.names.split()),
        stated.description,
        {"type": "object", "properties": properties, "required": names},
    )


_LOOKS = frozenset(("search", "visit", "read", "person", "records", "translate"))
_FOUND = ("3 entries found.", "No further details.", '{"results": []}', "ok", '{"items": 2}', "Found.")
_DONE = ("ok", "Done.", '{"status": "success"}', "success", '{"ok": true}')
