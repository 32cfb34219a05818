"""Our own harmful and harmless requests: whole families, on the sides that the splits say, for tools of no benchmark."""

from __future__ import annotations

import pytest
from test_sources import TABLE

from mosaic_guard_training.sources import intents
from mosaic_guard_training.sources.leaks import family_of
from mosaic_guard_training.sources.splits import split_of_task
from mosaic_guard_training.tasks import Task


def families() -> list[list[Task]]:
    return [intents.family(theme, number) for theme in intents.themes() for number in (0, 1, 7)]


def test_each_theme_has_requests_of_both_kinds_and_no_two_are_alike() -> None:
    themes = intents.themes()
    assert (
        {theme.category for theme in themes} == set(intents.SIDES) == set(TABLE["sources"]["intents"]["environments"])
    )
    asks = [wish.ask for theme in themes for wish in (*theme.harmful, *theme.harmless)]
    assert len(asks) == len(set(asks)) > 1000
    for theme in themes:
        assert len(theme.harmful) == len(theme.harmless) == 5, theme.name


def test_a_family_is_a_harmful_request_and_a_harmless_one_for_the_same_tools() -> None:
    for family in families():
        harmful, harmless = family[:2]
        assert harmful.tools == harmless.tools
        assert harmful.user != harmless.user
        assert all(call.harmful for call in harmful.calls)
        assert all(call.required for call in harmless.calls)
        assert {each.category for each in (harmful, *family[2:])} == {"harmful_request"}
        assert harmless.category == "benign"
        assert len({family_of(each.id) for each in family}) == 1
        side = TABLE["sources"]["intents"]["environments"][harmful.environment.removeprefix("intents/")]
        assert {split_of_task(each) for each in family} == {side}
        values = [str(value) for each in family for call in each.calls for value in call.args.values()]
        assert not any("{" in text for each in family for text in (*each.user, *values))


def test_where_both_are_asked_for_each_call_is_judged_by_what_it_is_for() -> None:
    both = [family[2] for family in families() if len(family) > 2]
    assert both
    assert all({call.harmful for call in each.calls} == {True, False} for each in both)


def test_families_are_the_same_each_time_and_differ_by_number() -> None:
    theme = intents.themes()[0]
    assert intents.family(theme, 3) == intents.family(theme, 3)
    assert intents.family(theme, 3) != intents.family(theme, 8)


def test_no_tool_has_a_name_of_agentdojo() -> None:
    agentdojo = pytest.importorskip("agentdojo.task_suite.load_suites")
    theirs = {tool.name for suite in agentdojo.get_suites("v1.1.2").values() for tool in suite.tools}
    ours = {name for kind in intents.KINDS.values() for name in kind.names.split()}
    assert not ours & theirs
