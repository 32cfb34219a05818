"""Policies in files: TOML and YAML, with the line of every key, so that what is wrong is said with file and line."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mosaic_guard._errors import PolicyError
from mosaic_guard._policy import Policy
from mosaic_guard._policy_rule import Rule

Lines = dict[tuple[int | None, str | None], int]
"""Line, from 1, by rule (from 0; None: not in a rule) and key (None: where the rule starts)."""

_KEYS = ("text", "allow", "refuse", "ask", "rule")
_RULE_KEYS = tuple(field.name for field in fields(Rule) if field.init)


@dataclass(frozen=True)
class PolicyFile:
    """A policy as a file has it.

    Attributes:
        path: The file.
        policy: What it says.
        lines: Where it says it.
    """

    path: Path
    policy: Policy
    lines: Lines

    def line(self, rule: int | None, key: str | None = None) -> int:
        """The line of a key, or of what holds it."""
        return _line(self.lines, rule, key)


def load_policy(path: str | os.PathLike[str]) -> PolicyFile:
    """Read a policy from a `.toml`, `.yaml` or `.yml` file.

    Raises:
        FileNotFoundError: If there is no such file.
        MissingExtraError: If a rule needs packages that are not installed.
        PolicyError: For anything else that is wrong with it, with file and line.
    """
    path = Path(path)
    readers = {".toml": _read_toml, ".yaml": _read_yaml, ".yml": _read_yaml}
    reader = readers.get(path.suffix.lower())
    if reader is None or path.is_dir():
        raise PolicyError(f"{path}: a policy is a .toml, .yaml or .yml file")
    if not path.exists():
        raise FileNotFoundError(f"there is no policy file {path}")
    try:
        data, lines = reader(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}:1: the file is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except _UnreadableError as error:
        raise PolicyError(f"{path}:{error.line}: {error}") from error
    try:
        return PolicyFile(path, _policy(data), lines)
    except PolicyError as error:
        where = f"{path}:{_line(lines, error.rule, error.key)}"
        raise PolicyError(f"{where}: {error}", rule=error.rule, key=error.key) from error


class _UnreadableError(Exception):
    """What a parser says, and the line that it says it of."""

    def __init__(self, sentence: str, line: int) -> None:
        super().__init__(sentence)
        self.line = line


def _policy(data: Any) -> Policy:
    if not isinstance(data, Mapping):
        raise PolicyError(f"a policy is a table with the keys {', '.join(_KEYS)}, not {data!r}")
    _refuse_unknown(data, _KEYS, None)
    tables = data.get("rule", [])
    if not isinstance(tables, list):
        raise PolicyError("rule is a list of rules: write [[rule]] in TOML, '- verdict: …' in YAML", key="rule")
    options = {key: value for key, value in data.items() if key != "rule"}
    return Policy(**options, rules=[_rule(table, number) for number, table in enumerate(tables)])


def _rule(table: Any, number: int) -> Rule:
    if not isinstance(table, Mapping):
        raise PolicyError(f"a rule is a table with the keys {', '.join(_RULE_KEYS)}, not {table!r}", rule=number)
    _refuse_unknown(table, _RULE_KEYS, number)
    if "verdict" not in table:
        raise PolicyError("the rule has no verdict: add verdict = 'allow', 'refuse' or 'ask'", rule=number)
    # Left out and null are the same to a dataclass, but who writes a key means something by it.
    empty = next((key for key, value in table.items() if value is None), None)
    if empty is not None:
        raise PolicyError(f"{empty} has no value: give it one, or leave it out", rule=number, key=empty)
    try:
        return Rule(**table)
    except PolicyError as error:
        raise PolicyError(str(error), rule=number, key=error.key) from error


def _refuse_unknown(table: Mapping[Any, Any], known: tuple[str, ...], rule: int | None) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
            raise PolicyError(f"there is no key {key!r} here: {hint}", rule=rule, key=str(key))


def _line(lines: Lines, rule: int | None, key: str | None) -> int:
    """The line of a key, else of its rule, else of the list of rules, else the first."""
    for place in ((rule, key), (rule, None), (None, "rule" if rule is not None else key)):
        if place in lines:
            return lines[place]
    return 1


_HEADER = re.compile(r"""\s*(\[\[?)\s*(["']?)([\w-]+)\2\s*(?:\.\s*(["']?)([\w-]+)\4)?""")
_KEY = re.compile(r"""\s*(["']?)([\w-]+)\1\s*[=.]""")
_STRING = re.compile(r'"""|\'\'\'|"(?:\\.|[^"\\])*"|\'[^\']*\'|#.*')


def _read_toml(text: str) -> tuple[Any, Lines]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+)", str(error))
        line = int(found[1]) if found else max(len(text.splitlines()), 1)
        raise _UnreadableError(f"this is not TOML: {error}", line) from error
    return data, _toml_lines(text)


def _toml_lines(text: str) -> Lines:
    """Where keys and rules stand; tomllib does not say. Only for text that tomllib reads."""
    lines: Lines = {}
    rule: int | None = None
    at_key = True  # whether the keys that follow belong to the policy or the rule itself, not to a table in it
    depth, closing = 0, None
    for number, line in enumerate(text.split("\n"), 1):
        if depth == 0 and closing is None:
            header, key = _HEADER.match(line), _KEY.match(line)
            if header:
                at_key = header[5] is None and header[1] == "[["
                if at_key:
                    rule = 0 if rule is None else rule + 1
                lines.setdefault((rule if header[3] == "rule" else None, header[5] if header[5] else None), number)
                lines.setdefault((None, header[3]), number)
            elif key and at_key:
                lines.setdefault((rule, key[2]), number)
        change, closing = _brackets(line, closing)
        # A header opens and closes its own brackets.
        depth += change
    return lines


def _brackets(line: str, closing: str | None) -> tuple[int, str | None]:
    """How many more brackets a line opens than it closes outside strings; and the mark that would end an open string."""
    change, position = 0, 0
    while position < len(line):
        if closing is not None:
            end = line.find(closing, position)
            if end < 0:
                return change, closing
            position, closing = end + 3, None
            continue
        found = _STRING.match(line, position)
        if found and found[0] in ('"""', "'''"):
            closing = found[0]
        change += line[position] in "[{"
        change -= line[position] in "]}"
        position = found.end() if found else position + 1
    return change, closing


def _read_yaml(text: str) -> tuple[Any, Lines]:
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return {}, {}
        _refuse_repeated(root)
        return loader.construct_document(root), _yaml_lines(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _UnreadableError(f"this is not YAML: {error.problem}", mark.line + 1 if mark else 1) from error
    except yaml.YAMLError as error:
        raise _UnreadableError(f"this is not YAML: {error}", 1) from error
    finally:
        loader.dispose()


def _yaml_lines(root: Any) -> Lines:
    lines: Lines = {}
    for key, value in _entries(root):
        lines[None, str(key.value)] = key.start_mark.line + 1
        if key.value == "rule" and value.id == "sequence":
            for number, item in enumerate(value.value):
                lines[number, None] = item.start_mark.line + 1
                lines.update({(number, str(inner.value)): inner.start_mark.line + 1 for inner, _ in _entries(item)})
    return lines


def _entries(node: Any) -> list[tuple[Any, Any]]:
    return list(node.value) if node.id == "mapping" else []


def _refuse_repeated(node: Any) -> None:
    """Raise for a key that a table has twice, of which YAML keeps the last without a word, and for a table in itself."""
    open_nodes: set[int] = set()

    def walk(node: Any) -> None:
        if node.id == "scalar":
            return
        if id(node) in open_nodes:
            raise _UnreadableError("a table holds itself: write it out", node.start_mark.line + 1)
        open_nodes.add(id(node))
        seen: set[str] = set()
        for key, value in _entries(node):
            if str(key.value) in seen:
                raise _UnreadableError(f"the key {key.value!r} stands here twice: remove one", key.start_mark.line + 1)
            seen.add(str(key.value))
            walk(value)
        for item in node.value if node.id == "sequence" else ():
            walk(item)
        open_nodes.discard(id(node))

    walk(node)
