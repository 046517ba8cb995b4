import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from experiments.calibration import (
    Bin,
    expected_calibration_error,
    fit_temperature,
    gaps,
    probabilities,
    reliability,
)

NUM_CLASSES = 3

Scored = tuple[NDArray[np.float64], NDArray[np.int64]]


def drawn(num_beats: int, temperature: float, seed: int = 0) -> Scored:
    """Logits that are `temperature` times too far apart for the targets that were drawn by them."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(num_beats, NUM_CLASSES))
    target = (rng.random((num_beats, 1)) > probabilities(logits).cumsum(1)).sum(1)
    return temperature * logits, target


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_of_a_simulation_is_found_and_calibrates(temperature: float) -> None:
    logits, target = drawn(20_000, temperature)
    found = fit_temperature(logits, target)
    assert found == pytest.approx(temperature, rel=0.05)
    further, its_target = drawn(20_000, temperature, seed=1)
    before, after = (
        expected_calibration_error(reliability(probabilities(further, one), its_target)) for one in (1.0, found)
    )
    assert after < 0.015 and (temperature == 1 or before > 0.08)


@pytest.mark.parametrize("temperature", [0.4, 1.7])
def test_the_cross_entropy_is_smallest_at_the_temperature(temperature: float) -> None:
    logits, target = drawn(500, temperature)
    found = fit_temperature(logits, target)
    losses = [log_loss(target, probabilities(logits, found * factor)) for factor in (0.98, 1.0, 1.02)]
    assert losses[1] < min(losses[0], losses[2])


def test_a_temperature_keeps_every_answer_and_the_bounds() -> None:
    logits, target = drawn(200, 1.0)
    assert (probabilities(logits, 7.0).argmax(1) == logits.argmax(1)).all()
    assert probabilities(logits, 1e6) == pytest.approx(1 / NUM_CLASSES, abs=1e-4)
    right = 10 * np.eye(NUM_CLASSES)[target]
    assert 0.01 <= fit_temperature(right, target) < 0.1
    assert fit_temperature(-right, target) == pytest.approx(100, rel=0.01)
    assert fit_temperature(np.zeros((0, NUM_CLASSES)), []) == 1


def test_large_logits_do_not_overflow() -> None:
    assert probabilities([[1e4, 0.0, -1e4]], 0.01).tolist() == [[1.0, 0.0, 0.0]]
    assert math.isfinite(fit_temperature([[1e4, 0.0], [0.0, 1e4], [1e4, 0.0]], [0, 1, 1]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"^temperature .* needed$"):
        probabilities([[0.0, 1.0]], temperature)


@pytest.mark.parametrize(
    ("values", "target", "message"),
    [
        ([0.5, 0.5], [0, 1], r"got shapes \(2,\), \(2,\)"),
        ([[0.5, 0.5]], [0, 1], r"got shapes \(1, 2\), \(2,\)"),
        ([[0.5, 0.5]], [2], "classes 2 to 2, expected 0 to 1"),
        ([[0.5, 0.5]], [-1], "classes -1 to -1, expected 0 to 1"),
    ],
)
def test_beats_that_do_not_fit_are_refused(values: list, target: list[int], message: str) -> None:
    for function in (fit_temperature, reliability, gaps):
        with pytest.raises(ValueError, match=message):
            function(values, target)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="a logit is not finite"):
        fit_temperature([[0.0, math.inf]], [0])


def test_bins_by_hand() -> None:
    """Four bins: .5 and .6 in the third, .75 and 1 in the fourth; a half right, all right."""
    probability = [[0.5, 0.5], [0.4, 0.6], [0.75, 0.25], [0.0, 1.0]]
    bins = reliability(probability, [0, 0, 0, 1], num_bins=4)
    assert bins == [
        Bin(confidence=pytest.approx(0.55), accuracy=0.5, num_beats=2),  # pyright: ignore[reportArgumentType]
        Bin(confidence=0.875, accuracy=1.0, num_beats=2),
    ]
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.05 + 2 * 0.125) / 4)
    assert reliability(np.zeros((0, 2)), []) == [] and math.isnan(expected_calibration_error([]))


@settings(deadline=None)
@given(
    st.integers(1, 30).flatmap(
        lambda num: st.tuples(
            hnp.arrays(np.float64, (num, NUM_CLASSES), elements=st.floats(-4, 4)),
            hnp.arrays(np.int64, num, elements=st.integers(0, NUM_CLASSES - 1)),
        )
    ),
    st.integers(1, 20),
)
def test_the_error_is_that_of_its_definition_and_of_the_gaps(beats: Scored, num_bins: int) -> None:
    """Equation 3 of the paper, bin by bin."""
    logits, target = beats
    probability = probabilities(logits)
    expected = 0.0
    for number in range(num_bins):
        last = number == num_bins - 1
        inside = [
            (max(row), int(np.argmax(row)) == label)
            for row, label in zip(probability, target, strict=True)
            if number <= max(row) * num_bins < number + 1 or (last and max(row) == 1)
        ]
        if inside:
            confidence, right = np.mean(inside, axis=0)
            expected += len(inside) / len(target) * abs(right - confidence)
    assert expected_calibration_error(reliability(probability, target, num_bins)) == pytest.approx(expected)
    summed = gaps(probability, target, num_bins).sum(0)
    assert np.abs(summed).sum() / len(target) == pytest.approx(expected)
