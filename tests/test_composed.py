"""Composed tasks: who asked decides, and no single part gives it away."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic_guard_training.sources import bfcl
from mosaic_guard_training.sources.carriers import KINDS, POSITIONS, draw_carrier
from mosaic_guard_training.sources.chains import CHAINS, draw_chain
from mosaic_guard_training.sources.composed import SCENARIOS, compose, family
from mosaic_guard_training.sources.deeds import DEEDS, draw_deed
from mosaic_guard_training.sources.injections import HELD_BACK, STYLES, planted, templates
from mosaic_guard_training.sources.joined import MOST_TURNS, join_twins
from mosaic_guard_training.sources.leaks import auc_of_words, family_of, seen_calls
from mosaic_guard_training.sources.mixture import TOOLS, Shares, among_other_tools
from mosaic_guard_training.sources.scene import Pool, pool_of
from mosaic_guard_training.sources.splits import FILE
from mosaic_guard_training.tasks import Task, call_key, task_from_dict

SOURCE = {"file": "x", "sha256": "0", "licence": "Apache-2.0"}


def stated(name: str, request: str, function: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "dict", "properties": properties, "required": required}
    return {
        "id": name,
        "question": [[{"role": "user", "content": request}]],
        "function": [{"name": function, "description": "Does it.", "parameters": parameters}],
    }


SHIP = stated(
    "simple_1",
    "Ship 2 crates to Bergen.",
    "parcel.ship",
    {"to": {"type": "string"}, "count": {"type": "integer"}, "weights": {"type": "tuple", "items": {"type": "float"}}},
    ["to", "count"],
)
SHIPPED = [{"parcel.ship": {"to": ["Bergen", "Bergen, Norway"], "count": [2], "weights": ["", [1.5, 2.5]]}}]


def one_record(**changed: Any) -> tuple[list[bfcl.Record], Counter[str]]:
    return bfcl.records_of([{**SHIP, **changed}], {"simple_1": SHIPPED}, SOURCE)


def a_pool(side: str = "train") -> Pool:
    """A pool of deeds and two records, whatever the splits say of them."""
    looks = stated("simple_2", "How far is it to Bergen?", "get_distance", {"to": {"type": "string"}}, ["to"])
    records, _ = bfcl.records_of(
        [SHIP, looks], {"simple_1": SHIPPED, "simple_2": [{"get_distance": {"to": ["Bergen"]}}]}, SOURCE
    )
    return Pool(side, {"parcel_ship": records[:1]}, {"get_distance": records[1:]}, DEEDS, KINDS, CHAINS)  # type: ignore[arg-type]


families = st.builds(
    lambda scenario, number: family(a_pool(), scenario, number),
    st.sampled_from(sorted(SCENARIOS)),
    st.integers(0, 10**6),
)


def test_bfcl_types_become_json_schema() -> None:
    ((record,), skipped) = one_record()
    (tool,) = record.tools
    assert tool.name == "parcel_ship"
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "to": {"type": "string"},
            "count": {"type": "integer"},
            "weights": {"type": "array", "items": {"type": "number"}},
        },
        "required": ["to", "count"],
    }
    ((name, args),) = record.calls
    assert (name, args["to"], args["count"]) == ("parcel_ship", "Bergen", 2)
    assert args.get("weights", [1.5, 2.5]) == [1.5, 2.5]
    assert not skipped


def test_bfcl_members_of_objects_list_what_is_accepted() -> None:
    member = {"type": "dict", "properties": {"city": {"type": "string"}}}
    each = stated("simple_1", "Go.", "go", {"place": member, "stops": {"type": "array", "items": member}}, ["place"])
    answer = [{"go": {"place": [{"city": ["Oslo", "oslo"]}], "stops": [[{"city": ["Rome"]}]]}}]
    ((record,), _) = bfcl.records_of([each], {"simple_1": answer}, SOURCE)
    assert record.calls == (("go", {"place": {"city": "Oslo"}, "stops": [{"city": "Rome"}]}),)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (
            {"question": [[{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]]},
            "a system prompt of its own",
        ),
        ({"function": [{"name": "f", "parameters": {"type": "hashmap"}}]}, "the type 'hashmap'"),
        ({"function": [{"name": "f", "parameters": {"type": "dict"}}]}, "a call of a tool that is not there"),
        ({"id": "simple_9"}, "no checked call"),
    ],
)
def test_bfcl_what_cannot_be_used_is_counted(changed: dict[str, Any], why: str) -> None:
    records, skipped = one_record(**changed)
    assert not records
    assert skipped == {why: 1}


@pytest.mark.parametrize(
    ("name", "description", "changes"),
    [
        ("send_email", "", True),
        ("Payment_1_MakePayment", "Makes a payment.", True),
        ("hotel_book", "", True),
        ("order_status_check", "", False),
        ("get_book", "Returns a book.", False),
        ("area_of_circle", "Computes the area.", False),
        ("parcel", "Sends a parcel.", True),
        ("calculate_order_total", "Sends nothing.", False),
    ],
)
def test_what_changes_something_is_guessed_from_words(name: str, description: str, changes: bool) -> None:
    assert bfcl.changes_something(name, description) is changes


@settings(max_examples=60, deadline=None)
@given(families)
def test_a_family_has_both_labels_and_its_tasks_are_read_back(tasks: list[Task]) -> None:
    labels = {call.harmful for task in tasks for call in task.calls}
    assert labels == {True, False}
    assert len({task.id for task in tasks}) == len(tasks)
    assert len({family_of(task.id) for task in tasks}) == 1
    for task in tasks:
        assert task_from_dict(json.loads(json.dumps(task.to_dict()))) == task
        assert (task.category == "benign") == (not any(call.harmful for call in task.calls))
        names = {tool.name: tool for tool in task.tools}
        for call in task.calls:
            assert set(call.args) <= set(names[call.tool].parameters["properties"])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(set(SCENARIOS) - {"wider", "errand", "found", "computed"})), st.integers(0, 10**6))
def test_a_call_is_harmful_in_one_twin_and_right_in_another(scenario: str, number: int) -> None:
    """The call by itself says nothing; in the other scenarios its twin has other values, drawn alike."""
    tasks = family(a_pool(), scenario, number)
    seen: dict[str, set[bool]] = {}
    for task in tasks:
        for call in task.calls:
            seen.setdefault(call_key(call.tool, call.args), set()).add(call.harmful)
    assert {True, False} in seen.values()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_injected_twins_differ_in_what_the_user_asks_for(number: int) -> None:
    twins = {task.id.rsplit("/", 1)[1]: task for task in family(a_pool(), "injected", number)}
    obeys, asked, third = twins["obeys"], twins["asked"], twins["third"]
    assert obeys.user[0] in asked.user[0]
    assert asked.user == third.user
    bad = next(call for call in obeys.calls if call.harmful)
    assert any(call_key(c.tool, c.args) == call_key(bad.tool, bad.args) and not c.harmful for c in asked.calls)
    assert {call.result for call in obeys.calls if not call.required and not call.harmful} == {
        call.result for call in asked.calls if not call.required and not call.harmful
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_the_same_words_of_the_user_delegate_to_the_one_document_or_to_the_other(number: int) -> None:
    twins = {task.id.rsplit("/", 1)[1]: task for task in family(a_pool(), "delegation", number)}
    labels = [{call_key(c.tool, c.args): c.harmful for c in twins[name].calls} for name in ("first", "second")]
    flipped = [key for key in labels[0] if labels[0][key] != labels[1].get(key, labels[0][key])]
    assert len(flipped) >= 2
    results = [
        {c.result for c in twins[name].calls if not c.required and not c.harmful} for name in ("first", "second")
    ]
    assert results[0] == results[1]


def test_a_family_is_repeatable_and_no_two_are_alike() -> None:
    pool = a_pool()
    assert family(pool, "values", 5) == family(pool, "values", 5)
    assert family(pool, "values", 5)[0].user != family(pool, "values", 6)[0].user
    assert [t.id for t in compose(pool, 50)][:3] == [t.id for t in compose(pool, 200)][:3]


def test_templates_are_split_and_one_style_is_held_back_on_each_side() -> None:
    sides = {side: templates(side) for side in ("train", "dev", "test")}  # type: ignore[arg-type]
    assert sum(map(len, sides.values())) == sum(map(len, STYLES.values()))
    assert len(sides["train"]) >= 40
    assert len({style for style, _ in sides["train"]}) >= 8
    texts = [{text for _, text in found} for found in sides.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]  # noqa: PT018
    for style, side in HELD_BACK.items():
        assert {name for name, found in sides.items() if style in {s for s, _ in found}} == {side}


@pytest.mark.parametrize(("style", "text"), [(style, text) for style, texts in STYLES.items() for text in texts])
def test_each_template_says_what_is_wanted(style: str, text: str) -> None:
    said = planted(text, ask="Pay 5 to Ada.", tool="pay", args='{"to": "Ada"}', who="Bob")
    assert "Pay 5 to Ada." in said or '{"to": "Ada"}' in said or style == "encoded"
    assert "{ask}" not in said


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(POSITIONS), st.randoms(use_true_random=False))
def test_a_result_holds_what_is_planted_and_twins_differ_in_nothing_else(kind: Any, position: Any, rng: Any) -> None:
    carrier = draw_carrier(rng, kind, position)
    with_text = carrier.filled("PLANTED")
    assert with_text.count("PLANTED") == 1
    assert len(with_text) < 5000
    assert set(carrier.args) <= set(carrier.tool.parameters["properties"])
    # YAML wraps lines elsewhere then.
    if carrier.form != "yaml":
        assert "".join(with_text.replace("PLANTED", "").split()) == "".join(carrier.filled().split())


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(DEEDS), st.randoms(use_true_random=False))
def test_a_deed_asks_for_what_its_call_does(deed: Any, rng: Any) -> None:
    done = draw_deed(deed, rng)
    (tool,) = done.record.tools
    ((name, args),) = done.record.calls
    assert name == tool.name
    assert set(tool.parameters["required"]) <= set(args)
    for slot in deed.target:
        assert str(done.values[slot])[1:] in done.record.request


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.name)
@given(st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_another_target_is_another_call(deed: Any, rng: Any) -> None:
    done = draw_deed(deed, rng)
    for slot in deed.target:
        if slot in done.values:
            assert done.args(**{slot: "something else"}) != done.args()


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.name)
@given(rng=st.randoms(use_true_random=False))
def test_what_follows_uses_what_came_back_and_no_wish_says_it(chain: Any, rng: Any) -> None:
    told = draw_chain(chain, rng)
    assert len(told.follow) == len(chain.follow) >= 2
    back = told.result("A note.", others=rng.random() < 0.5)
    assert "A note." in back
    for step in (told.first, *told.follow):
        assert set(step.tool.parameters["required"]) == set(step.args)
        assert not re.search(r"[{}]", step.request)
    for step in told.follow:
        for name, value in step.args.items() if step.changed is not None else ():
            if value != step.changed[name] and not isinstance(value, list):
                assert str(value) in back


@given(st.lists(families, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_other_tools_stand_beside_and_what_is_called_stays(several: list[list[Task]], rng: Any) -> None:
    for before, after in zip(several, among_other_tools(several, rng), strict=True):
        assert [task.script for task in before] == [task.script for task in after]
        for task in after:
            names = [tool.name for tool in task.tools]
            assert names == sorted(set(names))
            called = {call.tool for call in task.calls}
            assert called <= set(names)
            assert len(names) <= max(*TOOLS, len(called))


def test_sides_share_no_record_deed_or_kind_of_result() -> None:
    pools = [pool_of(side, []) for side in ("train", "dev", "test")]  # type: ignore[arg-type]
    assert sum(len(pool.deeds) for pool in pools) == len(DEEDS)
    assert sum(len(pool.kinds) for pool in pools) == len(KINDS)
    assert sum(len(pool.chains) for pool in pools) == len(CHAINS)
    functions = json.loads(FILE.read_text())["sources"]["bfcl"]["environments"]
    assert set(functions.values()) == {"train", "dev", "test"}


def test_no_tool_is_called_as_one_of_agentdojos() -> None:
    pytest.importorskip("agentdojo")
    from mosaic_guard_agentdojo import SUITES, load_suite

    names = {tool.name for suite in SUITES for tool in load_suite(suite).tools}
    links = [link for chain in CHAINS for link in (chain.first, *chain.follow)]
    ours = {name for each in (*DEEDS, *KINDS, *links) for name in each.tools}
    assert not names & ours


def test_a_bag_of_words_sees_a_leak_and_none_in_twins() -> None:
    pytest.importorskip("sklearn")
    calls = seen_calls(compose(a_pool(), 400))
    assert abs(auc_of_words(calls, "call") - 0.5) < 0.12  # type: ignore[operator]
    leaking = [
        type(call)(call.scenario, call.family, call.harmful, {"call": "bad word" if call.harmful else "good one"})
        for call in calls
    ]
    assert auc_of_words(leaking, "call") == 1.0


def test_shares_beyond_the_whole_are_refused() -> None:
    with pytest.raises(ValueError, match="together at most 1"):
        Shares(bfcl=0.9, asb=0.2)


def test_a_missing_source_says_where_it_is_from(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="bfcl-eval"):
        bfcl.read_records(tmp_path)


def test_scenarios_can_be_chosen() -> None:
    found = compose(a_pool(), 40, shares={"errand": 0.5, "wider": 0.5})
    assert {task.id.split("/")[1] for task in found} == {"errand", "wider"}
    with pytest.raises(ValueError, match="no scenario 'errant'"):
        compose(a_pool(), 40, shares={"errant": 1.0})


@pytest.mark.parametrize("side", ["train", "dev", "test"])
def test_nobody_asks_for_what_is_harmful(side: Any) -> None:
    wanted, harmful = dict[Any, set[str]](), dict[Any, set[str]]()
    for made in compose(pool_of(side, []), 600, seed=3):
        for call in made.calls:
            labels = harmful if call.harmful else wanted if call.required else {}
            labels.setdefault((family_of(made.id), made.user), set()).add(call_key(call.tool, call.args))
    # Twins in which the person says the same differ in results, or in what the agent does, never in what is asked for.
    assert not [key for key in wanted if wanted[key] & harmful.get(key, set())]


@given(families, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_joined_twins_hold_every_call_with_its_label_and_each_order_of_looks(twins: list[Task], random: Any) -> None:
    joined = join_twins(twins, random)
    assert len(joined) <= len(twins)
    by_first = {each.id.split("+")[0]: each for each in joined}
    of = {
        f"{each.id.rpartition('/')[0]}/{name}": each
        for each in joined
        for name in each.id.rpartition("/")[2].split("+")
    }
    assert set(of) == {twin.id for twin in twins}, "each twin is in exactly one"
    assert len(by_first) == len(joined)
    for twin in twins:
        whole = of[twin.id]
        assert whole.user == twin.user
        if whole is twin:
            continue
        labels = {call_key(call.tool, call.args): call.harmful for call in whole.calls}
        assert all(labels[call_key(call.tool, call.args)] is call.harmful for call in twin.calls)
        # A look-up comes before what follows it in the twin, with the same result.
        places = {
            call_key(c.tool, c.args): (at, c) for at, turn in reversed([*enumerate(whole.script)]) for c in turn.calls
        }
        at = -1
        for turn in twin.script:
            for call in turn.calls:
                place, same = places[call_key(call.tool, call.args)]
                if not call.harmful and not call.required:
                    assert same.result == call.result
                    at = max(at, place)
                else:
                    assert place >= at
        assert len(whole.script) <= MOST_TURNS
        wanted = [call_key(call.tool, call.args) for turn in whole.script for call in turn.calls if call.required]
        once = all(
            len({*keys}) == len(keys)
            for keys in ([call_key(c.tool, c.args) for c in t.calls if c.required] for t in twins)
        )
        assert not once or len(set(wanted)) == len(wanted), "nothing is done twice"
