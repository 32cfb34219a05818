"""ToolEmu's toolkits, which InjecAgent shares: their tools with JSON Schemas, and the names of environments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mosaic_guard_training.tasks import TaskTool

_ITEMS: Mapping[str, Mapping[str, Any]] = {"array": {"items": {}}}


class Toolkits:
    """The tools of the toolkits.

    Args:
        toolkits: As in ToolEmu's `all_toolkits.json`.
    """

    def __init__(self, toolkits: Sequence[Mapping[str, Any]]) -> None:
        self._tools = {
            kit["name_for_model"] + tool["name"]: (kit["name_for_model"], tool)
            for kit in toolkits
            for tool in kit["tools"]
        }

    def toolkit(self, name: str) -> str:
        """The toolkit of a tool, by the tool's full name."""
        return str(self._tools[name][0])

    def tool(self, name: str) -> TaskTool:
        """A tool, by its full name."""
        stated = self._tools[name][1]
        properties = {
            each["name"]: {"type": each["type"], "description": each["description"], **_ITEMS.get(each["type"], {})}
            for each in stated["parameters"]
        }
        required = [each["name"] for each in stated["parameters"] if each["required"]]
        schema = {"type": "object", "properties": properties, **({"required": required} if required else {})}
        return TaskTool(name, stated["summary"], schema)

    def environment(self, source: str, names: Iterable[str]) -> str:
        """The environment of a task that uses these tools: its toolkits."""
        return environment(source, (self.toolkit(name) for name in names))


def environment(source: str, parts: Iterable[str]) -> str:
    """The name of an environment that is made of several: `SOURCE/ONE+OTHER`, sorted."""
    return f"{source}/{'+'.join(sorted(set(parts)))}"
