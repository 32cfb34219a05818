"""The recipe of the guard that ships, stage by stage; what a stage has written is not made again.

    python -m mosaic_guard_training.reproduce --data DIR --output runs/guard [--stage sft]

    tasks      a mixture of the sources, of the training side and of the one held back for development; ordinary work (BFCL's
               conversations)
    lessons    all of them, as traces in which the guard says what it should
    sft        training on the former
    further    training goes on in rounds with other shares of the sources, what the guard was found to be weak at, and the mean
               of the guards before and after some rounds is taken (--no-further leaves this out)
    suites     where some are named: training goes on with lessons of AgentDojo's suites, and some of the former once more
    calibrate  an evidence model, weighed on the lessons held back, and the threshold of both, from ordinary work
    release    the guard in the form in which it ships, in OUTPUT/shipped

The settings are the files of `recipes/guard/`. `make reproduce-guard DATA=DIR` runs it (`STAGE=` for one stage). The guard that
ships has learnt from no suite of AgentDojo, so that all of them measure it. `--suites workspace` makes another, which `banking`
measures, from the same SFT; what is made of it stands in OUTPUT beside the first, with the suite's name at its end.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from mosaic_guard import EvidenceModel
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.options import parse, read_recipe, setting
from mosaic_guard_training.outputs import Output, trace_files

RECIPE = Path(__file__).parent / "recipes" / "guard"
SIDES = ("train", "dev")
FURTHER = "further"
"""Names what training goes on with, and the guard that comes of it."""

BENIGN = "benign"
"""Names the tasks and the lessons of ordinary work that the threshold is taken from."""

SUITES = ("workspace", "banking")
"""AgentDojo's suites that may be learnt from."""

AGAIN = 200
"""How many of the first lessons are read again with those of the suites, so that they are not forgotten."""


@dataclass(frozen=True)
class Round:
    """Training that goes on.

    Attributes:
        number: From 1.
        count: About how many tasks.
        seed: Decides what they are.
        tokens: Most tokens that are read.
        shares: As of `Shares`.
        average: Whether the mean of the guard at the last mean and of this one is what goes on.
    """

    number: int
    count: int
    seed: int
    tokens: int
    shares: Mapping[str, Any]
    average: bool = False

    @property
    def name(self) -> str:
        """Names its tasks and lessons."""
        return f"{FURTHER}-{self.number}"

    @property
    def guard(self) -> str:
        """Names what goes on."""
        return f"guard-averaged-{self.number}" if self.average else f"guard-{self.name}"


@dataclass(frozen=True, kw_only=True)
class ReproduceSettings:
    """What is made where; `help` of each field says what it does."""

    data: Path = setting(
        "directory that holds the sources' directories; each module of sources/ says where its files are published"
    )
    output: Path = setting("directory of all that is made; a stage that is there already is left as it is")
    stage: Literal["all", "tasks", "lessons", "sft", "further", "suites", "calibrate", "release"] = setting(
        "the one stage to run; the stages before it must be there", default="all"
    )
    suites: str = setting(
        "AgentDojo's suites that are learnt from last, separated by commas; 'none' for none", default="none"
    )
    further: bool = setting("whether training goes on, in rounds, with what the guard was weak at", default=True)
    settings: Path = setting("directory with the stages' settings", default=RECIPE)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.learnt if name not in SUITES]:
            raise ValueError(f"--suites must be some of {','.join(SUITES)}, or none, not {unknown[0]!r}")

    @property
    def learnt(self) -> list[str]:
        """The suites."""
        named = dict.fromkeys(name.strip() for name in self.suites.split(","))
        return [] if self.suites.strip() == "none" else list(named)

    def place(self, name: str) -> Path:
        """Where something goes that the suites have a part in: their names are at its end."""
        return self.output / "-".join([name, *["first"] * (not self.further), *sorted(self.learnt)])

    @property
    def guard(self) -> Path:
        """The last guard that is trained."""
        return self.place("guard-suites") if self.learnt else self.taught

    @property
    def taught(self) -> Path:
        """The guard that has learnt from all but the suites."""
        last = self.rounds[-1].guard if self.rounds else "guard"
        return self.output / last

    @property
    def rounds(self) -> list[Round]:
        """How training goes on."""
        stated = self.recipe.get("rounds", ()) if self.further else ()
        return [Round(number, **each) for number, each in enumerate(stated, 1)]

    @property
    def recipe(self) -> dict[str, Any]:
        """What `tasks.yaml` says."""
        return dict(yaml.safe_load((self.settings / "tasks.yaml").read_text(encoding="utf-8")))


def _tasks(settings: ReproduceSettings) -> int:
    from mosaic_guard_training.sources.__main__ import main
    from mosaic_guard_training.sources.mixture import Shares, mixture
    from mosaic_guard_training.tasks import write_tasks

    recipe = settings.recipe
    for side in SIDES:
        file = settings.output / f"{side}.jsonl"
        counted = ["--count", str(recipe[side]), "--seed", str(recipe["seed"])]
        counted += ["--join"] * (side in recipe.get("join", ()))
        if not file.exists() and (
            code := main(["mixture", "--data", str(settings.data), "--split", side, *counted, "--output", str(file)])
        ):
            return code
    for each in settings.rounds:
        file = settings.output / f"{each.name}.jsonl"
        if not file.exists():
            shares, join = Shares(**each.shares), "train" in recipe.get("join", ())
            write_tasks(file, mixture(settings.data, "train", each.count, shares, each.seed, join=join))
    file = settings.output / f"{BENIGN}.jsonl"
    if file.exists():
        return 0
    return main(["bfcl_conversations", "--data", str(settings.data), "--output", str(file)])


def _lessons(settings: ReproduceSettings) -> int:
    from mosaic_guard_training.lessons import main

    for side in (*SIDES, *(each.name for each in settings.rounds), BENIGN):
        where = [
            "--tasks",
            str(settings.output / f"{side}.jsonl"),
            "--output",
            str(settings.output / f"lessons-{side}"),
        ]
        # 1: some tasks could not be run, as it says; the others are there.
        if (code := main(["--recipe", str(settings.settings / "lessons.yaml"), *where])) > 1:
            return code
    return 0


def _sft(settings: ReproduceSettings) -> int:
    return _train(settings, "sft", settings.output / "lessons-train", settings.output / "guard")


def _further(settings: ReproduceSettings) -> int:
    from mosaic_guard_training.average import main

    mean = before = settings.output / "guard"
    for each in settings.rounds:
        lessons, after = settings.output / f"lessons-{each.name}", settings.output / f"guard-{each.name}"
        if code := _train(settings, FURTHER, lessons, after, before, tokens=each.tokens):
            return code
        before = settings.output / each.guard
        if not each.average:
            continue
        # What it learns so it pays for with some of what it knew: of the mean both are kept, mostly.
        if not before.exists() and (code := main(["--guards", f"{mean},{after}", "--output", str(before)])):
            return code
        mean = before
    return 0


def _train(
    settings: ReproduceSettings,
    recipe: str,
    traces: Path,
    output: Path,
    start: Path | None = None,
    *,
    tokens: int | None = None,
) -> int:
    """Train a guard on some lessons, unless it is there; a run that was cut off goes on."""
    from mosaic_guard.train import main

    guard = Output(output)
    if guard.manifest.exists():
        return 0
    where = ["--traces", str(traces), "--output", str(guard.root)]
    where += ["--adapter", str(start)] if start else []
    where += ["--max-tokens", str(tokens)] if tokens else []
    where += ["--resume"] if guard.checkpoints.is_dir() else []
    return main(["--recipe", str(settings.settings / f"{recipe}.yaml"), *where])


def _suites(settings: ReproduceSettings) -> int:
    from mosaic_guard_training.lessons import main as write_lessons

    guard = Output(settings.guard)
    if not settings.learnt or guard.manifest.exists():
        return 0
    parts = [settings.output / f"lessons-{suite}" for suite in settings.learnt]
    for suite, part in zip(settings.learnt, parts, strict=True):
        where = ["--tasks", f"agentdojo:{suite}", "--output", str(part)]
        if (code := write_lessons(["--recipe", str(settings.settings / "suite_lessons.yaml"), *where])) > 1:
            return code
    first = trace_files(settings.output / "lessons-train")
    again = random.Random(0).sample(first, min(AGAIN, len(first)))
    traces = settings.place("lessons-suites")
    if not guard.checkpoints.is_dir():
        shutil.rmtree(traces, ignore_errors=True)
    traces.mkdir(mode=0o700, exist_ok=True)
    for file in [*(file for part in parts for file in trace_files(part)), *again]:
        shutil.copy(file, traces / file.name)
    return _train(settings, "suites", traces, guard.root, settings.taught)


def _calibrate(settings: ReproduceSettings) -> int:
    from mosaic_guard_training.calibrate import CalibrationSettings, main, read_from

    lessons = {
        "traces": settings.output / "lessons-dev",
        "benign": settings.output / f"lessons-{BENIGN}",
        "learn": settings.output / "lessons-train",
    }
    recipe = settings.settings / "calibrate.yaml"
    if Output(settings.guard).manifest.exists():
        known = json.loads(Output(settings.guard).manifest.read_text(encoding="utf-8"))
        asked = CalibrationSettings(guard=settings.guard, **lessons, **read_recipe(CalibrationSettings, recipe))
        wanted = {"rate": asked.rate, **read_from(asked)}
        if all(known.get("calibration", {}).get(key) == value for key, value in wanted.items()) and _readable(known):
            return 0
    where = [part for key, path in lessons.items() for part in (f"--{key}", str(path))]
    return main(["--recipe", str(recipe), "--guard", str(settings.guard), *where])


def _readable(manifest: Mapping[str, Any]) -> bool:
    """Whether the evidence model in a manifest, if there is one, is of this version."""
    try:
        if text := manifest["guard_options"].get("evidence_model"):
            EvidenceModel.from_text(text)
    except ValueError:
        return False
    return True


def _release(settings: ReproduceSettings) -> int:
    from mosaic_guard_training.release import main

    return main(["--guard", str(settings.guard), "--output", str(settings.place("shipped"))])


STAGES: Mapping[str, Callable[[ReproduceSettings], int]] = {
    "tasks": _tasks,
    "lessons": _lessons,
    "sft": _sft,
    "further": _further,
    "suites": _suites,
    "calibrate": _calibrate,
    "release": _release,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code of the first stage that failed, or 0.
    """
    settings: Any = parse(
        ReproduceSettings,
        "python -m mosaic_guard_training.reproduce",
        "Make the guard that ships, stage by stage.",
        arguments,
    )
    try:
        settings.output.mkdir(parents=True, exist_ok=True)
        for name, stage in STAGES.items():
            if settings.stage in ("all", name):
                print(f"== {name}", flush=True)
                if code := stage(settings):
                    return code
    except (TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
