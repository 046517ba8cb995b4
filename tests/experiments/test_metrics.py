import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.linalg import null_space
from scipy.optimize import minimize
from scipy.stats import wilcoxon
from sklearn import metrics as reference

from experiments.metrics import (
    METRICS,
    Difference,
    _variance_of_mean,
    bootstrap_interval,
    confusion_matrix,
    holm,
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


def restricted_variance(d_PK: np.ndarray) -> float:
    """Times the number of pairs, the variance of the mean that maximises the restricted likelihood, by brute force."""
    num_p, num_k = d_PK.shape
    of_p, of_k = np.kron(np.eye(num_p), np.ones((num_k, num_k))), np.kron(np.ones((num_p, num_p)), np.eye(num_k))
    contrasts = null_space(np.ones((1, d_PK.size))).T

    def loss(log_variances: np.ndarray) -> float:
        a, b, e = np.exp(log_variances)
        covariance = contrasts @ (a * of_p + b * of_k + e * np.eye(d_PK.size)) @ contrasts.T
        rest = contrasts @ d_PK.ravel()
        return float(np.linalg.slogdet(covariance)[1] + rest @ np.linalg.solve(covariance, rest))

    starts = ([-1.0, -1.0, -1.0], [-9.0, -1.0, -1.0], [-1.0, -9.0, -1.0], [-9.0, -9.0, -1.0])
    found: Any = min((minimize(loss, start, method="Nelder-Mead") for start in starts), key=lambda one: one.fun)
    a, b, e = np.exp(found.x)
    return num_k * a + num_p * b + e


@pytest.mark.parametrize("spreads", [(0, 0), (1, 1), (2, 0), (0, 2)], ids=str)
def test_nested_variance_is_that_of_restricted_maximum_likelihood(spreads: tuple[float, float]) -> None:
    rng = np.random.default_rng(6)
    of_p, of_k = spreads
    for _ in range(2):
        d_PK = of_p * rng.normal(size=(3, 1)) + of_k * rng.normal(size=(1, 4)) + rng.normal(size=(3, 4))
        assert _variance_of_mean(d_PK)[0] == pytest.approx(restricted_variance(d_PK), rel=2e-3)


@pytest.mark.parametrize(
    ("of_p", "of_k", "expected"),
    [
        # Rest: mean square 1 of 2 freedoms. Larger than it: the sum less 1, and Satterthwaite's freedoms; else pooled.
        (3.0, 6.0, (8.0, 8**2 / (3**2 / 1 + 6**2 / 2 + 1 / 2))),
        (1.2, 1.2, (1.4, 1.0)),
        (0.4, 6.0, (6.0, 2.0)),
        (3.0, 0.5, (3.0, 1.0)),
        (0.4, 0.5, ((0.4 + 2 * 0.5 + 2) / 5, 5.0)),
        (0.1, 0.9, (0.9, 2.0)),
    ],
    ids=str,
)
def test_nested_variance_by_hand(of_p: float, of_k: float, expected: tuple[float, float]) -> None:
    """Two encoders (1 freedom) × three seeds (2), with these mean squares."""
    effects_p = np.sqrt(of_p / 6) * np.array([[1.0], [-1.0]])
    effects_k = np.sqrt(of_k / 2) * np.array([[1.0, 0.0, -1.0]])
    rest = np.sqrt(0.5) * np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])
    assert _variance_of_mean(effects_p + effects_k + rest) == pytest.approx(expected)


def test_nested_difference_by_hand():
    # Mean squares 6.25 of encoders (1 freedom), .25 of seeds, .25 of the rest: mean 1.75, variance 6.25 / 4.
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


def test_holm_by_hand() -> None:
    """Holm's procedure step by step: 4 × .005, 3 × .01, then 2 × .03, which the largest takes over."""
    assert holm([0.03, 0.005, 0.04, 0.01]) == pytest.approx([0.06, 0.02, 0.06, 0.03])
    assert holm([0.6, None, 0.5]) == [1.0, None, 1.0]
    assert holm([0.2]) == [0.2] and holm([None]) == [None] and holm([]) == []


@settings(deadline=None)
@given(st.lists(st.none() | st.floats(0, 1), max_size=8), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_stepwise_procedure_rejects(p_values: list[float | None], level: float) -> None:
    """The procedure of the paper: from the smallest on, until the first above level / (number left)."""
    tested = sorted(p_value for p_value in p_values if p_value is not None)
    kept = [rank for rank, p_value in enumerate(tested) if (len(tested) - rank) * p_value > level]
    rejected = tested[: kept[0]] if kept else tested
    pairs = [(p, q) for p, q in zip(p_values, holm(p_values), strict=True) if p is not None and q is not None]
    assert sorted(p for p, q in pairs if q <= level) == rejected
    assert [q is None for q in holm(p_values)] == [p is None for p in p_values]


@pytest.mark.parametrize("p_values", [[-0.1], [0.5, 1.5], [math.nan]], ids=str)
def test_p_values_that_are_none_are_refused(p_values: list[float]) -> None:
    with pytest.raises(ValueError, match="p-values are within 0…1"):
        holm(p_values)
