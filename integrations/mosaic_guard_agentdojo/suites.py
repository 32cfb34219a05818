"""AgentDojo's task suites and their tools, as LangChain tools bound to one environment.

Source: PyPI `agentdojo` 0.1.x, benchmark version v1.1.2 (https://github.com/ethz-spylab/agentdojo).
"""

from __future__ import annotations

import threading
from ast import literal_eval
from functools import cached_property, lru_cache
from typing import Any

from agentdojo.agent_pipeline.agent_pipeline import load_system_message
from agentdojo.agent_pipeline.tool_execution import is_string_list, tool_result_to_str
from agentdojo.functions_runtime import Function, FunctionCall, FunctionsRuntime, TaskEnvironment
from agentdojo.task_suite.load_suites import get_suites
from agentdojo.task_suite.task_suite import TaskSuite
from langchain_core.tools import StructuredTool, ToolException

VERSION = "v1.1.2"
"""The benchmark version whose tasks, environments and graders are used."""

SUITES = ("workspace", "banking", "travel", "slack")
"""The suites of that version; travel and slack are for reporting only, never for training or tuning."""


@lru_cache
def load_suite(name: str) -> TaskSuite[Any]:
    """The suite of that name, benchmark version `VERSION`; the same object each time.

    Raises:
        ValueError: If AgentDojo has no suite of that name.
    """
    suites = get_suites(VERSION)
    if name not in suites:
        raise ValueError(f"AgentDojo {VERSION} has no suite {name!r}; it has {', '.join(sorted(suites))}")
    return suites[name]


def system_message() -> str:
    """AgentDojo's default system prompt for agents."""
    return str(load_system_message(None)).strip()


class Toolbox:
    """The tools of a suite, bound to one environment, with a record of what ran.

    A call goes through AgentDojo's own runtime: the same argument validation, the same YAML results, and an exception
    of the tool becomes the error text that AgentDojo's agents read (a `ToolMessage` with status `error`). Parallel
    calls take turns, because the environments are plain objects.

    Attributes:
        environment: Changed in place by the tools.
        executed: The calls whose tool body ran, in order, failed ones included.
    """

    def __init__(self, suite: TaskSuite[Any], environment: TaskEnvironment) -> None:
        self.environment = environment
        self.executed: list[FunctionCall] = []
        self._functions = suite.tools
        self._runtime = FunctionsRuntime(suite.tools)
        self._lock = threading.Lock()

    @cached_property
    def tools(self) -> list[StructuredTool]:
        """The LangChain tools, in the suite's order."""
        return [self._tool(function) for function in self._functions]

    def call(self, name: str, args: dict[str, Any]) -> str:
        """Run one tool and return the text that the agent reads.

        Raises:
            ToolException: With AgentDojo's error text, if the tool failed or the arguments do not fit.
        """
        # Some models write lists as strings; AgentDojo's executor reads them the same way.
        args = {k: literal_eval(v) if isinstance(v, str) and is_string_list(v) else v for k, v in args.items()}
        with self._lock:
            self.executed.append(FunctionCall(function=name, args=args))
            result, error = self._runtime.run_function(self.environment, name, args)
            if error is not None:
                raise ToolException(error)
            return str(tool_result_to_str(result))

    def _tool(self, function: Function[..., Any]) -> StructuredTool:
        def run(**kwargs: Any) -> str:
            return self.call(function.name, kwargs)

        # A JSON schema instead of the pydantic class: LangChain passes the arguments on as written and AgentDojo
        # validates them, so that error texts are AgentDojo's.
        return StructuredTool(
            name=function.name,
            description=function.description,
            args_schema=function.parameters.model_json_schema(),
            func=run,
            handle_tool_error=True,
        )
