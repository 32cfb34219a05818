"""What `Guard` takes, looked at before anything is loaded: one sentence for what is wrong, with what to write in its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from mosaic_guard._policy import Policy
from mosaic_guard._transcript import Limits


def check_number(name: str, value: Any) -> None:
    """Make sure that an option is a number, or None.

    Raises:
        TypeError: If it is something else; a truth value is.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise TypeError(f"{name} is a number, not {value!r}")


def limits_of(limits: Any) -> Limits:
    """`Limits`, given as such, as some of its fields, or not at all.

    Raises:
        TypeError: If it is something else, or a size is no whole number.
        ValueError: For an unknown size, or one below 1.
    """
    if isinstance(limits, Limits):
        given: Mapping[str, Any] = vars(limits)
    elif limits is None or isinstance(limits, Mapping):
        given = limits or {}
    else:
        raise TypeError(f"limits are Limits(...) or sizes by name, such as {{'calls': 32}}, not {limits!r}")
    known = [field.name for field in fields(Limits)]
    for name, size in given.items():
        if name not in known:
            raise ValueError(f"limits have no {name!r}: they are {', '.join(known)}")
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"limits: {name} is a whole number, not {size!r}")
        if size < 1:
            raise ValueError(f"limits: {name} is at least 1, not {size}")
    return Limits(**given)


def policy_of(policy: Any) -> Policy:
    """A policy, given as such, as the path of its file, or not at all.

    Raises:
        TypeError: If it is something else.
        FileNotFoundError: If there is no such file.
        PolicyError: If the file cannot be read, or says something that can never match.
    """
    if policy is None or isinstance(policy, Policy):
        return policy or Policy()
    if isinstance(policy, (str, os.PathLike)):
        return Policy.load(policy)
    raise TypeError(
        f"policy is a Policy, such as Policy(refuse=['pay']), or the path of its file, not {type(policy).__name__}"
    )


def check_names_a_model(path: str | os.PathLike[str]) -> None:
    """Make sure that a text could name a language model: that of a guard names more.

    Raises:
        ValueError: If it names a guard.
        FileNotFoundError: If it is a path, and there is nothing.
    """
    name = os.fspath(path)
    place = Path(name).expanduser()
    if name in ("default", "untrained") or (place / "manifest.json").is_file():
        raise ValueError(f"{name!r} names a guard, not a language model: write Guard.load({name!r})")
    looks_like_a_path = isinstance(path, os.PathLike) or name.startswith(("/", ".", "~")) or name.count("/") > 1
    if looks_like_a_path and not place.exists():
        raise FileNotFoundError(
            f"no directory {name!r}: give that of a language model, its hub id, or none for the default"
        )
