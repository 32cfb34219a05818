"""The commands of docs/training.md, in order, in one empty directory; a tiny random model stands in for the default one."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_model import tiny_model

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.slow


def run(command: str) -> int:
    """Run one command of the page in this process."""
    from mosaic_guard import __main__ as door
    from mosaic_guard import train

    words = shlex.split(command.removesuffix("|| true"))
    assert words[:2] == ["python", "-m"], command
    if words[2] == "mosaic_guard.train":
        return train.main(words[3:])
    assert words[2] == "mosaic_guard", command
    with pytest.raises(SystemExit) as end:
        door.app(words[3:])
    return int(end.value.code or 0)


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    from mosaic_guard.models import manifest, weights

    base = tmp_path / "base"
    model, tokenizer = tiny_model()
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    monkeypatch.setattr(weights, "_wheel_file", lambda: base)
    monkeypatch.setattr(weights, "_dequantised", lambda file: file)
    # The guard that ships is an adapter for another model than the tiny one.
    monkeypatch.setattr(manifest, "SHIPPED", tmp_path / "none")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    module = ModuleType("tutorial")
    monkeypatch.setitem(sys.modules, "tutorial", module)

    said = []
    for kind, code in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "python":
            exec(compile(code, str(PAGE), "exec", dont_inherit=True), vars(module))
            continue
        for command in code.strip().splitlines():
            said.append((command.split()[2:4], run(command)))
            assert said[-1][1] == 0 or command.endswith("|| true"), command
    assert len(said) == 6
    assert said[-1][1] in (0, 1), "promote compares; it is no error that a random model is not promoted"
    assert json.loads(Path("guard/manifest.json").read_text())["metrics"]["steps"] == 4
    assert Path("promoted/report.html").is_file()
