"""The ablations: each question a recipe of some arms, each arm trained from the same start with each seed, all on unseen tasks.

    python -m mosaic_guard_training.ablations --output runs/ablations
    python -m mosaic_guard_training.ablations --output runs/ablations --only pairwise,gate --seeds 0,1

A run is one arm with one seed. Arms of two ablations that say the same are one run. What is finished is not repeated, and what
was cut off goes on from its last checkpoint: the same command goes on. Of a finished run `results/RUN.json` stays, with its
loss curve, its manifest and what became of each held-out task; its adapter is removed unless `--keep-adapters` is given.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from mosaic_guard._errors import MissingExtraError, ModelLoadError
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.options import check_ranges, parse, setting
from mosaic_guard_training.outputs import read_losses, write_json

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

RECIPES = Path(__file__).parent / "recipes" / "ablations"
COMMON = "common"
NAMES = ("pairwise", "gate", "refusal", "method")
"""The ablations, each a file in `RECIPES`."""

MINUTES = 10.0
"""What an unmeasured run is taken to last, until one of its arm is done."""

OURS = ("form", "logged", "pairs")
"""Keys of an arm that are no settings of training."""


@dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """What is run; `help` of each field says what it does.

    Raises:
        ValueError: If an ablation is not known, or a seed is no number; the message names the option.
    """

    output: Path = setting("directory for the runs and their results")
    only: str = setting("which ablations, separated by commas", default=",".join(NAMES))
    seeds: str = setting("seeds, separated by commas", default="0,1,2")
    page: Path = setting("page whose generated part gets the tables", default=Path("docs/ablations.md"))
    base_model: str | None = setting("base model; default: the default guard's", default=None)
    max_steps: int | None = setting("for a trial: train no arm longer than this", default=None, low=1)
    tasks: int | None = setting(
        "for a trial: tasks of each kind that are logged and tried", default=None, low=1, high=15
    )
    keep_adapters: bool = setting("keep the trained adapters, 5 MB each", default=False)

    def __post_init__(self) -> None:
        check_ranges(self)
        if unknown := [name for name in self.names if name not in NAMES]:
            raise ValueError(f"--only must be some of {','.join(NAMES)}, not {','.join(unknown)!r}")
        if not self.numbers:
            raise ValueError("--seeds names no seed: write for example 0,1,2")

    @property
    def names(self) -> list[str]:
        """The ablations, in order."""
        return list(dict.fromkeys(name.strip() for name in self.only.split(",")))

    @property
    def numbers(self) -> list[int]:
        """The seeds, in order."""
        try:
            return list(dict.fromkeys(int(seed) for seed in self.seeds.split(",") if seed.strip()))
        except ValueError:
            raise ValueError(f"--seeds must be numbers separated by commas, not {self.seeds!r}") from None

    @property
    def trial(self) -> bool:
        """Whether something is smaller than the recipes say."""
        return not (self.max_steps is None and self.tasks is None and self.base_model is None)


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        arm: All that an arm says, the common settings included.
        seed: Of all that is drawn.
        trial: What makes it smaller than the recipe says, as JSON.
    """

    arm: Mapping[str, Any]
    seed: int
    trial: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Names the arm by what it says: equal for arms that say the same."""
        said = json.dumps([dict(self.arm), dict(self.trial)], sort_keys=True)
        return f"{self.arm['method']}-{self.arm['form']}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"

    @property
    def name(self) -> str:
        """Names the run."""
        return f"{self.kind}-seed{self.seed}"


@dataclass(frozen=True)
class Ablation:
    """A recipe.

    Attributes:
        name: Of its file.
        title: What is compared.
        question: What is asked.
        against: The arm that the others are compared with.
        arms: What each arm says, the common settings included.
    """

    name: str
    title: str
    question: str
    against: str
    arms: Mapping[str, Mapping[str, Any]]


def read_ablation(name: str) -> Ablation:
    """A recipe of `RECIPES`.

    Raises:
        TrainingError: If it says something that is not known; the message names the file.
    """
    import yaml

    from mosaic_guard_training.settings import TrainSettings

    record, common = (yaml.safe_load((RECIPES / f"{each}.yaml").read_text("utf-8")) for each in (name, COMMON))
    known = {field.name for field in dataclasses.fields(TrainSettings)} | set(OURS)
    arms = {arm: {**common, **said} for arm, said in record["arms"].items()}
    for arm, said in arms.items():
        if unknown := sorted(set(said) - known):
            raise TrainingError(f"recipes/ablations/{name}.yaml: {arm} says {unknown[0]!r}, which is no setting")
    return Ablation(name, record["title"], record["question"], record["against"], arms)


def warm_start(form: str, seed: int, settings: AblationSettings) -> Run:
    """The run that the others of a form and seed start from."""
    common = read_ablation(NAMES[0]).arms["pairwise"]
    kept = {key: common[key] for key in ("plan_tokens", "safety_tokens")}
    arm = {"method": "sft", "form": form, "check": "never", **kept, "epochs": 1, "batch_size": 4, "learning_rate": 3e-3}
    return Run(arm, seed, _trial(settings))


def runs_of(ablations: Sequence[Ablation], settings: AblationSettings) -> list[Run]:
    """All runs, without repetition: seed by seed, so that each ablation soon has an answer, each after its start."""
    found: dict[str, Run] = {}
    for seed in settings.numbers:
        arms = [said for ablation in ablations for said in ablation.arms.values()]
        for form in dict.fromkeys(said["form"] for said in arms):
            start = warm_start(form, seed, settings)
            found[start.name] = start
        for said in arms:
            run = Run(said, seed, _trial(settings))
            found[run.name] = run
    return list(found.values())


def _trial(settings: AblationSettings) -> dict[str, Any]:
    small = {"max_steps": settings.max_steps, "tasks": settings.tasks, "base_model": settings.base_model}
    return {key: value for key, value in small.items() if value is not None}


class Ablations:
    """Makes the runs that are missing, and writes the tables.

    Args:
        settings: What is run.
        console: Where progress goes.
    """

    def __init__(self, settings: AblationSettings, console: Console) -> None:
        self._settings, self._console = settings, console
        self.ablations = [read_ablation(name) for name in settings.names]
        self.runs = runs_of(self.ablations, settings)

    def go(self) -> None:
        """Make the runs, with the tables as they are known after each.

        Raises:
            TrainingError: If a run cannot be made.
            Interrupted: If Ctrl-C or SIGTERM stopped it.
        """
        with _alone(self._settings.output):
            self._go()

    def _go(self) -> None:
        from mosaic_guard_training.trainer import quiet_libraries

        for number, run in enumerate(self.runs, 1):
            if self.result(run) is None:
                left = sum(self._minutes_left(each) for each in self.runs)
                self._say(f"run {number} of {len(self.runs)}: {run.name}; about {_duration(left)} left in all")
                with quiet_libraries(), warnings.catch_warnings():
                    # Of an adapter that is saved for a model by its hub id, where there is no hub.
                    warnings.filterwarnings("ignore", message="Could not find a config file", category=UserWarning)
                    self._make(run)
                self.write()
        self.write()

    def result(self, run: Run) -> dict[str, Any] | None:
        """What came of a run; None if it is not finished."""
        file = self._file(run)
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None

    def write(self) -> None:
        """Write `summary.json`, and the tables into the page; into OUTPUT where there is no page."""
        from mosaic_guard_training.ablation_report import fill_page, summarise, tables

        ablations, runs = self._known()
        found = {run.name: result for run in runs if (result := self.result(run)) is not None}
        summary = summarise(ablations, runs, found)
        write_json(self._settings.output / "summary.json", summary)
        text = tables(ablations, summary)
        (self._settings.output / "tables.md").write_text(text, encoding="utf-8")
        # A trial's numbers say nothing that anybody should read.
        if self._settings.page.exists() and not self._settings.trial:
            fill_page(self._settings.page, text)

    def _known(self) -> tuple[list[Ablation], list[Run]]:
        """All ablations with all seeds that OUTPUT has results of: those of this command would leave out earlier ones."""
        results = (self._settings.output / "results").glob("*-seed*.json")
        seeds = sorted({*self._settings.numbers, *(int(file.stem.rpartition("-seed")[2]) for file in results)})
        whole = dataclasses.replace(self._settings, only=",".join(NAMES), seeds=",".join(map(str, seeds)))
        ablations = [read_ablation(name) for name in whole.names]
        return ablations, runs_of(ablations, whole)

    def _make(self, run: Run) -> None:
        from mosaic_guard_training.ablation_run import prepare, settings_of, try_out
        from mosaic_guard_training.run import train

        place = self._settings.output / "runs" / run.name
        place.mkdir(parents=True, exist_ok=True)
        start = None
        if run.arm["method"] != "sft":
            warm = warm_start(run.arm["form"], run.seed, self._settings)
            if not (self._guard(warm) / "adapter").exists():
                if self.result(warm) is not None:
                    raise TrainingError(
                        f"{str(self._guard(warm))!r} is gone, which other runs of this seed started from: put it back, or "
                        f"remove the results of seed {run.seed} and make them all again"
                    )
                self._make(warm)
            start = self._guard(warm)
        prepared = 0.0
        # One that was cut off while it was tried out is trained.
        if not (self._guard(run) / "manifest.json").exists():
            began = time.monotonic()
            data = prepare(run, place, start)
            prepared = time.monotonic() - began
            train(settings_of(run, place, start, data), self._console)
            gc.collect()  # trainers hold the model in cycles
        began = time.monotonic()
        tried = try_out(run, self._guard(run))
        manifest = json.loads((self._guard(run) / "manifest.json").read_text(encoding="utf-8"))
        result = {
            "run": run.name,
            "arm": dict(run.arm),
            "seed": run.seed,
            "trial": dict(run.trial),
            # A run that went on tells the time of its last preparation.
            "seconds": {
                "prepare": round(prepared, 1),
                "train": manifest["metrics"]["seconds"],
                "evaluate": round(time.monotonic() - began, 1),
            },
            "cores": os.cpu_count(),
            "rollouts": _rollouts(run, manifest),
            "tasks": tried,
            "manifest": manifest,
            "losses": read_losses(self._guard(run) / "loss.jsonl"),
        }
        self._file(run).parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file(run), result)
        self._clean(run, place)

    def _clean(self, run: Run, place: Path) -> None:
        """Leave a few kB; a start stays, with what was logged under it, for the other runs go on from it."""
        shutil.rmtree(self._guard(run) / "checkpoints", ignore_errors=True)
        (place / "preferences.jsonl").unlink(missing_ok=True)
        if run.arm["method"] != "sft" and not self._settings.keep_adapters:
            shutil.rmtree(place, ignore_errors=True)

    def _minutes_left(self, run: Run) -> float:
        if self.result(run) is not None:
            return 0.0
        alike = [r for each in self.runs if each.kind == run.kind and (r := self.result(each)) is not None]
        if alike:
            minutes = sum(sum(each["seconds"].values()) for each in alike) / len(alike) / 60
        else:
            minutes = MINUTES if run.arm["method"] != "sft" else MINUTES / 3
        steps = run.arm.get("max_steps")
        losses = read_losses(self._guard(run) / "loss.jsonl") if steps else []
        return minutes * (1 - len(losses) / steps) if steps else minutes

    def _guard(self, run: Run) -> Path:
        return self._settings.output / "runs" / run.name / "guard"

    def _file(self, run: Run) -> Path:
        return self._settings.output / "results" / f"{run.name}.json"

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keep a second command out of the directory: two that go on with one run would mix their checkpoints.

    Raises:
        TrainingError: If one is at work there.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(
                    f"another command is at work in {str(output)!r}: wait for it, or name another --output"
                ) from None
        yield


def _rollouts(run: Run, manifest: Mapping[str, Any]) -> int:
    """Roll-outs that a run learnt from."""
    if run.arm["method"] == "grpo":
        return int(manifest["metrics"]["steps"]) * int(run.arm["batch_size"])
    from mosaic_guard_training.ablation_run import some_of
    from mosaic_guard_training.graded import training_tasks

    return int(run.arm.get("logged", 0)) * len(some_of(run, training_tasks()))


def _duration(minutes: float) -> str:
    return f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.0f} minutes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 when all runs are done, 2 for an error that its user can mend, 130 when stopped.
    """
    settings = parse(
        AblationSettings,
        "python -m mosaic_guard_training.ablations",
        "Train the arms of the ablations, try each on unseen tasks, and write the tables. The same command goes on.",
        arguments,
    )
    # Before torch is loaded, as for training.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if find_spec("trl") is None:
        print(f"error: {MissingExtraError('training', 'train')}", file=sys.stderr)
        return 2
    from mosaic_guard_training.run import Interrupted

    console = Console(highlight=False)
    try:
        Ablations(settings, console).go()
    except (TrainingError, ModelLoadError, MissingExtraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Interrupted):
        print("stopped: the same command goes on", file=sys.stderr)
        return 130
    print(f"saved in {settings.output}: results/, summary.json, tables.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
