import json
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import pytest
from ray.tune.search import Searcher

from experiments.space import Dimension, Space
from finetune.cli import Tune
from finetune.schedulers import SCHEDULERS, SPENDS, Race
from finetune.searchers import SEARCHERS, Question, Tried

SPACE = Space(
    name="a",
    about="",
    dimensions=(
        Dimension(name="lr", low=1e-4, high=1e-1, scale="log", first=1e-2),
        Dimension(name="head", choices=("linear", "mlp")),
        Dimension(name="schedule", choices=("frozen", "top"), when={"pretrained": (True,)}),
        Dimension(name="num_stages", low=1, high=3, whole=True, when={"schedule": ("top",)}),
    ),
)
FACTS = {"pretrained": True}


def question(tried: Sequence[Tried] = (), prior: Sequence[Tried] = (), **more: Any) -> Question:
    usual = {"space": SPACE, "facts": FACTS, "num_objectives": 1, "seed": 0}
    return Question(**(usual | more), tried=tried, prior=prior)


def value(config: dict[str, Any]) -> float:
    """Best at lr .003, mlp and top."""
    import math

    off = abs(math.log10(config["lr"] / 3e-3))
    return 1 - 0.2 * off + 0.1 * (config["head"] == "mlp") + 0.1 * (config.get("schedule") == "top")


def ask(searcher: Searcher, number: int) -> list[dict[str, Any]]:
    asked = []
    for trial in range(number):
        config = searcher.suggest(str(trial))
        if config == Searcher.FINISHED:
            break
        assert isinstance(config, dict)
        asked.append(config)
        reward = value(config)
        searcher.on_trial_complete(str(trial), {"objectives": [reward], "objective": reward})
    return asked


def test_the_command_line_offers_every_searcher_and_scheduler() -> None:
    hints = get_type_hints(Tune)
    assert set(get_args(hints["searcher"])) == set(SEARCHERS)
    assert set(get_args(hints["scheduler"])) == set(SCHEDULERS) == set(SPENDS)


@pytest.mark.parametrize("name", SEARCHERS)
def test_every_searcher_stays_within_the_space_and_repeats_itself_by_seed(name: str) -> None:
    asked = ask(SEARCHERS[name](question()), 12)
    assert all(SPACE.accepts(config, FACTS) for config in asked)
    assert asked == ask(SEARCHERS[name](question()), 12)
    assert asked[2:] != ask(SEARCHERS[name](question(seed=1)), 12)[2:]
    assert {frozenset(config) for config in ask(SEARCHERS[name](question(facts={"pretrained": False})), 4)} == {
        frozenset({"lr", "head"})
    }


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_the_first_trial_is_the_one_that_the_space_names(name: str) -> None:
    assert ask(SEARCHERS[name](question()), 1) == [SPACE.first(FACTS)]


def test_a_grid_has_each_combination_once_and_ends() -> None:
    asked = ask(SEARCHERS["grid"](question()), 100)
    names = {json.dumps(config, sort_keys=True) for config in asked}
    assert len(asked) == len(names) == 3 * 2 * (1 + 3)
    left = ask(SEARCHERS["grid"](question([Tried(config=config, values=(0.5,)) for config in asked[:5]])), 100)
    assert {json.dumps(config, sort_keys=True) for config in left} == names - {
        json.dumps(config, sort_keys=True) for config in asked[:5]
    }


def test_tpe_learns_from_earlier_trials() -> None:
    configs = SPACE.grid(7, FACTS)
    known = [Tried(config=config | {"epochs": 3}, values=(value(config),)) for config in configs]
    asked = ask(SEARCHERS["tpe"](question(prior=known)), 20)
    fresh = ask(SEARCHERS["random"](question()), 20)
    mean = [sum(map(value, found)) / 20 for found in (asked, fresh)]
    assert mean[0] > mean[1] + 0.05


def test_several_objectives_and_failures_are_told() -> None:
    searcher: Any = SEARCHERS["tpe"](question(num_objectives=2))
    for trial in range(4):
        searcher.suggest(str(trial))
    searcher.on_trial_complete("0", {"objectives": [0.9, 0.1]})
    searcher.on_trial_complete("1", {"objectives": [0.1, 0.9]})
    searcher.on_trial_complete("2", {"objective": 0.0, "failed": "NaN"})
    searcher.on_trial_complete("3", error=True)
    assert len(searcher.study.best_trials) == 2
    assert [trial.state.name for trial in searcher.study.trials] == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_can_be_made(name: str) -> None:
    scheduler = SCHEDULERS[name](Race(num_epochs=6, grace_epochs=4, space=SPACE))
    assert scheduler.set_search_properties("objective", "max")


def test_population_based_training_needs_something_to_change() -> None:
    rigid = Space(name="rigid", about="", dimensions=(Dimension(name="head", choices=("linear", "mlp")),))
    with pytest.raises(ValueError, match="--scheduler pbt: space rigid has no range of lr or weight_decay"):
        SCHEDULERS["pbt"](Race(num_epochs=6, grace_epochs=4, space=rigid))
