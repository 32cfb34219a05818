"""The bench of the wiring: every variant runs every call; what is measured is not asserted."""

from __future__ import annotations

import importlib.util

import pytest
from rich.console import Console

from mosaic_guard_training.evaluation.bench_graph import Setting, bench_graph, every_setting
from mosaic_guard_training.evaluation.bench_graph_table import table

pytestmark = pytest.mark.slow

NEMO = importlib.util.find_spec("nemoguardrails") is not None


SETTINGS = [Setting("create_agent", 3, "SQLite"), Setting("StateGraph", 1, "memory")]


def test_by_default_everything_is_measured_on_everything() -> None:
    assert len(set(every_setting())) == 8
    assert set(SETTINGS) < set(every_setting())


def test_every_variant_is_measured_at_every_step_and_has_its_row() -> None:
    results = bench_graph(1, steps=3, settings=SETTINGS)
    console = Console(width=140, record=True)
    console.print(table(results, 1, 3))
    shown = console.export_text()
    for setting, variants in results.items():
        assert {"unguarded", "mosaic-guard"} <= set(variants)
        for name, measured in variants.items():
            assert name in shown
            if name == "GuardrailsMiddleware" and not NEMO:
                assert "pip install nemoguardrails" in measured.missing
                continue
            assert [len(thread) for thread in measured.seconds] == [3]
            assert bool(measured.kib) == (setting.store == "SQLite")


@pytest.mark.parametrize(("repeats", "steps"), [(0, 3), (1, 1)])
def test_nothing_to_measure_is_an_error(repeats: int, steps: int) -> None:
    with pytest.raises(ValueError, match="at least 1 repeat and 2 steps"):
        bench_graph(repeats, steps=steps)
