import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from experiments.thresholds import Promises, Thresholds, alarms, fit_promises, fit_thresholds

NUM_CLASSES = 3

Scored = tuple[NDArray[Any], NDArray[np.int64]]
"""Probabilities (num_beats, num_classes) and targets."""


def scored(num_beats: int) -> st.SearchStrategy[Scored]:
    """Often with ties: from a few values, or from all."""
    shape = (num_beats, NUM_CLASSES)
    few = hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    many = hnp.arrays(np.float64, shape, elements=st.floats(0, 1))
    return st.tuples(few | many, hnp.arrays(np.int64, num_beats, elements=st.integers(0, NUM_CLASSES - 1)))


floors = st.sampled_from([0.5, 0.95, 1.0]) | st.floats(0, 1, exclude_min=True)


@settings(deadline=None)
@given(st.integers(1, 40).flatmap(scored), floors)
def test_a_threshold_is_the_highest_that_keeps_the_floor(beats: Scored, floor: float) -> None:
    probabilities, target = beats
    thresholds = fit_thresholds(probabilities, target, floor)
    assert (thresholds.floor, len(thresholds.values)) == (floor, NUM_CLASSES)
    for label, value in enumerate(thresholds.values):
        own = probabilities[target == label, label]
        if value is None:
            assert not own.size
            continue
        assert value in own and (own >= value).mean() >= floor
        assert all((own >= higher).mean() < floor for higher in own[own > value])


@settings(deadline=None)
@given(st.integers(1, 40).flatmap(scored), floors)
def test_alarms_are_counted_beat_by_beat(beats: Scored, floor: float) -> None:
    probabilities, target = beats
    thresholds = fit_thresholds(probabilities, target, floor)
    for label, (value, found) in enumerate(zip(thresholds.values, alarms(thresholds, *beats), strict=True)):
        raised = [value is not None and row[label] >= value for row in probabilities]
        hits = sum(raised[beat] and target[beat] == label for beat in range(len(target)))
        support = list(target).count(label)
        assert (found.num_alarms, found.support) == (sum(raised), support)
        assert found.recall == pytest.approx(hits / support if support else math.nan, nan_ok=True)
        assert found.precision == pytest.approx(hits / sum(raised) if any(raised) else math.nan, nan_ok=True)
        assert not support or found.recall >= floor


def of_one_class(own: list[float]) -> Scored:
    """Beats of class 0 with these probabilities, and one of class 1."""
    first = np.array([*own, 0.3])
    return np.stack([first, 1 - first], axis=1), np.array([0] * len(own) + [1])


@pytest.mark.parametrize(
    ("own", "floor", "threshold"),
    [
        ([0.9, 0.8, 0.7, 0.1], 0.75, 0.7),
        ([0.9, 0.8, 0.7, 0.1], 0.76, 0.1),
        ([0.9, 0.8, 0.7, 0.1], 0.01, 0.9),
        ([0.1, 0.9, 0.7, 0.8], 1.0, 0.1),
        ([0.9, 0.5, 0.5, 0.5], 0.5, 0.5),
        ([0.9, 0.5, 0.5, 0.1], 0.75, 0.5),
        ([0.5, 0.5], 1.0, 0.5),
        ([0.6], 0.001, 0.6),
    ],
    ids=str,
)
def test_thresholds_by_hand(own: list[float], floor: float, threshold: float) -> None:
    assert fit_thresholds(*of_one_class(own), floor).values[0] == threshold


def test_a_floor_that_rounds_up_asks_for_no_further_beat() -> None:
    assert 0.07 * 100 > 7
    own = [beat / 200 for beat in range(100)]
    assert fit_thresholds(*of_one_class(own), 0.07).values[0] == own[-7]


def test_thresholds_of_float32_hold_in_float32() -> None:
    rng = np.random.default_rng(0)
    probabilities, target = rng.dirichlet(np.ones(NUM_CLASSES), 90).astype(np.float32), rng.integers(0, NUM_CLASSES, 90)
    thresholds = fit_thresholds(probabilities, target, 1.0)
    assert [found.recall for found in alarms(thresholds, probabilities, target)] == [1.0] * NUM_CLASSES


def test_alarms_by_hand() -> None:
    """Class 1 has a threshold that nothing reaches, class 2 has none though it occurs, class 3 does not occur."""
    thresholds = Thresholds(floor=0.9, values=(0.4, 0.9, None, 0.2))
    probabilities = [[0.7, 0.1, 0.1, 0.1], [0.4, 0.4, 0.2, 0.0], [0.3, 0.3, 0.2, 0.2], [0.1, 0.1, 0.8, 0.0]]
    of_0, of_1, of_2, of_3 = alarms(thresholds, probabilities, [0, 1, 0, 2])
    assert (of_0.recall, of_0.precision, of_0.num_alarms, of_0.support) == (0.5, 0.5, 2, 2)
    assert (of_1.recall, of_1.num_alarms, of_1.support) == (0.0, 0, 1) and math.isnan(of_1.precision)
    assert (of_2.recall, of_2.num_alarms, of_2.support) == (0.0, 0, 1) and math.isnan(of_2.precision)
    assert (of_3.precision, of_3.num_alarms, of_3.support) == (0.0, 1, 0) and math.isnan(of_3.recall)


@pytest.mark.parametrize("floor", [0.0, -0.5, 1.01, math.nan])
def test_a_floor_that_is_no_share_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match=r"^recall floor .* needed$"):
        fit_thresholds([[0.5, 0.5]], [0], floor)
    with pytest.raises(ValueError, match=r"^recall floor .* needed$"):
        Thresholds(floor=floor, values=(0.5,))


@pytest.mark.parametrize(
    ("probabilities", "target", "message"),
    [
        ([0.5, 0.5], [0, 1], r"got shapes \(2,\), \(2,\)"),
        ([[0.5, 0.5]], [0, 1], r"got shapes \(1, 2\), \(2,\)"),
        ([[0.5, 0.5]], [[0]], r"got shapes \(1, 2\), \(1, 1\)"),
        (np.zeros((0, 2)), [], r"no beats .* shape \(0, 2\)"),
        ([[0.5, math.nan]], [0], "not finite"),
        ([[0.5, math.inf]], [0], "not finite"),
        ([[0.5, 0.5]], [2], "classes 2 to 2, expected 0 to 1"),
        ([[0.5, 0.5]], [-1], "classes -1 to -1, expected 0 to 1"),
    ],
)
def test_beats_that_do_not_fit_are_refused(probabilities: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_thresholds(probabilities, target, 0.9)
    with pytest.raises(ValueError, match=message):
        alarms(Thresholds(floor=0.9, values=(0.5, 0.5)), probabilities, target)


def test_thresholds_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 thresholds do not fit probabilities of 2 classes"):
        alarms(Thresholds(floor=0.9, values=(0.5, None, 0.5)), [[0.5, 0.5]], [0])


def test_json_there_and_back() -> None:
    probabilities = np.array([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]], np.float32)
    thresholds = fit_thresholds(probabilities, [1, 2], 1)
    assert thresholds.values == (None, float(np.float32(0.7)), float(np.float32(0.4)))
    assert Thresholds.from_json(json.loads(json.dumps(thresholds.to_json()))) == thresholds


@pytest.mark.parametrize(
    "content",
    [
        None,
        [0.9, [0.5]],
        {"floor": 0.9},
        {"floor": 0.9, "values": [0.5], "more": 1},
        {"floor": "0.9", "values": [0.5]},
        {"floor": True, "values": [0.5]},
        {"floor": 0.9, "values": 0.5},
        {"floor": 0.9, "values": ["0.5"]},
        {"floor": 0.9, "values": [math.nan]},
        {"floor": 2, "values": [0.5]},
    ],
    ids=str,
)
def test_other_json_is_refused(content: Any) -> None:
    with pytest.raises(ValueError, match=r"^not recorded thresholds|^recall floor"):
        Thresholds.from_json(content)


limits = st.sampled_from([0.05, 0.1, 0.25, 0.5]) | st.floats(0.01, 0.99)


@settings(deadline=None)
@given(st.integers(1, 40).flatmap(scored), st.tuples(*[limits] * NUM_CLASSES))
def test_a_promise_is_the_highest_threshold_within_its_limit(beats: Scored, limits: tuple[float, ...]) -> None:
    probabilities, target = beats
    promises = fit_promises(probabilities, target, limits)
    for label, (value, limit, needed) in enumerate(zip(promises.values, limits, promises.needed, strict=True)):
        own = probabilities[target == label, label]
        assert promises.num_beats[label] == len(own)
        assert (value is None) == (len(own) < needed)
        if value is not None:
            assert value in own and ((own < value).sum() + 1) / (len(own) + 1) <= limit
            assert all(((own < higher).sum() + 1) / (len(own) + 1) > limit for higher in own[own > value])


@given(st.integers(2, 1000) | st.floats(1.01, 1000))
def test_the_beats_that_a_promise_needs_are_the_fewest(inverse: float) -> None:
    limit = 1 / inverse
    (needed,) = Promises(limits=(limit,), values=(None,), num_beats=(0,)).needed
    assert 1 / (needed + 1) <= limit and (needed == 0 or 1 / needed > limit)


@pytest.mark.parametrize(
    ("num_beats", "limit", "num_missed"),
    [(19, 0.05, 0), (18, 0.05, None), (38, 0.05, 0), (39, 0.05, 1), (1000, 0.05, 49), (29, 0.1, 2), (1, 0.5, 0)],
)
def test_promises_by_hand(num_beats: int, limit: float, num_missed: int | None) -> None:
    own = [(beat + 1) / 2000 for beat in range(num_beats)]
    promises = fit_promises(*of_one_class(own), [limit, 0.5])
    assert promises.values[0] == (None if num_missed is None else own[num_missed])


@pytest.mark.parametrize(("num_beats", "limit"), [(19, 0.05), (25, 0.05), (60, 0.1)])
def test_a_promise_is_kept_on_further_beats_and_is_not_far_too_careful(num_beats: int, limit: float) -> None:
    """The expected miss rate lies between limit − 1 / (num_beats + 1) and limit (theorems 1 and 2 of the paper)."""
    rng = np.random.default_rng(0)
    missed = []
    for _ in range(2000):
        own = rng.beta(2, 1, num_beats)
        (value, _) = fit_promises(*of_one_class(list(own)), [limit, 0.5]).values
        assert value is not None
        missed.append(value**2)  # the share of Beta(2, 1) below it
    noise = 3 * np.std(missed) / np.sqrt(len(missed))
    assert limit - 1 / (num_beats + 1) - noise <= np.mean(missed) <= limit + noise


def test_a_class_without_a_promise_raises_no_alarm() -> None:
    probabilities, target = of_one_class([0.9, 0.8])
    promises = fit_promises(probabilities, target, [0.05, 0.5])
    assert (promises.values, promises.num_beats, promises.needed) == ((None, 0.7), (2, 1), (19, 1))
    assert [found.num_alarms for found in alarms(promises, probabilities, target)] == [0, 1]


@pytest.mark.parametrize("limit", [0.0, 1.0, -0.1, math.nan])
def test_a_limit_that_promises_nothing_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=r"^miss rate .* needed$"):
        fit_promises([[0.5, 0.5]], [0], [0.5, limit])


def test_limits_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="1 limits do not fit probabilities of 2 classes"):
        fit_promises([[0.5, 0.5]], [0], [0.5])


def test_misses_of_further_beats_are_as_likely_as_simulated() -> None:
    rng = np.random.default_rng(1)
    counts = []
    for _ in range(4000):
        (value, _) = fit_promises(*of_one_class(list(rng.random(39))), [0.05, 0.5]).values
        assert value is not None
        counts.append((rng.random(100) < value).sum())
    promises = fit_promises(*of_one_class(list(rng.random(39))), [0.05, 0.5])
    assert promises.chance(0, 0, 100) == 1
    for num_missed in (1, 5, 12):
        assert promises.chance(0, num_missed, 100) == pytest.approx(np.mean(np.array(counts) >= num_missed), abs=0.025)
