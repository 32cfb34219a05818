"""Conditions on a call's arguments: JSON Schema (draft 2020-12), checked when the policy is made.

JSON Schema passes over what it does not know and what it does not apply to. In a policy that makes a rule match too much, so
misspelt keywords, formats that nobody checks and, in allow rules, limits without a type are errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any
from urllib.parse import unquote

from mosaic_guard._errors import MissingExtraError, PolicyError, PolicyTypeError

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_OF_SCHEMAS = ("properties", "patternProperties", "dependentSchemas", "$defs")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = (
    "additionalProperties contains else if items not propertyNames then unevaluatedItems unevaluatedProperties".split()
)
_NOTES = frozenset("$comment $defs $schema default deprecated description examples readOnly title writeOnly".split())
_BESIDE = frozenset(("then", "else", "minContains", "maxContains"))  # read by `if` and `contains`
_UNREAD = frozenset(("$dynamicRef",))
_TYPE_OF = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), "string"),
    **dict.fromkeys(("items", "prefixItems", "contains", "minItems", "maxItems", "uniqueItems"), "array"),
    **dict.fromkeys(("properties", "patternProperties", "additionalProperties", "required"), "object"),
    **dict.fromkeys(("minProperties", "maxProperties", "propertyNames"), "object"),
}


class ArgumentSchema:
    """A checked schema.

    Args:
        schema: JSON Schema of a call's arguments as a whole, an object.
        final: Whether it belongs to an allow rule, whose match cannot be undone.

    Raises:
        MissingExtraError: If `jsonschema` is not installed.
        PolicyError: If the schema is invalid, says something that would be passed over, or can never match.
    """

    def __init__(self, schema: Mapping[str, Any], *, final: bool) -> None:
        if not isinstance(schema, Mapping):
            never = ": no call can match false" if schema is False else ""
            raise PolicyTypeError(
                f"arguments is a JSON Schema object, not {schema!r}{never}; leave it out to match any arguments",
                key="arguments",
            )
        try:
            from jsonschema import Draft202012Validator
            from jsonschema.exceptions import SchemaError
        except ImportError as error:
            raise MissingExtraError("a rule with arguments", "policy") from error
        self._known = (set(Draft202012Validator.VALIDATORS) | _NOTES | _BESIDE) - _UNREAD
        self._formats = set(Draft202012Validator.FORMAT_CHECKER.checkers)
        self._final = final
        self._root = schema
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise _wrong(error.json_path[2:], f"is not valid: {error.message}") from error
        self._check(schema, "", typed=True, limits=final)
        types = schema.get("type", "object")
        if "object" not in ([types] if isinstance(types, str) else types):
            raise _wrong("", f"never matches: arguments are an object, not {types!r}")
        self._validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)

    def mismatch(self, args: Any) -> str | None:
        """Where the arguments of a call differ from the schema; None where they fit."""
        if self._final:
            if not isinstance(args, Mapping):
                return "the arguments are not an object"
            try:
                json.dumps(args, allow_nan=False, default=repr)
            except ValueError:
                # Every comparison with NaN is false, so it would pass any limit.
                return "the arguments hold a number that is not finite"
        error = next(iter(self._validator.iter_errors(args)), None)
        if error is None:
            return None
        where = error.json_path[2:]
        return f"{f'argument {where}: ' if where else ''}{error.message[:200]}"

    def _check(self, schema: Any, path: str, *, typed: bool, limits: bool) -> None:
        """Check a schema and those in it.

        Args:
            schema: What stands there.
            path: Where it stands.
            typed: Whether the values that come here are of one known type.
            limits: Whether a limit must say which type it is about.
        """
        if not isinstance(schema, Mapping):
            return
        for keyword in schema:
            self._check_keyword(schema, str(keyword), path)
        typed = typed or not {"type", "const", "enum", "$ref"}.isdisjoint(schema)
        limit = next((keyword for keyword in schema if keyword in _TYPE_OF), None)
        if limits and not typed and limit is not None:
            raise _wrong(
                path,
                f"has {limit!r} but no 'type', so an allow rule would match any value of another type, such as a number "
                f"written as text; add type = {_TYPE_OF[limit]!r}",
            )
        if limits:
            _check_types(schema, path)
        for keyword, inner, there in _inside(schema, path):
            same = keyword in ("allOf", "anyOf", "oneOf", "then", "else")
            # Inside these, matching less makes the whole match more: no advice fits both ways.
            turned = keyword in ("not", "if")
            self._check(inner, there, typed=typed and (same or turned), limits=limits and not turned)

    def _check_keyword(self, schema: Mapping[str, Any], keyword: str, path: str) -> None:
        if keyword not in self._known:
            near = get_close_matches(keyword, self._known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "names of arguments stand under 'properties'"
            raise _wrong(path, f"has an unknown keyword {keyword!r}: {hint}")
        value = schema[keyword]
        if keyword == "format" and value not in self._formats:
            raise _wrong(path, f"has a format that is not checked here, {value!r}: write a 'pattern'")
        if keyword == "$ref" and not _points_into(self._root, value):
            raise _wrong(path, f"refers to {value!r}, which is not in this schema: write '#/$defs/NAME'")
        if keyword == "$schema" and value != DIALECT:
            raise _wrong(path, f"is of another dialect, {value!r}: only {DIALECT} is read")


def _check_types(schema: Mapping[str, Any], path: str) -> None:
    """Raise for a limit that says nothing about values of a type that stands beside it.

    Raises:
        PolicyError: For the first such limit.
    """
    given = schema.get("type", ())
    types = [given] if isinstance(given, str) else list(given)
    for keyword in schema:
        passed = [name for name in types if name != _TYPE_OF.get(keyword, name) and not _is_kind(name, keyword)]
        if passed:
            raise _wrong(
                path,
                f"has {keyword!r}, which an allow rule would pass over for the type {passed[0]!r}: it is for "
                f"{_TYPE_OF[keyword]!r} only; write one schema for each type, under anyOf",
            )


def _is_kind(name: str, keyword: str) -> bool:
    """Whether values of a type are of the type that a keyword is about, or few enough for naming the type to be the limit."""
    return name in ("null", "boolean") or (name == "integer" and _TYPE_OF[keyword] == "number")


def _wrong(path: str, what: str) -> PolicyError:
    return PolicyError(f"arguments{f' at {path}' if path else ''} {what}", key="arguments")


def _inside(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any, str]]:
    """(keyword, schema, path) of the schemas that stand directly in a schema."""
    for keyword, value in schema.items():
        here = f"{path}.{keyword}" if path else str(keyword)
        if keyword in _OF_SCHEMAS and isinstance(value, Mapping):
            yield from ((keyword, inner, f"{here}.{name}") for name, inner in value.items())
        elif keyword in _LISTS and isinstance(value, (list, tuple)):
            yield from ((keyword, inner, f"{here}[{index}]") for index, inner in enumerate(value))
        elif keyword in _SINGLE:
            yield keyword, value, here


def _points_into(root: Any, reference: Any) -> bool:
    """Whether a reference is a JSON pointer to something in the schema itself: a policy reads nothing from elsewhere."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return False
    found = root
    for part in unquote(reference).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, (list, tuple)) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            return False
    return True
