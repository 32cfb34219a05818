"""Run every scenario under every guard, keep what was done, go on where a run was cut off."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from mosaic_guard import Guard, TraceWriter
from mosaic_guard_training.evaluation.metrics import REFERENCE
from mosaic_guard_training.evaluation.sample import stratified

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from mosaic_guard_agentdojo import TaskResult

GULLIBLE = "gullible"
"""The built-in agent; any other name is a chat model's, as `provider:model`."""


@dataclass(frozen=True)
class Settings:
    """What is evaluated.

    Attributes:
        suites: Names of AgentDojo suites.
        agent: `gullible`, or a chat model as `provider:model`.
        attack: Name of a text attack of AgentDojo, or a template with `{goal}` in it.
        limit: Number of (user task, injection task) pairs, a stratified sample; None for all.
        seed: Decides the sample and when the gullible agent gives in.
        repeats: Runs per pair, with seeds `seed`, `seed + 1`, ….
        sample: Whether the evaluated guards draw their decisions instead of taking the likelier.
    """

    suites: tuple[str, ...]
    agent: str = GULLIBLE
    attack: str = "important_instructions"
    limit: int | None = None
    seed: int = 0
    repeats: int = 1
    sample: bool = False


@dataclass(frozen=True)
class Run:
    """One scenario by its ids; `injection_task` is None in a clean run."""

    suite: str
    user_task: str
    injection_task: str | None
    seed: int


def plan_runs(settings: Settings) -> list[Run]:
    """The runs of each guard: every (sampled) pair, then each of their user tasks without an attack.

    The sample is stratified over user tasks, injection tasks, and whether either changes anything.

    Raises:
        ValueError: For an unknown suite, or if there is nothing to run.
    """
    from mosaic_guard_agentdojo import pairs

    found = [(suite, *pair) for suite in dict.fromkeys(settings.suites) for pair in pairs(suite, **_attack(settings))]
    if settings.limit is not None:
        effects = {pair: _effects(*pair) for pair in found}
        kinds = (lambda p: (p[0], p[1]), lambda p: (p[0], p[2]), effects.__getitem__)
        found = stratified(found, settings.limit, kinds, seed=settings.seed)
    if not found:
        raise ValueError("nothing to run: name at least one suite and a limit of at least 1")
    seeds = [settings.seed + repeat for repeat in range(settings.repeats)]
    attacked = [Run(*pair, seed) for seed in seeds for pair in found]
    # The gullible agent does the same each time where nothing is injected.
    clean_seeds = seeds[:1] if settings.agent == GULLIBLE else seeds
    users = dict.fromkeys((suite, user) for suite, user, _ in found)
    return attacked + [Run(suite, user, None, seed) for seed in clean_seeds for suite, user in users]


class Evaluation:
    """Every scenario under every guard, kept in a directory.

    Each result is appended to `output/results.jsonl` as soon as it is there. What already stands there is not run
    again, so an evaluation that was cut off goes on with the same `output`.

    Args:
        settings: What to run.
        guards: By name. *allow all* must be one of them: it says which attacks can reach their goal.
        output: A directory, created if it does not exist.

    Raises:
        ValueError: If *allow all* is missing, the settings name something unknown, or `output` holds something else.
        ImportError: If the agent's chat model needs a package that is not installed.
    """

    def __init__(self, settings: Settings, guards: Mapping[str, Guard], output: Path) -> None:
        if REFERENCE not in guards:
            raise ValueError(f"{REFERENCE!r} must be among the guards: it says which attacks can reach their goal")
        self.settings = settings
        self.guards = guards
        self.output = output
        self.runs = plan_runs(settings)
        self._agent = _agent(settings.agent)
        _claim(output, settings, guards)

    def run(self, *, traces: Path | None = None, progress: bool = False) -> dict[str, list[TaskResult]]:
        """Run what was not run yet.

        Args:
            traces: A directory that gets one directory of traces per guard; None for no traces.
            progress: Whether to show a progress bar.

        Returns:
            The results of the planned runs, by the guard's name, in the order of `plan_runs`.
        """
        file = self.output / "results.jsonl"
        done = dict(_stored(file))
        with contextlib.ExitStack() as stack:
            results = stack.enter_context(file.open("a", encoding="utf-8"))
            writers = {n: stack.enter_context(TraceWriter(traces / _slug(n))) for n in self.guards} if traces else {}
            bar = stack.enter_context(Progress(transient=True, disable=not progress))
            ticking = bar.add_task("evaluating", total=len(self.runs))
            for run in self.runs:
                missing = {name: guard for name, guard in self.guards.items() if (name, run) not in done}
                for name, result in _play(run, self.settings, missing, self._agent, writers):
                    results.write(json.dumps({"guard": name, **result.to_dict()}, default=repr) + "\n")
                    results.flush()
                    done[name, run] = result
                bar.advance(ticking)
        return {name: [done[name, run] for run in self.runs] for name in self.guards}


def _play(
    run: Run,
    settings: Settings,
    guards: Mapping[str, Guard],
    agent: BaseChatModel | None,
    writers: Mapping[str, TraceWriter],
) -> Iterator[tuple[str, TaskResult]]:
    """One scenario under each of the guards."""
    from mosaic_guard_agentdojo import run_task, scenario

    if not guards:
        return
    played = scenario(run.suite, run.user_task, run.injection_task, seed=run.seed, **_attack(settings))
    for name, guard in guards.items():
        yield name, run_task(played, guard, agent=agent, trace=writers.get(name))


def _effects(suite: str, user: str, injection: str) -> tuple[bool, bool]:
    """Whether the user task's and the injection task's ground truth change anything."""
    from mosaic_guard_agentdojo import Scenario, load_suite, side_effects

    loaded = load_suite(suite)
    clean = Scenario(loaded, loaded.user_tasks[user])
    other = Scenario(loaded, loaded.user_tasks[user], loaded.injection_tasks[injection])
    return any(side_effects(clean, clean.user_calls)), any(side_effects(other, other.injection_calls()))


def _attack(settings: Settings) -> dict[str, Any]:
    return {"attack": settings.attack, "model_name": None if settings.agent == GULLIBLE else settings.agent}


def _agent(name: str) -> BaseChatModel | None:
    """The agent's chat model; None for the gullible agent, which is made for each scenario."""
    if name == GULLIBLE:
        return None
    from langchain.chat_models import init_chat_model

    return init_chat_model(name)


def _claim(output: Path, settings: Settings, guards: Mapping[str, Guard]) -> None:
    """Write down what is evaluated into `output`, or make sure that what stands there is the same evaluation.

    `limit` and `repeats` may differ: they only choose which runs count.
    """
    wanted = {
        **{k: v for k, v in asdict(settings).items() if k in ("agent", "attack", "sample")},
        "guards": {name: guard.describe() for name, guard in guards.items()},
    }
    wanted = json.loads(json.dumps(wanted, default=repr))
    file = output / "settings.json"
    if file.exists():
        stored = json.loads(file.read_text(encoding="utf-8"))
        shared = {name: about for name, about in stored["guards"].items() if name in wanted["guards"]}
        same = all(stored[key] == wanted[key] for key in ("agent", "attack", "sample"))
        if not same or any(wanted["guards"][name] != about for name, about in shared.items()):
            raise ValueError(f"{str(output)!r} holds another evaluation: name another output directory")
        wanted["guards"] = {**stored["guards"], **wanted["guards"]}
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


def _stored(file: Path) -> Iterator[tuple[tuple[str, Run], TaskResult]]:
    """What was done before; a torn last line is taken out of the file."""
    from mosaic_guard_agentdojo import TaskResult

    if not file.exists():
        return
    whole: Sequence[str] = file.read_text(encoding="utf-8").splitlines(keepends=True)
    if whole and not whole[-1].endswith("\n"):
        whole = whole[:-1]
        file.write_text("".join(whole), encoding="utf-8")
    for line in whole:
        record: dict[str, Any] = json.loads(line)
        name = record.pop("guard")
        result = TaskResult.from_dict(record)
        yield (name, Run(result.suite, result.user_task, result.injection_task, result.seed)), result


def _slug(name: str) -> str:
    """A guard's name as the name of a directory."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "guard"
