"""python -m tests.benchmarks.verdicts: how often intervals hold a difference that is known, and verdicts are right.

Studies of pretraining × fine-tune seeds are drawn with known spreads, in macro recall, and judged by the toolkit's own
`nested_difference`, `verdict` and `holm`. With one pretraining seed the difference is that of this one checkpoint.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from experiments import tables
from experiments.metrics import Difference, holm, nested_difference, verdict

Studies = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return random.normal(size=shape)


def heavy(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Student's t of 3 degrees of freedom, of variance 1."""
    return random.standard_t(3, size=shape) / np.sqrt(3)


def skewed(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """An exponential distribution with its tail below, of mean 0 and variance 1: few runs fail, and badly."""
    return 1 - random.exponential(size=shape)


@dataclass(frozen=True, kw_only=True)
class Luck:
    """Standard deviations of what each seed adds to a difference."""

    name: str
    pretraining: float
    fine_tune: float
    """Shared by all encoders of a fine-tune seed: the control's run is one of it."""
    run: float
    draw: Draw = normal


DESIGNS = ((1, 8), (3, 8), (5, 8))
REALISTIC = Luck(name="realistic", pretraining=0.005, fine_tune=0.01, run=0.01)
LUCK = (
    REALISTIC,
    Luck(name="pretraining decides", pretraining=0.02, fine_tune=0.01, run=0.01),
    Luck(name="fine-tuning decides", pretraining=0.005, fine_tune=0.02, run=0.01),
    Luck(name="none of pretraining", pretraining=0.0, fine_tune=0.01, run=0.01),
    Luck(name="none of fine-tuning", pretraining=0.01, fine_tune=0.0, run=0.01),
    Luck(name="of runs alone", pretraining=0.0, fine_tune=0.0, run=0.01),
    Luck(name="none of runs", pretraining=0.005, fine_tune=0.01, run=0.0),
    Luck(name="realistic, heavy tails", pretraining=0.005, fine_tune=0.01, run=0.01, draw=heavy),
    Luck(name="realistic, skewed", pretraining=0.005, fine_tune=0.01, run=0.01, draw=skewed),
)
DIFFERENCES = (0.01, 0.02, 0.03, -0.01, -0.02, -0.03)
NUM_ARMS = 3


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Shares of the studies."""

    covered: float
    helps: float
    hurts: float
    half_width: float
    """Median of half the interval's width."""


def simulate(design: tuple[int, int], luck: Luck, difference: float, num_studies: int, seed: int = 0) -> Studies:
    """Studies of a true `difference`: (num_studies, num_pretraining_seeds, num_fine_tune_seeds)."""
    random, (num_p, num_k) = np.random.default_rng(seed), design
    of_p = luck.pretraining * luck.draw(random, (num_studies, num_p, 1)) * (num_p > 1)
    of_k = luck.fine_tune * luck.draw(random, (num_studies, 1, num_k))
    return difference + of_p + of_k + luck.run * luck.draw(random, (num_studies, num_p, num_k))


def judge(studies: Studies, truth: float) -> Judged:
    found = [nested_difference(study) for study in studies]
    words = [words_of(one, studies.shape[1]) for one in found]
    low, high = np.array([_bounds(one) for one in found]).T
    return Judged(
        covered=float(np.mean((low <= truth) & (truth <= high))),
        helps=float(np.mean([said.startswith("transfer helps") for said in words])),
        hurts=float(np.mean([said.startswith("transfer hurts") for said in words])),
        half_width=float(np.median(high - low) / 2),
    )


def words_of(difference: Difference, num_pretraining_seeds: int) -> str:
    """The verdict of the only arm of a comparison."""
    (corrected,) = holm([difference.p_value])
    return verdict(difference, num_pretraining_seeds, 0.0 if corrected is None else corrected)


def _bounds(difference: Difference) -> tuple[float, float]:
    assert difference.low is not None and difference.high is not None
    return difference.low, difference.high


def false_alarms(design: tuple[int, int], num_studies: int, level: float = 0.05) -> tuple[float, float]:
    """Where none of `NUM_ARMS` arms differs from their one control: the shares of studies in which the p-value of any
    arm, and of any after Holm's correction, is at most `level`."""
    half = REALISTIC.fine_tune / np.sqrt(2)
    studies = [simulate(design, replace(REALISTIC, fine_tune=half), 0.0, num_studies, arm) for arm in range(NUM_ARMS)]
    control = half * np.random.default_rng(NUM_ARMS).normal(size=(num_studies, 1, design[1]))
    single = corrected = 0
    for arms in zip(*(study - control for study in studies), strict=True):
        p_values = [nested_difference(arm).p_value for arm in arms]
        single += _any_at_most(p_values, level)
        corrected += _any_at_most(holm(p_values), level)
    return single / num_studies, corrected / num_studies


def _any_at_most(p_values: Sequence[float | None], level: float) -> bool:
    return any(p_value is not None and p_value <= level for p_value in p_values)


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_style="bold")
    table.add_column("seeds", no_wrap=True)
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=10_000)
    num_studies = parser.parse_args().studies
    title, shown = f"{num_studies:,} studies each", tables.console()
    columns = ("interval holds it", "helps", "no evidence", "hurts", "half width")
    coverage = _table(f"No difference, {title}", "luck (of pretraining, fine-tuning, run)", columns)
    power = _table(f"Realistic luck, {title}", "true difference", columns)
    for design in DESIGNS:
        for luck in LUCK:
            if luck.pretraining == REALISTIC.pretraining or design[0] > 1:
                spreads = ", ".join(f"{spread:g}" for spread in (luck.pretraining, luck.fine_tune, luck.run))
                judged = judge(simulate(design, luck, 0.0, num_studies), 0.0)
                coverage.add_row(_said(design), f"{luck.name} ({spreads})", *_columns(judged))
        for difference in DIFFERENCES:
            judged = judge(simulate(design, REALISTIC, difference, num_studies, seed=1), difference)
            power.add_row(_said(design), f"{difference:+g}", *_columns(judged))
    shown.print(coverage)
    shown.print(power)
    for design in DESIGNS[1:]:
        single, corrected = (f"{100 * share:.1f} %" for share in false_alarms(design, num_studies))
        tables.say(
            f"{_said(design)} seeds, {NUM_ARMS} arms without a difference: p ≤ .05 of any arm in {single} of the "
            f"studies, after Holm's correction in {corrected}"
        )


def _said(design: tuple[int, int]) -> str:
    return f"{design[0]} × {design[1]}"


def _columns(judged: Judged) -> list[str]:
    neither = 1 - judged.helps - judged.hurts
    shares = (judged.covered, judged.helps, neither, judged.hurts)
    return [*(f"{100 * share:.1f} %" for share in shares), f"{judged.half_width:.4f}"]


if __name__ == "__main__":
    main()
