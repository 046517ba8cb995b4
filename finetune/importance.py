"""Which dimensions of a search decided its result, whatever searcher drew the trials."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from rich.markup import escape
from rich.table import Table

from experiments.space import Dimension, Given, Scalar, Space, said
from finetune.distributions import distribution

FEWEST = 4
"""Distinct trials; fewer say nothing about any dimension."""
TOP_TRIALS, TOP_SHARE, TOP_MOST = 20, 0.1, 0.4
"""PED-ANOVA's best trials: 20 or a tenth, whichever is more, but at most 40 %. Of a tenth of 40 random trials, a choice
of three that alone decided came out on top 9 times in 15; of 40 %, 15 times."""
SEED = 0

Point = tuple[dict[str, Scalar], float]
"""Values of the active dimensions, and the objective."""
Shares = Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """One finished trial of a search."""

    arm: str
    config: Given
    """May hold more than was searched."""
    value: float
    """The objective; higher is better."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Of one dimension, among the trials in which it is active."""

    name: str
    num_trials: int
    is_conditional: bool
    """Active in some of the trials only."""
    fanova: float | None = None
    """Share, 0 … 1, of the variance that dimensions explain one by one, over the whole space."""
    ped_anova: float | None = None
    """Share of what tells the best trials from all."""
    reason: str | None = None
    """Why there are no shares."""

    @property
    def mean(self) -> float:
        """Of both shares; below all of them where there are none."""
        return -1.0 if self.fanova is None or self.ped_anova is None else (self.fanova + self.ped_anova) / 2


def importances(trials: Sequence[tuple[Given, float]], space: Space, facts: Given) -> list[Importance]:
    """Of each dimension that is active in some trial: those of all trials, then conditional ones, each by importance.

    By fANOVA (Hutter et al. 2014, ICML) and PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255). A conditional
    dimension is judged among the trials in which it is active, beside those that are active in all of them. Trials that
    the space could not have drawn, or without a finite value, do not count.

    Args:
        trials: (config, objective); higher is better.
        facts: of the arm that the trials are of.
    """
    points = [
        (space.params(config, facts), value)
        for config, value in trials
        if math.isfinite(value) and space.accepts(config, facts)
    ]
    groups: dict[tuple[int, ...], list[Dimension]] = {}
    for dimension in space.dimensions:
        active = tuple(number for number, (params, _) in enumerate(points) if dimension.name in params)
        groups.setdefault(active, []).append(dimension)
    rows = []
    for active, judged in groups.items():
        if active:
            among = [points[number] for number in active]
            rows += _judge(among, judged, space, is_conditional=len(among) < len(points))
    return sorted(rows, key=lambda row: (row.is_conditional, -row.mean))


def importance_table(rows: Sequence[Importance], title: str = "Importance of each dimension") -> Table:
    caption = (
        "shares of what the dimensions explain one by one, among the trials in which a dimension is active: of the "
        "variance over the whole space (fANOVA), and of what tells the best trials from all (PED-ANOVA)."
    )
    table = Table(title=escape(title), title_style="bold", caption=caption)
    table.add_column("dimension", no_wrap=True)
    for header in ("fANOVA", "PED-ANOVA", "trials"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("note")
    for row in rows:
        note = row.reason or ("conditional" if row.is_conditional else "")
        table.add_row(escape(row.name), _share(row.fanova), _share(row.ped_anova), str(row.num_trials), escape(note))
    return table


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _judge(
    points: Sequence[Point], judged: Sequence[Dimension], space: Space, is_conditional: bool
) -> list[Importance]:
    """Rows of the dimensions `judged`, which are active in all of these trials."""
    varying = [one for one in space.dimensions if len(_values(points, one)) > 1]
    nothing = _why_nothing(points)
    shares = ({}, {}) if nothing else _shares(points, varying)
    rows = []
    for one in judged:
        reason = nothing or (None if one in varying else f"always {said(points[0][0][one.name])}")
        fanova, ped_anova = (share.get(one.name) for share in shares)
        found = {"fanova": fanova, "ped_anova": ped_anova, "reason": reason}
        rows.append(Importance(name=one.name, num_trials=len(points), is_conditional=is_conditional, **found))
    return rows


def _why_nothing(points: Sequence[Point]) -> str | None:
    num_distinct = len({tuple(params.items()) for params, _ in points})
    if num_distinct < FEWEST:
        return f"{num_distinct} distinct {'trial' if num_distinct == 1 else 'trials'}; {FEWEST} are needed"
    return "all trials have one value" if len({value for _, value in points}) == 1 else None


def _values(points: Sequence[Point], dimension: Dimension) -> set[Scalar]:
    """Those that it takes; none where it is inactive in some trial."""
    if not all(dimension.name in params for params, _ in points):
        return set()
    return {params[dimension.name] for params, _ in points}


def _shares(points: Sequence[Point], dimensions: Sequence[Dimension]) -> tuple[Shares, Shares]:
    """By dimension, of fANOVA and of PED-ANOVA; each sums to 1, or is 0 throughout where nothing is explained."""
    axes = {one.name: _axis(one) for one in dimensions}
    top = min(TOP_MOST, max(TOP_SHARE, TOP_TRIALS / len(points)))
    with _quiet():
        study = optuna.create_study(direction="maximize")
        for params, value in points:
            places = {one.name: _place(one, params[one.name]) for one in dimensions}
            study.add_trial(optuna.create_trial(params=places, distributions=axes, value=value))
        return (
            _evaluate(study, FanovaImportanceEvaluator(seed=SEED), [*axes]),
            _evaluate(study, PedAnovaImportanceEvaluator(target_quantile=top), [*axes]),
        )


def _evaluate(study: optuna.Study, evaluator: BaseImportanceEvaluator, names: list[str]) -> Shares:
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=names, normalize=False)
    total = sum(found.values())
    return {name: float(value / total) if total > 0 else 0.0 for name, value in found.items()}


def _axis(dimension: Dimension) -> BaseDistribution:
    """Logarithmic ranges by their logarithm: Optuna's fANOVA averages evenly over a range, whatever its scale."""
    if dimension.scale == "log":
        return FloatDistribution(math.log(dimension.low), math.log(dimension.high))
    return distribution(dimension)


def _place(dimension: Dimension, value: Scalar) -> Scalar:
    return math.log(value) if dimension.scale == "log" and not isinstance(value, str) else value


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's log lines, and its warnings that something is experimental or that trials are few."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
