import math
import struct
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import optuna
import pytest

from experiments.space import Space
from finetune.importance import Trial
from finetune.pictures import _place, _places, _ticks, draw_study

ARMS = {"transfer": {"pretrained": True}, "scratch": {"pretrained": False}}
OBJECTIVE = "validation macro recall"
LONG = "a_name_that_is_too_long_for_a_panel"
TABLES: dict[str, Any] = {
    "lr": {"range": [5e-4, 1e-2], "scale": "log"},
    "head": {"choices": ["linear", LONG, "mlp"]},
    "num_stages": {"range": [1, 3]},
    "schedule": {"choices": ["full", "gradual"], "when": {"pretrained": True}},
    "thaw_interval": {"range": [0.05, 0.25], "when": {"schedule": "gradual"}},
}


def space_of(*names: str) -> Space:
    return Space.from_json({"name": "made up", "about": "", "dimensions": {name: TABLES[name] for name in names}})


SPACE = space_of(*TABLES)


def trials(num: int, space: Space = SPACE, value: float | None = None) -> list[Trial]:
    """As many of each arm, drawn at random."""
    random, drawn = Random(0), []
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for arm, facts in ARMS.items():
        for _ in range(num):
            config = space.draw(study.ask(), facts)
            drawn.append(Trial(arm, {**config, "epochs": 8}, random.random() if value is None else value))
    return drawn


def words(path: Path) -> str:
    return " ".join("".join(element.itertext()) for element in ElementTree.parse(path).getroot().iter())


def assert_pictures(files: list[Path], folder: Path, names: list[str]) -> None:
    """Every picture is there as a PNG of some size that shows something, and as an SVG with words."""
    assert files == [folder / f"{name}.{end}" for name in names for end in ("png", "svg")]
    for name in names:
        content = (folder / f"{name}.png").read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        assert content.startswith(b"\x89PNG") and min(width, height) > 250 and len(content) > 8_000
        assert OBJECTIVE in words(folder / f"{name}.svg") and "made up space" in words(folder / f"{name}.svg")


def test_a_search_is_drawn_with_every_dimension_and_arm(tmp_path: Path) -> None:
    files = draw_study(tmp_path, trials(12), SPACE, OBJECTIVE, ARMS)
    assert_pictures(files, tmp_path, ["parallel_transfer", "parallel_scratch", "slices", "importance"])
    for name in TABLES:
        assert name in words(tmp_path / "slices.svg") and name in words(tmp_path / "importance.svg")
        assert (name in words(tmp_path / "parallel_scratch.svg")) is (name not in ("schedule", "thaw_interval"))
    assert "not in" in words(tmp_path / "parallel_transfer.svg")
    assert "not in" not in words(tmp_path / "parallel_scratch.svg")
    assert "schedule (12 of 24 trials)" in words(tmp_path / "slices.svg")
    assert "conditional" in words(tmp_path / "importance.svg")
    best = max(trial.value for trial in trials(12) if trial.arm == "transfer")
    assert f"best: {best:.3f}" in words(tmp_path / "parallel_transfer.svg")


def test_the_same_search_is_drawn_alike_bit_for_bit(tmp_path: Path) -> None:
    first, second = (draw_study(tmp_path / name, trials(5), SPACE, OBJECTIVE, ARMS) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_one_trial_is_drawn(tmp_path: Path) -> None:
    files = draw_study(tmp_path, trials(1)[:1], SPACE, OBJECTIVE, ARMS)
    assert_pictures(files, tmp_path, ["parallel_transfer", "slices", "importance"])
    assert "1 distinct trial; 4 are needed" in words(tmp_path / "importance.svg")
    assert "made up space, transfer: 1 trial" in words(tmp_path / "parallel_transfer.svg")


@pytest.mark.parametrize("name", ["lr", "head", "num_stages"])
def test_one_dimension_is_drawn(name: str, tmp_path: Path) -> None:
    space = space_of(name)
    files = draw_study(tmp_path, trials(9, space), space, OBJECTIVE, ARMS)
    assert_pictures(files, tmp_path, ["parallel_transfer", "parallel_scratch", "slices", "importance"])


def test_equal_values_are_drawn(tmp_path: Path) -> None:
    files = draw_study(tmp_path, trials(9, value=0.5), SPACE, OBJECTIVE, ARMS)
    assert_pictures(files, tmp_path, ["parallel_transfer", "parallel_scratch", "slices", "importance"])
    assert "all trials have one value" in words(tmp_path / "importance.svg")


def test_what_cannot_be_drawn_is_left_out(tmp_path: Path) -> None:
    good = trials(3)
    strange = [
        Trial("transfer", {**good[0].config, "lr": 5.0}, 0.9),
        Trial("scratch", good[-1].config, math.nan),
        Trial("random-frozen", good[-1].config, 0.9),
    ]
    draw_study(tmp_path, good + strange, SPACE, OBJECTIVE, ARMS)
    assert "transfer: 3 trials" in words(tmp_path / "parallel_transfer.svg")
    assert "scratch: 3 trials" in words(tmp_path / "parallel_scratch.svg")
    assert draw_study(tmp_path / "none", strange, SPACE, OBJECTIVE, ARMS) == []
    assert not (tmp_path / "none").exists()


def test_an_arm_that_searches_nothing_is_left_out(tmp_path: Path) -> None:
    space = space_of("schedule")
    files = draw_study(tmp_path, trials(6, space), space, OBJECTIVE, ARMS)
    assert_pictures(files, tmp_path, ["parallel_transfer", "slices", "importance"])
    assert draw_study(tmp_path, trials(6, space), space.with_fixed(schedule="full"), OBJECTIVE, ARMS) == []


def test_places_follow_the_scale_and_leave_room_for_what_is_missing() -> None:
    lr, head, num_stages, _, thaw_interval = SPACE.dimensions
    assert [_place(lr, value) for value in (5e-4, math.sqrt(5e-6), 1e-2)] == pytest.approx([0, 0.5, 1])
    assert [_place(num_stages, value) for value in (1, 2, 3)] == pytest.approx([1 / 6, 0.5, 5 / 6])
    assert [label for _, label in _ticks(lr)] == ["0.0005", "0.001", "0.01"]
    assert [label for _, label in _ticks(num_stages)] == ["1", "2", "3"]
    drawn = trials(30)
    for one in (head, thaw_interval):
        places = _places(drawn, one)
        lacking = [one.name not in trial.config for trial in drawn]
        assert (places < 0).tolist() == lacking and len(set(places)) == len(drawn) and places.max() <= 1


def test_a_name_too_long_is_cut(tmp_path: Path) -> None:
    draw_study(tmp_path, trials(3), SPACE, OBJECTIVE, ARMS)
    assert LONG in words(tmp_path / "parallel_transfer.svg") and LONG not in words(tmp_path / "slices.svg")
    assert f"{LONG[:17]}…" in words(tmp_path / "slices.svg")
