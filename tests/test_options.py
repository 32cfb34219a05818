"""Settings from a command line and a recipe: what wins, and what is said of a mistake."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mosaic_guard_training.options import check_ranges, parse, setting


@dataclass(frozen=True, kw_only=True)
class Baking:
    oven: Path = setting("where to bake")
    heat: float = setting("degrees", default=180.0, low=0, high=300)
    minutes: int | None = setting("how long", default=None, low=1)
    mode: Literal["on", "off", "auto"] = setting("fan", default="auto")
    dry: bool = setting("only say what would be done", default=False)
    spices: tuple[str, ...] = setting("what goes in", default=())

    def __post_init__(self) -> None:
        check_ranges(self)


def bake(*arguments: str) -> Baking:
    return parse(Baking, "bake", "Bakes.", arguments)


def recipe(directory: Path, text: str) -> str:
    file = directory / "cake.yaml"
    file.write_text(text)
    return str(file)


def test_the_command_line_wins_over_the_recipe(tmp_path: Path) -> None:
    file = recipe(tmp_path, "oven: big\nheat: 2e2\nminutes: 9\nmode: off\ndry: true\nspices: [salt, mace]\n")
    assert bake("--recipe", file) == Baking(
        oven=Path("big"), heat=200.0, minutes=9, mode="off", dry=True, spices=("salt", "mace")
    )
    found = bake("--recipe", file, "--heat", "150", "--no-dry", "--spices", "thyme", "--oven", "small")
    assert found == Baking(oven=Path("small"), heat=150.0, minutes=9, mode="off", spices=("thyme",))
    # Saying a default on the command line wins too.
    assert bake("--recipe", file, "--heat", "180").heat == 180


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("oven: a\nhaet: 3", "cake.yaml: unknown setting 'haet'; did you mean 'heat'?"),
        ("oven: a\nxyzzy: 3", "cake.yaml: unknown setting 'xyzzy'; known are dry, heat, minutes, mode, oven, spices"),
        ("oven: a\nheat: hot", "cake.yaml: heat is 'hot'"),
        ("oven: a\nminutes: 1.5", "cake.yaml: minutes is 1.5: a value of type int is needed"),
        ("oven: a\nminutes: true", "cake.yaml: minutes is True"),
        ("oven: a\nmode: sometimes", "cake.yaml: mode is 'sometimes': one of on, off, auto is needed"),
        ("oven: a\nspices: salt", "cake.yaml: spices is 'salt': a list is needed"),
        ("oven: a\nheat: 301", "--heat must be between 0 and 300, not 301"),
        ("oven: a\nheat: .nan", "--heat must be between 0 and 300, not nan"),
        ("oven: a\nminutes: 0", "--minutes must be at least 1, not 0"),
        ("heat: 100", "the following arguments are required: --oven"),
        ("- oven", "a recipe is a mapping of settings to values, not a list"),
        ("oven: [", "cake.yaml: not YAML"),
    ],
)
def test_mistakes_are_said_in_one_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bake("--recipe", recipe(tmp_path, text))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_help_shows_what_has_to_be_named_without_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bake("--help")
    assert stopped.value.code == 0
    usage = capsys.readouterr().out.split("\n\n")[0]
    assert "--oven PATH" in usage
    assert "[--oven PATH]" not in usage
    assert "[--heat X]" in usage


def test_a_recipe_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bake("--oven", "a", "--recipe", "nowhere.yaml")
    assert "cannot read the recipe 'nowhere.yaml': No such file" in capsys.readouterr().err


@given(
    st.builds(
        Baking,
        oven=st.from_regex(r"[a-z]+", fullmatch=True).map(Path),
        heat=st.floats(0, 300),
        minutes=st.none() | st.integers(1, 10**6),
        mode=st.sampled_from(["on", "off", "auto"]),
        dry=st.booleans(),
        spices=st.lists(st.from_regex(r"[a-z]+", fullmatch=True), min_size=1).map(tuple),
    )
)
def test_a_recipe_says_what_the_options_say(tmp_path_factory: pytest.TempPathFactory, settings: Baking) -> None:
    record = {**vars(settings), "oven": str(settings.oven), "spices": list(settings.spices)}
    assert bake("--recipe", recipe(tmp_path_factory.mktemp("r"), yaml.safe_dump(record))) == settings
    options = ["--oven", str(settings.oven), f"--heat={settings.heat!r}", "--mode", settings.mode]
    options += ["--spices", *settings.spices, "--dry" if settings.dry else "--no-dry"]
    options += [] if settings.minutes is None else ["--minutes", str(settings.minutes)]
    assert bake(*options) == settings
