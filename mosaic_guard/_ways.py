"""Ways out of a node, as branches: edges, the end of a node without any, and those that are taken only if the guard says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph._internal._runnable import RunnableCallable
from langgraph.constants import END
from langgraph.graph._branch import BranchSpec

from mosaic_guard._channel import GUARD_CHANNEL, leads_on, read


def always(target: str) -> BranchSpec:
    """An edge as a branch."""
    return BranchSpec(RunnableCallable(lambda _: target, name=f"to {target}", trace=False), {target: target}, None)


def end() -> BranchSpec:
    """What a node without edges does: the run ends there, unless the node itself says where it goes on."""

    def way(value: Any, config: RunnableConfig) -> Any:
        return [] if leads_on(config) else END

    return BranchSpec(RunnableCallable(way, name="to the end", trace=False), {END: END}, None)


def only_if(branch: BranchSpec, condition: Callable[[Mapping[str, Any]], bool]) -> BranchSpec:
    """The branch, taken only if the guard's channel says so."""
    path = branch.path

    def func(value: Any, config: RunnableConfig) -> Any:
        return path.invoke(value, config) if condition(read(config, GUARD_CHANNEL, fresh=True) or {}) else []

    async def afunc(value: Any, config: RunnableConfig) -> Any:
        return await path.ainvoke(value, config) if condition(read(config, GUARD_CHANNEL, fresh=True) or {}) else []

    return branch._replace(path=RunnableCallable(func, afunc, name=path.name, trace=False))


def stayed(name: str, channel: Mapping[str, Any]) -> bool:
    """Whether tool node `name` ran, rather than sending its calls back to `plan`."""
    return channel.get("bounced") != name


def goes_on(channel: Mapping[str, Any]) -> bool:
    """Whether the run goes on after `refuse`."""
    return not channel.get("ending")


def refused(name: str, channel: Mapping[str, Any]) -> bool:
    """Whether the refused step would have gone to tool node `name`, and the run goes on."""
    return goes_on(channel) and any(route[0] == name for route in channel.get("go", ()))
