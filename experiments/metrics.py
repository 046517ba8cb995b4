"""Metrics of a confusion matrix, recall first, with the intervals and verdicts drawn from them.

A confusion matrix is (num_classes, num_classes): rows are true classes, columns predicted ones. Every metric takes
(..., num_classes, num_classes) and gives (...), so that thousands of bootstrap resamples are one call. Macro means are
over the classes that occur in the rows; a class that is never predicted has precision 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Metric = Callable[[ArrayLike], Floats]

ALPHA = 0.05


def confusion_matrix(target: ArrayLike, predicted: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Count beats by true and predicted class.

    Args:
        target, predicted: integers in [0, num_classes), of one shape.

    Raises:
        ValueError: the shapes differ, or a class is out of range.
    """
    target, predicted = np.asarray(target), np.asarray(predicted)
    if target.shape != predicted.shape:
        raise ValueError(f"target has shape {target.shape}, predicted {predicted.shape}")
    for name, labels in (("target", target), ("predicted", predicted)):
        if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
            raise ValueError(f"{name} has classes {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}")
    cells = target.ravel().astype(np.int64) * num_classes + predicted.ravel()
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def recall_per_class(confusion: ArrayLike) -> Floats:
    """(..., num_classes): recall of each class, NaN where it does not occur."""
    support, _, hits = _counts(confusion)
    return _ratio(hits, support, otherwise=np.nan)


def macro_recall(confusion: ArrayLike) -> Floats:
    support, _, hits = _counts(confusion)
    return _mean_over_present(_ratio(hits, support), support)


def macro_recall_error(confusion: ArrayLike) -> Floats:
    """Standard error of macro recall: each class's recall is a binomial share of its beats."""
    support, _, hits = _counts(confusion)
    recall = _ratio(hits, support)
    variance = _ratio(recall * (1 - recall), support)
    return np.sqrt(variance.sum(-1)) / np.maximum((support > 0).sum(-1), 1)


def macro_precision(confusion: ArrayLike) -> Floats:
    support, predicted, hits = _counts(confusion)
    return _mean_over_present(_ratio(hits, predicted), support)


def macro_f1(confusion: ArrayLike) -> Floats:
    support, predicted, hits = _counts(confusion)
    return _mean_over_present(_ratio(2 * hits, support + predicted), support)


def accuracy(confusion: ArrayLike) -> Floats:
    support, _, hits = _counts(confusion)
    return _ratio(hits.sum(-1), support.sum(-1), otherwise=np.nan)


METRICS: dict[str, Metric] = {
    "macro_recall": macro_recall,
    "macro_f1": macro_f1,
    "macro_precision": macro_precision,
    # With one label a beat, every false positive is another class's false negative, so the two are one number.
    "micro_f1": accuracy,
    "accuracy": accuracy,
}


def scores(confusion: ArrayLike) -> dict[str, float]:
    """Every metric of `METRICS` for one confusion matrix (num_classes, num_classes).

    Raises:
        ValueError: the matrix counts no beats.
    """
    if not np.sum(confusion):
        raise ValueError("no beats to score: the confusion matrix is empty")
    return {name: float(metric(confusion)) for name, metric in METRICS.items()}


def objective(name: str, classes: Sequence[str]) -> Metric:
    """What a search maximises, by name: one of `METRICS`, or recall or precision of a class, such as recall_V.

    Raises:
        ValueError: an unknown name; the message lists the choices.
    """
    if name in METRICS:
        return METRICS[name]
    kind, _, label = name.partition("_")
    if label not in classes or kind not in ("recall", "precision"):
        choices = [*METRICS, *(f"{kind}_{label}" for kind in ("recall", "precision") for label in classes)]
        raise ValueError(f"unknown objective {name!r}; choose from {', '.join(choices)}")
    column = list(classes).index(label)

    def of_class(confusion: ArrayLike) -> Floats:
        support, predicted, hits = _counts(confusion)
        return _ratio(hits, support if kind == "recall" else predicted)[..., column]

    return of_class


def is_collapsed(confusion: ArrayLike) -> bool:
    """Whether a run learned nothing: it predicts one class only, or its macro recall is within .01 of chance."""
    support, predicted, _ = _counts(confusion)
    return bool(np.count_nonzero(predicted) <= 1 or macro_recall(confusion) <= 1 / np.count_nonzero(support) + 0.01)


def bootstrap_interval(
    confusions: ArrayLike, metric: Metric, seed: int = 0, num_resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of `metric`, averaged over runs, when test beats are resampled with replacement.

    Drawing n of n beats with replacement changes nothing but how many fall in each cell of the confusion matrix, and
    those counts are multinomial with the cells' shares as probabilities. For a metric of the confusion matrix, drawing
    the counts is therefore the bootstrap itself, without touching the beats.

    Runs usually share their test beats, so their resampled metrics rise and fall together. How far cannot be known from
    the matrices: the bounds are averaged over runs, which is exact if they move as one and errs on the wide side
    otherwise. Beats count as independent: with several beats a patient the interval is optimistic.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Args:
        confusions: (num_runs, num_classes, num_classes), or one matrix.

    Raises:
        ValueError: a run counts no beats.
    """
    confusions = np.asarray(confusions)
    num_classes = confusions.shape[-1]
    cells = confusions.reshape(-1, 1, num_classes**2)
    num_beats = cells.sum(-1)
    if not num_beats.all():
        raise ValueError("no beats to resample: a confusion matrix is empty")
    draws = np.random.default_rng(seed).multinomial(
        num_beats, cells / num_beats[..., None], size=(len(cells), num_resamples)
    )
    values = metric(draws.reshape(len(cells), num_resamples, num_classes, num_classes))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=-1).mean(-1)
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Treated minus control over paired runs; `low`, `high` and `p_value` are None with fewer than two pairs."""

    mean: float
    low: float | None
    high: float | None
    wins: int
    num_pairs: int
    p_value: float | None


def paired_difference(treated: ArrayLike, control: ArrayLike, level: float = 0.95) -> Difference:
    """Mean difference of paired runs, with its Student t interval and exact Wilcoxon signed-rank p-value.

    The p-value is two-sided over all sign flips of the differences; pairs without a difference are left out
    (Wilcoxon, Individual Comparisons by Ranking Methods, 1945).

    Args:
        treated, control: (num_pairs,), one metric of the two runs of each pair.

    Raises:
        ValueError: the two are not paired, or empty, or hold a value that is not finite.
    """
    treated, control = np.asarray(treated, float), np.asarray(control, float)
    if treated.ndim != 1 or treated.shape != control.shape or not treated.size:
        raise ValueError(f"expected as many treated runs as control runs, got shapes {treated.shape}, {control.shape}")
    differences = treated - control
    if not np.isfinite(differences).all():
        raise ValueError("a paired run has a metric that is not finite")
    mean, num_pairs = float(differences.mean()), differences.size
    low = high = p_value = None
    if num_pairs >= 2:
        from scipy.stats import t

        margin = float(t.ppf((1 + level) / 2, num_pairs - 1) * differences.std(ddof=1) / np.sqrt(num_pairs))
        low, high, p_value = mean - margin, mean + margin, _signed_rank_p(differences)
    wins = int(np.count_nonzero(differences > 0))
    return Difference(mean=mean, low=low, high=high, wins=wins, num_pairs=num_pairs, p_value=p_value)


def nested_difference(differences_PK: ArrayLike, level: float = 0.95) -> Difference:
    """Mean of treated minus control over pretraining seeds × fine-tune seeds, with an interval for both kinds of luck.

    Every encoder of a fine-tune seed is compared with the same control run, so the two seeds are crossed random
    effects: d_pk = mean + a_p + b_k + e_pk. The variance of the mean is (θ_p + θ_k − θ_e) / (P · K), where the θ are
    estimated by restricted maximum likelihood: the mean squares of the two-way analysis of variance without repetition,
    but where θ_e would exceed another, those two are pooled (Thompson, The Problem of Negative Estimates of Variance
    Components, Annals of Mathematical Statistics 33:273–289, 1962). Student's t has Satterthwaite's degrees of freedom
    (Giesbrecht and Burns, Two-Stage Analysis Based on a Mixed Model, Biometrics 41:477–486, 1985), never fewer than
    those of the fewer seeds.

    Simulated (`python -m tests.benchmarks.verdicts`), intervals of 95 % cover the truth in 93.5 to 97 % of studies of
    3 × 8 and 5 × 8 seeds if a seed of either kind has an effect of its own, and in 98 % if none has. Of two
    pretraining seeds they may cover no more than 88 %, so the verdict says nothing there; and skewed effects of few
    seeds are covered less, as by any t.

    One encoder: the paired t and the signed-rank test of `paired_difference`. One fine-tune seed: no interval, as
    nothing tells how much of the difference is that one control run's.

    Args:
        differences_PK: (num_pretraining_seeds, num_fine_tune_seeds).

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    d_PK = np.asarray(differences_PK, float)
    if d_PK.ndim != 2 or not d_PK.size:
        raise ValueError(f"expected differences of runs by pretraining seed and fine-tune seed, got shape {d_PK.shape}")
    num_p, num_k = d_PK.shape
    if num_p == 1:
        return paired_difference(d_PK[0], np.zeros(num_k), level)
    if not np.isfinite(d_PK).all():
        raise ValueError("a paired run has a metric that is not finite")
    mean, wins = float(d_PK.mean()), int(np.count_nonzero(d_PK > 0))
    low = high = p_value = None
    if num_k >= 2:
        from scipy.stats import t

        squares, freedom = _variance_of_mean(d_PK)
        error = float(np.sqrt(squares / d_PK.size))
        margin = float(t.ppf((1 + level) / 2, freedom)) * error
        low, high = mean - margin, mean + margin
        p_value = float(2 * t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return Difference(mean=mean, low=low, high=high, wins=wins, num_pairs=d_PK.size, p_value=p_value)


def _variance_of_mean(d_PK: Floats) -> tuple[float, float]:
    """Times the number of pairs, the variance of the mean; and its degrees of freedom."""
    num_p, num_k = d_PK.shape
    mean, of_p, of_k = d_PK.mean(), d_PK.mean(1, keepdims=True), d_PK.mean(0, keepdims=True)
    rest_PK = d_PK - of_p - of_k + mean
    rest, freedom = float(np.square(rest_PK).sum()), (num_p - 1) * (num_k - 1)
    seeds = [(num_k * np.square(of_p - mean).sum(), num_p - 1), (num_p * np.square(of_k - mean).sum(), num_k - 1)]
    larger: list[tuple[float, int]] = []
    for total, own in sorted(seeds, key=lambda one: one[0] / one[1]):
        if total / own <= rest / freedom:
            rest, freedom = rest + float(total), freedom + own
        else:
            larger.append((float(total) / own, own))
    if not larger:
        return rest / freedom, float(freedom)
    if len(larger) == 1:
        return larger[0][0], float(larger[0][1])
    variance = larger[0][0] + larger[1][0] - rest / freedom
    spread = sum(square**2 / own for square, own in [*larger, (rest / freedom, freedom)])
    return variance, max(variance**2 / spread, float(min(num_p, num_k) - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values of several tests, corrected so that the chance of any false rejection keeps to the level.

    One that is None is of no test: it stays, and does not count.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6:65–70,
    1979.

    Raises:
        ValueError: a p-value is not within 0…1.
    """
    tested = sorted((p_value, place) for place, p_value in enumerate(p_values) if p_value is not None)
    if not all(0 <= p_value <= 1 for p_value, _ in tested):
        raise ValueError(f"p-values are within 0…1, not {', '.join(str(p_value) for p_value, _ in tested)}")
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p_value, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_value))
        corrected[place] = largest
    return corrected


def verdict(
    difference: Difference,
    num_pretraining_seeds: int,
    corrected_p: float = 0.0,
    min_pairs: int = 8,
    min_pretraining_seeds: int = 3,
) -> str:
    """What the interval allows to be said of transfer: helps, hurts, or neither; never more than the pairs support.

    With one pretraining seed it is said of that checkpoint alone; two are too few to say it of pretraining.

    Args:
        corrected_p: of the difference among several, such as by `holm`; above `ALPHA` there is no evidence.
    """
    if difference.num_pairs < min_pairs:
        return f"too few pairs ({difference.num_pairs})"
    if difference.low is None or difference.high is None:
        return "too few fine-tune seeds (1)"
    if 1 < num_pretraining_seeds < min_pretraining_seeds:
        return f"too few pretraining seeds ({num_pretraining_seeds})"
    words = "no evidence either way"
    if corrected_p <= ALPHA and difference.low > 0:
        words = "transfer helps"
    elif corrected_p <= ALPHA and difference.high < 0:
        words = "transfer hurts"
    return words if num_pretraining_seeds > 1 else f"{words}, for this checkpoint"


def _counts(confusion: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """(..., num_classes) each: beats of each true class, of each predicted class, and rightly predicted."""
    confusion = np.asarray(confusion)
    return confusion.sum(-1), confusion.sum(-2), np.diagonal(confusion, axis1=-2, axis2=-1)


def _ratio(numerator: NDArray, denominator: NDArray, otherwise: float = 0.0) -> Floats:
    return np.divide(
        numerator, denominator, out=np.full(np.shape(numerator), otherwise), where=np.asarray(denominator) > 0
    )


def _mean_over_present(values: Floats, support: NDArray) -> Floats:
    present = support > 0
    return _ratio((values * present).sum(-1), present.sum(-1), otherwise=np.nan)


def _signed_rank_p(differences: Floats) -> float:
    """Exact also with ties, which scipy.stats.wilcoxon(method="exact") is not."""
    from scipy.stats import rankdata

    differences = differences[differences != 0]
    # Tied ranks are halves: doubled, they index the probability of each rank sum under random signs.
    ranks = (2 * rankdata(np.abs(differences))).astype(int)
    probability = np.ones(1)
    for rank in ranks:
        probability = (np.pad(probability, (0, rank)) + np.pad(probability, (rank, 0))) / 2
    positive = ranks[differences > 0].sum()
    return float(min(1.0, 2 * min(probability[: positive + 1].sum(), probability[positive:].sum())))
