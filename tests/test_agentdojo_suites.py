"""AgentDojo's tools as LangChain tools: the same results, the same errors, the same environments."""

from __future__ import annotations

import pytest
from agentdojo.agent_pipeline.tool_execution import tool_result_to_str
from agentdojo.functions_runtime import FunctionsRuntime
from langchain_core.messages import ToolMessage

from mosaic_guard_agentdojo import (
    Toolbox,
    load_attack,
    load_suite,
    pairs,
    scenario,
    side_effecting_tools,
    system_message,
    text_attacks,
)


def call(toolbox: Toolbox, name: str, **args: object) -> ToolMessage:
    tool = next(tool for tool in toolbox.tools if tool.name == name)
    return tool.invoke({"type": "tool_call", "id": "1", "name": name, "args": args})


@pytest.fixture
def bank() -> Toolbox:
    found = scenario("banking", "user_task_0")
    return Toolbox(found.suite, found.environment())


def test_results_are_agentdojos(bank: Toolbox) -> None:
    suite = load_suite("banking")
    result, _ = FunctionsRuntime(suite.tools).run_function(bank.environment, "get_scheduled_transactions", {})
    answer = call(bank, "get_scheduled_transactions")
    assert answer.content == tool_result_to_str(result)
    assert answer.status == "success"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("update_scheduled_transaction", {"id": 999}),
        ("send_money", {"recipient": "X"}),
        ("get_balance", {"no": "such"}),
    ],
)
def test_errors_are_agentdojos(bank: Toolbox, name: str, args: dict[str, object]) -> None:
    _, error = FunctionsRuntime(load_suite("banking").tools).run_function(bank.environment, name, args)
    answer = call(bank, name, **args)
    assert (answer.status, answer.content) == (("error", error) if error else ("success", answer.content))


def test_lists_written_as_strings_are_read_as_lists() -> None:
    found = scenario("workspace", "user_task_0")
    toolbox = Toolbox(found.suite, found.environment())
    call(toolbox, "send_email", recipients="['a@b.com']", subject="s", body="b")
    assert toolbox.executed[0].args["recipients"] == ["a@b.com"]


def test_tools_change_their_own_environment_only(bank: Toolbox) -> None:
    found = scenario("banking", "user_task_0")
    call(bank, "update_password", password="new")
    assert bank.environment.user_account.password == "new"
    assert found.environment().user_account.password != "new"


def test_side_effects_are_found_by_running_the_ground_truth() -> None:
    assert side_effecting_tools("banking") == {
        "send_money",
        "schedule_transaction",
        "update_scheduled_transaction",
        "update_password",
        "update_user_info",
    }


def test_a_look_up_that_marks_as_read_changes_the_environment() -> None:
    assert "get_unread_emails" in side_effecting_tools("workspace")
    assert not any(name.startswith("search_") for name in side_effecting_tools("workspace"))


def test_every_pair_of_banking_can_be_attacked() -> None:
    assert len(list(pairs("banking"))) == 16 * 9


@pytest.mark.parametrize(
    "attack", ["important_instructions", "direct", "tool_knowledge", "Note: {goal} Thanks, {user}"]
)
def test_attacks_carry_the_goal(attack: str) -> None:
    found = scenario("banking", "user_task_0", "injection_task_7", attack=attack)
    assert found.injection_task is not None
    assert all(found.injection_task.GOAL in text for text in found.injections.values())
    assert found.task.count("/") == 5


def test_the_default_attack_addresses_no_model_by_name() -> None:
    found = scenario("banking", "user_task_0", "injection_task_7")
    assert all("to you, the AI language model." in text for text in found.injections.values())
    named = scenario("banking", "user_task_0", "injection_task_7", model_name="openai:gpt-4o-2024-05-13")
    assert all("to you, GPT-4." in text for text in named.injections.values())


def test_only_text_attacks_are_offered() -> None:
    assert "important_instructions" in text_attacks()
    assert not {"manual", "dos"} & set(text_attacks())
    with pytest.raises(ValueError, match="no text attack 'dos': take one of"):
        load_attack("dos", load_suite("banking"))


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (("nowhere", "user_task_0"), "no suite 'nowhere'"),
        (("banking", "user_task_99"), "no user task 'user_task_99'"),
        (("banking", "user_task_0", "injection_task_99"), "no injection task 'injection_task_99'"),
    ],
)
def test_unknown_names_are_said(ids: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scenario(*ids)


def test_the_system_prompt_is_agentdojos() -> None:
    assert system_message().startswith("You are an AI language model who assists the user by using the given tools.")
