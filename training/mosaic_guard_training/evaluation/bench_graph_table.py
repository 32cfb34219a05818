"""The table of `bench-graph`."""

from __future__ import annotations

from rich.table import Table

from mosaic_guard_training.evaluation.bench_graph import EDGE, Results, versions


def table(results: Results, repeats: int, steps: int) -> Table:
    """One row per variant and setting: time per step, its ratio to the unguarded agent's, growth, size on disk.

    Args:
        results: What `bench_graph` returned.
        repeats: How many threads each row is a median of.
        steps: Steps per thread.
    """
    drawn = Table(title=f"Wiring only, {steps} steps a thread, medians of {repeats} threads", title_justify="left")
    drawn.add_column("", no_wrap=True)
    for header in ("ms / step", "× unguarded", f"last {EDGE} / first {EDGE}", "KiB / step"):
        drawn.add_column(header, justify="right")
    missing = {}
    for setting, variants in results.items():
        plain = variants["unguarded"]
        calls = "1 call" if setting.calls == 1 else f"{setting.calls} calls"
        drawn.add_row(f"[bold]{setting.agent}, {calls}, {setting.store}[/]")
        for name, found in variants.items():
            if found.missing:
                missing[name] = found.missing
                drawn.add_row(name, "not installed")
                continue
            size = f"{sorted(found.kib)[len(found.kib) // 2]:.1f}" if found.kib else ""
            drawn.add_row(name, f"{found.median * 1000:.2f}", f"{found.ratio(plain):.2f}", f"{found.growth:.2f}", size)
        drawn.add_section()
    notes = [versions(), *(f"{name}: {why}" for name, why in missing.items())]
    drawn.caption, drawn.caption_justify = "\n".join(notes), "left"
    return drawn
