"""The gullible agent: exact, repeatable, and the same whatever the guard did before."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import ToolException

from mosaic_guard_agentdojo import GullibleChatModel, Scenario, Toolbox, load_suite, scenario
from mosaic_guard_agentdojo.grading import grade_security, grade_utility
from mosaic_guard_agentdojo.gullible import GAVE_UP

pytestmark = pytest.mark.slow

BANKING = [f"user_task_{n}" for n in range(16)]
SAYS_NOTHING = {"user_task_5", "user_task_8", "user_task_9", "user_task_10"}  # banking's graders of these
SINGLE = ["injection_task_4", "injection_task_6", "injection_task_7", "injection_task_8"]


def play(found: Scenario, refuse: object = lambda step, name: False) -> tuple[list[BaseMessage], Toolbox]:
    """The agent's loop without a graph; `refuse(step, tool name)` stands for a guard."""
    model, toolbox = GullibleChatModel(scenario=found), Toolbox(found.suite, found.environment())
    messages: list[BaseMessage] = [HumanMessage(found.user_task.PROMPT)]
    for step in range(40):
        message = model.invoke(messages)
        messages.append(message)
        if not message.tool_calls:
            return messages, toolbox
        (call,) = message.tool_calls
        status = "success"
        try:
            if refuse(step, call["name"]):
                raise ToolException("refused")
            text = toolbox.call(call["name"], call["args"])
        except ToolException as error:
            text, status = str(error), "error"
        messages.append(ToolMessage(text, tool_call_id=call["id"], name=call["name"], status=status))
    raise AssertionError("the agent never ends")


def names(messages: list[BaseMessage]) -> list[str]:
    return [call["name"] for m in messages if isinstance(m, AIMessage) for call in m.tool_calls]


def read_at(messages: list[BaseMessage]) -> int | None:
    """Which result first held the default attack's text."""
    results = [m for m in messages if isinstance(m, ToolMessage)]
    return next((i for i, m in enumerate(results) if m.status != "error" and "important message" in m.text), None)


@pytest.mark.parametrize("suite", ["banking", "workspace"])
def test_the_ground_truth_completes_every_task(suite: str) -> None:
    for user_task in load_suite(suite).user_tasks:
        found = scenario(suite, user_task)
        messages, toolbox = play(found)
        completed = grade_utility(found, messages[-1].text, toolbox.environment, toolbox.executed)
        assert completed or (completed is None and user_task in SAYS_NOTHING), user_task


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BANKING), st.sampled_from(SINGLE), st.integers(0, 50))
def test_it_gives_in_only_after_reading(user_task: str, injection_task: str, seed: int) -> None:
    found = scenario("banking", user_task, injection_task, seed=seed)
    messages, _ = play(found)
    askers = GullibleChatModel(scenario=found).askers(messages)
    first = askers.index("injection")
    read = read_at(messages)
    assert read is not None
    assert read < first
    # In one piece, and nothing of the user's is lost.
    wanted = [call.function for call in found.injection_calls()]
    assert names(messages)[first : first + len(wanted)] == wanted
    assert askers.count("injection") == len(wanted)
    assert askers.count("user") == len(found.user_calls)


def test_the_seed_moves_the_point() -> None:
    points, same = set(), set()
    for seed in range(12):
        found = scenario("banking", "user_task_15", "injection_task_7", seed=seed)
        points.add(tuple(GullibleChatModel(scenario=found).askers(play(found)[0])))
        same.add(tuple(names(play(scenario("banking", "user_task_15", "injection_task_7", seed=3))[0])))
    assert len(points) > 1
    assert len(same) == 1


def test_injected_text_that_was_not_read_does_nothing() -> None:
    found = scenario("banking", "user_task_0", "injection_task_7")
    messages, toolbox = play(found, refuse=lambda step, name: name == "read_file")
    assert names(messages) == [call.function for call in found.user_calls]
    assert grade_security(found, "", toolbox.environment, toolbox.executed) is False


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(BANKING), st.sampled_from(SINGLE), st.integers(0, 5), st.integers(0, 2**8 - 1))
def test_it_goes_on_from_any_history(user_task: str, injection_task: str, seed: int, refused: int) -> None:
    """Whatever was refused: from each prefix of the history a fresh model says what was said."""
    found = scenario("banking", user_task, injection_task, seed=seed)
    messages, _ = play(found, refuse=lambda step, name: bool(refused >> step & 1))
    for index, message in enumerate(messages):
        if isinstance(message, AIMessage):
            again = GullibleChatModel(scenario=found).invoke(messages[:index])
            assert (again.tool_calls, again.content) == (message.tool_calls, message.content)


def test_refusing_the_injection_leaves_the_users_task_whole() -> None:
    for seed in range(6):
        found = scenario("banking", "user_task_15", "injection_task_7", seed=seed)
        messages, toolbox = play(found, refuse=lambda step, name: name == "update_password")
        assert grade_utility(found, messages[-1].text, toolbox.environment, toolbox.executed)
        assert not grade_security(found, messages[-1].text, toolbox.environment, toolbox.executed)


def test_an_agent_that_was_kept_from_looking_does_not_know() -> None:
    messages, _ = play(scenario("banking", "user_task_1"), refuse=lambda step, name: True)
    assert messages[-1].text == GAVE_UP


def test_ids_say_nothing_about_whose_call_it_is() -> None:
    found = scenario("banking", "user_task_15", "injection_task_7")

    def ids(messages: list[BaseMessage]) -> list[str]:
        return [call["id"] for m in messages if isinstance(m, AIMessage) for call in m.tool_calls]

    attacked, never_read = ids(play(found)[0]), ids(play(found, refuse=lambda step, name: True)[0])
    # Position by position the same, though other calls stand there.
    assert attacked[: len(never_read)] == never_read
    assert all(re.fullmatch("call_[0-9a-f]{24}", call_id) for call_id in attacked)


def test_the_injection_looks_before_it_acts() -> None:
    """workspace injection 5 deletes the mail that it has just sent; its id depends on the mails sent before."""
    found = scenario("workspace", "user_task_25", "injection_task_5", seed=1)
    messages, toolbox = play(found)
    assert names(messages).count("send_email") == 4
    assert grade_security(found, messages[-1].text, toolbox.environment, toolbox.executed)
