"""The page of a comparison: the verdict, the rates, the training curves, and the trajectories that changed.

One file without scripts or anything loaded from elsewhere. All text from traces is escaped.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.messages import messages_from_dict

from mosaic_guard._evidence import message_text
from mosaic_guard_training.outputs import read_losses

if TYPE_CHECKING:
    from mosaic_guard._trace import Trajectory
    from mosaic_guard_training.paired import Difference
    from mosaic_guard_training.promote import Compared, Verdict

MOST_CHANGED = 50
"""Trajectories that are shown; the others are counted."""

NOTE = (
    "New minus old, with its paired 95 % bootstrap interval. Where nothing changed in n cases the interval is a point, and a "
    "true difference of up to 3/n would not be surprising."
)

CURVES = {
    "loss": "loss",
    "outcome": "mean outcome of the roll-outs",
    "token_accuracy": "tokens guessed right",
    "reward_accuracy": "pairs ranked right",
    "reward_margin": "reward margin",
}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2330; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .7rem .3rem 0; vertical-align: top }
th { font-weight: 600; border-bottom: 2px solid #c9d0da } td { border-bottom: 1px solid #e4e8ee }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.yes { color: #0b6b3a } .no { color: #a3271f } .quiet { color: #667085 }
code { font-size: .87em; overflow-wrap: anywhere } svg { margin-right: 1.5rem } .wide { overflow-x: auto }
details { border-bottom: 1px solid #e4e8ee; padding: .3rem 0 } summary { cursor: pointer; overflow-wrap: anywhere }
"""


def write_report(file: Path, verdict: Verdict, old: Compared, new: Compared, guard: Path, about: str = "") -> None:
    """Write the page.

    Args:
        file: Where; replaced whole.
        verdict: What came of the comparison.
        old: What the old guard did.
        new: What the new guard did.
        guard: Directory of the new guard, for its curves.
        about: What was compared on what, in a sentence or two.
    """
    from mosaic_guard_training.promote import DIRECTIONS

    answer = "promoted" if verdict.promoted else "not promoted"
    parts = [
        f'<h1>The new guard is <span class="{"yes" if verdict.promoted else "no"}">{answer}</span></h1>',
        *(f"<p>{html.escape(reason.replace('->', '→'))}</p>" for reason in verdict.reasons),
        f'<p class="quiet">{html.escape(about)}</p>' if about else "",
        "<h2>Both error directions</h2>",
        _table([(DIRECTIONS[way][0], found) for way, found in verdict.differences.items()]),
        f'<p class="quiet">{NOTE}</p>',
    ]
    if len(verdict.environments) > 1:
        parts += _families(verdict.environments)
    if (losses := guard / "loss.jsonl").is_file():
        parts += ["<h2>Training</h2>", *_curves(read_losses(losses))]
    parts += _changed(old, new)
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Guard: {answer}</title><style>{STYLE}</style>"
    )
    part = file.with_name(file.name + ".part")
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'
    part.write_text(page, encoding="utf-8")
    part.replace(file)


def _families(environments: Mapping[str, Mapping[str, Difference]]) -> Iterator[str]:
    """A line for each family in which something changed: too few cases for intervals of their own."""
    from mosaic_guard_training.promote import DIRECTIONS

    changed = {name: ways for name, ways in environments.items() if any(found.changed for found in ways.values())}
    yield f"<h2>Families of tasks that changed: {len(changed)} of {len(environments)}</h2>"
    if not changed:
        return
    lines = []
    for name, ways in changed.items():
        cells = "".join(
            f"<td class=n>{_percent(found.old)} → {_percent(found.new)}</td><td class=n>{found.cases}</td>"
            for found in (ways[way] for way in DIRECTIONS)
        )
        lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    heads = "".join(f"<th class=n>{name}</th><th class=n>cases</th>" for name, _, _ in DIRECTIONS.values())
    yield f'<div class="wide"><table><tr><th></th>{heads}</tr>{"".join(lines)}</table></div>'


def _table(rows: Sequence[tuple[str, Difference]]) -> str:
    head = "".join(
        f"<th{' class=n' if at else ''}>{name}</th>"
        for at, name in enumerate(("", "old", "new", "difference", "interval", "cases", "runs that differ"))
    )
    lines = []
    for name, found in rows:
        interval = "" if found.low is None or found.high is None else f"{found.low:+.1%} to {found.high:+.1%}"
        cells = (
            _percent(found.old),
            _percent(found.new),
            _percent(found.value, "+"),
            interval,
            found.cases,
            found.changed,
        )
        numbers = "".join(f"<td class=n>{cell}</td>" for cell in cells)
        lines.append(f"<tr><td>{html.escape(name)}</td>{numbers}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _percent(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.1%}"


def _curves(losses: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A small picture of each curve, and its values in words."""
    # GRPO's loss is zero but for rounding at each step: what it says is in its gradient.
    rolled = any("outcome" in line for line in losses)
    for key, name in CURVES.items():
        if rolled and key == "loss":
            continue
        points = [(float(line["step"]), float(line[key])) for line in losses if isinstance(line.get(key), (int, float))]
        if len(points) < 2:
            continue
        steps, values = [x for x, _ in points], [y for _, y in points]
        low, high = min(values), max(values)
        wide, tall = max(steps[-1] - steps[0], 1e-9), max(high - low, 1e-9)
        line = " ".join(f"{(x - steps[0]) / wide * 260:.1f},{92 - (y - low) / tall * 84:.1f}" for x, y in points)
        yield (
            f'<svg width="270" height="128" role="img" aria-label="{html.escape(name)}">'
            f'<polyline points="{line}" fill="none" stroke="#2f5fd0" stroke-width="1.5"/>'
            f'<text x="0" y="122" font-size="12" fill="#667085">{html.escape(name)}: {values[0]:.3g} to {values[-1]:.3g}, '
            f"steps {steps[0]:.0f}–{steps[-1]:.0f}</text></svg>"
        )


@dataclass(frozen=True)
class _Change:
    """What is said of a call that the two guards decided otherwise, and whether the new one is right; None for a note."""

    said: str
    right: bool | None


def _changed(old: Compared, new: Compared) -> Iterator[str]:
    """The trajectories that changed, first those in which the new guard is wrong where the old one was right."""
    both = sorted(old.trajectories.keys() & new.trajectories.keys())
    found = [(key, calls) for key in both if (calls := list(_calls(old.trajectories[key], new.trajectories[key])))]
    found.sort(key=lambda each: all(call.right is not False for call in each[1]))
    yield f"<h2>Trajectories that changed: {len(found)} of {len(both)}</h2>"
    for key, calls in found[:MOST_CHANGED]:
        marks = [call.right for call in calls]
        counts = ((marks.count(False), "no", "wrong"), (marks.count(True), "yes", "right"))
        words = ", ".join(f'<span class="{css}">{number} now {word}</span>' for number, css, word in counts if number)
        asked = "".join(f"<p>user: {html.escape(text[:300])}</p>" for text in _requests(new.trajectories[key]))
        rows = "".join(call.said for call in calls)
        yield f"<details><summary>{html.escape(key)} {words}</summary>{asked}{rows}</details>"
    if len(found) > MOST_CHANGED:
        yield f'<p class="quiet">{len(found) - MOST_CHANGED} more are in the traces.</p>'


def _requests(trajectory: Trajectory) -> list[str]:
    """What people said before the first step."""
    first = messages_from_dict([dict(m) for m in trajectory.steps[0].messages]) if trajectory.steps else []
    return [message_text(message) for message in first if message.type == "human"]


def _calls(old: Trajectory, new: Trajectory) -> Iterator[_Change]:
    """The calls that the two guards decided otherwise, as long as they were proposed the same calls."""
    labelled = {tuple(pair) for pair in (new.outcome.harmful_calls if new.outcome is not None else ())}
    for before, after in zip(old.steps, new.steps, strict=False):
        if [call["digest"] for call in before.calls] != [call["digest"] for call in after.calls]:
            yield _Change('<p class="quiet">From here on the agent did something else.</p>', None)
            return
        for was, now in zip(before.decisions, after.decisions, strict=True):
            if was.verdict == now.verdict:
                continue
            call = after.calls[now.call]
            kind = "harmful" if (after.step, now.call) in labelled else "legitimate"
            right = (now.verdict == "act") == (kind == "legitimate")
            written = html.escape(
                _clipped(f"{call['name']} {json.dumps(call['args'], ensure_ascii=False, default=repr)}")
            )
            yield _Change(
                f'<p>step {after.step + 1}, {kind}: <code>{written}</code><br><span class="{"yes" if right else "no"}">'
                f"{_said(was)} → {_said(now)}</span><br>"
                f'<span class="quiet">old plan: {html.escape(_clipped(before.think))}<br>'
                f"new plan: {html.escape(_clipped(after.think))}</span></p>",
                right,
            )


def _clipped(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[:limit] + " …"


def _said(decision: Any) -> str:
    p = "" if decision.p_refuse is None else f" (P(refuse) {decision.p_refuse:.3f})"
    return html.escape(f"{decision.verdict}{p}")
