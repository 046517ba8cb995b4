from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments import resampling
from experiments.metrics import bootstrap_interval, confusion_matrix, macro_recall
from experiments.resampling import Estimate, estimate

Floats = NDArray[np.float64]


def mean_of(value_B: Floats) -> resampling.Measure:
    def measure(weights_RB: Floats) -> Mapping[str, Floats]:
        return {"mean": weights_RB @ value_B / weights_RB.sum(1)}

    return measure


def patients(rng: np.random.Generator, num_patients: int, spread: float) -> tuple[Floats, NDArray[np.int64]]:
    """Beats of patients of unequal numbers, whose means differ by `spread`; the truth is 0."""
    group = np.repeat(np.arange(num_patients), rng.integers(5, 40, num_patients))
    return spread * rng.normal(size=num_patients)[group] + rng.normal(size=len(group)), group


def covered(num_patients: int, clustered: bool, num_studies: int = 200) -> float:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(num_studies):
        value, group = patients(rng, num_patients, spread=1.0)
        found = estimate(mean_of(value), len(value), group if clustered else None, num_resamples=300)["mean"]
        held += found.low <= 0 <= found.high
    return held / num_studies


def test_whole_patients_cover_the_truth_where_single_beats_do_not() -> None:
    assert covered(40, clustered=True) >= 0.88
    assert covered(40, clustered=False) <= 0.6


def test_single_beats_are_the_bootstrap_of_the_confusion_matrix() -> None:
    rng = np.random.default_rng(2)
    target = rng.integers(0, 3, 400)
    predicted = np.where(rng.random(400) < 0.7, target, rng.integers(0, 3, 400))
    cells = np.eye(9)[3 * target + predicted]
    found = estimate(lambda weights: {"recall": macro_recall((weights @ cells).reshape(-1, 3, 3))}, 400)["recall"]
    confusion = confusion_matrix(target, predicted, 3)
    assert found.value == macro_recall(confusion)
    assert (found.low, found.high) == pytest.approx(bootstrap_interval(confusion, macro_recall), abs=0.006)


@pytest.mark.parametrize("group", [None, [7, 7, -3, 7, 0, -3]], ids=["beats", "patients"])
def test_as_many_are_drawn_as_there_are_and_patients_stay_whole(group: list[int] | None) -> None:
    seen = []

    def measure(weights_RB: Floats) -> Mapping[str, Floats]:
        seen.append(weights_RB)
        return {"beats": weights_RB.sum(1)}

    estimate(measure, 6, group, num_resamples=50)
    assert (seen[0] == 1).all() and sum(map(len, seen[1:])) == 50
    drawn = np.concatenate(seen[1:])
    assert (drawn == drawn.round()).all() and drawn.std(0).min() > 0
    if group is None:
        assert (drawn.sum(1) == 6).all()
    else:
        assert (drawn[:, [0, 0, 2]] == drawn[:, [1, 3, 5]]).all()
        assert (drawn[:, [0, 2, 4]].sum(1) == 3).all()


def test_resamples_do_not_depend_on_how_many_are_measured_together(monkeypatch: pytest.MonkeyPatch) -> None:
    value, group = patients(np.random.default_rng(3), 5, spread=1.0)
    whole = estimate(mean_of(value), len(value), group, num_resamples=40)
    monkeypatch.setattr(resampling, "WEIGHTS_AT_ONCE", 3 * len(value))
    assert estimate(mean_of(value), len(value), group, num_resamples=40)["mean"].low == pytest.approx(whole["mean"].low)
    other = estimate(mean_of(value), len(value), group, num_resamples=40, seed=1)
    assert other["mean"] != whole["mean"] and other["mean"].value == pytest.approx(whole["mean"].value)


def test_resamples_without_a_value_do_not_count() -> None:
    def of_last(weights_RB: Floats) -> Mapping[str, Floats]:
        drawn = weights_RB[:, -1] > 0
        return {"drawn": np.where(drawn, 0.5, np.nan), "never": np.full(len(weights_RB), np.nan)}

    found = estimate(of_last, 4)
    assert found["drawn"] == Estimate(value=0.5, low=0.5, high=0.5)
    assert np.isnan([found["never"].value, found["never"].low, found["never"].high]).all()


@pytest.mark.parametrize(("num_beats", "group"), [(0, None), (0, []), (3, [0, 1])])
def test_nothing_to_resample_is_refused(num_beats: int, group: list[int] | None) -> None:
    with pytest.raises(ValueError, match="nothing to resample"):
        estimate(mean_of(np.zeros(num_beats)), num_beats, group)
