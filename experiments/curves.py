"""Precision and recall of one class over all thresholds, and the area under them."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def precision_recall(score: ArrayLike, is_class: ArrayLike) -> tuple[Floats, Floats]:
    """Recall, ascending from 0, and the precision that belongs to it; empty where no beat is of the class.

    Args:
        score: (num_beats,), the higher the more likely of the class.
        is_class: (num_beats,), whether a beat is of it.
    """
    from sklearn.metrics import precision_recall_curve

    if not np.any(is_class):
        return np.zeros(0), np.zeros(0)
    precision, recall, _ = precision_recall_curve(is_class, score)
    return recall[::-1], precision[::-1]


def average_precision(score: ArrayLike, is_class: ArrayLike, weights_RB: ArrayLike) -> Floats:
    """Area under precision over recall, without interpolation: the mean precision at the thresholds that find one more.

    Equal to scikit-learn's `average_precision_score` with the weights as `sample_weight`, for all resamples at once.

    Args:
        score: (num_beats,), the higher the more likely of the class.
        is_class: (num_beats,), whether a beat is of it.
        weights_RB: (num_resamples, num_beats), how often each beat counts.

    Returns:
        (num_resamples,); NaN where no beat of the class counts.
    """
    score_B, true_B, weights_RB = np.asarray(score), np.asarray(is_class, bool), np.asarray(weights_RB, np.float64)
    order = np.argsort(-score_B, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score_B[order]) != 0, True))  # beats that tie are found together
    sorted_RB = weights_RB[:, order]
    raised = sorted_RB.cumsum(1)[:, ends]
    hits = (sorted_RB * true_B[order]).cumsum(1)[:, ends]
    precision = np.divide(hits, raised, out=np.zeros_like(hits), where=raised > 0)
    total = hits[:, -1]
    area = (np.diff(hits, axis=1, prepend=0.0) * precision).sum(1)
    return np.divide(area, total, out=np.full_like(area, np.nan), where=total > 0)
