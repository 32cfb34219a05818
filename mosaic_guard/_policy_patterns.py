"""Patterns of tool names (`fnmatch`, case sensitive): which can never match, and which hold all that another holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase, translate

_CLASS = re.compile(r"\[!?\]?[^\]]*\]")
_NOT_IN_NAMES = re.compile(r"[\s,;|(){}^$\\'\"`]")


def matching(name: str, patterns: Sequence[str]) -> str | None:
    """The first pattern that a tool's name matches."""
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def never_matches(pattern: str) -> str | None:
    """Why no tool name can match a pattern; None if one can."""
    if not pattern:
        return "it is empty"
    plain = _CLASS.sub("", pattern)
    if "[" in plain:
        return "its '[' is never closed"
    found = _NOT_IN_NAMES.search(plain)
    if found:
        return f"no tool's name holds {found[0]!r}"
    # `translate` writes an empty range, such as [z-a], as a group that cannot match.
    return "its range is empty" if "(?!)" in translate(pattern) else None


def covers(wide: str, narrow: str) -> bool:
    """Whether every name that matches `narrow` matches `wide`; False also where that would take more than a look."""
    if wide in ("*", narrow):
        return True
    if not _has_wildcard(narrow):
        return fnmatchcase(narrow, wide)
    # The wildcards of `narrow`, read as plain characters, can only fall to a star of `wide`: then anything there does.
    return "?" not in wide and "[" not in wide and fnmatchcase(_CLASS.sub("?", narrow), wide)


def _has_wildcard(pattern: str) -> bool:
    return any(mark in pattern for mark in "*?[")
