"""What tool results look like: mails, files, pages, tickets, logs, … as text, JSON, YAML, CSV, HTML or Markdown.

A carrier is drawn first and filled later (`Carrier.filled`), so that the twins of a family have the same result but for
the text that stands in it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml

from mosaic_guard_training.sources.injections import ORDINARY
from mosaic_guard_training.sources.values import THINGS, TOPICS, WORDS, Draw
from mosaic_guard_training.tasks import TaskTool

Position = Literal["start", "middle", "end", "only"]
POSITIONS: tuple[Position, ...] = ("start", "middle", "end", "only")
LONGEST = 3000
"""About the most characters of a result."""


@dataclass(frozen=True)
class Kind:
    """A kind of result.

    Attributes:
        name: Its name.
        tools: Names of the function that returns it.
        description: What the function is said to do.
        args: Names of an argument (separated by `|`; `?` after them: not always given) to a kind of value.
        looks: What a person says who wants it looked at, as it would follow "please"; with slots of the arguments.
        referred: What a person calls it, with slots of the arguments.
        forms: How it is written.
        item: Makes one item: field to value. The field `text` takes what is planted.
        many: Whether there are several.
    """

    name: str
    tools: tuple[str, ...]
    description: str
    args: Mapping[str, str]
    looks: tuple[str, ...]
    referred: str
    forms: tuple[str, ...]
    item: Callable[[Draw], dict[str, Any]]
    many: bool = True


@dataclass(frozen=True)
class Carrier:
    """A drawn result with a gap.

    Attributes:
        kind: What it is.
        tool: The function that returns it.
        args: How it is called.
        values: The values of the arguments' slots.
        look: What a person says who wants it looked at.
        items: What it holds, with a gap in one `text`.
        at: Which item has the gap.
        before: What stands before the gap there.
        after: What stands behind it.
        form: How it is written.
    """

    kind: Kind
    tool: TaskTool
    args: Mapping[str, Any]
    values: Mapping[str, Any]
    look: str
    items: tuple[Mapping[str, Any], ...]
    at: int
    before: str
    after: str
    form: str

    @property
    def referred(self) -> str:
        """What a person calls it."""
        return self.kind.referred.format(**self.values)

    def filled(self, text: str = "") -> str:
        """The result with some text in the gap."""
        parts = [part for part in (self.before, text, self.after) if part]
        items = [dict(item) for item in self.items]
        items[self.at]["text"] = " ".join(parts)
        return _FORMS[self.form](items if self.kind.many else items[:1])


def draw_carrier(rng: random.Random, kind: Kind, position: Position | None = None, ordinary: float = 0.3) -> Carrier:
    """A result of a kind.

    Args:
        rng: Decides all that is drawn.
        kind: Which.
        position: Where in its item the gap is; None to draw it.
        ordinary: How many of its sentences read like instructions and are ordinary.
    """
    draw = Draw(rng)
    where: Position = rng.choice(POSITIONS) if position is None else position
    values = {slot: draw(slot.rstrip("2")) for slot in kind.args.values()}
    properties, required, args = dict[str, Any](), list[str](), dict[str, Any]()
    for names, slot in kind.args.items():
        stated = rng.choice(names.split("|"))
        name = stated.rstrip("?")
        properties[name] = {"type": "integer" if isinstance(values[slot], int) else "string"}
        if not stated.endswith("?"):
            required.append(name)
        if not stated.endswith("?") or rng.random() < 0.6:
            args[name] = values[slot]
    tool = TaskTool(
        rng.choice(kind.tools), kind.description, {"type": "object", "properties": properties, "required": required}
    )
    count = rng.choice((1, 1, 2, 3, 4, 6, 9)) if kind.many else 1
    items, length = list[dict[str, Any]](), 0
    for _ in range(count):
        item = kind.item(draw)
        item["text"] = prose(draw, rng.choice((1, 2, 2, 3, 5, 8, 14)), ordinary)
        length += len(str(item))
        if items and length > LONGEST:
            break
        items.append(item)
    at = rng.randrange(len(items))
    sentences = [prose(draw, 1, ordinary) for _ in range(rng.choice((1, 2, 4, 8)))]
    cut = {"start": 0, "middle": len(sentences) // 2, "end": len(sentences), "only": 0}[where]
    before, after = " ".join(sentences[:cut]), " ".join(sentences[cut:])
    if where == "only":
        before = after = ""
    look = rng.choice(kind.looks).format(**values)
    return Carrier(kind, tool, args, values, look, tuple(items), at, before, after, rng.choice(kind.forms))


def another(rng: random.Random, carrier: Carrier) -> Carrier:
    """A result of the same tool, called with other arguments."""
    found = draw_carrier(rng, carrier.kind)
    slots = {name.rstrip("?"): slot for names, slot in carrier.kind.args.items() for name in names.split("|")}
    return replace(found, tool=carrier.tool, args={name: found.values[slots[name]] for name in carrier.args})


def prose(draw: Draw, count: int, ordinary: float = 0.3) -> str:
    """Some ordinary sentences."""
    return " ".join(_ordinary(draw) if draw.rng.random() < ordinary else _sentence(draw) for _ in range(count))


def _ordinary(draw: Draw) -> str:
    said = draw.rng.choice(ORDINARY)
    return said.format(
        date=draw("date"),
        who=draw("first"),
        phone=draw("phone"),
        city=draw("city"),
        address=draw("address"),
        time=draw("time"),
    )


def _sentence(draw: Draw) -> str:
    rng = draw.rng
    if rng.random() < 0.25:
        return draw.sentence()
    return rng.choice(_PROSE).format(
        topic=rng.choice(TOPICS), thing=rng.choice(THINGS), word=rng.choice(WORDS), who=draw("first"), person=draw.person(),
        city=draw("city"), date=draw("date"), time=draw("time"), n=rng.randint(2, 400), amount=draw("amount"),
        number=draw("number"), percent=draw("percent"), path=draw("path"), url=draw("url"), address=draw("address"),
    )  # fmt: skip


_PROSE = (
    "The {thing} arrived on {date} and works well.", "It took {n} minutes to get from {city} to the venue.",
    "{person} presented the results of {topic}.", "The total comes to {amount} euros including tax.",
    "Version {n} brings small improvements.", "Most visitors were happy with the {thing}.",
    "Our team in {city} has grown by {percent} percent.", "The weather in {city} was mild for the season.",
    "{who} brought cake.", "The order {number} was shipped on {date}.", "The battery lasts about {n} hours.",
    "There were {n} entries, {percent} percent more than last year.", "The room has space for {n} people.",
    "{topic} was discussed for an hour without a result.", "See {url} for the details.", "The invoice {number} was settled.",
    "{who} and {person} disagreed about {topic}.", "The old {thing} was sold for {amount}.", "Opening hours: {time} to 18:00.",
    "The bus from {city} runs every {n} minutes.", "I liked the view more than the breakfast.",
    "The sample was taken at {time}.",
    "Nothing unusual was found.", "The report is in {path}.", "{person} joined the call at {time}.",
    "Sales of the {thing} rose to {n} units.", "The {word} building is closed for repairs.", "We met in {city} in spring.",
    "The second edition has {n} pages.", "The contract runs until {date}.", "Contact: {address}.", "The price was {amount}.",
    "The job finished with {n} warnings.", "The {word} service answered in {n} ms.", "Cache hit rate {percent} %.",
    "The museum shows works by {person}.", "It smells of fresh paint.", "{who} is on holiday until {date}.",
    "Der Zug nach {city} war pünktlich.", "Das Angebot gilt bis {date}.", "La réunion a duré {n} minutes.",
    "Le colis est arrivé le {date}.", "El informe está en {path}.", "La habitación costó {amount} euros.",
    "会议在{time}开始。", "Il negozio apre alle {time}.", "O relatório tem {n} páginas.",
)  # fmt: skip


def _mail(draw: Draw) -> dict[str, Any]:
    person = draw.person()
    return {
        "id": draw("number"),
        "from": draw.address(person),
        "subject": str(draw("topic")),
        "date": draw("date"),
        "text": "",
    }


def _ticket(draw: Draw) -> dict[str, Any]:
    status = draw.pick("open closed waiting new")
    return {"id": draw("number"), "title": str(draw("topic")), "reporter": draw.person(), "status": status, "text": ""}


def _event(draw: Draw) -> dict[str, Any]:
    return {"id": draw("number"), "title": str(draw("topic")), "date": draw("date"), "start": draw("time"), "text": ""}


def _payment(draw: Draw) -> dict[str, Any]:
    return {"id": draw("number"), "to": draw("iban"), "amount": draw("amount"), "date": draw("date"), "text": ""}


def _place(draw: Draw) -> dict[str, Any]:
    rating = draw.rng.randint(20, 50) / 10
    return {"name": f"The {draw('word')}".title(), "address": draw("street"), "rating": rating, "text": ""}


def _order(draw: Draw) -> dict[str, Any]:
    status = draw.pick("shipped open paid")
    return {"order": draw("number"), "item": draw("thing"), "total": draw("amount"), "status": status, "text": ""}


_FILE = ("plain", "plain", "markdown", "titled")
_LIST = ("json", "json_lines", "yaml", "blocks", "wrapped", "repr")

KINDS: tuple[Kind, ...] = (
    Kind("inbox", tuple("get_emails list_messages read_inbox_mails fetch_mail get_recent_mail mail_list".split()),
         "Returns the latest mails.", {"limit?|count?|n?": "count"},
         ("check my inbox", "look at my latest mails", "see what is new in my mail"), "my inbox", _LIST, _mail),
    Kind("mail", tuple("read_email get_message open_mail mail_read".split()), "Returns one mail.",
         {"email_id|id|message_id": "number"}, ("read mail {number}", "open the email {number} and tell me what it says"),
         "the mail {number}", ("json", "blocks", "yaml", "titled"), _mail, False),
    Kind("mail-search", tuple("query_mails find_mail mail_query".split()), "Finds mails.", {"query|q|text": "topic"},
         ("find the mails about {topic}", "search my mail for {topic}"), "the mails about {topic}", _LIST, _mail),
    Kind("file", tuple("load_file open_file cat get_file_content fs_read drive_get".split()), "Returns the text of a file.",
         {"path|file_path|file|filename": "path"}, ("read {path}", "summarise {path}", "have a look at the file {path}"),
         "{path}", _FILE, lambda draw: {"title": str(draw("topic")).title(), "text": ""}, False),
    Kind("files", tuple("locate_files find_documents drive_search grep".split()), "Finds files by what they say.",
         {"query|pattern|text": "topic"}, ("search my files for {topic}", "find documents about {topic}"),
         "my documents about {topic}", _LIST,
         lambda draw: {"path": draw("path"), "size": draw.rng.randint(90, 90000), "author": draw.person(), "text": ""}),
    Kind("page", tuple("fetch_page browse open_url http_get read_website".split()), "Returns a web page.",
         {"url|address|page": "url"}, ("read {url}", "open {url} and summarise it", "tell me what {url} says"),
         "the page {url}", ("html", "markdown", "titled", "plain"),
         lambda draw: {"title": str(draw("topic")).title(), "text": ""}, False),
    Kind("search", tuple("search_web web_search google bing_search internet_search".split()), "Searches the web.",
         {"query|q": "topic"}, ("search the web for {topic}", "find out about {topic}"), "the search results", _LIST,
         lambda draw: {"title": str(draw("topic")).title(), "url": draw("url"), "text": ""}),
    Kind("ticket", tuple("get_ticket read_issue ticket_show fetch_issue".split()), "Returns a ticket.",
         {"ticket_id|id|issue": "number"}, ("look at ticket {number}", "summarise issue {number}"), "ticket {number}",
         ("json", "blocks", "yaml", "titled"), _ticket, False),
    Kind("tickets", tuple("list_tickets get_issues search_issues".split()), "Lists tickets.", {"status?|state?": "word"},
         ("list the tickets", "show me the open issues"), "the tickets", _LIST, _ticket),
    Kind("calendar", tuple("get_events list_appointments calendar_day fetch_calendar".split()), "Returns the events of a day.",
         {"date|day": "date"}, ("look at my calendar for {date}", "tell me what is on {date}"), "my calendar on {date}",
         _LIST, _event),
    Kind("log", tuple("read_log tail_log get_logs journal".split()), "Returns lines of a log.",
         {"service|unit|name": "word", "lines?": "count"}, ("look at the log of {word}", "check the logs of {word} for errors"),
         "the log of {word}", ("log", "json_lines", "blocks"),
         lambda draw: {"time": f"{draw('date')}T{draw('time')}", "level": draw.pick("INFO WARN DEBUG ERROR"), "text": ""}),
    Kind("table", tuple("query_table run_query read_sheet export_rows".split()), "Returns rows of a table.",
         {"table|sheet|name": "word"}, ("show me the table {word}", "what is in the sheet {word}?"), "the table {word}",
         ("csv", "csv", "json", "repr"),
         lambda draw: {"id": draw.rng.randint(1, 9999), "name": draw.person(), "amount": draw("amount"), "text": ""}),
    Kind("chat", tuple("get_chat_history read_room fetch_conversation channel_history".split()), "Returns messages of a chat.",
         {"channel|room|conversation": "channel"}, ("read what is new in {channel}", "summarise the channel {channel}"),
         "the channel {channel}", (*_LIST, "log"),
         lambda draw: {"user": draw("user"), "time": draw("time"), "text": ""}),
    Kind("reviews", tuple("get_reviews product_reviews fetch_ratings list_opinions".split()), "Returns reviews.",
         {"item|product|name": "thing"}, ("get the reviews of the {thing}", "what do people think of the {thing}?"),
         "the reviews of the {thing}", _LIST,
         lambda draw: {"author": draw("first"), "stars": draw.rng.randint(1, 5), "text": ""}),
    Kind("payments", tuple("list_payments account_statement recent_payments get_bookings".split()),
         "Returns payments of the account.", {"count?|n?|limit?": "count"},
         ("look at my latest payments", "show me my account statement"), "my account statement", (*_LIST, "csv"), _payment),
    Kind("readme", tuple("get_readme repo_file read_source show_file".split()), "Returns a file of a repository.",
         {"repository|repo": "word", "path?|file?": "path"}, ("read the README of {word}", "look at the repository {word}"),
         "the README of {word}", ("markdown", "plain", "code"), lambda draw: {"title": draw("word"), "text": ""}, False),
    Kind("wiki", tuple("get_article wiki_page knowledge_base read_doc".split()), "Returns an article.",
         {"title|page|name": "topic"}, ("look {topic} up in the wiki", "read the article on {topic}"),
         "the article on {topic}", ("markdown", "html", "titled"),
         lambda draw: {"title": str(draw("topic")).title(), "author": draw.person(), "text": ""}, False),
    Kind("places", tuple("find_places list_venues nearby lookup_businesses".split()), "Finds places in a city.",
         {"city|location": "city"}, ("find good places in {city}", "look for somewhere to eat in {city}"),
         "the places in {city}", _LIST,
         _place),
    Kind("orders", tuple("get_order order_details track_order".split()), "Returns an order.", {"order_id|id|order": "number"},
         ("check order {number}", "look up the status of order {number}"), "order {number}",
         ("json", "wrapped", "yaml", "blocks"), _order, False),
    Kind("contacts", tuple("search_contacts get_contacts find_person address_book".split()), "Finds contacts.",
         {"name|query": "first"}, ("look up {first} in my contacts", "find {first} in the address book"), "my contacts", _LIST,
         lambda draw: {"name": (name := draw.person()), "email": draw.address(name), "phone": draw("phone"), "text": ""}),
    Kind("notes", tuple("get_notes list_notes read_memo notes_search".split()), "Returns notes.", {"query?|tag?": "word"},
         ("go through my notes", "look at my notes"), "my notes", _LIST,
         lambda draw: {"title": str(draw("topic")), "author": draw.person(), "text": ""}),
    Kind("news", tuple("get_news news_feed headlines rss_read".split()), "Returns news.", {"topic|about": "topic"},
         ("get the news about {topic}", "what is new about {topic}?"), "the news", _LIST,
         lambda draw: {"headline": str(draw("topic")).title(), "source": draw("url"), "text": ""}),
    Kind("transcript", tuple("get_transcript meeting_notes read_minutes".split()), "Returns the minutes of a meeting.",
         {"meeting|id|event_id": "number"}, ("summarise the meeting {number}", "read the minutes of {number}"),
         "the minutes of {number}", ("log", "plain", "markdown"), lambda draw: {"user": draw("first"), "text": ""}),
    Kind("device", tuple("device_status read_sensor get_state hub_status".split()), "Returns the state of a device.",
         {"device|name": "word"}, ("check the device {word}", "how is {word} doing?"), "the state of {word}",
         ("wrapped", "json", "yaml"),
         lambda draw: {"device": draw("word"), "value": draw("percent"), "unit": draw.pick("C % kWh ppm"), "text": ""}, False),
)  # fmt: skip
"""All kinds."""

_TEXT_FIELDS = ("text", "body", "content", "description", "message", "snippet", "notes", "details")


def _renamed(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items with another word for `text`; which, the items decide."""
    name = _TEXT_FIELDS[
        len(items[0]) * 7 % len(_TEXT_FIELDS) if "id" in items[0] else sum(map(len, items[0])) % len(_TEXT_FIELDS)
    ]
    return [{(name if key == "text" else key): value for key, value in item.items()} for item in items]


def _json(items: Sequence[Mapping[str, Any]]) -> str:
    found = _renamed(items)
    return json.dumps(found if len(found) > 1 else found[0], ensure_ascii=False)


def _wrapped(items: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(
        {"status": "ok", "count": len(items), "data": {"items": _renamed(items)}}, ensure_ascii=False, indent=1
    )


def _blocks(items: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join("\n".join(f"{key.title()}: {value}" for key, value in item.items()) for item in _renamed(items))


def _csv(items: Sequence[Mapping[str, Any]]) -> str:
    rows = [";".join(items[0])]
    rows += [";".join(f'"{v}"' if isinstance(v, str) and ";" in v else str(v) for v in item.values()) for item in items]
    return "\n".join(rows)


def _log(items: Sequence[Mapping[str, Any]]) -> str:
    lines = [(" ".join(str(v) for key, v in item.items() if key != "text"), item["text"]) for item in items]
    return "\n".join(f"[{head}] {text}" for head, text in lines)


def _paged(item: Mapping[str, Any]) -> str:
    return f"<html><head><title>{item['title']}</title></head><body><h1>{item['title']}</h1><p>{item['text']}</p></body></html>"


_FORMS: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {
    "plain": lambda items: "\n".join(str(item["text"]) for item in items),
    "titled": lambda items: "\n\n".join(
        f"{next((item[k] for k in ('title', 'subject') if k in item), '')}\n\n{item['text']}" for item in items
    ),
    "markdown": lambda items: "\n\n".join(
        f"# {item.get('title', item.get('user', ''))}\n\n{item['text']}" for item in items
    ),
    "html": lambda items: "\n".join(map(_paged, items)),
    "code": lambda items: "\n".join(f'"""{item["title"]}."""\n\n# {item["text"]}\n\nimport sys\n' for item in items),
    "json": _json,
    "json_lines": lambda items: "\n".join(json.dumps(item, ensure_ascii=False) for item in _renamed(items)),
    "wrapped": _wrapped,
    "yaml": lambda items: yaml.safe_dump(_renamed(items), allow_unicode=True, sort_keys=False),
    "repr": lambda items: str(_renamed(items)),
    "blocks": _blocks,
    "csv": _csv,
    "log": _log,
}
