"""Probabilities that mean what they say: temperature scaling, and how far off they are.

Source: Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017 (arXiv 1706.04599).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_BINS = 15
MOST = 100.0
"""A temperature is between 1 / this and this."""


def probabilities(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax of the logits divided by the temperature, (num_beats, num_classes).

    Raises:
        ValueError: the temperature is not above 0.
    """
    from scipy.special import softmax

    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature {temperature}: above 0 is needed")
    return softmax(np.asarray(logits, np.float64) / temperature, axis=-1)


def fit_temperature(logits: ArrayLike, target: ArrayLike) -> float:
    """The temperature of the smallest cross-entropy on these beats, from .01 to 100; 1 where there are no beats.

    The cross-entropy has one minimum, as it is convex in 1 / temperature. Where every answer is right, as few beats may
    be, it falls towards .01, and the probabilities become 0 and 1.

    Args:
        logits: (num_beats, num_classes).
        target: integers (num_beats,) in [0, num_classes).

    Raises:
        ValueError: the shapes do not fit, a logit is not finite, or a class is out of range.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logit_BC, target_B = _checked(logits, target)
    if not np.isfinite(logit_BC).all():
        raise ValueError("a logit is not finite")
    if not target_B.size:
        return 1.0

    def cross_entropy(log_temperature: float) -> float:
        return float(
            -log_softmax(logit_BC / np.exp(log_temperature), axis=1)[np.arange(len(target_B)), target_B].mean()
        )

    found = minimize_scalar(cross_entropy, bounds=(-np.log(MOST), np.log(MOST)), method="bounded")
    return float(np.exp(found.x))


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Beats of about the same confidence: the probability of the class that was answered."""

    confidence: float
    accuracy: float
    num_beats: int


def reliability(probability: ArrayLike, target: ArrayLike, num_bins: int = NUM_BINS) -> list[Bin]:
    """The bins of equal width in confidence that hold beats, in ascending order.

    Args:
        probability: (num_beats, num_classes).
        target: integers (num_beats,) in [0, num_classes).

    Raises:
        ValueError: the shapes do not fit, or a class is out of range.
    """
    confidence_B, right_B, number_B = _binned(probability, target, num_bins)
    held = [(confidence_B[number_B == number], right_B[number_B == number]) for number in range(num_bins)]
    return [
        Bin(confidence=float(confidence.mean()), accuracy=float(right.mean()), num_beats=len(right))
        for confidence, right in held
        if len(right)
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between confidence and accuracy, weighted by beats; NaN without beats."""
    total = sum(one.num_beats for one in bins)
    return sum(one.num_beats * abs(one.confidence - one.accuracy) for one in bins) / total if total else float("nan")


def gaps(probability: ArrayLike, target: ArrayLike, num_bins: int = NUM_BINS) -> NDArray[np.float64]:
    """(num_beats, num_bins): each beat's confidence, less 1 where it is right, in the column of its bin.

    The error of any resample of the beats is the sum over columns of |sum of its rows|, over its number of beats.

    Raises:
        ValueError: the shapes do not fit, or a class is out of range.
    """
    confidence_B, right_B, number_B = _binned(probability, target, num_bins)
    return (confidence_B - right_B)[:, None] * (number_B[:, None] == np.arange(num_bins))


def _binned(
    probability: ArrayLike, target: ArrayLike, num_bins: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """(num_beats,) each: confidence, whether the answer is right, and the bin."""
    probability_BC, target_B = _checked(probability, target)
    confidence_B, right_B = probability_BC.max(1), probability_BC.argmax(1) == target_B
    return confidence_B, right_B, np.clip((confidence_B * num_bins).astype(np.int64), 0, num_bins - 1)


def _checked(values: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.float64], NDArray]:
    value_BC, target_B = np.asarray(values, np.float64), np.asarray(target)
    if value_BC.ndim != 2 or target_B.shape != value_BC.shape[:1]:
        raise ValueError(
            f"expected (num_beats, num_classes) and (num_beats,) targets, got shapes {value_BC.shape}, {target_B.shape}"
        )
    if target_B.size and not (target_B.min() >= 0 and target_B.max() < value_BC.shape[1]):
        raise ValueError(
            f"target has classes {target_B.min()} to {target_B.max()}, expected 0 to {value_BC.shape[1] - 1}"
        )
    return value_BC, target_B
