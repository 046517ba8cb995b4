import io
import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import optuna
import pytest
from rich.console import Console

from experiments.space import Given, Space
from finetune.distributions import distributions
from finetune.importance import Importance, importance_table, importances

TRANSFER, SCRATCH = {"pretrained": True}, {"pretrained": False}
SPACE = Space.from_json(
    {
        "name": "made up",
        "about": "",
        "dimensions": {
            "lr": {"range": [1e-3, 1e-1], "scale": "log"},
            "head": {"choices": ["linear", "mlp", "attention"]},
            "depth": {"range": [1, 4]},
            "l2_sp": {"range": [1e-5, 1e-1], "scale": "log"},
            "schedule": {"choices": ["full", "gradual"], "when": {"pretrained": True}},
            "thaw_interval": {"range": [0.05, 0.25], "when": {"schedule": "gradual"}},
        },
    }
)
Config = Mapping[str, Any]


def trials(
    response: Callable[[Config], float], num: int = 80, facts: Given = TRANSFER
) -> list[tuple[dict[str, Any], float]]:
    """Drawn at random, with a little noise."""
    random = Random(0)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = [SPACE.draw(study.ask(), facts) for _ in range(num)]
    return [({**config, "epochs": 8}, response(config) + random.gauss(0, 0.01)) for config in configs]


def by_name(rows: list[Importance]) -> dict[str, Importance]:
    return {row.name: row for row in rows}


@pytest.mark.parametrize(
    ("decides", "response"),
    [
        ("lr", lambda config: -abs(math.log10(config["lr"]) + 2)),
        ("head", lambda config: float(config["head"] == "mlp")),
        ("depth", lambda config: config["depth"] / 4),
        ("schedule", lambda config: float(config["schedule"] == "full")),
        ("l2_sp", lambda config: float(config["l2_sp"] < 1e-3)),
    ],
)
def test_what_decides_is_named_by_both(decides: str, response: Callable[[Config], float]) -> None:
    rows = importances(trials(response), SPACE, TRANSFER)
    assert rows[0].name == decides
    for shares, least in (([fanova(row) for row in rows[:-1]], 0.8), ([ped_anova(row) for row in rows[:-1]], 0.4)):
        assert shares[0] == max(shares) > least
        assert sum(shares) == pytest.approx(1)


def fanova(row: Importance) -> float:
    assert type(row.fanova) is float and row.reason is None
    return row.fanova


def ped_anova(row: Importance) -> float:
    assert type(row.ped_anova) is float and row.reason is None
    return row.ped_anova


def test_a_conditional_dimension_is_judged_where_it_is_active() -> None:
    def response(config: Config) -> float:
        return 4 * config["thaw_interval"] if "thaw_interval" in config else Random(config["lr"]).random()

    done = trials(response)
    rows = importances(done, SPACE, TRANSFER)
    row = by_name(rows)["thaw_interval"]
    assert row.is_conditional and row.num_trials == sum("thaw_interval" in config for config, _ in done) < len(done)
    assert fanova(row) > 0.8 and ped_anova(row) > 0.5
    assert rows[-1] == row and all(other.num_trials == len(done) for other in rows[:-1])


def test_what_is_never_active_has_no_row() -> None:
    rows = importances(trials(lambda config: config["lr"], facts=SCRATCH), SPACE, SCRATCH)
    assert {row.name for row in rows} == {"lr", "head", "depth", "l2_sp"}


def test_importances_do_not_change_from_call_to_call_and_leave_optuna_as_it_was(
    capfd: pytest.CaptureFixture[str],
) -> None:
    done = trials(lambda config: config["lr"] * config["depth"])
    optuna.logging.set_verbosity(optuna.logging.INFO)
    capfd.readouterr()
    assert importances(done, SPACE, TRANSFER) == importances(done, SPACE, TRANSFER)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert capfd.readouterr() == ("", "")


def test_what_does_not_vary_has_a_reason_instead() -> None:
    done = [({**config, "head": "mlp"}, value) for config, value in trials(lambda config: config["depth"])]
    row = by_name(importances(done, SPACE, TRANSFER))["head"]
    assert (row.fanova, row.ped_anova, row.reason) == (None, None, "always mlp")


def test_of_one_varying_dimension_everything_is_explained_by_it() -> None:
    config = {"lr": 0.01, "head": "mlp", "l2_sp": 1e-3}
    rows = importances([({**config, "depth": depth}, depth) for depth in (1, 2, 3, 4)], SPACE, SCRATCH)
    assert (rows[0].name, rows[0].fanova, rows[0].ped_anova) == ("depth", 1.0, 1.0)
    assert [row.reason for row in rows[1:]] == ["always 0.01", "always mlp", "always 0.001"]


@pytest.mark.parametrize("num", [1, 2, 3])
def test_few_trials_have_a_reason_instead(num: int) -> None:
    done = trials(lambda config: config["depth"], num=num, facts=SCRATCH)
    for rows in (importances(done, SPACE, SCRATCH), importances(done * 5, SPACE, SCRATCH)):
        assert {row.reason for row in rows} == {f"{num} distinct trial{'s' * (num > 1)}; 4 are needed"}
        assert {row.fanova for row in rows} == {row.ped_anova for row in rows} == {None}


def test_equal_values_have_a_reason_instead() -> None:
    done = [(config, 0.5) for config, _ in trials(lambda _config: 0.0)]
    assert {row.reason for row in importances(done, SPACE, TRANSFER)} == {"all trials have one value"}


def test_many_ties_explain_nothing_rather_than_everything_alike() -> None:
    done = [(config, float(number > 0)) for number, (config, _) in enumerate(trials(lambda _config: 0.0))]
    for row in importances(done, SPACE, SCRATCH):
        assert row.ped_anova is not None and math.isfinite(row.ped_anova)
        assert row.fanova is not None and math.isfinite(row.fanova)


def test_no_trial_gives_no_row_and_strange_ones_do_not_count() -> None:
    assert importances([], SPACE, TRANSFER) == []
    done = trials(lambda config: config["depth"])
    strange = [(done[0][0] | {"lr": 5.0}, 1.0), ({"lr": 0.01}, 1.0), (done[0][0], math.nan), (done[1][0], -math.inf)]
    assert importances(done + strange, SPACE, TRANSFER) == importances(done, SPACE, TRANSFER)


def test_distributions_are_those_of_a_drawn_trial() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for facts in (TRANSFER, SCRATCH):
        for _ in range(10):
            trial = study.ask()
            drawn = SPACE.draw(trial, facts)
            recorded = {**drawn, "epochs": 8}
            assert distributions(SPACE, recorded, facts) == trial.distributions
            study.add_trial(
                optuna.create_trial(
                    params=SPACE.params(recorded, facts),
                    distributions=distributions(SPACE, recorded, facts),
                    value=0.5,
                )
            )


def test_the_table_says_why_there_is_no_share() -> None:
    rows = [
        Importance(name="lr", num_trials=60, is_conditional=False, fanova=0.714, ped_anova=0.5),
        Importance(name="thaw_interval", num_trials=9, is_conditional=True, fanova=0.1, ped_anova=0.0),
        Importance(name="head", num_trials=60, is_conditional=False, reason="always mlp"),
    ]
    stream = io.StringIO()
    Console(file=stream, width=120, color_system=None).print(importance_table(rows, "Importance [transfer]"))
    lines = stream.getvalue().splitlines()
    assert lines[0].strip() == "Importance [transfer]"
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells == [
        ["lr", "71 %", "50 %", "60", ""],
        ["thaw_interval", "10 %", "0 %", "9", "conditional"],
        ["head", "–", "–", "60", "always mlp"],
    ]
