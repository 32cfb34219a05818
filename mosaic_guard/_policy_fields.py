"""What the fields of a rule may say: types, words that exist, and conditions that no call can meet."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, get_args

from mosaic_guard._errors import PolicyError, PolicyTypeError
from mosaic_guard._policy_patterns import never_matches

if TYPE_CHECKING:
    from mosaic_guard._policy_rule import Rule

RuleVerdict = Literal["allow", "refuse", "ask"]
RuleOrigin = Literal["user", "operator", "untrusted", "agent", "nowhere"]

HINTS = ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")
"""MCP's tool annotations, apart from the title."""

_VERDICTS: tuple[str, ...] = get_args(RuleVerdict)
_ORIGINS: tuple[str, ...] = get_args(RuleOrigin)


def checked_fields(rule: Rule) -> dict[str, Any]:
    """The fields of a rule in the form that it keeps: lists as tuples, tables as copies.

    Raises:
        PolicyError: For an unknown verdict, hint or origin, a wrong type, or conditions that no call can meet.
    """
    if rule.verdict not in _VERDICTS:
        raise PolicyError(f"verdict is 'allow', 'refuse' or 'ask', not {rule.verdict!r}", key="verdict")
    if not isinstance(rule.reason, str):
        raise PolicyTypeError(f"reason is a text, not {rule.reason!r}", key="reason")
    kept: dict[str, Any] = {"tools": check_patterns("tools", rule.tools)}
    if rule.tags is not None:
        kept["tags"] = _texts("tags", rule.tags)
    for key in ("tools", "tags"):
        if kept.get(key) == ():
            raise PolicyError(f"{key} is empty, so the rule never matches: leave it out to match every tool", key=key)
    _check_counts(rule.after, rule.first)
    if rule.annotations is not None:
        kept["annotations"] = _checked_annotations(rule.annotations)
    if rule.origin is not None:
        kept["origin"] = _checked_origin(rule.origin)
    if rule.arguments is not None:
        kept["arguments"] = _plain(rule.arguments)
    return kept


def check_patterns(key: str, patterns: Any) -> tuple[str, ...]:
    """Patterns as a tuple.

    Raises:
        PolicyTypeError: If they are no list of texts; one text would be a pattern per letter.
        PolicyError: If one of them can never match.
    """
    found = _texts(key, patterns)
    for pattern in found:
        why = never_matches(pattern)
        if why:
            raise PolicyError(
                f"{key} has the pattern {pattern!r}, which never matches a tool: {why}; "
                "a pattern is one name, in which * stands for anything and ? for one character",
                key=key,
            )
    return found


def _texts(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        kind = "patterns" if key != "tags" else "tags"
        raise PolicyTypeError(f"{key} is a list of {kind}: write {key}=[{value!r}]", key=key)
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise PolicyTypeError(f"{key} is a list of texts, not {value!r}", key=key)
    return tuple(value)


def _check_counts(after: Any, first: Any) -> None:
    for key, value in (("after", after), ("first", 1 if first is None else first)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise PolicyTypeError(f"{key} is a number of calls, not {value!r}", key=key)
    if first is not None and first <= after:
        why = f"comes after {after} others and is" if after else "is"
        raise PolicyError(f"the rule never matches: no call {why} among the first {first}; raise first", key="first")


def _checked_annotations(annotations: Any) -> dict[str, Any]:
    if not isinstance(annotations, Mapping) or not all(isinstance(name, str) for name in annotations):
        raise PolicyTypeError(f"annotations is a table of names and values, not {annotations!r}", key="annotations")
    if not annotations:
        raise PolicyError("annotations is empty: leave it out to match every tool", key="annotations")
    for name, value in annotations.items():
        near = get_close_matches(name.lower(), [hint.lower() for hint in HINTS], 1, 0.85)
        meant = next((hint for hint in HINTS if near and hint.lower() == near[0]), None)
        if meant not in (None, name):
            raise PolicyError(f"there is no annotation {name!r}: did you mean {meant!r}?", key="annotations")
        if name in HINTS and not isinstance(value, bool):
            raise PolicyTypeError(f"{name} is true or false, not {value!r}", key="annotations")
    if annotations.get("readOnlyHint") and annotations.get("destructiveHint"):
        raise PolicyError(
            "annotations never match: a tool is not both read-only and destructive; write two rules", key="annotations"
        )
    return dict(copy.deepcopy(annotations))


def _checked_origin(origin: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(origin, Mapping) or not all(isinstance(name, str) for name in origin):
        raise PolicyTypeError(
            f"origin is a table of arguments and where they come from, not {origin!r}: "
            "write origin = {'*': 'untrusted'} for all arguments",
            key="origin",
        )
    if not origin:
        raise PolicyError("origin is empty: leave it out, or name an argument ('*' for all)", key="origin")
    found: dict[str, tuple[str, ...]] = {}
    for name, kinds in origin.items():
        found[name] = (kinds,) if isinstance(kinds, str) else _texts("origin", kinds)
        unknown = [kind for kind in found[name] if kind not in _ORIGINS]
        if unknown or not found[name]:
            said = repr(unknown[0]) if unknown else "an empty list"
            raise PolicyError(f"origin of {name!r} is one of {', '.join(_ORIGINS)}, not {said}", key="origin")
    return found


def _plain(value: Any) -> Any:
    """A copy in the types that JSON has; the rule does not change when somebody changes what it was made from."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else copy.deepcopy(value)
