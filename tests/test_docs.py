"""Every ```python block of README.md and docs/*.md runs.

Each block is run on its own in an empty directory. An HTML comment before a block changes that:
`<!-- not run: reason -->`, `<!-- continues -->` (runs after the block before it, in the same module) and
`<!-- model -->` (loads the default model). docs/architecture.md is left out: its blocks are signatures.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
NOT_PAGES = {"architecture.md"}

BLOCK = re.compile(
    r"(?P<comments>(?:^[ \t]*<!--[^\n]*-->[ \t]*\n\s*)*)"
    r"^(?P<indent>[ \t]*)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
COMMENT = re.compile(r"<!--\s*(not run|continues|model)\b:?\s*(.*?)\s*-->")


@dataclass(frozen=True)
class Block:
    """One fenced block: where its code starts, the code, and what the comments before it say."""

    line: int
    code: str
    comments: dict[str, str]


def blocks(text: str) -> Iterator[Block]:
    for match in BLOCK.finditer(text):
        comments = dict(COMMENT.findall(match["comments"]))
        if comments.get("not run") == "":
            raise ValueError("a block that is not run says why: <!-- not run: reason -->")
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        yield Block(text.count("\n", 0, match.start("code")) + 1, code, comments)


def runs(text: str) -> Iterator[list[Block]]:
    """The blocks that run, each list in one module."""
    current: list[Block] = []
    for block in blocks(text):
        if "not run" in block.comments:
            continue
        if "continues" not in block.comments and current:
            yield current
            current = []
        current.append(block)
    if current:
        yield current


def execute(path: Path, run: list[Block], module: ModuleType) -> None:
    for block in run:
        # Empty lines before the code make a traceback point at the page's own line.
        source = "\n" * (block.line - 1) + block.code
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))


def documented_runs() -> Iterator[object]:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if path.name in NOT_PAGES or not path.exists():
            continue
        for run in runs(path.read_text(encoding="utf-8")):
            marks = [pytest.mark.model] if any("model" in block.comments for block in run) else []
            yield pytest.param(path, run, marks=marks, id=f"{path.name}:{run[0].line}")


@pytest.mark.parametrize(("path", "run"), list(documented_runs()))
def test_block_runs(path: Path, run: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A module of its own, so that annotations of classes and functions in the block can be resolved.
    module = ModuleType("mosaic_guard_docs_block")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    execute(path, run, module)


PAGE = """
```python
a = 1
```

<!-- continues -->

```python
assert a == 1
```

<!-- not run: needs a key -->
```python
raise RuntimeError
```

1. A list.

   <!-- model -->
   ```python
   if True:
       b = 2
   ```

```sh
ls
```
"""


def test_comments_choose_what_runs_together() -> None:
    first, second = runs(PAGE)
    assert [block.line for block in first] == [3, 9]
    assert [block.line for block in second] == [21]
    assert second[0].code == "if True:\n    b = 2\n"
    assert "model" in second[0].comments
    execute(Path("page.md"), first, ModuleType("page"))


def test_a_block_that_is_not_run_says_why() -> None:
    with pytest.raises(ValueError, match="says why"):
        list(blocks("<!-- not run -->\n```python\n1\n```\n"))


def test_a_failure_points_at_the_line_of_the_page() -> None:
    (run,) = runs("# Title\n\n```python\nok = True\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as failure:
        execute(Path("page.md"), run, ModuleType("page"))
    assert (str(failure.traceback[-1].path), failure.traceback[-1].lineno + 1) == ("page.md", 5)
