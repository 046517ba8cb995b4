import io
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from experiments.space import FOLDER, LARGEST_GRID, Dimension, Scalar, Space, space_names, space_table

TRANSFER, SCRATCH = {"pretrained": True}, {"pretrained": False}
FACTS = st.sampled_from([TRANSFER, SCRATCH])
TABLES: dict[str, dict[str, Any]] = {
    "thaw_interval": {"range": [0.05, 0.2], "when": {"schedule": ["gradual", "chain_thaw"]}},
    "schedule": {"choices": ["full", "gradual", "chain_thaw", "top"], "when": {"pretrained": True}},
    "num_stages": {"range": [1, 3], "when": {"schedule": "top"}},
    "deep": {"choices": [True, False], "when": {"num_stages": [2, 3], "head": "mlp"}},
    "lr": {"range": [5e-4, 1e-2], "scale": "log", "first": 3e-3},
    "head": {"choices": ["linear", "mlp"], "first": "mlp"},
}


def space_of(tables: dict[str, Any]) -> Space:
    return Space.from_json({"name": "made up", "about": "", "dimensions": tables})


SPACE = space_of(TABLES)


class Dice:
    """Suggests at random, the ends of a range more often than chance would."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Any:
        del name
        return self.random.choice(choices)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        del name, log
        return self.random.choice([low, high, self.random.uniform(low, high)])

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        del name, log
        return self.random.randint(low, high)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Some dimensions in any order, each with conditions on earlier ones or on the fact."""
    dimensions: list[Dimension] = []
    for number in range(draw(st.integers(1, 6))):
        if draw(st.booleans()):
            table: dict[str, Any] = {"choices": draw(st.lists(SCALARS, min_size=1, max_size=3, unique=True))}
        else:
            ends = draw(st.lists(NUMBERS, min_size=2, max_size=2, unique=True))
            table = {"range": sorted(ends), "scale": draw(st.sampled_from(["linear", "log"]))}
        waited_for = draw(st.lists(st.sampled_from([None, *dimensions]), max_size=2, unique_by=id))
        table["when"] = {}
        for other in waited_for:
            if other is None:
                table["when"]["pretrained"] = draw(st.booleans())
            elif not other.is_continuous:
                values = st.sampled_from(other.grid(3))
                table["when"][other.name] = draw(st.lists(values, min_size=1, max_size=2, unique=True))
        dimensions.append(Dimension.from_table(f"d{number}", table))
    return Space(name="any", about="", dimensions=tuple(draw(st.permutations(dimensions))))


SCALARS = st.sampled_from(["a", "b", "c", True, False, 2, 3.5])
NUMBERS = st.integers(1, 9) | st.floats(1e-5, 1e3)
RANDOMS = st.randoms(use_true_random=False)


@given(spaces(), RANDOMS, FACTS)
def test_what_is_drawn_is_accepted_whatever_is_recorded_besides(
    space: Space, random: Random, facts: dict[str, Scalar]
) -> None:
    drawn = space.draw(Dice(random), facts)
    recorded = {"epochs": 20, "rr": None, **{one.name: one.start() for one in space.dimensions}, **drawn}
    assert space.accepts(drawn, facts) and space.accepts(recorded, facts)
    assert space.params(recorded, facts) == drawn
    assert [one.name for one in space.active(drawn, facts)] == list(drawn)


@given(spaces(), RANDOMS, FACTS)
def test_a_config_without_an_active_value_or_with_one_outside_is_not_accepted(
    space: Space, random: Random, facts: dict[str, Scalar]
) -> None:
    drawn = space.draw(Dice(random), facts)
    for name in drawn:
        for value in (None, "elsewhere", 1e9, float("nan")):
            assert not space.accepts(drawn | {name: value}, facts)
        assert not space.accepts({other: value for other, value in drawn.items() if other != name}, facts)


@given(spaces(), st.integers(1, 3), FACTS)
def test_a_grid_is_accepted_unique_and_holds_every_choice(space: Space, points: int, facts: dict[str, Scalar]) -> None:
    grid = space.grid(points, facts)
    assert all(space.accepts(config, facts) for config in grid)
    assert len({json.dumps(config) for config in grid}) == len(grid)
    for one in space.dimensions:
        found = {config[one.name] for config in grid if one.name in config}
        assert not found or found == set(one.grid(points))


@given(spaces(), FACTS)
def test_a_space_outlives_json_and_order(space: Space, facts: dict[str, Scalar]) -> None:
    again = Space.from_json(json.loads(json.dumps(space.to_json())))
    assert again == space
    turned = Space(name="any", about="", dimensions=space.dimensions[::-1])
    assert turned.first(facts) == space.first(facts)
    assert space.accepts(space.first(facts), facts)
    seen = {"pretrained"}
    for one in turned.dimensions:
        assert one.when.keys() <= seen
        seen.add(one.name)


@given(spaces(), RANDOMS, FACTS, st.data())
def test_a_fixed_dimension_is_one_that_always_has_its_value(
    space: Space, random: Random, facts: dict[str, Scalar], data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.sampled_from(space.dimensions), max_size=2, unique_by=id))
    values = {one.name: data.draw(st.sampled_from(one.grid(2))) for one in chosen}
    fixed = space.with_fixed(**values)
    assert not {one.name for one in fixed.dimensions} & values.keys()
    drawn = fixed.draw(Dice(random), facts)
    recorded = drawn | values
    assert space.accepts(recorded, facts)
    assert {name: value for name, value in space.params(recorded, facts).items() if name not in values} == drawn


def test_optuna_draws_from_a_space() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = []
    for _ in range(60):
        trial = study.ask()
        drawn.append(SPACE.draw(trial, TRANSFER))
        assert drawn[-1] == trial.params and SPACE.accepts(drawn[-1], TRANSFER)
        study.tell(trial, 0.0)
    assert {tuple(sorted(one)) for one in drawn} == {
        ("head", "lr", "schedule"),
        ("head", "lr", "schedule", "thaw_interval"),
        ("head", "lr", "num_stages", "schedule"),
        ("deep", "head", "lr", "num_stages", "schedule"),
    }
    assert {one["num_stages"] for one in drawn if "num_stages" in one} == {1, 2, 3}


def test_first_values_are_said_or_in_the_middle() -> None:
    assert SPACE.first(SCRATCH) == {"lr": 3e-3, "head": "mlp"}
    assert SPACE.first(TRANSFER) == {"schedule": "full", "lr": 3e-3, "head": "mlp"}
    middles = space_of(
        {
            "linear": {"range": [1.0, 100.0]},
            "log": {"range": [1.0, 100.0], "scale": "log"},
            "whole": {"range": [1, 3]},
            "whole_log": {"range": [1, 16], "scale": "log"},
        }
    )
    assert middles.first({}) == {"linear": 50.5, "log": pytest.approx(10), "whole": 2, "whole_log": 4}


@pytest.mark.parametrize(
    ("table", "points", "values"),
    [
        ({"range": [1e-5, 1e-1], "scale": "log"}, 5, (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)),
        ({"range": [0.0, 1.0]}, 3, (0.0, 0.5, 1.0)),
        ({"range": [1, 3]}, 9, (1, 2, 3)),
        ({"range": [1, 32], "scale": "log"}, 3, (1, 6, 32)),
        ({"choices": ["b", "a"]}, 7, ("b", "a")),
    ],
)
def test_the_grid_of_one_dimension(table: dict[str, Any], points: int, values: tuple[Scalar, ...]) -> None:
    grid = Dimension.from_table("x", table).grid(points)
    assert grid == (pytest.approx(values) if isinstance(values[0], float) else values)
    assert (grid[0], grid[-1]) == (values[0], values[-1])
    assert [type(value) for value in grid] == [type(value) for value in values]


def test_a_grid_too_large_is_refused_before_it_is_made() -> None:
    with pytest.raises(ValueError, match=f"more than {LARGEST_GRID:,} configurations"):
        Space.load("wide").grid(3, TRANSFER)
    with pytest.raises(ValueError, match="0 points: at least 1"):
        SPACE.grid(0, SCRATCH)


@pytest.mark.parametrize(
    ("value", "of_whole", "of_real", "of_flag"),
    [(1, True, True, False), (1.0, False, True, False), (True, False, False, True), (4, False, False, False)],
)
def test_true_is_no_number_and_a_whole_number_no_float(
    value: Scalar, of_whole: bool, of_real: bool, of_flag: bool
) -> None:
    tables = {"whole": {"range": [1, 3]}, "real": {"range": [0.5, 3]}, "flag": {"choices": [True, False]}}
    held = [Dimension.from_table(name, table).holds(value) for name, table in tables.items()]
    assert held == [of_whole, of_real, of_flag]


def test_a_dependent_of_an_inactive_dimension_is_inactive_whatever_is_recorded() -> None:
    recorded = {"lr": 1e-3, "head": "mlp", "schedule": "top", "num_stages": 2, "deep": True}
    assert SPACE.params(recorded, SCRATCH) == {"lr": 1e-3, "head": "mlp"}
    assert SPACE.params(recorded, TRANSFER) == recorded
    assert SPACE.params({}, TRANSFER) == {}


def test_fixing_hands_conditions_on() -> None:
    gradual = {one.name: one.when for one in SPACE.with_fixed(schedule="gradual").dimensions}
    assert gradual == {"thaw_interval": {"pretrained": (True,)}, "lr": {}, "head": {}}
    top = {one.name: one.when for one in SPACE.with_fixed(schedule="top", head="mlp").dimensions}
    assert top["num_stages"] == {"pretrained": (True,)} and "thaw_interval" not in top
    assert top["deep"] == {"num_stages": (2, 3)}
    with pytest.raises(ValueError, match="space made up has no dimension ratio; choose from schedule, thaw_interval"):
        SPACE.with_fixed(ratio=0.1)


GOOD = '[lr]\nrange = [0.1, 1.0]\n[head]\nchoices = ["linear", "mlp"]\n[depth]\nrange = [1, 3]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[lr", "Expected ']'"),
        ("", r"no dimension: a table such as \[lr\] is needed"),
        ("about = 3\n[lr]\nrange = [1, 2]", "key about: 3 is not a text"),
        ("lr = 3", r"key lr: unknown; choose from about and tables such as \[lr\]"),
        ("[a]\nrange = [1, 2]\nlog = true", "dimension a, key log: unknown beside range; choose from range, scale, wh"),
        ('[a]\nchoices = [1]\nscale = "log"', "dimension a, key scale: unknown beside choices; choose from choices, w"),
        ("[a]\nrange = [1, 2]\nchoices = [1]", "dimension a, keys choices and range: both given; exactly one"),
        ("[a]\nfirst = 1", "dimension a, keys choices and range: neither given; exactly one"),
        ("[a]\nrange = [2, 1]", r"dimension a, key range: \[2, 1\] is not two increasing numbers"),
        ("[a]\nrange = [1, 1]", "dimension a, key range: .* is not two increasing numbers"),
        ("[a]\nrange = [1, 2, 3]", "dimension a, key range: .* is not two increasing numbers"),
        ("[a]\nrange = [false, true]", "dimension a, key range: .* is not two increasing numbers"),
        ("[a]\nrange = [0.0, inf]", "dimension a, key range: .* is not two increasing numbers"),
        ("[a]\nrange = [nan, 1.0]", "dimension a, key range: .* is not two increasing numbers"),
        ("[a]\nrange = 3", "dimension a, key range: 3 is not two increasing numbers"),
        ('[a]\nrange = [0, 1]\nscale = "log"', "dimension a, key range: a log scale starts above 0, not at 0"),
        ('[a]\nrange = [0, 1]\nscale = "sqrt"', "dimension a, key scale: 'sqrt' is unknown; choose from linear, log"),
        ("[a]\nrange = [0, 1]\nscale = []", r"dimension a, key scale: \[\] is unknown; choose from linear, log"),
        ("[a]\nchoices = []", r"dimension a, key choices: \[\] is not a list of one value or more"),
        ('[a]\nchoices = "mlp"', "dimension a, key choices: 'mlp' is not a list"),
        ("[a]\nchoices = [1, true]", "dimension a, key choices: True is there twice"),
        ("[a]\nchoices = [1979-05-27]", "dimension a, key choices: .* is none of true, false, a text and a number"),
        ("[a]\nchoices = [[1]]", r"dimension a, key choices: \[1\] is none of"),
        ("[a]\nrange = [1, 2]\nfirst = 3", "dimension a, key first: 3 lies outside of the dimension, 1 … 2"),
        ("[a]\nrange = [1, 2]\nfirst = 1.5", "dimension a, key first: 1.5 lies outside"),
        ('[a]\nchoices = [true]\nfirst = "b"', "dimension a, key first: 'b' lies outside of the dimension, true"),
        ("[a]\nchoices = [1]\nwhen = 3", "dimension a, key when: 3 is not a table"),
        (
            GOOD + "[a]\nchoices = [1]\nwhen = { hed = 1 }",
            "dimension a, key when: hed is neither a dimension nor a fact; choose from lr, head, depth, pretrained",
        ),
        (
            GOOD + '[a]\nchoices = [1]\nwhen = { head = ["mlp", "deep"] }',
            "dimension a, key when: head is never 'deep'; choose from linear, mlp",
        ),
        (
            GOOD + "[a]\nchoices = [1]\nwhen = { depth = 4 }",
            "dimension a, key when: depth is never 4; choose from 1 … 3",
        ),
        (
            GOOD + "[a]\nchoices = [1]\nwhen = { pretrained = 1 }",
            "dimension a, key when: pretrained is never 1; choose from true, false",
        ),
        (GOOD + "[a]\nchoices = [1]\nwhen = { head = [] }", r"dimension a, key when, head: \[\] is not a list of one"),
        (GOOD + "[a]\nchoices = [1]\nwhen = { lr = 0.5 }", "dimension a, key when: lr has no single values"),
        ("[pretrained]\nchoices = [true]", "dimension pretrained: that is the name of a fact"),
        ("[a]\nchoices = [1]\nwhen = { a = 1 }", "dimension a → a: conditions in a circle"),
        (
            "[c]\nchoices = [1]\nwhen = { a = 1 }\n[a]\nchoices = [1]\nwhen = { b = 1 }\n"
            "[b]\nchoices = [1]\nwhen = { a = 1 }",
            "dimension a → b → a: conditions in a circle",
        ),
    ],
)
def test_a_mistake_is_one_line_that_says_where(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Space.load(str(path))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'about = "Ours."\n{GOOD}')
    space = Space.load(str(path))
    assert (space.name, space.about) == ("mine", "Ours.")
    assert space.first({}) == {"lr": 0.55, "head": "linear", "depth": 2}
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"mine\.toml: .*utf-8"):
        Space.load(str(path))


@pytest.mark.parametrize("name", ["smal", "small.json", "none.toml", ""])
def test_an_unknown_space_lists_those_that_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=f"no search space '{name}'; choose from default, small, wide, or"):
        Space.load(name)


@pytest.mark.parametrize("content", [None, [], {"name": "a"}, {"name": 1, "about": "", "dimensions": {}}])
def test_other_json_is_refused(content: Any) -> None:
    with pytest.raises(ValueError, match="not a recorded search space"):
        Space.from_json(content)


@pytest.mark.parametrize("name", space_names())
def test_every_file_loads_and_starts_from_what_is_known_to_work(name: str) -> None:
    space = Space.load(name)
    assert space.name == name and space.about.endswith(".")
    start = space.first(TRANSFER)
    known = {"lr": 3e-3, "head": "linear", "balance": "class_weight", "schedule": "full", "ratio": 1.0}
    assert start.items() >= known.items()
    assert {one.name for one in space.dimensions} > start.keys() or name == "small"
    assert space.first(SCRATCH).keys() < start.keys()
    assert Space.from_json(space.to_json()) == space


def test_there_are_three_files() -> None:
    assert space_names() == ["default", "small", "wide"]
    assert {path.suffix for path in FOLDER.iterdir()} == {".toml"}


def test_a_space_is_shown_in_words() -> None:
    stream = io.StringIO()
    Console(file=stream, width=160, color_system=None).print(space_table(SPACE))
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in stream.getvalue().splitlines()]
    assert ["lr", "0.0005 … 0.01", "log", ""] in rows
    assert ["num_stages", "1 … 3", "linear, whole", "schedule = top"] in rows
    assert ["deep", "true, false", "", "num_stages = 2, 3; head = mlp"] in rows
    assert Space.load("small").table()[-1] == ("ratio", "0.01 … 1", "log", "schedule ≠ frozen")


def test_a_space_is_light(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = python(
        "-c",
        "import sys; from experiments.space import Space; Space.load('wide')\n"
        "assert not {'torch', 'ray', 'optuna', 'numpy', 'mlflow', 'matplotlib'} & set(sys.modules)",
    )
    assert (done.returncode, done.stderr) == (0, "")
