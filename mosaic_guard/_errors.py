"""What can be wrong before a guard runs. Failures while it runs are decisions, not exceptions."""

from __future__ import annotations


class MissingExtraError(ImportError):
    """A part of mosaic-guard was asked for whose packages are not installed; the message names the extra."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} needs packages that are not installed: run pip install "mosaic-guard[{extra}]"')


class ModelLoadError(RuntimeError):
    """A guard model that cannot be loaded; the message says what was tried and what to do."""


class UnguardableGraphError(ValueError):
    """A graph that cannot be guarded; the message says what was looked for and how to name it."""


class PolicyError(ValueError):
    """A policy with an unknown key, a wrong type or a rule that can never match; the message says what to write instead.

    Attributes:
        rule: The rule it is about, from 0, among the policy's `rules`; None where it is not about one of them.
        key: The key it is about.
    """

    def __init__(self, sentence: str, *, rule: int | None = None, key: str | None = None) -> None:
        super().__init__(sentence)
        self.rule = rule
        self.key = key


class PolicyTypeError(PolicyError, TypeError):
    """A value of a policy that has the wrong type."""


class GuardWarning(UserWarning):
    """Something about a guard that its user should know, such as a call let through by `on_error="act"`."""
