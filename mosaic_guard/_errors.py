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


class GuardWarning(UserWarning):
    """Something about a guard that its user should know, such as a call let through by `on_error="act"`."""
