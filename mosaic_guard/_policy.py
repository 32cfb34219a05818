"""The policy: deterministic rules, evaluated before the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mosaic_guard._decision import Call, Decision, Step, Verdict
from mosaic_guard._errors import PolicyError, PolicyTypeError
from mosaic_guard._policy_fields import RuleVerdict, check_patterns
from mosaic_guard._policy_patterns import covers

if TYPE_CHECKING:
    from mosaic_guard._policy_rule import Rule

PRECEDENCE: tuple[RuleVerdict, ...] = ("refuse", "ask", "allow")
_DECISIONS: dict[str, Verdict] = {"refuse": "refuse", "ask": "ask", "allow": "act"}


@dataclass(frozen=True)
class Placed:
    """A rule and where the policy has it.

    Attributes:
        rule: The rule.
        number: Its place among `Policy.rules`, from 0; None for a pattern of `allow`, `refuse` or `ask`.
    """

    rule: Rule
    number: int | None

    @property
    def name(self) -> str:
        """How a person calls it."""
        if self.number is not None:
            return f"rule {self.number + 1}"
        return f"{self.rule.verdict} {self.rule.tools[0]!r}"


@dataclass(frozen=True)
class Policy:
    """Rules about tool calls. Refuse wins over ask, and ask over allow, in whatever order they stand.

    An allow rule is final: the model cannot refuse the call. A call that no rule matches is the model's to decide.

    Attributes:
        allow: Patterns (`fnmatch`, case sensitive) of tools whose calls always run.
        refuse: Patterns of tools whose calls never run.
        text: The operator's policy in words, for the guard model to read.
        ask: Patterns of tools about whose calls a person decides.
        rules: Rules with conditions.

    Raises:
        PolicyError: For a wrong type, and for a rule that can never match: its own conditions exclude each other, or a rule
            of higher precedence that looks only at names takes all its calls.
        TypeError: If `allow`, `refuse` or `ask` is one string: every letter of it would be a pattern. (This, too, is a
            `PolicyError`.)
    """

    allow: Sequence[str] = ()
    refuse: Sequence[str] = ()
    text: str = ""
    ask: Sequence[str] = ()
    rules: Sequence[Rule] = ()
    in_order: tuple[Placed, ...] = field(init=False, repr=False, compare=False, default=())
    """All rules, those of higher precedence first, in the order that they are tried."""

    def __post_init__(self) -> None:
        from mosaic_guard._policy_rule import Rule

        if not isinstance(self.text, str):
            raise PolicyTypeError(f"text is a text, not {self.text!r}", key="text")
        kept: dict[str, Any] = {}
        placed: list[Placed] = []
        for verdict in PRECEDENCE:
            kept[verdict] = check_patterns(verdict, getattr(self, verdict))
            placed.extend(Placed(Rule(verdict, [pattern]), None) for pattern in kept[verdict])
        rules: Any = self.rules
        if not isinstance(rules, Sequence) or not all(isinstance(rule, Rule) for rule in rules):
            raise PolicyTypeError(f"rules is a list of Rule, not {rules!r}", key="rule")
        kept["rules"] = tuple(rules)
        placed.extend(Placed(rule, number) for number, rule in enumerate(kept["rules"]))
        kept["in_order"] = tuple(sorted(placed, key=lambda each: PRECEDENCE.index(each.rule.verdict)))
        for name, value in kept.items():
            object.__setattr__(self, name, value)
        _refuse_shadowed(self.in_order)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """Read a policy from a TOML (`.toml`) or YAML (`.yaml`, `.yml`) file.

        Its keys are `text`, `allow`, `refuse` and `ask`, and `rule`: a list of tables with the fields of `Rule`.

        Raises:
            FileNotFoundError: If there is no such file.
            MissingExtraError: If a rule needs packages that are not installed.
            PolicyError: For anything in it that cannot be read, is unknown or can never match, with file and line.
        """
        from mosaic_guard._policy_file import load_policy

        return load_policy(path).policy

    def decide(self, call: Call, step: Step) -> Decision | None:
        """The decision that a rule makes about a call of a step; None where no rule matches and the model decides.

        Refuse rules are tried first, then ask, then allow. Where a rule asks for origins and the step has no evidence, the
        origins of the call's values are computed; otherwise nothing is.

        Raises:
            Exception: What a schema or a malformed call makes of its evaluation; the guard refuses then.
        """
        for placed in self.in_order:
            if placed.rule.match(call, step).matches:
                verdict = _DECISIONS[placed.rule.verdict]
                return Decision(call.index, verdict, placed.rule.reason_for(call, step), source="policy")
        return None


def _refuse_shadowed(in_order: Sequence[Placed]) -> None:
    """Raise for a rule whose calls are all taken by rules of higher precedence that look only at names.

    Raises:
        PolicyError: For the first such rule.
    """
    for placed in in_order:
        rank = PRECEDENCE.index(placed.rule.verdict)
        wide = [
            (pattern, other)
            for other in in_order
            if other.rule.unconditional and PRECEDENCE.index(other.rule.verdict) < rank
            for pattern in other.rule.tools
        ]
        takers = [next((o for pattern, o in wide if covers(pattern, own)), None) for own in placed.rule.tools]
        taker = takers[0]
        if taker is None or None in takers:
            continue
        raise PolicyError(
            f"{placed.name} never matches: {taker.name} ({taker.rule.verdict}) wins over {placed.rule.verdict} and takes "
            f"every call of {placed.rule.tools[0]!r}; remove one, or give {taker.name} a condition",
            rule=placed.number,
            key=placed.rule.verdict if placed.number is None else "tools",
        )
