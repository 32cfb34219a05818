"""The bench of the wiring: every variant runs every call; what is measured is not asserted."""

from __future__ import annotations

import importlib.util

import pytest
from rich.console import Console

from mosaic_guard_training.evaluation.bench_graph import Setting, bench_graph, every_setting
from mosaic_guard_training.evaluation.bench_graph_table import table

NEMO = importlib.util.find_spec("nemoguardrails") is not None


SETTINGS = [Setting("create_agent", 3, "SQLite"), Setting("StateGraph", 1, "memory")]


def test_by_default_everything_is_measured_on_everything() -> None:
    assert len(set(every_setting())) == 8
    assert set(SETTINGS) < set(every_setting())


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.agent)
def test_every_variant_is_measured_at_every_step(setting: Setting) -> None:
    found = bench_graph(1, steps=3, settings=[setting])[setting]
    assert {"unguarded", "mosaic-guard"} <= set(found)
    for name, measured in found.items():
        if name == "GuardrailsMiddleware" and not NEMO:
            assert "pip install nemoguardrails" in measured.missing
            continue
        assert [len(thread) for thread in measured.seconds] == [3]
        assert bool(measured.kib) == (setting.store == "SQLite")


def test_the_table_has_a_row_for_each_variant() -> None:
    setting = Setting("create_agent", 1, "memory")
    console = Console(width=140, record=True)
    console.print(table(bench_graph(1, steps=2, settings=[setting]), 1, 2))
    said = console.export_text()
    for name in ("unguarded", "mosaic-guard", "HumanInTheLoopMiddleware", "GuardrailsMiddleware"):
        assert name in said


@pytest.mark.parametrize(("repeats", "steps"), [(0, 3), (1, 1)])
def test_nothing_to_measure_is_an_error(repeats: int, steps: int) -> None:
    with pytest.raises(ValueError, match="at least 1 repeat and 2 steps"):
        bench_graph(repeats, steps=steps)
