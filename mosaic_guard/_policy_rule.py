"""A rule of a policy: its conditions, and which calls they match."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.tools import BaseTool

from mosaic_guard._blocks import one_line
from mosaic_guard._decision import Call, Step
from mosaic_guard._evidence import answered_calls, gather_origins, is_refusal, is_telling, leaves
from mosaic_guard._policy_fields import HINTS, RuleOrigin, RuleVerdict, checked_fields
from mosaic_guard._policy_patterns import matching
from mosaic_guard._policy_schema import ArgumentSchema

_WORDS = {"refuse": "refuses", "ask": "asks a person about", "allow": "allows"}
_COMES = {
    "user": "was said by the user",
    "operator": "was said by the operator",
    "untrusted": "comes from an untrusted tool result",
    "agent": "was brought up by the agent",
    "nowhere": "appears nowhere in the thread",
}


@dataclass(frozen=True)
class Match:
    """Whether a rule matches a call, and which condition decided that, in words."""

    matches: bool
    because: str


@dataclass(frozen=True)
class Rule:
    """One rule of a policy. It matches a call if all its conditions hold; a condition that is left out always holds.

    Attributes:
        verdict: What becomes of a call that the rule matches: `allow` (it runs; the model cannot refuse it), `refuse` or
            `ask` (a person decides).
        tools: Patterns of tool names (`fnmatch`, case sensitive), any of which is enough.
        annotations: Entries of the tool's `metadata`, or of `annotations` in it, that must be equal. MCP's hints stand
            there under their own names; `hints_of` says what holds where one is missing. A tool without any has none, and
            neither has a tool that the graph does not know.
        tags: Tags of the tool, any of which is enough.
        arguments: JSON Schema (draft 2020-12) of the arguments as the model wrote them. Needs `mosaic-guard[policy]`.
        after: Matches only when that many calls of such tools (`tools`, `annotations`, `tags`) have run in the thread, or
            are ahead in the same step. What a guard refused does not count; what was cut from the history neither.
        first: Matches only the first so many calls, counted in the same way.
        origin: For names of arguments (`"*"`: all): where their values come from, one of `user` (a human said it, at any
            time), `operator` (a system message), `untrusted` (a tool result, before anybody else), `agent` and `nowhere`,
            or several of them. Values are found literally, whole words, case folded; those of one character, true, false
            and null tell nothing and have no origin. A refuse or ask rule matches if *any* such value has such an
            origin; an allow rule, which is final, if *every* value of each of these arguments has.
        reason: What the agent and a person are told, in place of what the rule says about itself.

    Raises:
        MissingExtraError: If `arguments` needs a package that is not installed.
        PolicyError: For an unknown verdict, hint or origin, a wrong type, or conditions that no call can meet.
    """

    verdict: RuleVerdict
    tools: Sequence[str] = ("*",)
    _: KW_ONLY
    annotations: Mapping[str, Any] | None = None
    tags: Sequence[str] | None = None
    arguments: Mapping[str, Any] | None = None
    after: int = 0
    first: int | None = None
    origin: Mapping[str, RuleOrigin | Sequence[RuleOrigin]] | None = None
    reason: str = ""
    _schema: ArgumentSchema | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        for name, value in checked_fields(self).items():
            object.__setattr__(self, name, value)
        if self.arguments is not None:
            object.__setattr__(self, "_schema", ArgumentSchema(self.arguments, final=self.verdict == "allow"))

    @property
    def unconditional(self) -> bool:
        """Whether the rule looks at nothing but the tool's name."""
        asks = (self.annotations, self.tags, self.arguments, self.first, self.origin)
        return not self.after and all(condition is None for condition in asks)

    def match(self, call: Call, step: Step) -> Match:
        """Whether the rule matches a call of a step, and what decided that."""
        said = []
        for found in self._conditions(call, step):
            if not found.matches:
                return found
            said.append(found.because)
        return Match(True, "; ".join(said))

    def reason_for(self, call: Call, step: Step) -> str:
        """What the agent and a person are told about a call that the rule matches."""
        if self.reason:
            return self.reason
        _, *others = self._conditions(call, step)
        about = f"the operator's policy {_WORDS[self.verdict]} {matching(call.name, self.tools)!r}"
        return f"{about}: {'; '.join(found.because for found in others)}" if others else about

    def _conditions(self, call: Call, step: Step) -> Iterator[Match]:
        """The conditions in turn, cheap ones first: the next is looked at only if the one before holds."""
        pattern = matching(call.name, self.tools)
        if pattern is None:
            yield Match(False, f"{call.name} does not match {' or '.join(map(repr, self.tools))}")
            return
        yield Match(True, f"{call.name} matches {pattern!r}")
        tool = step.tools.get(call.name)
        if self.annotations is not None:
            yield self._match_annotations(tool)
        if self.tags is not None:
            yield self._match_tags(tool)
        if self.after or self.first is not None:
            yield self._match_count(call, step)
        if self._schema is not None:
            wrong = self._schema.mismatch(call.args)
            yield Match(wrong is None, wrong or "the arguments are as the rule says")
        if self.origin is not None:
            yield self._match_origin(call, step)

    def _match_annotations(self, tool: BaseTool | None) -> Match:
        known = hints_of(tool)
        for name, wanted in (self.annotations or {}).items():
            if name not in known:
                return Match(False, f"the tool says nothing about {name!r}")
            # 1 and true are equal to Python, but not to whoever annotated the tool.
            if known[name] != wanted or isinstance(known[name], bool) != isinstance(wanted, bool):
                return Match(False, f"the tool's {name!r} is {known[name]!r}, not {wanted!r}")
        return Match(True, ", ".join(f"{name} is {value!r}" for name, value in (self.annotations or {}).items()))

    def _match_tags(self, tool: BaseTool | None) -> Match:
        shared = [tag for tag in self.tags or () if tool is not None and tag in (tool.tags or ())]
        if shared:
            return Match(True, f"the tool is tagged {shared[0]!r}")
        return Match(False, f"the tool is not tagged {' or '.join(map(repr, self.tags or ()))}")

    def _match_count(self, call: Call, step: Step) -> Match:
        counted = [name for name in calls_run(step.messages) if self._is_of(name, step)]
        counted += [name for name in step.cleared if self._is_of(name, step)]
        counted += [c.name for c in step.calls if c.index < call.index and self._is_of(c.name, step)]
        number = len(counted) + 1
        holds = number > self.after and (self.first is None or number <= self.first)
        limits = [f"after {self.after}"] if self.after else []
        limits += [f"up to {self.first}"] if self.first is not None else []
        return Match(holds, f"it is call {number} of its kind, and the rule is for those {' and '.join(limits)}")

    def _is_of(self, name: str, step: Step) -> bool:
        tool = step.tools.get(name)
        return (
            matching(name, self.tools) is not None
            and (self.annotations is None or self._match_annotations(tool).matches)
            and (self.tags is None or self._match_tags(tool).matches)
        )

    def _match_origin(self, call: Call, step: Step) -> Match:
        known = step.evidence[call.index].origins if step.evidence else gather_origins(step.heard, call)
        final = self.verdict == "allow"
        said: list[str] = []
        for argument, wanted in (self.origin or {}).items():
            if final and (wrong := _untraceable(call.args, argument)):
                return Match(False, wrong)
            for origin in (o for o in known if _belongs(o.argument, argument)):
                kind = "untrusted" if origin.vouched == "result" else origin.vouched
                where = f" ({origin.tool})" if kind == "untrusted" and origin.tool else ""
                said.append(f"{origin.argument} {one_line(origin.value)[:60]!r} {_COMES[kind]}{where}")
                if (kind in wanted) != final:
                    return Match(not final, said[-1])
        if said:
            return Match(final, ", ".join(said))
        names = " or ".join("its arguments" if name == "*" else name for name in self.origin or {})
        return Match(False, f"no value of {names} could be traced")


def hints_of(tool: BaseTool | None) -> dict[str, Any]:
    """What is known of a tool: its `metadata`, and MCP's hints with MCP's defaults where the tool has any hint at all.

    The defaults are the cautious ones: not read-only, destructive (unless read-only), not idempotent, open world. A tool
    that calls itself both read-only and destructive is taken for destructive only. Entries of `metadata` win over those
    of `metadata["annotations"]`.
    """
    metadata = (tool.metadata if tool is not None else None) or {}
    nested = metadata.get("annotations")
    known = {**(nested if isinstance(nested, Mapping) else {}), **metadata}
    if not any(hint in known for hint in HINTS):
        return known
    # langchain-mcp-adapters writes None for a hint that the server left out.
    given = {hint: known[hint] for hint in HINTS if isinstance(known.get(hint), bool)}
    read_only = given.get("readOnlyHint", False) and not given.get("destructiveHint", False)
    defaults = {"destructiveHint": not read_only, "idempotentHint": False, "openWorldHint": True}
    return {**known, **defaults, **given, "readOnlyHint": read_only}


def calls_run(messages: Sequence[BaseMessage]) -> Iterator[str]:
    """Names of the tools whose calls were answered by anybody but the guard, in order."""
    for message, call in answered_calls(messages):
        if not is_refusal(message):
            yield call["name"]


def _belongs(path: str, argument: str) -> bool:
    """Whether a value's path leads into an argument."""
    return argument == "*" or path == argument or path.startswith((f"{argument}.", f"{argument}["))


def _untraceable(args: Any, argument: str) -> str | None:
    """Why it cannot be said of every value of an argument where it comes from; None if it can."""
    if not isinstance(args, Mapping):
        return "the arguments are not an object"
    for name in args if argument == "*" else (argument,):
        if args.get(name) is None:
            if argument != "*":
                return f"argument {name} has no value"
            continue
        if any(isinstance(value, Mapping) for value in _nested(args[name])):
            return f"argument {name} holds an object, whose keys have no known origin"
        short = next((value for _, value in leaves(args[name]) if not is_telling(value)), None)
        if short is not None:
            return f"the value {short!r} of argument {name} is too short to tell where it comes from"
    return None


def _nested(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _nested(item)
