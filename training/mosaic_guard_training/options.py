"""A dataclass of settings as command-line options and as a YAML recipe.

Each field is an option (`max_pairs` is `--max-pairs`) and a key of a recipe (`max_pairs: 20`). What the command line says
wins over the recipe, and the recipe over the field's default. A class of settings is a frozen dataclass whose fields are
made by `setting` and whose `__post_init__` calls `check_ranges`:

    @dataclass(frozen=True, kw_only=True)
    class CollectSettings:
        tasks: Path = setting("file of tasks")
        samples: int = setting("roll-outs per task", default=4, low=1)

        def __post_init__(self) -> None:
            check_ranges(self)

A field is a `str`, `int`, `float`, `bool`, `Path`, a `Literal` of strings, one of them `| None`, or a `tuple[X, ...]`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")

_MISSING: Any = dataclasses.MISSING
_METAVARS = {Path: "PATH", int: "N", float: "X", str: "NAME"}


def setting(help: str, *, default: Any = _MISSING, low: float | None = None, high: float | None = None) -> Any:
    """A field of a class of settings.

    Args:
        help: What it does, for `--help`.
        default: Its value where neither command line nor recipe names it; without one it is required.
        low: Least value of a number.
        high: Greatest value of a number.
    """
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


def check_ranges(settings: Any) -> None:
    """Make sure that the numbers of a settings object are in their ranges.

    Raises:
        ValueError: If one is not; it names the option.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        low, high = field.metadata["low"], field.metadata["high"]
        if value is None or (low is None and high is None):
            continue
        least, most = -math.inf if low is None else low, math.inf if high is None else high
        # Written so that not-a-number is outside too.
        if not least <= value <= most:
            both = low is not None and high is not None
            limits = f"between {low} and {high}" if both else f"at least {low}" if high is None else f"at most {high}"
            raise ValueError(f"{flag(field.name)} must be {limits}, not {value}")


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


def parse(
    cls: type[T], prog: str, description: str, arguments: Sequence[str] | None = None, *, epilog: str | None = None
) -> T:
    """Read a command line, and the recipe that it names.

    Args:
        cls: The class of settings.
        prog: How the command is called.
        description: What it does, for `--help`.
        arguments: Without the program's name; None for this process's own.
        epilog: What `--help` ends with.

    Raises:
        SystemExit: For `--help` (0), and for a bad command line or recipe (2).
    """
    parser = _Parser(prog=prog, description=description, epilog=epilog, allow_abbrev=False)
    parser.add_argument("--recipe", type=Path, metavar="FILE.yaml", help="settings, by field name; options win over it")
    hints = _hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        action = _add(parser, field, hints[field.name])
        if _required(field):
            parser.needed.append(action)
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(parser.parse_args(arguments)).items()}
    try:
        recipe = given.pop("recipe")
        merged = {**(read_recipe(cls, recipe) if recipe else {}), **given}
        if missing := [flag(f.name) for f in dataclasses.fields(cls) if _required(f) and f.name not in merged]:  # type: ignore[arg-type]
            raise ValueError(f"the following arguments are required: {', '.join(missing)}")
        return cls(**merged)
    except ValueError as error:
        parser.error(str(error))


class _Parser(argparse.ArgumentParser):
    """Shows what has to be named without brackets, though a recipe may name it in place of the command line.

    Attributes:
        needed: The actions of such options.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.needed: list[argparse.Action] = []

    def format_usage(self) -> str:
        """The usage, as when an option is wrong."""
        with self._required():
            return super().format_usage()

    def format_help(self) -> str:
        """What `--help` shows."""
        with self._required():
            return super().format_help()

    @contextmanager
    def _required(self) -> Iterator[None]:
        try:
            for action in self.needed:
                action.required = True
            yield
        finally:
            for action in self.needed:
                action.required = False


def read_recipe(cls: type[Any], file: Path) -> dict[str, Any]:
    """The settings that a recipe names, in the types of their fields.

    Args:
        cls: The class of settings.
        file: YAML, one mapping. Paths in it are relative to the working directory, as on the command line.

    Raises:
        ValueError: If it cannot be read, or holds a key or value that is no setting; it names the file.
    """
    import yaml

    try:
        record = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the recipe {str(file)!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    if record is None:
        return {}
    if not isinstance(record, Mapping):
        raise ValueError(f"{file}: a recipe is a mapping of settings to values, not a {type(record).__name__}")
    hints = _hints(cls)
    found = {}
    for key, value in record.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key).replace("-", "_"), hints, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(hints))}"
            raise ValueError(f"{file}: unknown setting {key!r}; {hint}")
        try:
            found[str(key)] = _convert(value, hints[key])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {key} is {value!r}: {error}") from error
    return found


def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING


def _plain(hint: Any) -> Any:
    """The type of a field without its `| None`."""
    if isinstance(hint, types.UnionType):
        return next(each for each in typing.get_args(hint) if each is not types.NoneType)
    return hint


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any) -> argparse.Action:
    # What is not named on the command line is left out of the result, so that a recipe can say it.
    options: dict[str, Any] = {"help": field.metadata["help"], "default": argparse.SUPPRESS}
    if not _required(field) and field.default not in (None, False, ()):
        options["help"] += f" (default: {field.default})"
    hint = _plain(hint)
    if hint is bool:
        return parser.add_argument(flag(field.name), action=argparse.BooleanOptionalAction, **options)
    if typing.get_origin(hint) is tuple:
        hint, options["nargs"] = typing.get_args(hint)[0], "+"
    if typing.get_origin(hint) is Literal:
        options["choices"], hint = typing.get_args(hint), str
    else:
        options["metavar"] = _METAVARS[hint]
    return parser.add_argument(flag(field.name), type=hint, **options)


def _convert(value: Any, hint: Any) -> Any:
    """A recipe's value as its field's type; what YAML reads as another type is an error, but for `1e-4`, a string."""
    if isinstance(hint, types.UnionType) and value is None:
        return None
    hint = _plain(hint)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError("a list is needed")
        return tuple(_convert(each, typing.get_args(hint)[0]) for each in value)
    if typing.get_origin(hint) is Literal:
        # YAML reads a bare on or off as a boolean.
        value = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
        if value not in typing.get_args(hint):
            raise ValueError(f"one of {', '.join(typing.get_args(hint))} is needed")
        return value
    expected: Any = {float: (int, float, str), int: int, bool: bool, str: (str, int, float), Path: str}[hint]
    if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"a value of type {hint.__name__.lower()} is needed")
    return hint(value)
