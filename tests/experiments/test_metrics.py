import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import wilcoxon
from sklearn import metrics as reference

from experiments.metrics import (
    METRICS,
    Difference,
    bootstrap_interval,
    confusion_matrix,
    is_collapsed,
    macro_recall,
    macro_recall_error,
    nested_difference,
    objective,
    paired_difference,
    recall_per_class,
    scores,
    verdict,
)

NUM_CLASSES = 4

labels = st.integers(1, 40).flatmap(
    lambda num_beats: hnp.arrays(np.int64, (2, num_beats), elements=st.integers(0, NUM_CLASSES - 1))
)


@settings(deadline=None)
@given(labels)
def test_agrees_with_scikit_learn(pair):
    target, predicted = pair
    confusion = confusion_matrix(target, predicted, NUM_CLASSES)
    np.testing.assert_array_equal(
        confusion, reference.confusion_matrix(target, predicted, labels=list(range(NUM_CLASSES)))
    )
    present = np.unique(target)
    options: dict[str, Any] = {"labels": present, "zero_division": 0, "average": "macro"}
    precision, recall, f1, _ = reference.precision_recall_fscore_support(target, predicted, **options)
    expected = {
        "macro_recall": recall,
        "macro_f1": f1,
        "macro_precision": precision,
        "micro_f1": reference.f1_score(target, predicted, average="micro"),
        "accuracy": reference.accuracy_score(target, predicted),
    }
    assert scores(confusion) == pytest.approx(expected)
    per_class = reference.recall_score(target, predicted, **{**options, "average": None})
    assert recall_per_class(confusion)[present] == pytest.approx(per_class)
    assert np.isnan(np.delete(recall_per_class(confusion), present)).all()


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_leading_axes_are_scored_one_by_one(metric):
    confusions = np.random.default_rng(0).integers(0, 9, (3, 2, NUM_CLASSES, NUM_CLASSES))
    expected = [[metric(confusion) for confusion in row] for row in confusions]
    np.testing.assert_allclose(metric(confusions), expected)


def test_a_class_never_predicted_has_precision_0_and_an_absent_class_does_not_count():
    confusion = [[8, 2, 0], [4, 0, 0], [0, 0, 0]]
    assert scores(confusion) == pytest.approx(
        {"macro_recall": 0.4, "macro_precision": 8 / 24, "macro_f1": 8 / 22, "micro_f1": 8 / 14, "accuracy": 8 / 14}
    )
    assert np.isnan(recall_per_class(confusion)[2])


@pytest.mark.parametrize(
    ("target", "predicted", "message"),
    [([0, 1], [0], "shape"), ([0, 2], [0, 1], "target has classes 0 to 2"), ([0, 1], [0, -1], "predicted has classes")],
)
def test_labels_that_do_not_fit_are_refused(target, predicted, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(target, predicted, num_classes=2)


def test_an_empty_matrix_is_refused():
    with pytest.raises(ValueError, match="no beats"):
        scores(np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="no beats"):
        bootstrap_interval(np.zeros((1, 2, 2), int), macro_recall)


@pytest.mark.parametrize(
    ("confusion", "collapsed"),
    [
        ([[9, 0], [5, 0]], True),
        ([[5, 5], [5, 5]], True),
        ([[9, 1], [5, 5]], False),
        ([[51, 49, 0], [49, 51, 0], [0, 0, 0]], True),
        ([[0, 0], [0, 0]], True),
    ],
)
def test_collapse(confusion, collapsed):
    assert is_collapsed(confusion) is collapsed


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    truth = np.array([[0.5, 0.1], [0.1, 0.3]])
    draws = np.random.default_rng(1).multinomial(300, truth.ravel(), size=200).reshape(-1, 1, 2, 2)
    intervals = [bootstrap_interval(draw, macro_recall, num_resamples=400) for draw in draws]
    covered = [low <= macro_recall(truth) <= high for low, high in intervals]
    assert 0.89 <= np.mean(covered) <= 0.99


def test_bootstrap_interval_equals_that_of_resampled_beats():
    rng = np.random.default_rng(2)
    target = rng.integers(0, 3, 400)
    predicted = np.where(rng.random(400) < 0.7, target, rng.integers(0, 3, 400))
    rows = rng.integers(0, 400, (2000, 400))
    resampled = [macro_recall(confusion_matrix(target[row], predicted[row], 3)) for row in rows]
    interval = bootstrap_interval(confusion_matrix(target, predicted, 3), macro_recall)
    assert interval == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.006)


def test_bootstrap_interval_is_seeded_and_not_narrowed_by_repeated_runs():
    confusion = np.array([[40, 10], [5, 20]])
    once = bootstrap_interval(confusion[None], macro_recall)
    assert once == bootstrap_interval(confusion[None], macro_recall)
    assert once != bootstrap_interval(confusion[None], macro_recall, seed=1)
    assert bootstrap_interval(np.stack([confusion] * 10), macro_recall) == pytest.approx(once, abs=0.01)


def test_paired_difference():
    difference = paired_difference([0.8, 0.7, 0.9, 0.6], [0.7, 0.7, 0.6, 0.7])
    # Mean .075, standard deviation .1708, t(.975, 3) = 3.182.
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.075, -0.1968, 0.3468), abs=1e-4)
    assert (difference.wins, difference.num_pairs) == (2, 4)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.int64, st.integers(2, 8), elements=st.integers(-5, 5)).filter(np.any))
def test_p_value_is_exact_with_ties_and_zeros(differences):
    expected: Any = wilcoxon(differences[differences != 0], method="auto")
    assert paired_difference(differences, np.zeros(len(differences))).p_value == pytest.approx(expected.pvalue)


def test_p_value_without_ties_or_without_differences():
    untied = [1.0, -2.5, 3.25, 4.0, 5.5, 6.125, -7.0, 8.0]
    expected: Any = wilcoxon(untied, method="exact")
    assert paired_difference(untied, np.zeros(8)).p_value == pytest.approx(expected.pvalue)
    assert paired_difference([0.5, 0.5], [0.5, 0.5]).p_value == 1


def test_one_pair_has_a_difference_but_no_interval():
    difference = paired_difference([0.8], [0.5])
    assert math.isclose(difference.mean, 0.3)
    assert (difference.low, difference.high, difference.p_value) == (None, None, None)


@pytest.mark.parametrize(("treated", "control"), [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0])])
def test_runs_that_are_not_paired_are_refused(treated, control):
    with pytest.raises(ValueError, match="run"):
        paired_difference(treated, control)


@pytest.mark.parametrize(
    ("low", "high", "num_pairs", "num_pretraining_seeds", "words"),
    [
        (0.01, 0.05, 8, 3, "transfer helps"),
        (-0.05, -0.01, 8, 3, "transfer hurts"),
        (-0.01, 0.05, 8, 3, "no evidence either way"),
        (0.0, 0.05, 8, 3, "no evidence either way"),
        (0.01, 0.05, 8, 1, "transfer helps, for this checkpoint"),
        (-0.01, 0.05, 8, 1, "no evidence either way, for this checkpoint"),
        (0.01, 0.05, 7, 3, "too few pairs (7)"),
        (0.01, 0.05, 9, 2, "too few pretraining seeds (2)"),
        (None, None, 8, 8, "too few fine-tune seeds (1)"),
        (None, None, 1, 1, "too few pairs (1)"),
    ],
)
def test_verdict(low, high, num_pairs, num_pretraining_seeds, words):
    difference = Difference(mean=0.0, low=low, high=high, wins=0, num_pairs=num_pairs, p_value=None)
    assert verdict(difference, num_pretraining_seeds) == words


def test_error_of_macro_recall_is_the_spread_of_repeated_draws():
    support, recall = np.array([40, 15, 0]), np.array([0.8, 0.4, 0.0])
    hits = (support * recall).astype(int)
    confusion = np.diag(hits) + np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]]) * (support - hits)[:, None]
    draws = np.random.default_rng(3).binomial(support[:2], recall[:2], (20_000, 2)) / support[:2]
    assert macro_recall_error(confusion) == pytest.approx(draws.mean(1).std(), rel=0.03)
    assert macro_recall_error([[5, 0], [0, 5]]) == 0


def coverage(sizes: tuple[int, int], spreads: tuple[float, float, float], num_studies: int = 1000) -> float:
    """Share of the intervals that hold the truth, 0, where encoder, control run and each pair have these spreads."""
    rng = np.random.default_rng(4)
    of_p, of_k, of_pair = spreads
    covered = 0
    for _ in range(num_studies):
        effects_P1, effects_1K = of_p * rng.normal(size=(sizes[0], 1)), of_k * rng.normal(size=(1, sizes[1]))
        difference = nested_difference(effects_P1 + effects_1K + of_pair * rng.normal(size=sizes))
        assert difference.low is not None and difference.high is not None
        covered += difference.low <= 0 <= difference.high
    return covered / num_studies


@pytest.mark.parametrize("sizes", [(3, 3), (3, 8)], ids=str)
@pytest.mark.parametrize(
    "spreads", [(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1), (3, 1, 1), (1, 3, 1), (1, 1, 0.3)], ids=str
)
def test_nested_interval_covers_the_truth_at_least_about_as_often_as_it_says(sizes, spreads):
    """Wide where no seed has an effect of its own: three seeds cannot tell that from a small one."""
    assert coverage(sizes, spreads) >= 0.935


@pytest.mark.parametrize("spreads", [(3, 1, 1), (1, 3, 1), (1, 0, 0.3)], ids=str)
def test_nested_interval_is_not_much_too_wide_where_a_seed_decides(spreads):
    assert coverage((3, 3), spreads) <= 0.985


def test_nested_difference_by_hand():
    # Mean squares 12.5 / 2 = 6.25 of encoders (1 freedom), .25 of seeds, .25 of the rest: mean 1.75, variance 6.25 / 4.
    difference = nested_difference([[3.5, 2.5], [0.5, 0.5]])
    assert (difference.mean, difference.wins, difference.num_pairs) == (1.75, 4, 4)
    assert (difference.low, difference.high) == pytest.approx((1.75 - 12.7062 * 1.25, 1.75 + 12.7062 * 1.25), abs=1e-3)


def test_nested_difference_of_one_encoder_is_the_paired_one():
    treated, control = np.array([0.8, 0.7, 0.9, 0.6]), np.array([0.7, 0.7, 0.6, 0.7])
    assert nested_difference([treated - control]) == paired_difference(treated - control, np.zeros(4))


def test_luck_of_the_pretraining_widens_the_interval():
    rng = np.random.default_rng(5)
    noise = 0.01 * rng.normal(size=(3, 8))
    alike, different = nested_difference(0.1 + noise), nested_difference(0.1 + noise + np.array([[-0.2], [0], [0.2]]))
    assert alike.low is not None and alike.low > 0.08
    assert different.low is not None and different.low < 0
    assert alike.p_value is not None and different.p_value is not None and alike.p_value < 0.01 < different.p_value


def test_one_fine_tune_seed_has_no_nested_interval():
    difference = nested_difference([[0.1], [0.2], [0.3]])
    assert (difference.low, difference.high, difference.p_value, difference.num_pairs) == (None, None, None, 3)


def test_equal_differences_are_certain():
    difference = nested_difference(np.full((3, 3), 0.5))
    assert (difference.low, difference.high, difference.p_value) == (0.5, 0.5, 0.0)


@pytest.mark.parametrize("differences", [[], [0.1], [[]], [[0.1, math.nan]], [[0.1, 0.2], [math.inf, 0.2]]], ids=str)
def test_differences_that_are_no_table_are_refused(differences):
    with pytest.raises(ValueError, match="run"):
        nested_difference(differences)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_be_an_objective(name: str) -> None:
    confusion = [[5, 1, 0], [2, 6, 1], [0, 0, 4]]
    assert objective(name, ["N", "S", "V"])(confusion) == METRICS[name](confusion)


def test_recall_and_precision_of_a_class_are_objectives() -> None:
    confusion = [[5, 1, 0], [2, 6, 1], [0, 0, 4]]
    assert objective("recall_S", ["N", "S", "V"])(confusion) == pytest.approx(6 / 9)
    assert objective("precision_V", ["N", "S", "V"])(confusion) == pytest.approx(4 / 5)
    assert objective("precision_V", ["N", "V"])([[3, 0], [2, 0]]) == 0  # never predicted


@pytest.mark.parametrize("name", ["luck", "recall_X", "f1_S", "recall", ""])
def test_an_unknown_objective_lists_the_choices(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"unknown objective '{name}'; choose from macro_recall, .*recall_S, precision_N"
    ):
        objective(name, ["N", "S"])
