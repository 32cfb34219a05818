"""`python -m mosaic_guard_training.sources SOURCE --data DIR --output FILE`: a public source as a file of tasks.

SOURCE may also be `splits`: then FILE gets what `splits.json` holds; or `mixture`: then it gets `--count` tasks of all of
them (`mixture.py`).
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.sources.splits import FILE, make_splits, split_of_task
from mosaic_guard_training.tasks import Task, TaskError, write_tasks

SOURCES = ("injecagent", "asb", "agent_safetybench", "agentalign", "intents", "bfcl", "bfcl_conversations", "composed")


def tasks_of(source: str, data: Path) -> Iterator[Task]:
    """The tasks of a source.

    Args:
        source: One of `SOURCES`.
        data: The directory that holds the source's directory.
    """
    module = importlib.import_module(f"mosaic_guard_training.sources.{source}")
    found: Iterator[Task] = module.tasks(data)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 when the file is written, 2 for an error that its user can mend.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mosaic_guard_training.sources", description="Write a public source as a file of tasks."
    )
    parser.add_argument("source", choices=[*SOURCES, "splits", "mixture"])
    parser.add_argument("--data", type=Path, required=True, help="directory that holds the source's directory")
    parser.add_argument("--output", type=Path, help="file to write; for splits by default the committed one")
    parser.add_argument("--split", choices=["train", "dev", "test"], help="only tasks of this side of splits.json")
    parser.add_argument("--count", type=int, default=20_000, help="mixture: about how many tasks")
    parser.add_argument("--seed", type=int, default=0, help="mixture: what is drawn")
    parser.add_argument(
        "--join", action="store_true", help="mixture: twins in which the user says the same as one task"
    )
    given = parser.parse_args(arguments)
    if given.source == "mixture" and given.split is None:
        parser.error("--split: say which side the mixture is of")
    if given.source == "bfcl_conversations" and given.split is not None:
        parser.error("--split: BFCL's conversations have no sides, for none is trained on; leave it out")
    try:
        if given.source == "splits":
            where = given.output or FILE
            where.write_text(json.dumps(make_splits(given.data), indent=1) + "\n", encoding="ascii")
            print(f"saved in {where}")
            return 0
        if given.output is None:
            parser.error("--output: name the file to write")
        if given.source == "mixture":
            from mosaic_guard_training.sources.mixture import mixture

            found = mixture(given.data, given.split, given.count, seed=given.seed, join=given.join)
        else:
            found = [
                task
                for task in tasks_of(given.source, given.data)
                if given.split is None or split_of_task(task) == given.split
            ]
        count = write_tasks(given.output, found)
    except (TrainingError, TaskError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kinds = Counter(task.category for task in found)
    print(f"{count} tasks ({', '.join(f'{number} {kind}' for kind, number in kinds.items())}) in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
