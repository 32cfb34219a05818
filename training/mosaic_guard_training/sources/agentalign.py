"""AgentAlign: harmful requests over one to five tools, of 30 sub-categories of harm.

What is public is what its data set was made from: 30 behaviour patterns, each with the schemas of its tools and five
requests that a model wrote for them. Every request is a task with a script: the pattern's tools in their order, up to the
first whose required arguments the request does not say (an agent would find them on the way); a request whose first call
it does not say has none, and is for chat models. All calls of such a script are harmful: each serves the request.

The harmless requests of the data set are published elsewhere and cannot be made from these files. So that a tool's name
does not decide, each pattern has one more task, `agentalign/N/ordinary`: the same tools, asked for what people use them
for, in the words of `agentalign_ordinary.py`.

Public source: https://github.com/jc-ryan/AgentAlign (instruction/), Apache-2.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mosaic_guard_training.sources.agentalign_ordinary import ORDINARY
from mosaic_guard_training.sources.files import SourceFiles
from mosaic_guard_training.tasks import ScriptTurn, Task, TaskCall, TaskTool

_SHA256 = (
    "f975f36a22bd4e3999149b5ec69a8882321d9893cf70c6c61e3ca70878b27872",
    "aa4763aafbd9e82514db9dabcc18369efb96f19fc5d33a408c6561b437511380",
    "f1d9f53d7f8cfabdcad81c6d88699ec5833f8c1b46b11a6fa4051ba5fc3a3ca4",
    "34b34b1862ac4aa3a24c2e8f30e75771bb6722999b2f26920687e18683d7bc1b",
    "5e5d077a419146016ebc3cc5f1aefd24d63b563cd607652b6e1eadc2d4791c19",
    "bffe83c3bebf4a64bb4aa2cc0aaadfa29eec9870756bdb7153488ed7debd94ce",
    "67bb5207b120c63c08d1a38e17a0324160a3f35db1bc12d123ac4d1b0e47ca36",
    "ceb388a56839acacf6031bfb8cb74bbb1d0f44b0b65f57319607803c1475e13c",
    "39f9d62ea10f241d9375155d8d97649f16830cc7405e428740e480268f85ee53",
    "917f5288fd38b70f48730e72351e04dbc7e0d6f673264ef4a3811ae0a2ed1678",
    "a14cae7f21d4d120b40462cbbca7336707775a7ee4534fd83532fad35ab053e1",
    "36248a35ab81fe9171b999c984a83a68266ed0574ec5ea0e5df903941d6ee728",
    "0f29039055fe4c3aca0dd2e817f4d3ae8ce29db1c1a96bd761e56743e36c3378",
    "e934dcbff7ba945380a1cf376f71e704ba5322835ff8efaec7f3d21ebe6a6bee",
    "0b8d7374f05bab6a12296e2f45276e7a7c03be17c6ee1d386d2708b0b03a17b6",
    "d66380a2193d1ae80c7bf2786525857ebaaa33c60df35a6ff4ac0220c5764058",
    "3fee10b3312d6e5c0803147f0c627e74eb2c8bd934dbea1c10cf6def077f1f0d",
    "ff73334107e52c01c539f7e4ac7070eb1ddadc3e8f61cfd6dcac3ffb04d90af3",
    "89cdb15a9f14d323cc0c8658effa5a8e80f83733b173c9bbc1e3703ff725d1e0",
    "2c6771c7199d6498faacf8cee028e28f03a9b0da8ee72b180aaa4d1ee981d519",
    "368c739c73a5f334f31089e4d48e35ac704a32e870e225c5e098fe3fe19682d8",
    "07827086c2da7fb5d255d09bd7380095f239fcf620a8ec87f04d52a9cd3f98f9",
    "0ce91347b7f2931846694e7bb9edf0e795238ebb91e6cc6ed901d71b79cb8e43",
    "fb45619f85fdba964526624c4d7541ec6204a1901ba317ac983deab9f42c4688",
    "ae0dbb88bf42eb6d3036bac78df4b37199ec31cf4ff2bd6d46b8596f183c50b0",
    "d293428050ce157699e10bc83e7913770da49b3ae6fe2e0b4e68f5cab335fac0",
    "e3ab540bebc2790709b4cb69b7e9b7f7b14282ecacac0604f22185cd710218b2",
    "b05d5db81fb3d7d6ae45b7f27602f45bde0d6e98189196df96f5cf95b71796d7",
    "2ac9c39da68c9f4ddaf3906a4746bf21de573683e0fa127e9646e29faad1a044",
    "d24078139206cc1c250a18021becb8d805844cb53b7d5b943c923aeb9bda4f0a",
)
FILES = SourceFiles(
    "agentalign",
    "https://github.com/jc-ryan/AgentAlign (instruction/)",
    "Apache-2.0",
    {f"instruction/seed_questions/seed_question_{number}.json": sha for number, sha in enumerate(_SHA256)},
)

SUCCESS = '{"success": true}'


def tasks(data: Path) -> Iterator[Task]:
    """The tasks of all patterns.

    Args:
        data: The directory that holds `agentalign/`.

    Raises:
        TrainingError: If a file is missing or is another one.
    """
    for number, file in enumerate(FILES.sha256):
        yield from tasks_of(FILES.json(data, file), number, FILES.origin(file))


def tasks_of(pattern: Mapping[str, Any], number: int, source: Mapping[str, str]) -> Iterator[Task]:
    """The tasks of one pattern.

    Args:
        pattern: As in `seed_question_N.json`.
        number: Its number.
        source: Where it is from.
    """
    functions = [tool["function"] for tool in pattern["params"]["tool_list"]]
    shared: dict[str, Any] = {
        "environment": f"agentalign/{pattern['params']['category']}",
        "tools": tuple(TaskTool(f["name"], f["description"], f["parameters"]) for f in functions),
        "answer": "Done.",
        "source": source,
    }
    for index, request in enumerate(pattern["instructions"]):
        calls = []
        for function, words in zip(functions, shares(request, [f["name"] for f in functions]), strict=True):
            args = arguments_of(function["parameters"], words)
            if args is None:
                break
            calls.append(TaskCall(function["name"], args, harmful=True, result=SUCCESS))
        yield Task(
            id=f"agentalign/{number}/{index}",
            category="harmful_request",
            user=(request,),
            script=tuple(ScriptTurn(calls=(call,)) for call in calls),
            **shared,
        )
    ordinary = [(function["name"], *ORDINARY[function["name"]]) for function in functions]
    yield Task(
        id=f"agentalign/{number}/ordinary",
        category="benign",
        user=(" ".join(words for _, words, _ in ordinary),),
        script=tuple(
            ScriptTurn(calls=(TaskCall(name, args, required=True, result=SUCCESS),)) for name, _, args in ordinary
        ),
        **shared,
    )


def shares(request: str, tools: Sequence[str]) -> list[str]:
    """The words of a request that each of some tools, called in turn, is for.

    A tool's words begin with the first sentence or clause that speaks of it, not before those of the tool before it, and
    end where the next one's begin; a tool that nobody speaks of has the clause after.
    """
    clauses = _CLAUSES.split(request)
    starts: list[int] = []
    for tool in tools:
        least = starts[-1] if starts else 0
        spoken = _SPOKEN.get(tool) or re.compile("|".join(set(tool.split("_")) - _VERBS), re.IGNORECASE)
        found = next((at for at in range(least, len(clauses)) if spoken.search(clauses[at])), None)
        starts.append(min(least + bool(starts), len(clauses) - 1) if found is None else found)
    ends = [max(end, start + 1) for start, end in zip(starts, [*starts[1:], len(clauses)], strict=True)]
    return [" ".join(clauses[start:end]) for start, end in zip(starts, ends, strict=True)]


_CLAUSES = re.compile(
    r"(?<=[.!?])\s+|(?<=[.!?]['\"])\s+|;\s+|,\s+(?=(?:and |then |finally|test it|clone |execute )+)", re.IGNORECASE
)
_VERBS = frozenset(
    "search get post send create place order make edit generate content profile comment video image payment products "
    "merchant operation management message transfer transaction private text to speech mail info".split()
)
_SPOKEN: Mapping[str, re.Pattern[str]] = {
    tool: re.compile(words, re.IGNORECASE)
    for tool, words in {
        "post_tweet": "tweet|twitter",
        "http_request": r"request|\bhttp",
        "execute_command": r"execut|command|\brun\b",
        "file_operation": "file|folder",
        "package_operation": "install|package",
        "network_diagnostic": "ping|traceroute|nslookup|scan",
        "process_management": "process",
        "create_wallet": "wallet",
        "bitcoin_transaction": r"\bbtc|transfer|bitcoin",
        "create_bitcoin_payment": "bitcoin payment|payment",
        "monero_private_transfer": "xmr|monero",
        "send_twilio_sms": "sms|text message|message",
        "send_messagebird_sms": "sms|text|message",
        **dict.fromkeys(("send_gmail", "send_outlook", "send_163_mail"), "e-?mail"),
        "elevenlabs_text_to_speech": "elevenlabs|voice",
        "stability_edit_image": "stability|edit|remove",
        "stable_diffusion_generate": "stable diffusion|image",
        "dalle_edit_image": "dall|edit",
    }.items()
}

_QUOTED = re.compile(r"(?<!\w)(['\"])(.+?)\1(?!\w)")
_FREE = re.compile(r"query|search_term|keyword|prompt|content|message|text|body")
"""Arguments for which the sentence itself will do."""

_SHAPES: Sequence[tuple[re.Pattern[str], re.Pattern[str]]] = tuple(
    (re.compile(names), re.compile(shape))
    for names, shape in (
        ("url", r"(https?://[^\s'\"]*\w)"),
        ("path", r"(?<![\w/:])(~?/[\w./~-]*\w)"),
        ("host|target", r"\b((?:\d{1,3}\.){3}\d{1,3}|[\w-]+(?:\.[\w-]+)+)\b"),
        ("user_?name", r"\buser(?:name)?\s+['\"]?(\w+)"),
        ("user_id", r"['\"](\w+)['\"]|(@\w+)"),
        ("chat_id", r"(@\w+)|ID:?\s+['\"]?(-?\d+)|(\+\d{6,})"),
        ("sender", r"(?:from|sender)\s+(?:\w+\s+)*['\"]?([\w.]+@[\w.]+\w)"),
        ("^to$", r"to\s+(?:\w+\s+)*['\"]?([\w.]+@[\w.]+\w)|(\+\d{6,})"),
        ("address|destination", r"address:?\s+(?:is\s+)?['\"]?(\w{9,}|\d+ [A-Z][\w ,.]+\w)|(\w{24,})"),
        ("amount_", r"(\d+(?:\.\d+)?)\s*(?:BTC|XMR)"),
        ("_id$|location", r"(?!)"),
    )
)


def arguments_of(schema: Mapping[str, Any], words: str) -> dict[str, Any] | None:
    """Values for the required arguments of a tool, from the words of a request.

    Args:
        schema: JSON Schema of the arguments.
        words: What the person said about this call.

    Returns:
        None where the words do not say one of them.
    """
    quoted = [text for _, text in _QUOTED.findall(words)]
    found, taken = dict[str, Any](), set[str]()
    for name in schema.get("required", []):
        stated = schema["properties"][name]
        kind = stated.get("type", "string")
        value: Any
        if "enum" in stated:
            value = next((v for v in stated["enum"] if str(v).lower() in words.lower()), stated["enum"][0])
        elif kind in ("integer", "number"):
            match = re.search(r"(?<![\w'\"])\d+(?:\.\d+)?\b", words)
            value = (int(float(match[0])) if kind == "integer" else float(match[0])) if match else 1
        else:
            value = _text_of(name, words, [text for text in quoted if text not in taken])
            if value is None:
                return None
            taken.add(value)
            value = [value] if kind == "array" else value
        found[name] = value
    return found


def _text_of(name: str, words: str, quoted: list[str]) -> str | None:
    """The first text in the words that looks like a value of that name; for free text what is quoted, or all of them."""
    for names, shape in _SHAPES:
        if names.search(name):
            match = shape.search(words)
            return next((group for group in match.groups() if group), None) if match else None
    if quoted:
        return quoted[0]
    return words if _FREE.search(name) else None
