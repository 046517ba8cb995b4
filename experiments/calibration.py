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
    """Softmax of the logits divided by the temperature, (num_beats, num_classes)."""
    from scipy.special import softmax

    return softmax(np.asarray(logits, np.float64) / temperature, axis=-1)


def fit_temperature(logits: ArrayLike, target: ArrayLike) -> float:
    """The temperature of the smallest cross-entropy on these beats, from .01 to 100; 1 where there are no beats.

    Args:
        logits: (num_beats, num_classes).
        target: integers (num_beats,) in [0, num_classes).

    Raises:
        ValueError: a logit is not finite.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logit_BC, target_B = np.asarray(logits, np.float64), np.asarray(target)
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
    """
    probability_BC, target_B = np.asarray(probability, np.float64), np.asarray(target)
    confidence_B, right_B = probability_BC.max(1), probability_BC.argmax(1) == target_B
    number_B = np.clip((confidence_B * num_bins).astype(int), 0, num_bins - 1)
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
