"""Judgements and traces become a preference file: `python -m mosaic_guard_training.preferences`.

The rules, in order:

1. Judges have a rank (`--judges`): what the first says of a pair, or of a call, counts. An abstention passes the word on;
   a tie does not, and gives no pair. Of two judges of one kind (two people, two models) the later judgement counts.
2. A judgement of whole trajectories compares them whole. One of a step compares the trajectory up to that step with its
   twin (`twins.py`). Of the calls of a harmless trajectory that hindsight names, only those that the guard model itself
   decided are taken: harmful ones where it first refused some, and a few of the legitimate ones that it let through.
3. Pairs whose sides train the same, pairs that say what another one says token for token, and pairs that contradict
   another one token for token are left out.
4. Split by environment, then balance (`preference_split.py`).

What was left out and why is counted, printed, and kept beside the file as `FILE.report.json`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.judging.cache import read_judgements
from mosaic_guard_training.judging.stage import JUDGES, keep_apart, read_with_notes
from mosaic_guard_training.options import check_ranges, parse, setting
from mosaic_guard_training.outputs import write_json
from mosaic_guard_training.preference_file import read_preference_records, read_preferences, write_preferences
from mosaic_guard_training.preference_pairs import Preferences, make_preferences

__all__ = ["PreferenceSettings", "main", "make_preferences", "read_preference_records", "read_preferences"]


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """How judgements become pairs; `help` of each field says what it does.

    Raises:
        ValueError: If a number is outside its range, or a judge is not known; the message names the option.
    """

    traces: Path = setting("trace file, or directory of trace files")
    judgements: Path = setting("file of judgements, or directory of such files")
    output: Path = setting("preference file to write")
    judges: tuple[str, ...] = setting(
        "whose judgements are taken, by rank", default=("human", "outcome", "hindsight", "llm")
    )
    base_model: str | None = setting("take only trajectories of guards with this base model", default=None)
    pairs_per_task: int = setting("most pairs of whole trajectories of one task", default=16, low=0, high=10**9)
    harmless_twins: int = setting(
        "most pairs at legitimate calls of one harmless trajectory", default=1, low=0, high=10**9
    )
    balance: float = setting(
        "most pairs of harmful tasks per pair of benign ones, and the other way round; 0 keeps all", default=1.0, low=0
    )
    held_out: float = setting(
        "share of the pairs whose environments are held out as the split test", default=0.2, low=0.0, high=0.9
    )
    held_out_environments: tuple[str, ...] = setting("environments to hold out instead", default=())
    seed: int = setting("decides all that is drawn", default=0, low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        check_ranges(self)
        unknown = [name for name in self.judges if name not in JUDGES]
        if unknown or not self.judges:
            raise ValueError(f"--judges must be some of {', '.join(JUDGES)}, not {', '.join(unknown) or 'none'}")
        if 0 < self.balance < 1:
            raise ValueError(f"--balance must be 0 or at least 1, not {self.balance}")


def write_report(made: Preferences, settings: PreferenceSettings) -> None:
    """Keep what was left out and why beside the preference file."""
    sources = sorted({(s.file, s.sha256) for p in made.preferences for s in p.sources})
    rules = {
        name: getattr(settings, name)
        for name in (
            "judges",
            "pairs_per_task",
            "harmless_twins",
            "balance",
            "held_out",
            "held_out_environments",
            "seed",
        )
    }
    with settings.output.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    report = {
        **made.counts(),
        "dropped": dict(sorted(made.dropped.items())),
        "notes": made.notes,
        "settings": rules,
        "sources": [{"file": file, "sha256": sha256} for file, sha256 in sources],
        "sha256": digest,
    }
    write_json(settings.output.with_name(settings.output.name + ".report.json"), report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Without the program's name; None for this process's own.

    Returns:
        The exit code: 0 when the file is written, 2 for an error that its user can mend, 130 when stopped.
    """
    from mosaic_guard_training.judging.__main__ import in_one_sentence

    description = "Make preference pairs of judged trajectories, with provenance, split by environment."
    settings = parse(PreferenceSettings, "python -m mosaic_guard pairs", description, arguments)
    console = Console(highlight=False, emoji=False)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    def work() -> None:
        keep_apart(settings.output, settings.traces, settings.judgements)
        trajectories = read_with_notes(settings.traces, console)
        made = make_preferences(trajectories, read_judgements(settings.judgements), settings)
        for reason, number in sorted(made.dropped.items()):
            say(f"  left out: {number} {reason}")
        if not made.preferences:
            raise TrainingError("no pair is left: judge the traces, log outcomes, or collect more roll-outs per task")
        write_preferences(settings.output, made.preferences)
        write_report(made, settings)
        counts = made.counts()
        for name in ("kinds", "judges", "splits", "categories", "environments"):
            say(f"{name}: {_listed(counts[name])}")
        for note in made.notes:
            say(f"note: {note}")
        say(f"{counts['pairs']} pairs of {counts['tasks']} tasks in {settings.output}")

    return in_one_sentence(work)


def _listed(counts: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} ({_listed(value)})" if isinstance(value, Mapping) else f"{name} {value}"
        for name, value in counts.items()
    )


if __name__ == "__main__":
    sys.exit(main())
