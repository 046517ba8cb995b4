import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from experiments.curves import average_precision, precision_recall

Weighted = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]


def weighted(num_beats: int) -> st.SearchStrategy[Weighted]:
    """Scores, often with ties; of the class or not; counts of two resamples."""
    few = hnp.arrays(np.float64, num_beats, elements=st.sampled_from([0.0, 0.25, 1.0]))
    many = hnp.arrays(np.float64, num_beats, elements=st.floats(0, 1))
    counts = hnp.arrays(np.float64, (2, num_beats), elements=st.integers(0, 3).map(float))
    return st.tuples(few | many, hnp.arrays(np.bool_, num_beats), counts)


@settings(deadline=None)
@given(st.integers(1, 30).flatmap(weighted))
def test_agrees_with_scikit_learn(drawn: Weighted) -> None:
    score, is_class, weights = drawn
    found = average_precision(score, is_class, weights)
    for value, row in zip(found, weights, strict=True):
        if not (row * is_class).sum():
            assert np.isnan(value)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scikit-learn, where nothing counts at the first threshold
            expected = average_precision_score(is_class[row > 0], score[row > 0], sample_weight=row[row > 0])
        assert value == pytest.approx(expected)


def test_a_resample_counts_as_beats_that_are_there_several_times() -> None:
    rng = np.random.default_rng(0)
    score, is_class = rng.random(40), rng.random(40) < 0.3
    drawn = rng.integers(0, 40, 40)
    counts = np.bincount(drawn, minlength=40)
    (found,) = average_precision(score, is_class, counts[None])
    assert found == pytest.approx(average_precision_score(is_class[drawn], score[drawn]))


def test_by_hand() -> None:
    """Found second and fourth: precision 1/2 and 2/4; those that tie count as found together."""
    score, is_class = [0.9, 0.8, 0.7, 0.6], [False, True, False, True]
    assert average_precision(score, is_class, np.ones((1, 4))) == pytest.approx([0.5])
    assert average_precision([0.5] * 4, is_class, np.ones((1, 4))) == pytest.approx([0.5])
    assert average_precision([0.9, 0.9, 0.1], [True, False, True], np.ones((1, 3))) == pytest.approx(
        [(1 / 2 + 2 / 3) / 2]
    )


def test_a_curve_runs_from_no_recall_to_all_of_it() -> None:
    recall, precision = precision_recall([0.9, 0.8, 0.7, 0.6], [True, False, False, True])
    assert (recall[0], recall[-1], precision[0], precision[-1]) == (0, 1, 1, 0.5)
    assert (np.diff(recall) >= 0).all()
    assert [len(part) for part in precision_recall([0.5], [False])] == [0, 0]
