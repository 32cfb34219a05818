"""What the wiring costs: a thread of scripted steps with and without a guard that asks no model, measured side by side.

The unguarded agent, the guarded one (the policy allows every call), LangChain's `HumanInTheLoopMiddleware` (its `when`
predicate approves every call, so nothing is interrupted) and NeMo's `GuardrailsMiddleware` (one regular expression on
the way in and one on the way out) take turns, so that what else the machine does hits all of them. Reports ratios: absolute
times on a shared machine mean little. No language model is loaded.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import importlib.util
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph, add_messages
from langgraph.prebuilt import ToolNode, tools_condition

from mosaic_guard import Guard, Policy, ScriptedGuardModel, guarded_graph

Agent = Literal["create_agent", "StateGraph"]
Store = Literal["memory", "SQLite"]
Variant = Literal["unguarded", "mosaic-guard", "HumanInTheLoopMiddleware", "GuardrailsMiddleware"]

STEPS = 30
CALLS = (1, 3)
EDGE = 5
"""How many steps at each end of a thread are compared with each other."""

NO_NEMO = (
    "not installed: pip install nemoguardrails (it installs beside langchain 1.4; an environment of its own is best)"
)
RAILS = """\
models: []
rails:
  config:
    regex_detection:
      input: {patterns: ["(?i)rm -rf /"]}
      output: {patterns: ["(?i)rm -rf /"]}
  input: {flows: [regex check input]}
  output: {flows: [regex check output]}
"""


@dataclass(frozen=True)
class Setting:
    """What the variants are compared on.

    Attributes:
        agent: `create_agent`, or a hand-written `StateGraph` around a `ToolNode`.
        calls: Tool calls per step.
        store: Where checkpoints go: this process, or a new SQLite file per thread.
    """

    agent: Agent
    calls: int
    store: Store


@dataclass
class Measured:
    """Threads of one variant under one setting.

    Attributes:
        seconds: Of each repeat, the seconds between one model call and the next, by step.
        kib: Of each repeat, the KiB of the SQLite file per step; empty in memory.
        missing: Why there are no numbers; empty where there are.
    """

    seconds: list[list[float]] = field(default_factory=list)
    kib: list[float] = field(default_factory=list)
    missing: str = ""

    @property
    def per_step(self) -> list[float]:
        """Mean seconds per step of each repeat."""
        return [statistics.fmean(thread) for thread in self.seconds]

    @property
    def median(self) -> float:
        """Median over the repeats of the seconds per step."""
        return statistics.median(self.per_step)

    @property
    def growth(self) -> float:
        """Median time of the last steps over that of the first."""
        return statistics.median(
            statistics.median(thread[-EDGE:]) / statistics.median(thread[:EDGE]) for thread in self.seconds
        )

    def ratio(self, other: Measured) -> float:
        """Median over the repeats of this one's time over the other's in the same repeat."""
        return statistics.median(mine / its for mine, its in zip(self.per_step, other.per_step, strict=True))


Results = dict[Setting, dict[Variant, Measured]]


class _Paced(BaseChatModel):
    """Proposes `calls` tool calls at each of `steps` turns, then is done; notes when it was asked."""

    steps: int
    calls: int
    asked: list[float]

    @property
    def _llm_type(self) -> str:
        return "paced"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> _Paced:
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.asked.append(time.perf_counter())
        number = sum(isinstance(message, AIMessage) for message in messages)
        made = [
            {"name": "read_note", "args": {"name": f"note-{number:02}-{n}.txt"}, "id": f"{number}-{n}"}
            for n in range(self.calls if number < self.steps else 0)
        ]
        said = AIMessage(f"I read on, at note {number:02}." if made else "That is all.", tool_calls=made)
        return ChatResult(generations=[ChatGeneration(message=said)])


class _State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def bench_graph(
    repeats: int = 5,
    *,
    steps: int = STEPS,
    settings: Sequence[Setting] | None = None,
    progress: Callable[[Setting], None] | None = None,
) -> Results:
    """Every variant under every setting; the variants take turns, thread by thread, each repeat in another order.

    Args:
        repeats: Threads per variant and setting. One more of each is run first and not counted: a process starts slowly.
        steps: Steps per thread, at least 2.
        settings: What to measure on. Default: `create_agent` and a hand-written graph, 1 and 3 calls a step, in memory and
            with SQLite checkpoints.
        progress: Called with each setting before it is measured.

    Raises:
        ImportError: If langchain or langgraph-checkpoint-sqlite is not installed.
        ValueError: If there is nothing to measure.
    """
    if repeats < 1 or steps < 2:
        raise ValueError(f"at least 1 repeat and 2 steps are needed, not {repeats!r} and {steps!r}")
    _need("langchain", "mosaic-guard[langchain]")
    _need("langgraph.checkpoint.sqlite", "langgraph-checkpoint-sqlite")
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="mosaic-bench-") as folder:
        for setting in settings or every_setting():
            if progress is not None:
                progress(setting)
            variants = _variants(setting)
            results[setting] = {name: Measured() for name in variants}
            for repeat in range(repeats + 1):
                turn = repeat % len(variants)
                for name in variants[turn:] + variants[:turn]:
                    found = results[setting][name]
                    if name == "GuardrailsMiddleware" and not _has("nemoguardrails"):
                        found.missing = NO_NEMO
                        continue
                    seconds, kib = _thread(setting, name, steps, Path(folder))
                    if repeat:
                        found.seconds.append(seconds)
                        found.kib.extend(kib)
    return results


def every_setting() -> list[Setting]:
    """The settings that are measured by default."""
    agents: tuple[Agent, ...] = ("create_agent", "StateGraph")
    stores: tuple[Store, ...] = ("memory", "SQLite")
    return [Setting(agent, calls, store) for agent in agents for calls in CALLS for store in stores]


def versions() -> str:
    """The releases that were measured."""
    names = ("langgraph", "langchain", "nemoguardrails")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names if _has(name))


def _variants(setting: Setting) -> list[Variant]:
    """A hand-written graph takes no middleware."""
    if setting.agent == "StateGraph":
        return ["unguarded", "mosaic-guard"]
    return ["unguarded", "mosaic-guard", "HumanInTheLoopMiddleware", "GuardrailsMiddleware"]


def _thread(setting: Setting, variant: Variant, steps: int, folder: Path) -> tuple[list[float], list[float]]:
    """Run one new thread: seconds of each step, and KiB of checkpoints per step where they are in a file."""
    model = _Paced(steps=steps, calls=setting.calls, asked=[])
    file = folder / "checkpoints.sqlite"
    with _saver(setting.store, file) as saver:
        graph = _build(setting, variant, model, saver, folder)
        config: Any = {"configurable": {"thread_id": "1"}, "recursion_limit": 20 * steps}
        gc.collect()
        out = graph.invoke({"messages": [HumanMessage("Please read my notes one after the other.")]}, config)
    read = sum(message.type == "tool" and message.status == "success" for message in out["messages"])
    if read != steps * setting.calls:
        raise RuntimeError(f"{variant} ran {read} of {steps * setting.calls} calls: {out['messages'][-1]!r}")
    seconds = [later - earlier for earlier, later in pairwise(model.asked)]
    if setting.store == "memory":
        return seconds, []
    kib = file.stat().st_size / 1024 / steps
    file.unlink()
    return seconds, [kib]


@contextlib.contextmanager
def _saver(store: Store, file: Path) -> Iterator[BaseCheckpointSaver[Any]]:
    if store == "memory":
        yield InMemorySaver()
        return
    from langgraph.checkpoint.sqlite import SqliteSaver

    with SqliteSaver.from_conn_string(str(file)) as saver:
        saver.setup()
        yield saver


def _build(setting: Setting, variant: Variant, model: _Paced, saver: Any, folder: Path) -> Any:
    tools = [_read_note()]
    if setting.agent == "StateGraph":
        graph: Any = _hand_written(model, tools, saver)
    else:
        from langchain.agents import create_agent

        graph = create_agent(model, tools, middleware=_middleware(variant, folder), checkpointer=saver)
    if variant == "mosaic-guard":
        return guarded_graph(graph, guard=Guard(ScriptedGuardModel(), policy=Policy(allow=["*"])))
    return graph


def _hand_written(model: _Paced, tools: list[BaseTool], saver: Any) -> Any:
    builder = StateGraph(_State)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode(tools))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition)
    builder.add_edge("tools", "agent")
    return builder.compile(checkpointer=saver)


def _middleware(variant: Variant, folder: Path) -> list[Any]:
    if variant == "HumanInTheLoopMiddleware":
        from langchain.agents.middleware import HumanInTheLoopMiddleware

        approving: Any = {"allowed_decisions": ["approve", "reject"], "when": lambda request: False}
        return [HumanInTheLoopMiddleware(interrupt_on={"read_note": approving})]
    if variant == "GuardrailsMiddleware":
        return [_nemo(folder)]
    return []


def _nemo(folder: Path) -> Any:
    """NeMo's middleware, from a directory: from a string of YAML alone it finds no flows and checks nothing."""
    rails = folder / "rails"
    rails.mkdir(exist_ok=True)
    (rails / "config.yml").write_text(RAILS, "utf-8")
    logging.getLogger("nemoguardrails").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("nemoguardrails.integrations.langchain.middleware")
        return module.GuardrailsMiddleware(config_path=str(rails))


def _read_note() -> BaseTool:
    def body(name: str) -> str:
        """Read a note."""
        return f"{name}. " + "The rent is due on Monday, and Anna wants the report by the end of the week. " * 5

    return StructuredTool.from_function(body, name="read_note")


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _need(module: str, package: str) -> None:
    if not _has(module):
        raise ImportError(f'this bench needs a package that is not installed: run pip install "{package}"')
