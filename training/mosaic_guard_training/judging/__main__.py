"""Judge the trajectories of traces: `python -m mosaic_guard_training.judging --traces DIR --output FILE`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from mosaic_guard_training.options import parse

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

PROG = "python -m mosaic_guard judge"
DESCRIPTION = "Say which of two trajectories of a task is better, by outcomes, people's answers, or a language model."


def main(arguments: Sequence[str] | None = None, *, chat: BaseChatModel | None = None) -> int:
    """Run the command.

    Args:
        arguments: Without the program's name; None for this process's own.
        chat: The model of the judge `llm`, in place of the one that the arguments name.

    Returns:
        The exit code: 0 when all that could be judged is, 2 for an error that its user can mend, 130 when stopped.
    """
    from mosaic_guard_training.judging.cache import read_judgements
    from mosaic_guard_training.judging.stage import JudgeSettings, judge, read_with_notes
    from mosaic_guard_training.judging.tables import show, summary, tables

    settings = parse(JudgeSettings, PROG, DESCRIPTION, arguments)
    console = Console(highlight=False, emoji=False)

    def work() -> None:
        if settings.show is not None:
            trajectories = {each.id: each for each in read_with_notes(settings.traces, console)}
            show(settings.show, read_judgements(settings.output), trajectories, console)
            return
        run = judge(settings, console, chat=chat)
        for line in summary(run):
            console.print(line, markup=False, soft_wrap=True)
        for table in tables(run.agreement):
            console.print(table)
        console.print(f"judgements in {settings.output}", markup=False, soft_wrap=True)

    return in_one_sentence(work)


def in_one_sentence(work: Callable[[], None]) -> int:
    """Do a command's work; what its user can put right is said in one sentence. Returns the exit code."""
    from mosaic_guard._errors import MissingExtraError, ModelLoadError
    from mosaic_guard._trace import TraceError
    from mosaic_guard_training.errors import TrainingError

    try:
        work()
    except (TrainingError, TraceError, MissingExtraError, ModelLoadError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: what was judged is kept; the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
