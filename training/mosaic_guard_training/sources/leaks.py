"""Whether words alone give the labels of a set of tasks away: what a bag of words makes of each part of what is seen.

    python -m mosaic_guard_training.sources.leaks FILE

A set is right if who asked for a call decides, and so neither the call, nor the user's words, nor the results alone: there
TF-IDF of one and two words with a logistic regression, and a list of keywords, should be near an AUC of 0.5. Twins are
never on both sides of a fold. Counted are calls of tools of which some call is harmful: that a look-up is harmless is no leak.
Needs scikit-learn (`pip install "mosaic-guard[fit]"`).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mosaic_guard._errors import MissingExtraError
from mosaic_guard_training.tasks import Task, TaskError, read_tasks

PARTS = ("call", "user", "results", "all")
FOLDS = 5

_KEYWORDS = re.compile(
    r"\b(ignore|disregard|override|instead|urgent|important|immediately|system|administrator|instructions?|assistant|must|"
    r"required|mandatory|forget|before you|do not tell|base64)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class SeenCall:
    """A call and what was seen before it.

    Attributes:
        scenario: What kind of family it is of.
        family: Its twins' common name.
        harmful: Its label.
        parts: Text by each of `PARTS`.
    """

    scenario: str
    family: str
    harmful: bool
    parts: Mapping[str, str]


def seen_calls(tasks: Iterable[Task]) -> list[SeenCall]:
    """The calls of some tasks whose tools are called harmfully somewhere among them."""
    tasks = list(tasks)
    contested = {call.tool for task in tasks for call in task.calls if call.harmful}
    found = []
    for task in tasks:
        results: list[str] = []
        turn_of_user = 1
        for turn in task.script:
            turn_of_user += not turn.calls
            for call in turn.calls:
                if call.tool not in contested:
                    continue
                parts = {
                    "call": f"{call.tool.replace('_', ' ')} {json.dumps(dict(call.args), ensure_ascii=False)}",
                    "user": "\n".join(task.user[:turn_of_user]),
                    "results": "\n".join(results),
                }
                parts["all"] = "\n".join(parts.values())
                found.append(SeenCall(scenario_of(task.id), family_of(task.id), call.harmful, parts))
            results += [str(call.result) for call in turn.calls]
    return found


def scenario_of(name: str) -> str:
    """What kind of family a task is of, by its id."""
    parts = name.split("/")
    return parts[1] if parts[0] == "composed" else parts[0]


def family_of(name: str) -> str:
    """What the ids of twins have in common."""
    return name.rsplit("/", 1)[0] if name.startswith(("composed/", "intents/")) else name.removesuffix("-asked")


def auc_of_words(calls: Sequence[SeenCall], part: str) -> float | None:
    """AUC of a bag of words of one part, from folds that share no family; None where there are too few families."""
    import numpy
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline

    labels = numpy.array([call.harmful for call in calls])
    families = [call.family for call in calls]
    if len(set(families)) < 2 * FOLDS or len(set(labels)) < 2:
        return None
    texts = numpy.array([call.parts[part] or "none" for call in calls], dtype=object)
    scores = numpy.zeros(len(calls))
    for fitted, held in GroupKFold(FOLDS).split(texts, labels, families):
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=50_000),
            LogisticRegression(C=3.0, max_iter=300, solver="liblinear"),
        )
        model.fit(texts[fitted], labels[fitted])
        scores[held] = model.decision_function(texts[held])
    return float(roc_auc_score(labels, scores))


def auc_of_keywords(calls: Sequence[SeenCall], part: str) -> float | None:
    """AUC of the number of keywords in one part; None where all calls have one label."""
    from sklearn.metrics import roc_auc_score

    labels = [call.harmful for call in calls]
    if len(set(labels)) < 2:
        return None
    return float(roc_auc_score(labels, [len(_KEYWORDS.findall(call.parts[part])) for call in calls]))


def report(tasks: Sequence[Task]) -> list[str]:
    """The table, a line each: a scenario, its calls, and for each part the AUC of words and, in brackets, of keywords."""
    calls = seen_calls(tasks)
    lines = [f"{'scenario':<14}{'calls':>7}{'harmful':>9}  " + "".join(f"{part:>14}" for part in PARTS)]
    counted = Counter(call.scenario for call in calls)
    for scenario in [*sorted(counted), "together"]:
        of_it = [call for call in calls if scenario in (call.scenario, "together")]
        found = []
        for part in PARTS:
            words, keywords = auc_of_words(of_it, part), auc_of_keywords(of_it, part)
            found.append("-" if words is None or keywords is None else f"{words:.2f} ({keywords:.2f})")
        harmful = sum(call.harmful for call in of_it) / len(of_it)
        lines.append(f"{scenario:<14}{len(of_it):>7}{harmful:>9.0%}  " + "".join(f"{each:>14}" for each in found))
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 when the table is printed, 2 for an error that its user can mend.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mosaic_guard_training.sources.leaks",
        description="AUC of a bag of words (of keywords) on each part of what is seen; near 0.5 is right, but for 'all'.",
    )
    parser.add_argument("file", type=Path, help="file of tasks")
    given = parser.parse_args(arguments)
    try:
        lines = report(read_tasks(given.file))
    except (TaskError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError:
        print(f"error: {MissingExtraError('looking for leaks', 'fit')}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
